"""What work costs, measured so that neither a loaded machine nor luck matters."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from time import thread_time
from typing import Any

LINEAR = 5.0
"""So many times its share may a larger input take: caches are not linear, and of a square it is 16 times."""


def steps(work: Callable[[], object]) -> int:
    """How many lines of Python are run, and functions called in them, of whatever kind."""
    count = 0

    def called(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    def run(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += 1
        return run

    with _uncollected():
        sys.setprofile(called)
        sys.settrace(run)
        try:
            work()
        finally:
            sys.settrace(None)
            sys.setprofile(None)
    return count


def growth(work: Callable[[int], object], size: int) -> float:
    """How many times its share work takes at 16 times the size: 1 where it is linear, 16 where it is a square.

    It is for what C does, where no steps can be seen: the time of this thread alone, its best of three. Where the
    first or the second shows already that it is `LINEAR`, the larger size is worked through no more.
    """
    few = max(min(_seconds(work, size) for _ in range(3)), 0.0002)
    found = inf
    for _ in range(3):
        found = min(found, _seconds(work, 16 * size) / few / 16)
        if found < LINEAR:
            break
    return found


def _seconds(work: Callable[[int], object], size: int) -> float:
    with _uncollected():
        begin = thread_time()
        work(size)
        return thread_time() - begin


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector, which comes when others' objects are many."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
