"""The event log in this process's memory."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence

from anyio.lowlevel import checkpoint

from chatserver.events import (
    TERMINAL_TYPES,
    TEXTS,
    Answer,
    Event,
    Record,
    Token,
    appended,
    compact,
    decode,
    fold,
    pieces,
    token_writer,
)
from chatserver.log import READ_BYTES_LIMIT, READ_RECORDS_LIMIT, Take

logger = logging.getLogger(__name__)


class _Cursor:
    """A reader that waits for what follows its cursor."""

    __slots__ = ("after", "take", "waiter")

    def __init__(self, after: int, take: Take | None, waiter: asyncio.Future[None]) -> None:
        self.after = after
        self.take = take
        self.waiter = waiter


class MemoryLog:
    """An ``EventLog`` that is a list.

    When the documents pass ``budget_bytes``, the older half becomes a snapshot, as far as one event can hold it.
    """

    def __init__(self, run_id: str, budget_bytes: int, records: Sequence[Record] = ()) -> None:
        self.run_id = run_id
        self._records = list(records)
        self._budget_bytes = budget_bytes
        self._bytes = sum(len(each.data) for each in self._records)
        self._compact_at_bytes = budget_bytes
        self._last_seq = self._records[-1].seq if self._records else 0
        self._token_record = token_writer(run_id)
        self._answer = Answer()
        self._unfolded: list[Event | Record] = list(records)
        self._waiting: list[_Cursor] = []
        self._is_waking = False
        self._closed = bool(self._records) and self._records[-1].is_terminal

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
        if len(parts := pieces(draft)) > 1:
            for part in parts:
                self._append(part)
            return
        seq = self._last_seq + 1
        new = self._token_record(draft.content, seq) if type(draft) is Token else appended(draft, self.run_id, seq)
        self._last_seq = seq
        self._records.append(new)
        # Texts cannot be changed; a tool may change the arguments that it is given.
        self._unfolded.append(draft if isinstance(draft, TEXTS) else new)
        self._bytes += len(new.data)
        self._closed = new.type in TERMINAL_TYPES
        if self._bytes > self._compact_at_bytes:
            self._compact()

    async def read(self, after: int, take: Take | None = None) -> AsyncGenerator[Sequence[Record], None]:
        cursor = after
        while True:
            if batch := self._following(cursor):
                yield batch
                cursor = batch[-1].seq
                if cursor < self._last_seq:
                    await checkpoint()  # A peer that takes everything at once must not keep the loop for itself.
            elif self._closed:
                return
            else:
                waiting = _Cursor(cursor, take, asyncio.get_running_loop().create_future())
                self._waiting.append(waiting)
                try:
                    await waiting.waiter
                except asyncio.CancelledError:
                    if waiting in self._waiting:
                        self._waiting.remove(waiting)
                    raise
                cursor = waiting.after

    async def last_seq(self) -> int:
        return self._last_seq

    async def answer(self) -> Answer:
        self._fold()
        return self._answer

    async def records(self) -> list[Record]:
        return list(self._records)

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
        is_any_woken = False
        for reader in self._waiting:
            if reader.waiter.done():
                continue
            if reader.after != after:
                after, batch = reader.after, self._following(reader.after)
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
                is_any_woken = True
        if is_any_woken:
            self._waiting = [reader for reader in self._waiting if not reader.waiter.done()]

    def _following(self, cursor: int) -> Sequence[Record]:
        if cursor >= self._last_seq:
            return ()
        if cursor == self._last_seq - 1:
            return self._records[-1:]
        start = self._index(cursor)
        batch = self._records[start : start + READ_RECORDS_LIMIT]
        room = READ_BYTES_LIMIT
        for count, each in enumerate(batch):
            room -= len(each.data)
            if room < 0 and count:
                return batch[:count]
        return batch

    def _index(self, cursor: int) -> int:
        """Where the records after a cursor begin. Only the first can be a snapshot; from there on no seq is missing."""
        return max(0, cursor - self._records[0].seq + 1)

    def _fold(self) -> None:
        events = (decode(each.data) if isinstance(each, Record) else each for each in self._unfolded)
        self._answer, self._unfolded = fold(events, self._answer), []

    def _compact(self) -> None:
        self._fold()
        self._records = compact(self._records, self.run_id, keep=len(self._records) // 2)
        self._bytes = sum(len(each.data) for each in self._records)
        # Never sooner than after as much again, or a log that cannot shrink would be folded at each append.
        self._compact_at_bytes = max(self._budget_bytes, self._bytes + self._budget_bytes // 2)


class MemoryLogs:
    """The ``EventLogs`` of one process."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._logs: dict[str, MemoryLog] = {}

    async def create(self, run_id: str) -> MemoryLog:
        log = self._logs[run_id] = MemoryLog(run_id, self._budget_bytes)
        return log

    async def open(self, run_id: str) -> MemoryLog | None:
        return self._logs.get(run_id)

    def forget(self, run_id: str) -> None:
        self._logs.pop(run_id, None)
