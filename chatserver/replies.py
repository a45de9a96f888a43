"""What a client is told beside events: that a command is obeyed, and each refusal as a document, on any transport."""

from http import HTTPStatus

import msgspec
from msgspec import UNSET, Struct, UnsetType

from chatserver.commands import Ping
from chatserver.errors import ChatError, FieldProblem


class Problem(Struct, frozen=True, kw_only=True):
    """A refusal (RFC 9457); ``code`` is for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET


class Accepted(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="accepted"):
    """A command is obeyed. ``ended``: of the run nothing is left to read."""

    ref: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    ended: bool = False


class Rejected(Struct, frozen=True, kw_only=True, tag_field="type", tag="rejected"):
    """A command is refused, for the reason that a ``Problem`` would have."""

    ref: str | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    status: int
    code: str
    message: str
    errors: list[FieldProblem] | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET


class Pong(Struct, frozen=True, tag_field="type", tag="pong"):
    """The answer to a ``Ping``."""


REPLY_TYPES: tuple[type[Struct], ...] = (Accepted, Rejected, Pong, Ping)
"""All documents of the server on a WebSocket that are no events."""

PING = msgspec.json.encode(Ping())
"""What shows a client that its connection lives, where nothing else is said; the same document both ways."""


def problem_of(error: ChatError) -> Problem:
    """A refusal as a document of its own."""
    title = HTTPStatus(error.status).phrase
    return Problem(
        type="about:blank", title=title, status=error.status, detail=error.detail, code=error.code, **error.facts()
    )


def rejected(error: ChatError, named: dict[str, str]) -> Rejected:
    """A refusal as the reply to a command, with what the command has named."""
    return Rejected(status=error.status, code=error.code, message=error.detail, **named | error.facts())
