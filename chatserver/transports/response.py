"""Responses that are no streams: `no-store` unless they say otherwise, and over when the peer has taken them."""

from chatserver.transports.admission import ADMISSION
from chatserver.transports.asgi import AsgiMessage, AsgiScope, AsgiSend
from chatserver.transports.connections import Connection, Connections
from chatserver.transports.peer import PEER, BodyPeer

AS_DATA = ((b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"))
"""Headers of each response: a browser takes the body for nothing but its type, and embeds it in no foreign page."""

PRIVATE = ((b"cache-control", b"no-store"), *AS_DATA)
"""Headers of each response without a `Cache-Control` of its own, but for those that it has: such a response is a
user's, or soon out of date."""

PIECE_BYTES = 64 * 1024
"""How many bytes of a response a peer must take within CHATSERVER_SEND_TIMEOUT_SECONDS."""


class WatchedSend:
    """ASGI's ``send`` of one HTTP request. A whole response (it has a length) is over when the peer has taken it.

    Under our own server it is handed over: it is read at the peer's pace when the request's task has long ended.
    """

    __slots__ = ("_body", "_connections", "_is_whole", "_scope", "_send")

    def __init__(self, scope: AsgiScope, send: AsgiSend, connections: Connections) -> None:
        self._scope = scope
        self._send = send
        self._connections = connections
        self._is_whole = False
        self._body = b""

    async def __call__(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            self._connections.observer.responded(message["status"])
            headers = message.get("headers", ())
            names = {name.lower() for name, _ in headers}
            self._is_whole = b"content-length" in names and PEER in self._scope["extensions"]
            if b"cache-control" not in names:
                message = message | {"headers": [*headers, *(each for each in PRIVATE if each[0] not in names)]}
        elif self._is_whole:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                _WholeBody(self._scope["extensions"][PEER](), self._body, self._connections, self._scope)
            return
        await self._send(message)


class _WholeBody(Connection):
    """The body of a response, written in pieces, each when the peer has taken the one before."""

    form = "whole"

    def __init__(self, peer: BodyPeer, body: bytes, connections: Connections, scope: AsgiScope) -> None:
        self._peer = peer
        self._body, self._at = body, 0
        super().__init__(peer, connections, scope["extensions"].pop(ADMISSION, None))
        self.writable()

    def writable(self) -> None:
        while self.is_open and self.peer.is_writable:
            piece = self._body[self._at : self._at + PIECE_BYTES]
            self._at += len(piece)
            if self._at < len(self._body):
                self.write(piece)
            else:
                self.is_open = False
                self._peer.end(piece)
                self._look_at_peer()

    def left(self) -> None:
        self._body = b""

    def drain(self) -> None:
        """Nothing to do: a server that goes down waits for the whole response."""

    def expire(self) -> None:
        """Nothing to do: the response goes on to its announced length."""
