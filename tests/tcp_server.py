"""A TCP server of raw bytes whose connections are closed when its block ends, whatever became of their tasks."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

from tests.fake_upstream import listening_socket_is_closed

HOST = "127.0.0.1"
BACKLOG = 4096

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves one connection, from its beginning to its end; it is closed then."""


@asynccontextmanager
async def tcp_server(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Listen on a free port of ``HOST`` until the end of the block; the port.

    A connection that is open when the loop ends would be reported in whatever test the garbage is collected.
    """
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connected(reader, writer))
        connections[task] = writer
        task.add_done_callback(left)

    def left(task: asyncio.Task[None]) -> None:
        transport = connections.pop(task).transport
        if not transport.is_closing() or transport.get_write_buffer_size():  # Closed, asyncio's cannot be aborted.
            transport.abort()

    server = await asyncio.start_server(accept, HOST, 0, ssl=tls, backlog=BACKLOG)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        tasks = list(connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening_socket_is_closed()
