"""Waiting: what a call waits for, with what it is resolved, and what is kept of a run that waits."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from msgspec import UNSET, Struct

from chatserver.commands import CallAnswer, ChatRequest
from chatserver.dialogue import QUESTION, is_question
from chatserver.errors import BadRequest, TooLarge
from chatserver.events import ToolCall, to_json
from chatserver.parts import ToolCallPart
from chatserver.resources import timestamp
from chatserver.tools.results import cap

EDITED_BYTES_LIMIT = 32 * 1024
"""Edited arguments of a call: as many as the model's may have."""

REASON_BYTES_LIMIT = 4 * 1024
"""Why a user refuses a call, for the model."""

UNANSWERED = "nobody answered this call in time, so it was not made"
UNAPPROVED = "the answer ended while this call waited for an approval, so it was not made"
UNRETURNED = "the answer ended before the client gave a result: whether the call had an effect is not known"
TOO_MANY_QUESTIONS = "too many questions wait for somebody on this server"
GIVEN_UP = "the agent gave this call up while it waited for an approval, so it was not made"
LEFT = "the agent gave this call up before the client gave a result: whether the call had an effect is not known"
WITHDRAWN = "the tool does not wait for the answer any more"
DENIED = "the user refused this call"


class Approved(Struct, frozen=True, tag="approved"):
    """The call is made; ``args``: with these arguments, None: with the model's."""

    args: dict[str, Any] | None = None


class Refused(Struct, frozen=True, tag="refused"):
    """The call is not made; the words tell the user and the model why."""

    words: str


class Resulted(Struct, frozen=True, tag="resulted"):
    """The client has made the call."""

    result: Any
    is_error: bool = False
    truncated: bool = False


Resolution: TypeAlias = Approved | Refused | Resulted
"""With what a call that waits is resolved, once."""


class WaitingCall(Struct, frozen=True):
    """A call that waits for an approval, or for the client that makes it; what is called stands in the answer."""

    expires_at: str


class Wait(Struct, frozen=True):
    """What the continuation of a waiting run needs beside its log and its messages, with the calls that wait, by id."""

    request: ChatRequest
    calls: dict[str, WaitingCall]


def waiting_call(seconds: float) -> WaitingCall:
    """A call that waits for so many seconds from now on."""
    return WaitingCall(timestamp(datetime.now(UTC) + timedelta(seconds=seconds)))


def unanswered(call: ToolCallPart) -> str:
    """What is known of a call whose run has ended while the call waited."""
    if call.needs_approval:
        return UNAPPROVED
    return WITHDRAWN if is_question(call) else UNRETURNED


def given_up(call: ToolCall) -> str:
    """What is known of a call that waited until its agent, or the tool that asked, did not wait any more."""
    if call.needs_approval:
        return GIVEN_UP
    return WITHDRAWN if call.tool == QUESTION else LEFT


def seconds_until(moment: str) -> float:
    """From now to a moment of ``timestamp``; negative: it has passed."""
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


def resolution_of(answer: CallAnswer, call: ToolCallPart, result_bytes_limit: int) -> Resolution:
    """What a user's answer means for the call. `check_reply` says whether it fits a question, `check_edited` a tool.

    Raises:
        BadRequest, TooLarge: the answer does not fit the call, or breaks a rule of its own.
    """
    if call.executor == "client":
        if answer.result is UNSET or answer.approve is not None:
            raise BadRequest("this call is made by the client: it is answered with `result`", "/result")
        for name in ("args", "reason"):
            if getattr(answer, name) is not None:
                raise BadRequest(f"`{name}` is for a call that waits for an approval", f"/{name}")
        result, truncated = cap(answer.result, result_bytes_limit)
        if truncated and is_question(call):
            raise TooLarge(f"`result` is over {result_bytes_limit} bytes")
        return Resulted(result, bool(answer.is_error), truncated)
    if answer.approve is None or answer.result is not UNSET or answer.is_error is not None:
        raise BadRequest("this call waits for an approval: it is answered with `approve`", "/approve")
    if answer.approve:
        return Approved(_checked_args(answer))
    if answer.args is not None:
        raise BadRequest("`args` are for a call that is approved", "/args")
    if len((answer.reason or "").encode()) > REASON_BYTES_LIMIT:
        raise TooLarge(f"`reason` is over {REASON_BYTES_LIMIT} bytes")
    return Refused(f"{DENIED}: {answer.reason.strip()}" if answer.reason and answer.reason.strip() else DENIED)


def _checked_args(answer: CallAnswer) -> dict[str, Any] | None:
    if answer.reason is not None:
        raise BadRequest("`reason` is for a call that is refused", "/reason")
    if answer.args is not None and len(to_json(answer.args)) > EDITED_BYTES_LIMIT:
        raise TooLarge(f"`args` are over {EDITED_BYTES_LIMIT} bytes")
    return answer.args
