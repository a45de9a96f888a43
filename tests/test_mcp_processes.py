"""MCP servers of a server that is a process: without the package that talks to them, and with several workers."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.serving.supervisor import FAILED_STATUS
from tests.clients import BOTH, documents_of
from tests.fake_upstream import FakeUpstream, Reply, Step, call, say
from tests.live import ServerProcess
from tests.program import until
from tests.redis_server import RedisServer
from tests.test_mcp import is_alive, journal, pids, small
from tests.test_waiting import answered, events_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

SECONDS = 120.0
WITHOUT_PACKAGE = "import sys; sys.modules['mcp'] = None; from chatserver.cli import main; main()"
SIZE = {"action": "accept", "content": {"size": 42}}


@pytest.mark.parametrize(("workers", "status"), [(1, 1), (2, FAILED_STATUS)])
async def test_without_the_package_the_server_does_not_start_and_says_what_to_install(
    workers: int, status: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"workers": workers, "redis_url": "redis://127.0.0.1:9"} if workers > 1 else {}
    server = ServerProcess(None, tmp_path, start=("-c", WITHOUT_PACKAGE), mcp=(small(tmp_path),), **settings)
    with anyio.fail_after(SECONDS), pytest.raises(RuntimeError, match=f"the program ended with {status}"):
        async with server:
            """It does not get so far."""
    assert any("CHATSERVER_MCP: needs the package mcp: pip install 'chatserver[mcp]'" in line for line in server.stderr)
    assert "Traceback" not in server.output and server.stdout == []
    assert not (tmp_path / "pids").exists(), "no MCP server was started for it"


def asks_once(reply: Reply) -> list[Step]:
    """A model that has the tool ask, and is content with what it hears."""
    is_first = reply.request.json["messages"][-1]["role"] == "user"
    return list(call("s__ask", {}) if is_first else say("done"))


async def test_each_worker_has_servers_of_its_own_and_any_worker_takes_the_answer_to_a_question(tmp_path: Path) -> None:
    async def are_ready() -> bool:
        return [each.get("method") for each in journal(tmp_path)].count("tools/list") == 2

    with anyio.fail_after(SECONDS):
        async with FakeUpstream() as upstream, RedisServer() as redis:
            upstream.always(asks_once)
            options: dict[str, Any] = {"redis_url": redis.url, "mcp": (f"s={small(tmp_path)}",)}
            async with ServerProcess(upstream.url, tmp_path, "--workers", "2", **options) as server:
                await until(are_ready)
                for transport in [*BOTH] * 4:
                    reading = await transport.start(server, {"message": "Shoes"})
                    _, question = events_of(await reading.take(3), "tool_call")
                    # Over a connection of its own, which either worker accepts.
                    status = await answered(server, reading.run_id, question["call_id"], transport, result=SIZE)
                    assert status == 202
                    result = events_of(await documents_of(reading), "tool_result")[-1]
                    assert (json.loads(result["result"]), result["is_error"]) == (SIZE, False)
                server.terminate()
                assert await server.wait() == 0
                assert "Traceback" not in server.output
    assert len(pids(tmp_path)) == 2 and not any(map(is_alive, pids(tmp_path)))
