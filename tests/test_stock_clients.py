"""Readers of SSE that the field uses: whatever the moment of a ping or of a cut, each event comes once and has data."""

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import anyio
import httpx
import httpx_sse
import pytest
import sseclient
from openai._streaming import SSEDecoder

from chatserver.transports.formats.sse import EventStream
from tests.clients import HttpReader
from tests.fake_upstream import FakeUpstream, Gate, call, say, token
from tests.live import live_server
from tests.merging import numbers_of, seq_of
from tests.web_client import TOOLS, node

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
TOKENS = 5
CUT_BYTES = 400
"""So many bytes at the end of a stream are cut at each of them in JavaScript; ids have two digits there."""

Seen: TypeAlias = tuple[str | None, str, str]
"""What a reader says of an event: its type, data and id."""

Reader: TypeAlias = Callable[[Iterable[bytes]], Iterator[Seen]]


@pytest.fixture(scope="module")
async def streams(anyio_backend: str) -> list[bytes]:
    """The body of one run from each cursor; that of the first reader has a ping between all events, and a farewell."""
    async with FakeUpstream() as upstream, live_server(upstream.url, heartbeat_seconds=0.1) as server:
        gates = [anyio.Event() for _ in range(TOKENS)]
        said = [step for gate in gates for step in (token("é "), Gate(gate))]
        upstream.script(*call("calculator", {"expression": "1 + 1"}))
        upstream.script(*said, *say("end."))
        with anyio.fail_after(WAIT_SECONDS):
            reader = await HttpReader.post(server, "/chat/stream", {"message": "x"})
            for gate in gates:
                before = reader.raw.count(b": ping\n")
                while reader.raw.count(b": ping\n") < before + 2:
                    await reader.more()
                gate.set()
            whole = await reader.read_all()
            run_id = json.loads(whole.split(b"data: ")[1].split(b"\n")[0])["run_id"]
            count = whole.count(b"\nid: ")
            rest = list[bytes]()
            for at in range(1, count):
                async with await HttpReader.get(server, f"/chat/runs/{run_id}/events?after={at}") as other:
                    rest.append(await other.read_all())
    assert whole.startswith(b"retry: 1000\nevent: start\n") and whole.count(b": ping\n") >= 2 * TOKENS
    return [whole + EventStream().farewell(), *rest]


def by_httpx_sse(pieces: Iterable[bytes]) -> Iterator[Seen]:
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=iter(pieces))
    for event in httpx_sse.EventSource(response).iter_sse():
        yield event.event, event.data, event.id


def by_openai(pieces: Iterable[bytes]) -> Iterator[Seen]:
    for event in SSEDecoder().iter_bytes(iter(pieces)):
        yield event.event, event.data, event.id or ""


def by_sseclient(pieces: Iterable[bytes]) -> Iterator[Seen]:
    for event in sseclient.SSEClient(iter(pieces)).events():
        yield event.event, event.data, event.id or ""


AIOHTTP_LINE_BYTES = 2**17
"""A longer line is an error in aiohttp, as its default is."""


def by_lines(pieces: Iterable[bytes]) -> Iterator[Seen]:
    """As clients on aiohttp read: line by line, the fields by hand; what has no empty line behind it is no event."""
    kind, data, last_id, rest = "message", list[str](), "", b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            assert len(line) < AIOHTTP_LINE_BYTES
            name, _, value = line.decode().rstrip("\r").partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "data":
                data.append(value)
            elif name == "id":
                last_id = value
            elif name == "retry":
                assert int(value) > 0
            elif not line:
                if data:
                    yield kind, "\n".join(data), last_id
                kind, data = "message", []


def lost(data: bytes) -> Iterator[bytes]:
    """What comes before the connection is lost."""
    yield data
    raise ConnectionResetError


def check(seen: list[Seen], count: int) -> None:
    documents = [data.encode() for _, data, _ in seen]
    assert [number for each in documents for number in numbers_of(each)] == list(range(1, count + 1))
    assert [int(id) for _, _, id in seen] == [seq_of(each) for each in documents]
    assert [type for type, _, _ in seen] == [json.loads(each)["type"] for each in documents]


@pytest.mark.parametrize("read", [by_httpx_sse, by_openai, by_sseclient, by_lines])
def test_readers_in_python(streams: list[bytes], read: Reader) -> None:
    whole, count = streams[0], len(streams)
    for at in range(len(whole) + 1):
        check(list(read([piece for piece in (whole[:at], whole[at:]) if piece])), count)
        seen = list[Seen]()
        with pytest.raises(ConnectionResetError):
            seen.extend(read(lost(whole[:at])))
        if len(seen) < count:
            seen.extend(read([streams[int(seen[-1][2]) if seen else 0]]))
        check(seen, count)


async def test_readers_in_javascript(streams: list[bytes], tmp_path: Path) -> None:
    """``@microsoft/fetch-event-source`` believes an id before the event has ended: there is one byte to lose it at."""
    script = Path(tmp_path, "streams.json")
    bodies = [base64.b64encode(each).decode() for each in streams]
    script.write_text(json.dumps({"streams": bodies, "from": len(streams[0]) - CUT_BYTES}))  # noqa: ASYNC240
    done = await anyio.run_process([node(), str(TOOLS / "stock.mjs"), str(script)], check=False)
    assert done.returncode == 0, done.stderr.decode()
    wrong = json.loads(done.stdout)
    whole = streams[0]
    early = [at + 1 for at in range(len(whole) - CUT_BYTES - 1, len(whole)) if whole[at : at + 2] == b"\n\n"]
    assert wrong.pop("@microsoft/fetch-event-source") == {"cut": early, "split": []}
    assert len(wrong) == 4 and all(each == {"cut": [], "split": []} for each in wrong.values()), wrong
