"""The event log in this process's memory."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import closing

from anyio.lowlevel import checkpoint

from chatserver.answer import Answer, fold
from chatserver.events import TEXTS, Event, Record, appended
from chatserver.log import StoredLog
from chatserver.log.fresh import Fresh
from chatserver.log.merged import Merged
from chatserver.log.waking import WAKES

logger = logging.getLogger(__name__)

RESTORED_PER_TURN = 64
"""How many events of a stored log are read in one turn of the loop; one takes up to 50 µs."""

READERS_PER_TURN = 64
"""How many readers one callback of the loop wakes: a log with many of them does not hold up all others."""


class MemoryCursor:
    """A ``Cursor`` in a ``MemoryLog``."""

    __slots__ = ("__weakref__", "_log", "after", "is_waiting", "wake")

    def __init__(self, log: "MemoryLog", after: int) -> None:
        self._log = log
        self.after = after
        self.is_waiting = False
        self.wake: Callable[[], None] = _nobody

    @property
    def is_at_end(self) -> bool:
        return self._log.is_over and self.after >= self._log.last_seq

    def take(self) -> Sequence[Record]:
        log, batch = self._log, ()  # type: MemoryLog, Sequence[Record]
        if self.after < log.last_seq:
            batch = log.batch(self.after)
            self.after = batch[-1].seq
        self.is_waiting = self.after >= log.last_seq and not log.is_over
        return batch

    def close(self) -> None:
        self.is_waiting = False
        self.wake = _nobody  # Else it, and what it belongs to, would be left to the collector.
        self._log.left(self)


def _nobody() -> None:
    """Nobody is told."""


class MemoryLog:
    """An ``EventLog`` in memory: all its events merged, and beside them the fresh ones, the newest, as they are."""

    is_fenced = False
    is_closed = False
    """Whether it ends without its run: its readers come back."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.last_seq = 0
        self.is_over = False
        self._readers: dict[MemoryCursor, None] = {}  # In the order of their coming; any of them leaves at one go.
        self._merged = Merged(run_id)
        self._fresh = Fresh()
        self._newest: Sequence[Record] = ()
        self._batch_after, self._batch = -1, ()  # type: tuple[int, Sequence[Record]]
        self._is_waking = self._has_news = False

    @property
    def size_bytes(self) -> int:
        """About what it takes of the memory, without what is fresh."""
        return self._merged.size_bytes

    def append(self, draft: Event) -> Record:
        if self.is_over:
            raise RuntimeError("a terminal event is the last one")
        new = appended(draft, self.run_id, self.last_seq + 1)
        self.keep(draft, new)
        self.tell()
        return new

    def keep(self, event: Event, new: Record) -> None:
        """Keep the next event, which may be a draft, with its record; readers are woken by ``tell``."""
        self.last_seq, self._newest = new.seq, (new,)
        self._fresh.append(new)
        if isinstance(event, TEXTS):
            self._merged.add_text(new.seq, event)
        else:
            self._merged.add(new)
            if new.is_terminal:
                self.is_over = True
                self._settle()

    def tell(self) -> None:
        """Wake the readers: something was kept."""
        if WAKES.due is not None:
            WAKES.due[self._wake] = None
        elif self._readers:
            self._wake()

    def _settle(self) -> None:
        """Of a log that is over nothing is fresh any more, as soon as those have left who read it as it was written."""
        if not self._readers:
            self._fresh.clear(self.last_seq)

    async def restore(self, stored: StoredLog) -> None:
        """Begin with what was stored of a log; it is over if that was."""
        for count, seq in enumerate(self._merged.restore(stored), 1):
            self.last_seq = seq
            if count % RESTORED_PER_TURN == 0:
                await checkpoint()
        self.is_over = self._merged.is_over
        self._fresh.clear(self.last_seq)

    def cursor(self, after: int) -> MemoryCursor:
        cursor = MemoryCursor(self, after)
        self._readers[cursor] = None
        return cursor

    def left(self, cursor: MemoryCursor) -> None:
        """A reader has gone."""
        self._readers.pop(cursor, None)
        if self.is_over:
            self._settle()

    async def read(self, after: int) -> AsyncGenerator[Sequence[Record], None]:
        with closing(self.cursor(after)) as cursor:
            woken = asyncio.Event()
            cursor.wake = woken.set
            while not cursor.is_at_end:
                if batch := cursor.take():
                    yield batch
                    await checkpoint()  # A peer that takes everything at once must not keep the loop for itself.
                else:
                    woken.clear()
                    await woken.wait()

    def batch(self, after: int) -> Sequence[Record]:
        """What one batch holds of the records behind ``after``, of which there is one at least."""
        if after == self.last_seq - 1 and self._newest:
            return self._newest
        if not self._is_waking:
            return self._batched(after)
        if after != self._batch_after:  # Else this reader is as far as the one that was woken before it.
            self._batch_after, self._batch = after, self._batched(after)
        return self._batch

    def _batched(self, after: int) -> Sequence[Record]:
        return (self._fresh.following if after >= self._fresh.after else self._merged.after)(after)

    def answer(self) -> Answer:
        return fold(self._merged.events())

    def stored(self, *last: Record) -> StoredLog:
        return self._merged.stored(last)

    def close(self) -> None:
        self.is_over = self.is_closed = True
        self._wake()

    def _wake(self) -> None:
        """Wake all that wait, the first ones at once; an append meanwhile does it again when all have been woken."""
        if self._is_waking:
            self._has_news = True
        else:
            self._is_waking = True
            self._wake_some(list(self._readers))

    def _wake_some(self, readers: list[MemoryCursor], start: int = 0) -> None:
        end = start + READERS_PER_TURN
        for cursor in readers if len(readers) <= READERS_PER_TURN else readers[start:end]:
            if cursor.is_waiting:
                cursor.is_waiting = False
                try:
                    cursor.wake()
                except Exception:  # Others wait behind it.
                    logger.exception("a reader of run %s could not be woken", self.run_id)
        if end < len(readers):
            asyncio.get_running_loop().call_soon(self._wake_some, readers, end)
            return
        self._is_waking = False
        if self._batch:
            self._batch_after, self._batch = -1, ()  # A reader that has stopped would not be the only one to hold it.
        if self._has_news:
            self._has_news = False
            asyncio.get_running_loop().call_soon(self._wake)
