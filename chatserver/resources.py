"""Resources: sessions, messages and runs, as clients get them and as the store keeps them."""

from datetime import UTC, datetime
from typing import Literal, TypeAlias

from msgspec import Struct

from chatserver.events import Error, ErrorCode, FinishReason, Terminal, Usage
from chatserver.parts import AnyPart

RunStatus: TypeAlias = Literal["running", "waiting", "completed", "cancelled", "failed"]
MessageStatus: TypeAlias = Literal["complete", "partial", "streaming"]
Role: TypeAlias = Literal["user", "assistant"]

PAGE_LIMIT = 100
"""How many sessions, or messages of a session, one page has at most."""


class ModelResource(Struct, frozen=True):
    """A model that a request may name; ``is_default``: it answers where a request names none."""

    model: str
    is_default: bool


class ModelList(Struct, frozen=True):
    """The models that a request may name, the default first."""

    models: list[ModelResource]


class RunFailure(Struct, frozen=True):
    """Why a run failed, as in its `error` event."""

    code: ErrorCode
    message: str


def status_after(ending: Terminal) -> RunStatus:
    """What a run is that ended with this event."""
    if isinstance(ending, Error):
        return "failed"
    return "cancelled" if ending.finish_reason == "cancelled" else "completed"


class RunResource(Struct, frozen=True, kw_only=True):
    """A run, as `GET /chat/runs/{run_id}` shows it. Times are RFC 3339 in UTC."""

    run_id: str
    session_id: str
    message_id: str
    status: RunStatus
    last_seq: int
    usage: Usage | None
    created_at: str
    finished_at: str | None = None
    error: RunFailure | None = None


class MessageResource(Struct, frozen=True, kw_only=True):
    """One message of a session; ``parent_id`` is the message it follows, so that branches form a tree.

    ``content`` is the text parts, joined.
    ``finish_reason`` is that of the answer's `done`; None: no answer, one that is being written, or one that failed.
    """

    message_id: str
    parent_id: str | None
    role: Role
    content: str
    parts: tuple[AnyPart, ...]
    status: MessageStatus
    finish_reason: FinishReason | None
    run_id: str | None
    usage: Usage | None
    created_at: str

    def __repr__(self) -> str:
        return f"MessageResource(message_id={self.message_id!r}, role={self.role!r}, …)"


class SessionResource(Struct, frozen=True, kw_only=True):
    """A session in a list."""

    session_id: str
    title: str
    created_at: str
    updated_at: str
    active_run_id: str | None


class SessionPage(Struct, frozen=True):
    """Sessions, newest first; ``cursor`` asks for the next page, None: there is none."""

    sessions: list[SessionResource]
    cursor: str | None


class SessionDetail(SessionResource, frozen=True, kw_only=True):
    """A session with a page of messages of its newest branch, or of all, oldest first.

    ``cursor`` asks for the page of older messages, None: there are none.
    """

    messages: list[MessageResource]
    cursor: str | None


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC with milliseconds; sorts as text."""
    return (moment or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
