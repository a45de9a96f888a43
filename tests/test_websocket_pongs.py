"""Pings of the WebSocket protocol find a program that has stopped, and take no slow reader for one."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from chatserver.serving import lost_peers, websocket_protocol
from tests.clients import WS, Wire, WsReader, documents_of
from tests.fake_upstream import Done, FakeUpstream, finish, role, token
from tests.life import in_time
from tests.live import LiveServer, live_server

pytestmark = pytest.mark.anyio

KERNEL_BYTES = 4096
PONG_SECONDS = 0.3


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_peers, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(websocket_protocol, "PING_SECONDS", 2 * PONG_SECONDS)
    monkeypatch.setattr(websocket_protocol, "PONG_SECONDS", PONG_SECONDS)


async def until_nobody_is_connected(server: LiveServer) -> None:
    while server.connections:  # noqa: ASYNC110 - uvicorn tells nobody
        await anyio.sleep(0.01)


@in_time
async def test_a_program_that_answers_no_pings_is_cut_off() -> None:
    async with live_server(None) as server, await WsReader.connect(server):
        await until_nobody_is_connected(server)


@in_time
async def test_a_program_that_answers_pings_stays() -> None:
    async with live_server(None) as server, await WsReader.connect(server) as reader:
        with anyio.move_on_after(4 * PONG_SECONDS):
            await reader.frame()
        reader.send({"type": "ping"})
        await reader.until("pong")


def read_slowly(wire: Wire) -> None:
    """From now on each read takes what the kernel holds, and a while."""
    read = wire.read

    async def slowly() -> bytes:
        wire.go_on()
        data = await read()
        wire.stop()
        await anyio.sleep(PONG_SECONDS / 6)
        return data

    wire.read = slowly  # type: ignore[method-assign]


@asynccontextmanager
async def told(events: int, **settings: Any) -> AsyncIterator[tuple[LiveServer, WsReader, list[bytes]]]:
    """A reader that takes nothing of a run yet, on a server whose kernel holds little for its peers; and the run."""
    async with FakeUpstream() as upstream, live_server(upstream.url, **settings) as server:
        for listener in server.server.servers[0].sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)  # What it accepts inherits it.
        upstream.script(role(), *[token(f"{number}" + "€" * 5_000) for number in range(events)], finish(), Done())
        async with await WS.start(server, {"message": "Tell"}) as first:
            whole = await documents_of(first)
        async with await WsReader.connect(server, receive_bytes=KERNEL_BYTES) as reader:
            reader.stop()
            reader.send({"type": "attach", "run_id": first.run_id})
            yield server, reader, whole


@in_time
async def test_a_slow_reader_stays_while_its_pings_wait_behind_what_it_has_not_taken_yet() -> None:
    async with told(events=16) as (_, reader, whole):
        read_slowly(reader.wire)
        await reader.until("done")
        assert reader.documents == whole


@in_time
async def test_a_reader_that_stops_in_front_of_a_ping_is_cut_off_by_the_send_timeout() -> None:
    """Where so little waits that the server takes the peer for writable, too."""
    async with told(events=3, send_timeout_seconds=1.0) as (server, _, _):
        await until_nobody_is_connected(server)
