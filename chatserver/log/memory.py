"""The event log in this process's memory."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from chatserver.events import (
    TERMINAL_TYPES,
    TEXTS,
    Answer,
    Event,
    Folding,
    Record,
    Token,
    appended,
    decode,
    pieces,
    token_writer,
)
from chatserver.log import READ_RECORDS_LIMIT, Take
from chatserver.log.segments import Segments

logger = logging.getLogger(__name__)


class _Reader:
    """Where a reader is; while it waits for what follows, ``waiter`` wakes it."""

    __slots__ = ("after", "take", "waiter")

    def __init__(self, after: int, take: Take | None) -> None:
        self.after = after
        self.take = take
        self.waiter: asyncio.Future[None]


class MemoryLog:
    """An ``EventLog`` in memory, where all that was appended can be read for as long as the log is kept."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._kept = Segments()
        self._folding = Folding()
        self._last_seq = 0
        self._token_record = token_writer(run_id)
        self._waiting: dict[_Reader, None] = {}  # In the order of their coming; any of them leaves at one go.
        self._is_waking = False
        self._closed = False

    @property
    def size_bytes(self) -> int:
        """About what it takes of the memory."""
        return self._kept.size_bytes + self._folding.size_bytes

    async def append(self, draft: Event) -> int:
        self._append(draft)
        self._wake()
        return self._last_seq

    def append_now(self, draft: Event) -> int:
        self._append(draft)
        if not self._is_waking:  # Else it goes out with what is due anyway.
            self._serve()  # What comes alone has nothing that it could be joined to.
        return self._last_seq

    def _append(self, draft: Event) -> None:
        if self._closed:
            raise RuntimeError("a terminal event is the last one")
        for part in pieces(draft):
            seq = self._last_seq + 1
            if type(part) is Token:
                self._keep(self._token_record(part.content, seq), part)
            else:
                new = appended(part, self.run_id, seq)
                # Texts cannot be changed; a tool may change the arguments that it is given.
                self._keep(new, part if isinstance(part, TEXTS) else decode(new.data))

    def _keep(self, new: Record, event: Event) -> None:
        self._folding.add(event)  # First: what it refuses is not in the log either.
        self._kept.append(new)
        self._last_seq = new.seq
        self._closed = new.type in TERMINAL_TYPES

    async def restore(self, records: Sequence[Record]) -> None:
        """Begin with what another log has told."""
        for count, each in enumerate(records, 1):
            self._keep(each, decode(each.data))
            if count % READ_RECORDS_LIMIT == 0:
                await checkpoint()

    async def read(self, after: int, take: Take | None = None) -> AsyncGenerator[Sequence[Record], None]:
        reader = _Reader(after, take)
        while True:
            if reader.after < self._last_seq:
                yield self._next_batch(reader)
                if reader.after < self._last_seq:
                    await checkpoint()  # A peer that takes everything at once must not keep the loop for itself.
            elif self._closed:
                return
            else:
                reader.waiter = asyncio.get_running_loop().create_future()
                self._waiting[reader] = None
                try:
                    await reader.waiter
                finally:
                    del self._waiting[reader]
                # anyio cancels no task whose wait is over, and in a run that makes no pause it always is.
                await checkpoint_if_cancelled()

    def _next_batch(self, reader: _Reader) -> Sequence[Record]:
        """Made here, the batch is held by nobody but the one that sends it."""
        batch = self._kept.after(reader.after)
        reader.after = batch[-1].seq
        return batch

    async def last_seq(self) -> int:
        return self._last_seq

    async def answer(self) -> Answer:
        return self._folding.answer()

    async def records(self) -> list[Record]:
        found: list[Record] = []
        for part in self._kept.parts():
            if found:
                await checkpoint()  # A long log is unpacked in many parts.
            found += part
        return found

    async def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        """Serve who waits, once for all that this turn of the loop appends."""
        if self._waiting and not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Offer each reader what follows its cursor; one that cannot take it at once is woken to do it in its own time.

        Waking a task for each event is dearer (measured, the server's CPU for one more reader's event: 23 and 14 µs).
        """
        self._is_waking = False
        after, batch = -1, ()  # type: tuple[int, Sequence[Record]]
        for reader in self._waiting:
            if reader.waiter.done():
                continue
            if reader.after != after:
                after = reader.after
                batch = self._kept.after(after) if after < self._last_seq else ()
            is_taken = False
            if batch and not self._closed and reader.take is not None:
                try:
                    is_taken = reader.take(batch)
                except Exception:
                    # Other readers wait behind this one; its own task meets the failure where it can tell of it.
                    logger.debug("a reader could not be served at once", exc_info=True)
            if is_taken:
                reader.after = batch[-1].seq
                if reader.after < self._last_seq:
                    self._wake()
            else:
                reader.waiter.set_result(None)


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
