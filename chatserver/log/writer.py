"""The writer of a log: what readers must not be told before it is stored is withheld from them until then."""

from collections.abc import Callable
from contextlib import suppress
from math import inf

from chatserver.answer import Answer, fold
from chatserver.events import Event, Record, appended
from chatserver.log import EventLog, Fenced, StoredLog


class Writer:
    """Appends to a log, at once or as soon as it may."""

    __slots__ = ("_drafts", "_log", "_records", "append")

    def __init__(self, log: EventLog) -> None:
        self.append: Callable[[Event], Record] = log.append
        """As that of the log, also while the log is not appended to."""

        self._log = log
        self._drafts: list[Event] = []
        self._records: list[Record] = []  # Of the drafts, in the same order.

    @property
    def last_seq(self) -> int:
        """The ``seq`` of the newest record, whether it is shown or not."""
        return self._log.last_seq + len(self._drafts)

    def answer(self) -> Answer:
        """The fold of all that was appended."""
        if not self._drafts:
            return self._log.answer()
        return fold([self._log.answer().snapshot(self._log.run_id, self._log.last_seq), *self._drafts])

    def stored(self, *last: Record) -> StoredLog:
        """The log as it is stored, with what is withheld, and with records behind it that are not appended yet."""
        return self._log.stored(*self._records, *last)

    def withhold(self) -> None:
        """Show readers nothing of what is appended from now on."""
        self.append = self._withhold

    def _withhold(self, draft: Event) -> Record:
        new = appended(draft, self._log.run_id, self.last_seq + 1)
        self._records.append(new)
        self._drafts.append(draft)
        return new

    def show(self, last_seq: float = inf) -> None:
        """Show readers what was withheld, up to this ``seq``; all of it: what is appended is shown from now on."""
        count = max(0, int(min(last_seq, self.last_seq)) - self._log.last_seq)
        shown, self._drafts, self._records = self._drafts[:count], self._drafts[count:], self._records[count:]
        with suppress(Fenced):  # Readers are shown the log of its new owner.
            for draft in shown:
                self._log.append(draft)
        if last_seq == inf:
            self.append = self._log.append

    def drop(self) -> None:
        """Forget what is withheld: the log goes on elsewhere."""
        self._drafts, self._records = [], []
        self.append = self._log.append
