"""One reader of one run."""

from collections.abc import AsyncGenerator, Sequence
from typing import Self

from chatserver.events import Record
from chatserver.log import Cursor, EventLog
from chatserver.runs.life import Life


class Subscription:
    """One reader of one run, counted from its making to its end. Closing it is a disconnect, never a cancel."""

    def __init__(self, log: EventLog, after: int, life: Life | None, is_at_end: bool) -> None:
        self.run_id = log.run_id
        self.is_at_end = is_at_end
        self._log = log
        self._after = after
        self._life = life
        self._has_left = False
        if life is not None:
            life.count(1)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, so that no further event will come."""
        return self._life is None or self._life.run.is_over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave. Further calls do nothing."""
        if self._life is not None and not self._has_left:
            self._has_left = True
            self._life.count(-1)

    def cursor(self) -> Cursor:
        """The cursor that a pump sends from."""
        return self._log.cursor(self._after)

    def read(self) -> AsyncGenerator[Sequence[Record], None]:
        """The records of the cursor, as a generator."""
        return self._log.read(self._after)
