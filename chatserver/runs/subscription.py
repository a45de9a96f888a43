"""One reader of one run."""

from collections.abc import AsyncGenerator, Sequence
from typing import Self

from chatserver.events import Record
from chatserver.log import Cursor, EventLog
from chatserver.runs.run import Run


class Subscription:
    """One reader of one run. Made, it counts; leaving it is a disconnect, never a cancel."""

    def __init__(self, log: EventLog, after: int, run: Run | None, is_at_end: bool) -> None:
        self.run_id = log.run_id
        self.is_at_end = is_at_end
        self._log = log
        self._after = after
        self._run = run
        self._has_left = False
        if run is not None:
            run.join()

    @property
    def is_over(self) -> bool:
        """The run has ended; what is still unread is all there will be."""
        return self._run is None or self._run.is_over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; once is enough."""
        if self._run is not None and not self._has_left:
            self._has_left = True
            self._run.leave()

    def cursor(self) -> Cursor:
        """What a pump sends from."""
        return self._log.cursor(self._after)

    def read(self) -> AsyncGenerator[Sequence[Record], None]:
        """What the cursor is given, as a generator."""
        return self._log.read(self._after)
