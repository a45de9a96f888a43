"""What a tool is told of the call, and how it tells how far it is."""

from collections.abc import Awaitable, Callable, Generator
from math import isfinite

from msgspec import Struct

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

    def progress(
        self, message: object = None, progress: float | None = None, total: float | None = None
    ) -> Awaitable[None]:
        """Tell the readers of the run how far the call is. A plain function just calls this, an async one may await it.

        ``message`` is a line for people, cut to 500 characters. ``progress`` is how much is done of ``total``, in any
        unit; a number that is not finite counts as unknown. Readers are told some reports a second, the newest ones.

        Raises:
            TypeError: ``progress`` or ``total`` is no number.
        """
        words = None if message is None else _line(str(message))
        told = ToolProgress(call_id=self.call_id, message=words, progress=_number(progress), total=_number(total))
        self.report(told)
        return _HEARD


def _line(message: str) -> str:
    cut = message if len(message) <= PROGRESS_CHARS_LIMIT else f"{message[: PROGRESS_CHARS_LIMIT - 1]}…"
    return cut.encode(errors="replace").decode()  # A lone surrogate has no UTF-8.


def _number(value: float | None) -> float | None:
    if value is None or (type(value) is int and abs(value) <= EXACT_INTEGER):
        return value
    number = float(value)
    return number if isfinite(number) else None
