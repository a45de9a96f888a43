"""The far end of an open response or WebSocket: plain calls write to it, and its callbacks tell of it."""

from collections.abc import Callable
from typing import Protocol

from chatserver.transports.asgi import AsgiReceive, AsgiScope, AsgiSend
from chatserver.transports.asgi_peer import AsgiBody, AsgiSocket, nobody

PEER = "chatserver.peer"
"""The one ASGI extension of our server: a callable that takes over a started response or an accepted WebSocket and
returns its peer. The ASGI call may return then, so no task stays with an open stream."""

__all__ = ["PEER", "BodyPeer", "Peer", "SocketPeer", "nobody", "with_body", "with_socket"]


class Peer(Protocol):
    """A client that is being sent to."""

    is_writable: bool
    """Whether the peer takes what is written. What is written nevertheless is held in memory."""

    on_writable: Callable[[], None]
    """Called when the peer takes bytes again."""

    on_leave: Callable[[], None]
    """Called once: everything was sent and taken, or the peer has left. Nothing can be written any more."""

    def write(self, data: bytes) -> None:
        """Send bytes: a part of a body, or whole frames of a WebSocket."""
        ...

    def abort(self) -> None:
        """Cut the connection off, whatever is still to be taken."""
        ...


class BodyPeer(Peer, Protocol):
    """A client that is being sent the body of a response."""

    def end(self, last: bytes = b"") -> None:
        """Send the last part: the body is whole."""
        ...

    def cut(self) -> None:
        """Break the body off behind what was written, so that the peer sees a cut."""
        ...


class SocketPeer(Peer, Protocol):
    """The client of a WebSocket."""

    on_text: Callable[[str | None], None]
    """Called with each text that comes, and with None for a binary frame."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what was written, and ignore what comes."""
        ...


async def with_body(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, begin: Callable[[BodyPeer], None]) -> None:
    """Call ``begin`` with the peer of a started response. Returns at once; under another server, at its end."""
    if PEER in scope.get("extensions", {}):
        return begin(scope["extensions"][PEER]())
    body = AsgiBody()
    begin(body)
    await body.serve(receive, send)


async def with_socket(
    scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, bytes_limit: int, begin: Callable[[SocketPeer], None]
) -> None:
    """Call ``begin`` with the peer of an accepted WebSocket. Returns at once; under another server, at its end.

    ``bytes_limit`` is the longest message that the peer may send; our server has the limit from its settings.
    """
    if PEER in scope.get("extensions", {}):
        return begin(scope["extensions"][PEER]())
    socket = AsgiSocket(bytes_limit)
    begin(socket)
    await socket.serve(receive, send)
