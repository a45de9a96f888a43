"""The log of a run that this node writes: what is appended is shown when the journal has it."""

from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import chain

from chatserver.answer import Answer, fold
from chatserver.events import Event, Record, appended
from chatserver.log import Cursor, Fenced, StoredLog, batch_of
from chatserver.log.fed import FedLog
from chatserver.nodes.chunk import chunk_of, packed_chunk


class OwnedLog:
    """An ``EventLog`` of two parts: ``shown``, which readers read, and what is not confirmed yet."""

    def __init__(self, run_id: str, publish: Callable[["OwnedLog"], None]) -> None:
        """``publish`` is told of each append: there is something that the journal has not."""
        self.run_id = run_id
        self.shown = FedLog(run_id)
        self.tail = 0
        """The number up to which the journal has the log; -1: the journal is to be asked."""

        self.merged_blocks = 0
        """How many closed blocks of the merged form the journal has."""

        self.is_fenced = False
        self.has_ended = False
        self.is_released = False
        """Whether nobody needs it but those who have not been told of its end."""

        self._publish = publish
        self._hidden: list[Record] = []
        self._drafts: list[Event] = []  # Of the hidden records, in the same order; they stay where these are dropped.

    @property
    def last_seq(self) -> int:
        return self.shown.last_seq + len(self._hidden)

    @property
    def is_over(self) -> bool:
        return self.shown.is_over

    @property
    def size_bytes(self) -> int:
        return self.shown.size_bytes + sum([len(each.data) for each in self._hidden])

    async def restore(self, stored: StoredLog) -> None:
        await self.shown.restore(stored)
        self._publish(self)  # All of it: others may read it before anything is appended.

    def append(self, draft: Event) -> Record:
        if self.is_fenced:
            raise Fenced
        if self.has_ended:
            raise RuntimeError("a terminal event is the last one")
        hidden = self._hidden
        new = appended(draft, self.run_id, self.shown.last_seq + len(hidden) + 1)
        self.has_ended = new.is_terminal
        hidden.append(new)
        self._drafts.append(draft)
        self._publish(self)
        return new

    # What is published.

    @property
    def is_behind(self) -> bool:
        """Whether there is something that the journal has not."""
        return (bool(self._hidden) or self.tail < self.shown.last_seq) and not self.is_fenced

    def chunk(self) -> tuple[int, bytes]:
        """What follows the tail of the journal, as much as one batch holds, and its last number."""
        if self.tail < 0:
            return self.last_seq, b""
        if self.tail < self.shown.last_seq:  # The journal has lost its end.
            part = self.shown.merged.stored_after(self.tail)
            return part.last_seq, packed_chunk(part)
        if len(self._hidden) == 1:  # As nearly always.
            (new,) = self._hidden
            return new.seq, new.data
        records = batch_of(self._hidden)
        return records[-1].seq, chunk_of(records)

    def confirm(self, tail: int) -> None:
        """The journal has the log up to this number: show it."""
        self.tail = tail
        self._show(tail - self.shown.last_seq)

    def show_all(self) -> None:
        """Show what is not confirmed: the database has it."""
        self._show(len(self._hidden))

    def _show(self, count: int) -> None:
        if count <= 0:
            return
        hidden, drafts, shown = self._hidden, self._drafts, self.shown
        self._hidden, self._drafts = hidden[count:], drafts[count:]
        for draft, new in zip(drafts[:count], hidden, strict=False):
            shown.keep(draft, new)
        shown.tell()

    def fence(self) -> None:
        """Another node owns the run: what is not confirmed is never shown. Others may have been told of it."""
        self.is_fenced = True
        self._hidden = []

    # What is read.

    def cursor(self, after: int) -> Cursor:
        return self.shown.cursor(after)

    def read(self, after: int) -> AsyncGenerator[Sequence[Record], None]:
        return self.shown.read(after)

    def answer(self) -> Answer:
        return fold(chain(self.shown.merged.events(), self._drafts))

    def stored(self, *last: Record) -> StoredLog:
        return self.shown.stored(*self._hidden, *last)

    def close(self) -> None:
        self.shown.close()
