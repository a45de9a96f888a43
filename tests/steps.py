"""Coroutines driven by hand: as far as one of their awaits, and no further."""

from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Pause:
    """To be awaited where something would wait for another machine."""

    def __await__(self) -> Generator[None]:
        yield


def result_of(coroutine: Coroutine[Any, None, T]) -> T:
    """What it comes to; every pause is over at once."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration knows no type.


def cancelled_at_each(make: Callable[[], Coroutine[Any, None, object]], error: BaseException) -> Iterator[int]:
    """Make it again and again, and throw ``error`` into it at its first pause, its second, and so on to its last."""
    number = 0
    while True:
        coroutine = make()
        try:
            for _ in range(number + 1):
                coroutine.send(None)
        except StopIteration:
            return
        try:
            coroutine.throw(error)
        except type(error):
            yield number
        else:
            raise AssertionError(f"pause {number} took the cancellation for nothing")
        number += 1
