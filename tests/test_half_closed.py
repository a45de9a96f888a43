"""Clients that close their sending half behind a request (SHUT_WR): answered in full, and missed when they go."""

import asyncio
import json
from collections.abc import AsyncIterator

import anyio
import pytest

from chatserver.serving import http_protocol
from chatserver.serving.lost_peers import is_lost
from tests.clients import Wire, get_run, request
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import LiveServer, live_server
from tests.scrapes import scrape
from tests.test_slow_requests import BODY, statuses
from tests.virtual_time import Clock, leaping_time

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
ACCEPTS = ("text/event-stream", "application/x-ndjson", "text/plain")
TEXT = "An answer for you."
GRACE_SECONDS = 0.2


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    with leaping_time() as clock:
        yield clock


@pytest.fixture
async def server(upstream: FakeUpstream, clock: Clock) -> AsyncIterator[LiveServer]:
    async with live_server(upstream.url, grace_seconds=GRACE_SECONDS) as live:
        yield live


def ask(accept: str, version: str = "1.1") -> bytes:
    head = (
        f"POST /chat/stream HTTP/{version}\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAccept: {accept}\r\n"
    )
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


async def half_closed(server: LiveServer, data: bytes) -> Wire:
    wire = await Wire.open(server)
    wire.write(data)
    wire.writer.write_eof()
    return wire


async def over(server: LiveServer, run_id: str) -> None:
    while (await get_run(server, run_id))["finished_at"] is None:  # noqa: ASYNC110  # a reader would keep it going
        await anyio.sleep(0.02)


async def nobody_has_left(upstream: FakeUpstream, clock: Clock) -> None:
    """Let more than the grace period pass in mid answer: whoever had left would be missed."""
    await upstream.next_request()
    await clock.pause(2 * GRACE_SECONDS)


async def all_of(wire: Wire) -> bytes:
    """All that comes until the server closes."""
    found = b""
    with anyio.fail_after(WAIT_SECONDS):
        while data := await wire.read():
            found += data
    wire.cut()
    return found


def body_of(answer: bytes) -> bytes:
    """The body in chunks, as a strict reader of RFC 9112 takes them."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        assert rest[int(size, 16) :].startswith(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        if int(size, 16) == 0:
            assert rest == b""
            return body


@pytest.mark.parametrize("is_early", [True, False], ids=["before the answer", "in mid answer"])
@pytest.mark.parametrize("accept", ACCEPTS)
async def test_a_stream_comes_to_its_end(
    server: LiveServer, upstream: FakeUpstream, clock: Clock, accept: str, is_early: bool
) -> None:
    gate = anyio.Event()
    upstream.script(token(TEXT[:9]), Gate(gate), *say(TEXT[9:], 3))
    wire = await Wire.open(server)
    wire.write(ask(accept))
    begun = b""
    if not is_early:
        with anyio.fail_after(WAIT_SECONDS):
            while TEXT[:9].encode() not in begun:
                begun += await wire.read()
    wire.writer.write_eof()
    await nobody_has_left(upstream, clock)
    gate.set()
    body = body_of(begun + await all_of(wire))
    if accept == "text/plain":
        assert body.decode() == TEXT
    else:
        lines = [line.removeprefix(b"data: ") for line in body.split(b"\n")]
        events = [json.loads(line) for line in lines if line.startswith(b"{")]
        assert events[-1]["type"] == "done" and events[-1]["finish_reason"] == "stop"
        assert "".join(each["content"] for each in events if each["type"] == "token") == TEXT


async def test_a_stream_of_http_1_0_comes_to_its_end(server: LiveServer, upstream: FakeUpstream, clock: Clock) -> None:
    gate = anyio.Event()
    upstream.script(Gate(gate), *say(TEXT, 3))
    wire = await half_closed(server, ask("text/plain", "1.0"))
    await nobody_has_left(upstream, clock)
    gate.set()
    assert (await all_of(wire)).endswith(b"\r\n\r\n" + TEXT.encode())


async def test_requests_behind_each_other_are_all_answered_and_the_connection_closes(
    server: LiveServer, upstream: FakeUpstream
) -> None:
    upstream.script(*say(TEXT, 3))
    live = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    answer = await all_of(await half_closed(server, live * 3 + ask("text/plain") + live * 3))
    assert statuses(answer) == [200] * 7


@pytest.mark.parametrize(
    "data",
    [b"", b"GET /livez HTTP/1.1\r\n", ask("text/plain")[:-1]],
    ids=["nothing", "half a head", "half a body"],
)
async def test_half_a_request_gets_no_answer(server: LiveServer, data: bytes) -> None:
    assert await all_of(await half_closed(server, data)) == b""


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_whoever_is_gone_is_missed_while_the_model_is_silent(
    server: LiveServer, upstream: FakeUpstream, accept: str
) -> None:
    """A closed socket sends the same FIN as a half-closed one: the grace period begins all the same."""
    gate = anyio.Event()
    upstream.script(token("An"), Gate(gate), *say(" answer", 1))
    wire = await Wire.open(server)
    wire.write(ask(accept))
    with anyio.fail_after(WAIT_SECONDS):
        while b"An" not in await wire.read():
            pass
        wire.cut()
        while server.connections:  # noqa: ASYNC110  # uvicorn tells nobody
            await anyio.sleep(0.01)
    (session,) = (await request(server, "GET", "/chat/sessions")).json["sessions"]
    with anyio.fail_after(WAIT_SECONDS):
        await over(server, session["active_run_id"])
    assert (await get_run(server, session["active_run_id"]))["status"] == "cancelled"
    assert not gate.is_set()


@pytest.mark.parametrize("before", [0, 1], ids=["the only one", "behind another"])
async def test_whoever_goes_later_is_missed_too(
    server: LiveServer, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    first, second, looked = anyio.Event(), anyio.Event(), anyio.Event()

    def look(transport: asyncio.Transport) -> bool:
        looked.set()
        return is_lost(transport)

    for _ in range(before):
        upstream.script(*say("First.", 1))
    upstream.script(token("An"), Gate(first), token(" answer"), Gate(second), *say(".", 1))
    wire = await half_closed(server, ask("text/plain") * (before + 1))
    with anyio.fail_after(WAIT_SECONDS):
        while b"An" not in await wire.read():
            pass
        monkeypatch.setattr(http_protocol, "is_lost", look)
        await looked.wait()
        assert server.connections == 1
        wire.cut()
        first.set()  # What is said now nobody takes.
        while server.connections:  # noqa: ASYNC110  # as above
            await anyio.sleep(0.01)
    assert not second.is_set()


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_whoever_resets_has_left_and_was_not_dropped(
    server: LiveServer, upstream: FakeUpstream, accept: str
) -> None:
    upstream.script(token("An"), Gate(anyio.Event()))
    wire = await half_closed(server, ask(accept))
    with anyio.fail_after(WAIT_SECONDS):
        while b"An" not in await wire.read():
            pass
        before = (await scrape(server))("chatserver_peers_dropped_total")
        wire.reset()
        while server.connections:  # noqa: ASYNC110  # as above
            await anyio.sleep(0.01)
    assert (await scrape(server))("chatserver_peers_dropped_total") == before
