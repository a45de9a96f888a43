"""The way from one event loop to that of another thread."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

UNDER_WAY_LIMIT = 256
"""How many values may be under way before their sender has to wait."""


class Hop(Generic[T]):
    """Values from one thread to ``take`` in the event loop of another: in order, many with one wake-up."""

    __slots__ = ("_is_told", "_loop", "_take", "_under_way")

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[T], None]) -> None:
        self._loop = loop
        self._take = take
        self._under_way: deque[T] = deque()
        self._is_told = False

    def send(self, value: T) -> None:
        """Send a value, from any thread. If the loop has ended, nobody waits for the value."""
        self._under_way.append(value)
        if not self._is_told:
            self._is_told = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._arrive)

    @property
    def is_full(self) -> bool:
        return len(self._under_way) >= UNDER_WAY_LIMIT

    def _arrive(self) -> None:
        self._is_told = False  # Before the values are taken: the loop is told again of one that comes meanwhile.
        while self._under_way:
            self._take(self._under_way.popleft())
