"""How a WebSocket is closed: each close code, who sends it, whether a client may come back; each reason to close."""

from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

from chatserver.errors import ChatError, Internal

Sender: TypeAlias = Literal["client", "network", "websockets", "serving", "transports", "routes"]
"""Who closes: the client, the network between, the library that reads frames, or one of our rooms."""

LOST = 1006
"""No close frame was sent or has come."""


class CloseCode(NamedTuple):
    """One code. Without ``senders`` it is reserved, and not sent in this version."""

    code: int
    meaning: str
    senders: frozenset[Sender]
    may_return: bool
    """Whether a client may come back with the same credentials and go on; if not, the close is final."""


def _code(code: int, meaning: str, *senders: Sender, may_return: bool = False) -> CloseCode:
    return CloseCode(code, meaning, frozenset(senders), may_return)


CLOSE_CODES = {
    each.code: each
    for each in (
        _code(1000, "done", "client"),
        _code(1001, "going away", "network", may_return=True),
        _code(1002, "broken framing", "websockets"),
        _code(1003, "binary frame", "transports"),
        _code(1005, "no code", "network", may_return=True),
        _code(LOST, "no close frame", "network", may_return=True),
        _code(1007, "invalid UTF-8", "websockets", "serving"),
        _code(1009, "frame too big", "websockets", "transports"),
        _code(1011, "bug", "websockets", "serving", "transports", "routes", may_return=True),
        _code(1012, "going down: come back at once", "serving", "transports", may_return=True),
        _code(1013, "overloaded", may_return=True),
        _code(1014, "bad gateway", "network", may_return=True),
        _code(1015, "TLS failed", "network", may_return=True),
        _code(4400, "frames that are no commands", "transports"),
        _code(4401, "not authenticated", "transports", "routes"),
        _code(4408, "idle too long", may_return=True),
        _code(
            4429,
            "too many connections, requests, frames or commands",
            "serving",
            "transports",
            "routes",
            may_return=True,
        ),
    )
}
PUBLISHED = tuple(each for each in CLOSE_CODES.values() if each.senders != {"network"})
"""The codes that this server, or another version of it, can send."""


class Closing(Struct, frozen=True):
    """How one connection is closed."""

    code: int
    reason: str


BINARY_FRAME = Closing(1003, "text frames only")
NOT_UTF8 = Closing(1007, "text is UTF-8")
TOO_BIG = Closing(1009, "the frame is too big")
NO_PONG = Closing(1011, "no pong came")
FAILED = Closing(1011, Internal.sentence)
GOING_DOWN = Closing(1012, "going down")
NO_COMMANDS = Closing(4400, "these are no commands")
EXPIRED = Closing(4401, "the token has expired")
TOO_MANY_FRAMES = Closing(4429, "too many frames")
TOO_MANY_COMMANDS = Closing(4429, "more commands than can be answered")


def closing_of(error: ChatError) -> Closing:
    """How a connection is closed that this refusal makes useless."""
    code = 4000 + error.status
    return Closing(code, error.detail) if code in CLOSE_CODES else FAILED
