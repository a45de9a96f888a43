"""When readers are woken: at once by what comes alone, and once by all that comes together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Waking:
    """The wakes of all logs of the process. It is held by plain calls only: nothing waits in between."""

    def __init__(self) -> None:
        self.due: dict[Callable[[], None], None] | None = None
        """What wakes the readers of each log that has something new, while wakes are held; None: they are not held."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever is appended meanwhile wakes its readers once, at the end.

        One read of a model's socket may have many tokens; a write to each reader for each of them costs ten times as
        much as one write of all.
        """
        if self.due is not None:
            yield
            return
        self.due = {}
        try:
            yield
        finally:
            due, self.due = self.due, None
            for wake in due:
                wake()


WAKES = Waking()
