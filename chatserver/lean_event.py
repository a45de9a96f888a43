"""An event of asyncio that holds nothing while nobody waits, as nearly always in an open stream."""

import asyncio
from typing import Any


class LeanEvent(asyncio.Event):
    """asyncio's, its waiters in a list: the deque that it has from the beginning is 0.7 KB, several in each stream."""

    _waiters: Any

    def __init__(self) -> None:
        self._value = False
        self._waiters = []
