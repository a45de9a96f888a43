"""One reader of one run."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Self

from chatserver.events import Record
from chatserver.log import Cursor, EventLog


class Subscription:
    """One reader of one run, counted from its making to its end. Closing it is a disconnect, never a cancel."""

    def __init__(self, log: EventLog, after: int, count: Callable[[int], None] | None) -> None:
        """``count`` tells the owner of the run of a reader more (1) or fewer (-1); None: nobody wants to know."""
        self.run_id = log.run_id
        self.is_at_end = log.is_over and after >= log.last_seq
        self._log = log
        self._after = after
        self._count = count
        if count is not None:
            count(1)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, so that no further event will come."""
        return self._log.is_over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave. Further calls do nothing."""
        count, self._count = self._count, None
        if count is not None:
            count(-1)

    def cursor(self) -> Cursor:
        """The cursor that a pump sends from."""
        return self._log.cursor(self._after)

    def read(self) -> AsyncGenerator[Sequence[Record], None]:
        """The records of the cursor, as a generator."""
        return self._log.read(self._after)
