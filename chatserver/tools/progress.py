"""From a tool's reports of its progress, however many, to the few events that its run is told."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf

from chatserver.events import ToolProgress

PROGRESS_SECONDS = 0.2
"""How long nothing is told after an event: nobody reads faster."""

PROGRESS_SHARE = 50
"""Nor for a fiftieth of the call's time: the events of a call that takes an hour are 350, and not 18,000."""


@contextmanager
def told_progress(tell: Callable[[ToolProgress], None]) -> Iterator[Callable[[ToolProgress], None]]:
    """While entered, reports are told in the thread of the caller's event loop: the first at once, then the newest.

    Whoever reports may do so in any thread, as often as it likes, and is not held up. The last report is always told,
    unless the block is left by an exception.
    """
    reports = _Reports(tell)
    try:
        yield reports.add
        reports.tell_newest()
    finally:
        reports.close()


class _Reports:
    __slots__ = ("_began", "_is_closed", "_is_due", "_loop", "_newest", "_tell", "_timer", "_told", "_told_at")

    def __init__(self, tell: Callable[[ToolProgress], None]) -> None:
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._began, self._told_at = self._loop.time(), -inf
        self._newest: ToolProgress | None = None
        self._told: ToolProgress | None = None
        self._is_due = self._is_closed = False  # Due: the newest report will be looked at.
        self._timer: asyncio.TimerHandle | None = None

    def add(self, report: ToolProgress) -> None:
        """Called in the tool's thread. A flood of reports costs the server's thread nothing: the first one wakes it."""
        self._newest = report
        if not self._is_due:
            self._is_due = True
            with suppress(RuntimeError):  # The server has gone.
                self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        now = self._loop.time()
        due_at = self._told_at + max(PROGRESS_SECONDS, (now - self._began) / PROGRESS_SHARE)
        if self._is_closed:
            return
        if now >= due_at:
            self._pass_time()
        else:
            self._timer = self._loop.call_at(due_at, self._pass_time)

    def _pass_time(self) -> None:
        self._is_due = False  # Before the newest is looked at, else one that comes right now were never told.
        with suppress(Exception):  # The run takes no more, and ends its agent by itself.
            self.tell_newest()

    def tell_newest(self) -> None:
        if self._newest is not None and self._newest is not self._told:
            self._told, self._told_at = self._newest, self._loop.time()
            self._tell(self._told)

    def close(self) -> None:
        """What is reported from now on is heard by nobody."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
