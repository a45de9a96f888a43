"""What the proxies of tests share: a listener for the time of a block, and how a connection is reset."""

import asyncio
import socket
import struct
from contextlib import AsyncExitStack, suppress
from typing import Self

from tests.tcp_server import HOST, tcp_server


class TcpProxy:
    """The listener. A subclass says what becomes of a connection, in ``carry``."""

    host = HOST

    def __init__(self) -> None:
        self.port = 0
        self._stack = AsyncExitStack()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, from its beginning to its end."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self.port = await self._stack.enter_async_context(tcp_server(self.carry))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


def reset_connection(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST, as a machine that knows nothing of it."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
