"""What the proofs of the browser client share: long answers, Node, the client itself and clients that are wrong."""

import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.chaos import Chaos
from tests.clients import request
from tests.fake_upstream import Act, Done, FakeUpstream, Pause, Reply, Step, finish, reasoning, role, token, tool_call
from tests.live import ROOT, LiveServer, live_server
from tests.proving import CALLS, PIECES

WEB = ROOT / "clients" / "web"
TOOLS = ROOT / "tests" / "web"
CLIENT = WEB / "chatserver.js"

HEARTBEAT_SECONDS = 0.3
"""A frozen connection is given up after 2.5 of them."""

OPENING_BYTES = 1000
"""More than what comes over a connection before its first event: a head, and the replies to commands."""

PACE = {"heartbeatMs": HEARTBEAT_SECONDS * 1000, "connectMs": 1500}


@cache
def node() -> str:
    """Node 20 or newer, with the packages in ``tests/web``."""
    found = shutil.which("node")
    if found is None or int(subprocess.check_output([found, "--version"], text=True)[1:].partition(".")[0]) < 20:
        pytest.skip("Node 20 is not installed")
    if not (TOOLS / "node_modules" / ".package-lock.json").exists():
        pytest.skip("the packages of tests/web are not installed: `npm ci` there")
    return found


def tool(name: str) -> str:
    """A program of the packages in ``tests/web``."""
    node()
    return str(TOOLS / "node_modules" / ".bin" / name)


def long_answer(tokens: int, pause_seconds: float = 0.01) -> Act:
    """Reasoning, some text, two tool calls, and so many tokens: five at a time."""

    def steps(reply: Reply) -> list[Step]:
        if reply.request.json["messages"][-1]["role"] != "tool":
            calls = itertools.chain(*(tool_call(*call, id=f"call_{n}", index=n) for n, call in enumerate(CALLS)))
            return [role(), *map(reasoning, PIECES[:9]), *map(token, PIECES[:9]), *calls, finish("tool_calls"), Done()]
        said: list[Step] = []
        for number, text in enumerate(_texts(tokens)):
            said.append(token(text))
            if number % 5 == 4 and pause_seconds:
                said.append(Pause(pause_seconds))
        return [role(), *said, finish(), Done()]

    return steps


def reach(tokens: int) -> int:
    """Within how many bytes to cut who reads a long answer: half of the connections carry its longest event whole.

    That is its text, merged, which a reader gets that has fallen behind.
    """
    return OPENING_BYTES + 2 * len(json.dumps("".join(_texts(tokens)), ensure_ascii=False).encode())


def patience_seconds(cuts: int) -> float:
    """How long it may take on a busy machine to read through so many cuts, before it counts as a hang."""
    return 20 + 2 * cuts


def _texts(tokens: int) -> list[str]:
    return [f"{piece}{number}" for number, piece in zip(range(tokens), itertools.cycle(PIECES), strict=False)]


@asynccontextmanager
async def harmed(act: Act, files: Mapping[str, bytes] | None = None, **settings: Any) -> AsyncIterator[Chaos]:
    """A server whose model acts like this, behind a proxy that harms."""
    settings = {"heartbeat_seconds": HEARTBEAT_SECONDS} | settings
    async with FakeUpstream() as upstream, live_server(upstream.url, **settings) as server:
        upstream.always(act)
        async with Chaos(server, files) as chaos:
            yield chaos


async def answers_of_node(chaos: Chaos, module: Path = CLIENT, **script: Any) -> list[dict[str, Any]]:
    """What ``tests/web/reader.mjs`` read."""
    answers: list[dict[str, Any]] = (await told_by_node(chaos.url, module, **script))["answers"]
    return answers


async def told_by_node(url: str, module: Path = CLIENT, **script: Any) -> dict[str, Any]:
    """All that ``tests/web/reader.mjs`` tells of what it read."""
    script = {"module": str(module), "url": url, **PACE} | script
    done = await anyio.run_process([node(), str(TOOLS / "reader.mjs"), json.dumps(script)], check=False)
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, Any] = json.loads(done.stdout)
    return told


async def check_answers(server: LiveServer | Any, answers: Sequence[Mapping[str, Any]]) -> None:
    """What the client holds is what the server holds, and each message was answered once."""
    for answer in answers:
        assert answer["error"] is None, answer["error"]
        run = await get(server, f"/chat/runs/{answer['id']}")
        # First, since what a wrong client has lost may be the end itself.
        assert answer["events"] == answer["seq"] == run["last_seq"], f"{answer['events']} of {run['last_seq']} events"
        assert (run["status"], answer["end"]["type"]) == ("completed", "done"), run
        messages = (await get(server, f"/chat/sessions/{answer['sessionId']}"))["messages"]
        assert len(messages) == 2
        stored = messages[-1]
        assert answer["text"] == stored["content"], f"the text is {answer['text']!r}"
        assert answer["parts"] == stored["parts"], f"the parts are {answer['parts']!r}"
        assert answer["usage"] == stored["usage"]
    sessions = (await get(server, "/chat/sessions?limit=100"))["sessions"]
    assert len(sessions) == len(answers), f"{len(sessions)} sessions for {len(answers)} messages"


async def get(server: Any, path: str) -> Any:
    response = await request(server, "GET", path)
    assert response.status == 200, response
    return response.json


def wrong(folder: Path, *changes: tuple[str, str]) -> Path:
    """A client with a fault: each text, which must be there once, replaced by another."""
    source = CLIENT.read_text()
    for right, fault in changes:
        assert source.count(right) == 1, f"{right!r} is there {source.count(right)} times"
        source = source.replace(right, fault)
    path = folder / "chatserver.js"
    path.write_text(source)
    return path
