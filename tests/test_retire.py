"""A server that is replaced: it accepts nothing more, answers what is still asked, and breaks no connection."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from chatserver.serving import server as ending
from tests.clients import SSE, TRANSPORTS, Transport, Wire, documents_of, is_terminal, text_of
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import LiveServer, live_server

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30.0
GET = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@asynccontextmanager
async def server_with_heir(gate: anyio.Event) -> AsyncIterator[tuple[LiveServer, socket.socket]]:
    """A server whose runs wait for the gate, and the listening socket as its successor has it."""
    with anyio.fail_after(WAIT_SECONDS):
        async with FakeUpstream() as upstream, live_server(upstream.url, drain_seconds=WAIT_SECONDS) as server:
            upstream.always(token("so far"), Gate(gate), *say(" so good"))
            with server.listening.dup() as heir:
                heir.setblocking(False)
                yield server, heir


async def answer(wire: Wire) -> bytes:
    """What comes to one small request, read to its end."""
    got = await wire.read()
    while not got.endswith(b"}"):
        got += await wire.read()
    return got.lower()


async def test_it_leaves_new_connections_to_its_successor() -> None:
    async with server_with_heir(anyio.Event()) as (server, heir):
        server.server.retire()
        await anyio.lowlevel.checkpoint()
        for _ in range(20):
            wire = await Wire.open(server)
            accepted, _ = await asyncio.get_running_loop().sock_accept(heir)
            accepted.close()
            wire.cut()


async def test_who_came_before_is_answered_once_more_and_the_rest_is_closed() -> None:
    async with server_with_heir(gate := anyio.Event()) as (server, _):
        reading = await SSE.start(server, {"message": "x"})
        fresh, kept, silent = wires = [await Wire.open(server) for _ in range(3)]
        for wire in (kept, silent):
            wire.write(GET)
            assert b"connection: close" not in await answer(wire)
        while server.connections < 4:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.001)
        server.server.retire()
        await anyio.lowlevel.checkpoint()
        for wire in (fresh, kept):
            wire.write(GET)
            assert b" 200 " in (got := await answer(wire)) and b"connection: close" in got
            assert await wire.read() == b""
        assert await silent.read() == b"", "while an answer still goes on"
        gate.set()
        await documents_of(reading)
        for wire in wires:
            wire.cut()


async def test_at_the_end_of_a_drain_who_was_just_accepted_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker, which still drains, would have accepted the connection a moment later."""
    monkeypatch.setattr(ending, "ACCEPTED_SECONDS", WAIT_SECONDS)
    async with server_with_heir(anyio.Event()) as (server, heir):
        fresh, begun, kept = wires = [await Wire.open(server) for _ in range(3)]
        kept.write(GET)
        await answer(kept)
        begun.write(GET[:20])
        while server.connections < 3:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.001)
        server.begin_drain()
        while any(each.is_serving() for each in server.server.servers):  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.001)
        left = await Wire.open(server)
        accepted, _ = await asyncio.get_running_loop().sock_accept(heir)
        accepted.close()
        for wire, request in ((begun, GET[20:]), (fresh, GET)):
            wire.write(request)
            assert b" 200 " in (got := await answer(wire)) and b"connection: close" in got
        await server.server.main_loop()
        for wire in (*wires, left):
            wire.cut()


async def test_the_end_of_a_drain_waits_for_no_request_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server_with_heir(anyio.Event()) as (server, _):
        silent = await Wire.open(server)
        while server.connections < 1:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.001)
        server.begin_drain()
        await server.server.main_loop()
        silent.cut()


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
async def test_an_answer_that_goes_on_is_read_to_its_end(transport: Transport) -> None:
    async with server_with_heir(gate := anyio.Event()) as (server, _):
        reading = await transport.start(server, {"message": "x"})
        await reading.take(2)
        server.server.retire()
        while not server.runs.is_draining:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.01)
        gate.set()
        await documents_of(reading)
        assert text_of(reading.documents) == "so far so good" and is_terminal(reading.documents[-1])
