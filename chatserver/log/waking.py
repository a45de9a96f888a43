"""When readers are woken: at once by what comes alone, and once by all that comes together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Waking:
    """The wakes of all logs of the process. It is held by plain calls only: nothing waits in between."""

    def __init__(self) -> None:
        self._held: dict[Callable[[], None], None] | None = None

    def tell(self, wake: Callable[[], None]) -> None:
        """A log has something new: wake its readers, now or at the end of what comes together."""
        if self._held is None:
            wake()
        else:
            self._held[wake] = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whatever is appended meanwhile wakes its readers once, at the end.

        One read of a model's socket may have many tokens; a write to each reader for each of them costs ten times as
        much as one write of all.
        """
        if self._held is not None:
            yield
            return
        self._held = {}
        try:
            yield
        finally:
            due, self._held = self._held, None
            for wake in due:
                wake()


WAKES = Waking()
