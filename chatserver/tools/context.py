"""What a tool is told of the call, how it tells how far it is, and how it asks the user."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from math import isfinite
from typing import Any, Literal, TypeAlias

from msgspec import Struct, field

from chatserver.events import ToolProgress

PROGRESS_CHARS_LIMIT = 500
"""How long the message of a progress may be: it is a line on a screen, and each one stays in the log."""

EXACT_INTEGER = 2**53
"""Up to this number, every client has each integer as it is."""


class _Heard:
    """Is awaited by whoever wants: the deed is done, and other calls of the event loop get their turn."""

    def __await__(self) -> Generator[None]:
        yield


_HEARD = _Heard()


def _unheard(progress: ToolProgress) -> None:
    """Nobody follows the call."""


class Question(Struct, frozen=True):
    """What a tool asks. ``schema`` is the JSON Schema of the form: an object of plain fields."""

    message: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


class Reply(Struct, frozen=True):
    """What the user has done with a question. ``content`` are the fields of a form that was accepted."""

    action: Literal["accept", "decline", "cancel"]
    content: dict[str, Any] = field(default_factory=dict)


CANCELLED = Reply("cancel")

Ask: TypeAlias = Callable[[Question], "Future[Reply]"]
"""Asks the user, from any thread; to cancel the future is to withdraw the question."""


def _unasked(_: Question) -> "Future[Reply]":
    """There is no user."""
    future: Future[Reply] = Future()
    future.set_result(CANCELLED)
    return future


class ToolContext(Struct, frozen=True, kw_only=True):
    """The call that a tool is in. All of it may be used from any thread and event loop."""

    user: str = ""
    """Whose run it is."""

    session_id: str = ""
    run_id: str = ""
    call_id: str = ""
    """Names the call within its run; the same call has the same id also after a restart of the server."""

    report: Callable[[ToolProgress], None] = _unheard
    """Is told each progress; in a test, what collects them."""

    put: Ask = _unasked
    """Puts a question to the user; in a test, what answers it."""

    def progress(
        self, message: object = None, progress: float | None = None, total: float | None = None
    ) -> Awaitable[None]:
        """Tell the readers of the run how far the call is. A plain function just calls this, an async one may await it.

        ``message`` is a line for people, cut to 500 characters. ``progress`` is how much is done of ``total``, in any
        unit; a number that is not finite counts as unknown. Readers are told some reports a second, the newest ones.

        Raises:
            TypeError, ValueError: ``progress`` or ``total`` is no number.
        """
        words = None if message is None else _line(str(message))
        told = ToolProgress(call_id=self.call_id, message=words, progress=_number(progress), total=_number(total))
        self.report(told)
        return _HEARD

    async def ask(self, message: str, schema: dict[str, Any] | None = None) -> Reply:
        """Ask the user of the run, and wait for the reply; meanwhile the run waits, and the call's time stands still.

        That is so also for a tool that asks in a task and does something else meanwhile.

        ``schema`` is the JSON Schema of a form: an object whose properties are texts, numbers, booleans, choices, and
        lists of these. An accepted reply fits it. Without it, the user can only agree or not. Where nobody answers in
        time, the reply is ``cancel``. A question does not survive a restart of the server, since the call does not.

        Raises:
            Exception: the question is too long, its schema is no such form, or there were too many; the words are for
                the model.
        """
        question = Question(message) if schema is None else Question(message, schema)
        return await asyncio.wrap_future(self.put(question))


def _line(message: str) -> str:
    cut = message if len(message) <= PROGRESS_CHARS_LIMIT else f"{message[: PROGRESS_CHARS_LIMIT - 1]}…"
    return cut.encode(errors="replace").decode()  # A lone surrogate has no UTF-8.


def _number(value: float | None) -> float | None:
    if value is None or (type(value) is int and abs(value) <= EXACT_INTEGER):
        return value
    number = float(value)
    return number if isfinite(number) else None
