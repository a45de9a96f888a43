"""A server that nobody uses hardly ever wakes: its clocks stand still. Time is virtual, and the wakes are counted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from chatserver.app import create_app
from chatserver.serving.server import Server
from chatserver.serving.sockets import bind
from tests.clients import WsReader, request
from tests.live import LiveServer, settings_for
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

SECONDS = 60
THREAD_SECONDS = 0.02
"""What a transaction of SQLite may take: it is made in a thread."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": lambda: VirtualTimeLoop(THREAD_SECONDS)}


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[LiveServer]:
    """A server in this loop. It is waited for without a timeout: virtual time has no patience with threads."""
    settings = settings_for(None, directory)
    sock, ready = bind(settings), asyncio.Event()
    settings = msgspec.structs.replace(settings, port=sock.getsockname()[1])
    server = Server(settings, create_app(settings), on_ready=ready.set)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    await ready.wait()
    try:
        yield LiveServer(server, settings, sock)
    finally:
        server.stop()
        await serving


async def wakes_a_second(seconds: int) -> float:
    loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
    before = loop.wakes
    await asyncio.sleep(seconds)
    return (loop.wakes - before) / seconds


async def test_a_server_without_connections_wakes_at_most_once_a_second(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        assert (await request(server, "GET", "/livez")).status == 200
        await asyncio.sleep(10)  # What was open is looked after once more.
        assert server.connections == 0
        assert await wakes_a_second(SECONDS) <= 1


async def test_an_open_connection_costs_a_look_now_and_then(tmp_path: Path) -> None:
    async with served(tmp_path) as server, await WsReader.connect(server):
        assert await wakes_a_second(30) <= 2
