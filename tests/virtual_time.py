"""Time that passes as tests want: in a loop that never waits, or by leaps in a loop that does."""

import asyncio
import selectors
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from types import ModuleType
from unittest.mock import patch

ARRIVAL_TURNS = 50
"""After so many turns of the loop, bytes of one socket of this process have come to whoever reads them from another."""


class Clock:
    """Time that passes as ever, and leaps. So a limit is reached at once, and by no machine that is merely slow."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return monotonic() + self._ahead

    def leap(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._ahead += seconds

    async def pause(self, seconds: float) -> None:
        """Leap, behind the arrival of all that was sent so far within this process; then let happen what is due."""
        for moment in (seconds, 0.0):
            for _ in range(ARRIVAL_TURNS):
                await asyncio.sleep(0)
            self.leap(moment)


@contextmanager
def leaping_time(*modules: ModuleType) -> Iterator[Clock]:
    """A clock for the running loop, and for modules that read ``monotonic``, until the end of the block."""
    clock = Clock()
    with ExitStack() as stack:
        stack.enter_context(patch.object(asyncio.get_running_loop(), "time", clock.now))
        for module in modules:
            stack.enter_context(patch.object(module, "monotonic", clock.now))
        yield clock


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """It does not wait: when all tasks sleep, it is at once as late as the next one wants. Hours are milliseconds.

    Threads are outside of that time. ``thread_seconds`` is how long, really, it is waited for one before time passes.
    """

    def __init__(self, thread_seconds: float = 0.0) -> None:
        self.now = 1000.0
        self.wakes = 0
        """How often it had nothing left to do, so that a real loop would have slept and been woken."""
        super().__init__(_NeverWaiting(self, thread_seconds))

    def time(self) -> float:
        return self.now


class _NeverWaiting(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop, thread_seconds: float) -> None:
        super().__init__()
        self._loop = loop
        self._thread_seconds = thread_seconds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.wakes += timeout is None or timeout > 0
        if timeout is None:
            return super().select()
        if not (ready := super().select(min(timeout, self._thread_seconds))):
            self._loop.now += timeout
        return ready
