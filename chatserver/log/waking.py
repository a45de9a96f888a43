"""When readers are woken: at once by what comes alone, and once by all that comes together."""

from collections.abc import Callable


class Waking:
    """The wakes of all logs of the process. It is held by plain calls only: nothing waits in between.

    ``with WAKES``: whatever is appended meanwhile wakes its readers once, at the end. One read of a model's socket may
    have many tokens; a write to each reader for each of them costs ten times as much as one write of all.
    """

    def __init__(self) -> None:
        self.due: dict[Callable[[], None], None] | None = None
        """What wakes the readers of each log that has something new, while wakes are held; None: they are not held."""

        self._depth = 0

    # By hand: contextlib makes a generator and an object for each of its contexts, at 1 µs a read.

    def __enter__(self) -> None:
        if not self._depth:
            self.due = {}
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            due, self.due = self.due or {}, None
            for wake in due:
                wake()


WAKES = Waking()
