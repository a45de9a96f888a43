"""Responses that are no streams: private unless they say otherwise, and over when the peer has taken them."""

import asyncio
from asyncio import Transport

from chatserver.transports.connections import TRANSPORT, Connection, Connections, Message, Scope, Send, emptied

PRIVATE = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""Headers of each response without a `Cache-Control` of its own: it belongs to a user, or is true for a moment only."""

PIECE_BYTES = 64 * 1024
"""What a peer must take of a response in CHATSERVER_SEND_TIMEOUT_SECONDS."""


class WatchedSend:
    """ASGI's ``send`` of one HTTP request. A whole response (it has a length) is over when the peer has taken it."""

    __slots__ = ("_connections", "_is_whole", "_send", "_transport")

    def __init__(self, scope: Scope, send: Send, connections: Connections) -> None:
        self._transport: Transport | None = scope.get("extensions", {}).get(TRANSPORT)
        self._send = send
        self._connections = connections
        self._is_whole = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            names = {name.lower() for name, _ in headers}
            self._is_whole = b"content-length" in names and self._transport is not None
            if b"cache-control" not in names:
                message = message | {"headers": [*headers, *PRIVATE]}
        elif self._is_whole:
            return await self._send_whole(message)
        await self._send(message)

    async def _send_whole(self, message: Message) -> None:
        body, has_more = message.get("body", b""), message.get("more_body", False)
        first, rest = body[:PIECE_BYTES], body[PIECE_BYTES:]
        await self._send(_body(first))
        await asyncio.sleep(0)  # uvloop writes at the end of a turn.
        transport = self._transport
        if transport and not transport.is_closing() and (rest or transport.get_write_buffer_size()):
            await self._send_watched(transport, rest)
        if not has_more:
            await self._send(_body(b"", more_body=False))

    async def _send_watched(self, transport: Transport, body: bytes) -> None:
        """Send pieces, each as soon as the one before was taken; a peer that takes none is cut off."""
        connection = Connection(self._send, None, drop=transport.abort, drain=_nothing)
        with self._connections.watched(connection), emptied(transport):
            for at in range(0, len(body), PIECE_BYTES):
                await connection.write(_body(body[at : at + PIECE_BYTES]))
            await connection.write(_body(b""))


def _body(content: bytes, more_body: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more_body}


def _nothing() -> None:
    """A server that goes down waits for a whole response, and need not tell it."""
