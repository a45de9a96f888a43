"""All logs that a node has in memory: those that it writes, those that it follows, and stored ones that are read."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

from chatserver.log import EventLog, StoredLog
from chatserver.log.journal import Journal
from chatserver.log.memory import MemoryLog


class MemoryLogs:
    """The ``EventLogs`` of one node. Its logs that are over take ``over_bytes_limit`` at most, all together."""

    def __init__(
        self, over_bytes_limit: int, stored: Callable[[str], Awaitable[StoredLog | None]], journal: Journal
    ) -> None:
        """``stored`` gives the log of a run that was forgotten, None: there is none."""
        self._over_bytes_limit = over_bytes_limit
        self._stored = stored
        self._journal = journal
        self._logs: dict[str, EventLog] = {}
        self._over = OrderedDict[str, int]()  # The bytes of each that is over, the oldest first.
        self._over_bytes = 0
        self._restored = WeakValueDictionary[str, MemoryLog]()
        self._restoring = WeakValueDictionary[str, asyncio.Lock]()

    async def create(self, run_id: str) -> EventLog:
        self.forget(run_id)  # The store may have undone a beginning, and the run begins once more.
        self._logs[run_id] = log = await self._journal.own(run_id)
        return log

    async def revive(self, run_id: str, stored: StoredLog) -> EventLog:
        self.forget(run_id)
        self._logs[run_id] = log = await self._journal.own(run_id, is_claimed=True)
        await log.restore(stored)
        return log

    async def open(self, run_id: str) -> EventLog | None:
        return self._logs.get(run_id) or await self._journal.follow(run_id) or await self.restore(run_id)

    async def restore(self, run_id: str) -> EventLog | None:
        """One log for all who read it at the same time, or each would take as much memory again."""
        lock = self._restoring.setdefault(run_id, asyncio.Lock())
        async with lock:
            log = self._restored.get(run_id)
            if log is None and (stored := await self._stored(run_id)):
                log = MemoryLog(run_id)
                await log.restore(stored)
                self._restored[run_id] = log
            return log

    def followed(self) -> Sequence[EventLog]:
        return self._journal.followed()

    def lose(self, run_id: str) -> None:
        self._journal.lose(run_id)

    def retain(self, run_id: str, forget: Callable[[str], None]) -> None:
        self._over[run_id] = size_bytes = self._logs[run_id].size_bytes
        self._over_bytes += size_bytes
        while self._over_bytes > self._over_bytes_limit:
            forget(next(iter(self._over)))

    def forget(self, run_id: str) -> None:
        if self._logs.pop(run_id, None):
            self._journal.release(run_id)
        self._over_bytes -= self._over.pop(run_id, 0)
