"""The far end of an open response or WebSocket: bytes go to it by plain calls, and it tells what it does."""

from collections.abc import Callable
from typing import Protocol

from chatserver.transports.asgi import AsgiReceive, AsgiScope, AsgiSend
from chatserver.transports.asgi_peer import AsgiBody, AsgiSocket, nobody

PEER = "chatserver.peer"
"""The one ASGI extension of our server: a callable that takes a response that was started, or a WebSocket that was
accepted, over from the ASGI call, and gives its peer. The call may return then: no task stays with an open stream."""

__all__ = ["PEER", "BodyPeer", "Peer", "SocketPeer", "nobody", "with_body", "with_socket"]


class Peer(Protocol):
    """Somebody who is being sent to."""

    is_writable: bool
    """Whether the peer takes what is written. What is written all the same is held for it, in memory."""

    on_writable: Callable[[], None]
    """Called when the peer takes bytes again."""

    on_leave: Callable[[], None]
    """Called once: all was sent and taken, or the peer has left. Nothing can be written any more."""

    def write(self, data: bytes) -> None:
        """Send bytes: a part of a body, or whole frames of a WebSocket."""
        ...

    def abort(self) -> None:
        """Cut the connection off, whatever is still to be taken."""
        ...


class BodyPeer(Peer, Protocol):
    """Somebody who is being sent the body of a response."""

    def end(self, last: bytes = b"") -> None:
        """Send the last part: the body is whole."""
        ...

    def cut(self) -> None:
        """Leave the body unfinished behind what was written, so that the peer sees a cut."""
        ...


class SocketPeer(Peer, Protocol):
    """The client of a WebSocket."""

    on_text: Callable[[str | None], None]
    """Called with each text that comes; None: with a binary frame."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what was written, and hear no more."""
        ...


async def with_body(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, begin: Callable[[BodyPeer], None]) -> None:
    """Give ``begin`` the peer of a response whose head is sent. This returns at once, or at the end of the body."""
    if PEER in scope.get("extensions", {}):
        return begin(scope["extensions"][PEER]())
    body = AsgiBody()
    begin(body)
    await body.serve(receive, send)


async def with_socket(
    scope: AsgiScope, receive: AsgiReceive, send: AsgiSend, begin: Callable[[SocketPeer], None]
) -> None:
    """Give ``begin`` the peer of a WebSocket that is accepted. This returns at once, or when it is closed."""
    if PEER in scope.get("extensions", {}):
        return begin(scope["extensions"][PEER]())
    socket = AsgiSocket()
    begin(socket)
    await socket.serve(receive, send)
