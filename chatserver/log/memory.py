"""The event log in this process's memory."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import closing
from weakref import WeakValueDictionary

from anyio.lowlevel import checkpoint

from chatserver.answer import Answer, Folding
from chatserver.events import (
    TERMINAL_TYPES,
    TEXTS,
    Event,
    Record,
    Token,
    appended,
    decode,
    pieces,
    token_writer,
)
from chatserver.log import READ_RECORDS_LIMIT
from chatserver.log.segments import Segments
from chatserver.log.waking import WAKES

logger = logging.getLogger(__name__)

READERS_PER_TURN = 64
"""How many readers one callback of the loop wakes: a log with many of them does not hold up all others."""


class MemoryCursor:
    """A ``Cursor`` in a ``MemoryLog``."""

    __slots__ = ("__weakref__", "_log", "after", "wake")

    def __init__(self, log: "MemoryLog", after: int) -> None:
        self._log = log
        self.after = after
        self.wake: Callable[[], None] = _nobody

    @property
    def is_at_end(self) -> bool:
        return self._log.is_over and self.after >= self._log.last_seq

    def take(self) -> Sequence[Record]:
        log = self._log
        if self.after < log.last_seq:
            batch = log.batch(self.after)
            self.after = batch[-1].seq
            return batch
        if not log.is_over:
            log.waiting[self] = None
        return ()

    def close(self) -> None:
        self.wake = _nobody
        self._log.waiting.pop(self, None)


def _nobody() -> None:
    """Nobody is told."""


class MemoryLog:
    """An ``EventLog`` in memory, where all that was appended can be read for as long as the log is kept."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.last_seq = 0
        self.is_over = False
        self.waiting: dict[MemoryCursor, None] = {}
        """The cursors that wait, in the order of their coming; any of them leaves at one go."""
        self._kept = Segments()
        self._folding = Folding()
        self._token_record = token_writer(run_id)
        self._newest: Sequence[Record] = ()
        self._batch_after, self._batch = -1, ()  # type: tuple[int, Sequence[Record]]
        self._is_waking = False

    @property
    def size_bytes(self) -> int:
        """About what it takes of the memory."""
        return self._kept.size_bytes + self._folding.size_bytes

    def append(self, draft: Event) -> Record:
        if self.is_over:
            raise RuntimeError("a terminal event is the last one")
        for part in pieces(draft):
            self._append(part)
        if self.waiting and not self._is_waking:
            WAKES.tell(self._wake)
        return self._newest[0]

    def _append(self, part: Event) -> None:
        seq = self.last_seq + 1
        if type(part) is Token:
            self._keep(self._token_record(part.content, seq), part)
        else:
            new = appended(part, self.run_id, seq)
            # Texts cannot be changed; a tool may change the arguments that it is given.
            self._keep(new, part if isinstance(part, TEXTS) else decode(new.data))

    def _keep(self, new: Record, event: Event) -> None:
        self._folding.add(event)  # First: what it refuses is not in the log either.
        self._kept.append(new)
        self._newest = (new,)
        self.last_seq = new.seq
        self.is_over = new.type in TERMINAL_TYPES

    async def restore(self, records: Sequence[Record]) -> None:
        """Begin with what another log has told."""
        for count, each in enumerate(records, 1):
            self._keep(each, decode(each.data))
            if count % READ_RECORDS_LIMIT == 0:
                await checkpoint()

    def cursor(self, after: int) -> MemoryCursor:
        return MemoryCursor(self, after)

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
        if after == self.last_seq - 1:
            return self._newest
        if not self._is_waking:
            return self._kept.after(after)
        if after != self._batch_after:  # Else this reader is as far as the one that was woken before it.
            self._batch_after, self._batch = after, self._kept.after(after)
        return self._batch

    def answer(self) -> Answer:
        return self._folding.answer()

    async def records(self) -> list[Record]:
        found: list[Record] = []
        for part in self._kept.parts():
            if found:
                await checkpoint()  # A long log is unpacked in many parts.
            found += part
        return found

    def close(self) -> None:
        self.is_over = True
        if self.waiting and not self._is_waking:
            self._wake()

    def _wake(self) -> None:
        """Wake all that wait now. An append meanwhile wakes nobody: whoever waits again by then is woken afterwards."""
        self._is_waking = True
        due = list(self.waiting)
        self.waiting.clear()
        self._wake_some(due, 0, self.last_seq)

    def _wake_some(self, due: list[MemoryCursor], start: int, woken_seq: int) -> None:
        end = start + READERS_PER_TURN
        for cursor in due[start:end]:
            try:
                cursor.wake()
            except Exception:  # Others wait behind it.
                logger.exception("a reader of run %s could not be woken", self.run_id)
        if end < len(due):
            asyncio.get_running_loop().call_soon(self._wake_some, due, end, woken_seq)
        elif self.waiting and (self.is_over or self.last_seq > woken_seq):
            asyncio.get_running_loop().call_soon(self._wake)
        else:
            self._is_waking = False
            self._batch_after, self._batch = -1, ()  # A reader that has stopped would not be the only one to hold it.


class MemoryLogs:
    """The ``EventLogs`` of one process. Those of runs that are over take ``over_bytes_limit`` at most, all together."""

    def __init__(self, over_bytes_limit: int, stored: Callable[[str], Awaitable[Sequence[Record]]]) -> None:
        """``stored`` gives the records of a run whose log was forgotten, or none."""
        self._over_bytes_limit = over_bytes_limit
        self._stored = stored
        self._logs: dict[str, MemoryLog] = {}
        self._over = OrderedDict[str, int]()  # The bytes of each that is over, the oldest first.
        self._over_bytes = 0
        self._restored = WeakValueDictionary[str, MemoryLog]()
        self._restoring = WeakValueDictionary[str, asyncio.Lock]()

    async def create(self, run_id: str) -> MemoryLog:
        log = self._logs[run_id] = MemoryLog(run_id)
        return log

    async def open(self, run_id: str) -> MemoryLog | None:
        return self._logs.get(run_id) or await self._restore(run_id)

    async def _restore(self, run_id: str) -> MemoryLog | None:
        """A stored log: one for all who read it at the same time, or each would take as much memory again."""
        lock = self._restoring.setdefault(run_id, asyncio.Lock())
        async with lock:
            log = self._restored.get(run_id)
            if log is None and (records := await self._stored(run_id)):
                log = MemoryLog(run_id)
                await log.restore(records)
                self._restored[run_id] = log
            return log

    def retain(self, run_id: str, forget: Callable[[str], None]) -> None:
        self._over[run_id] = size_bytes = self._logs[run_id].size_bytes
        self._over_bytes += size_bytes
        while self._over_bytes > self._over_bytes_limit:
            forget(next(iter(self._over)))

    def forget(self, run_id: str) -> None:
        self._logs.pop(run_id, None)
        self._over_bytes -= self._over.pop(run_id, 0)
