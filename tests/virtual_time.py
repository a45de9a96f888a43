"""An event loop whose time passes when nothing else can happen, so that hours are milliseconds and timers are exact."""

import asyncio
import selectors


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """It does not wait: when all tasks sleep, it is at once as late as the next one wants.

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
