"""Leases: which process owns which runs, where several processes use one database.

Each process increments a number of its own, its beat. Another process that finds this beat unchanged in several looks,
each of which reached the database, ends the runs of the silent process. No clock is compared with another machine's.
On the same machine, a lock that is free shows at once that its process has died. A ``Witness`` may know better.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Set
from functools import partial
from time import monotonic
from typing import Self

import anyio
from msgspec import Struct
from sqlalchemy import Connection, bindparam, delete, insert, or_, select, text, update

from chatserver.errors import Unavailable
from chatserver.events import Terminal
from chatserver.sessions.database import Database
from chatserver.sessions.end import interrupt
from chatserver.sessions.locks import Lock, remove_old
from chatserver.sessions.schema import processes, runs
from chatserver.sessions.witness import Left, Witness
from chatserver.telemetry import UNOBSERVED, Observer

logger = logging.getLogger(__name__)

GONE_SECONDS = 10.0
LOOKS = 3
RENEW_SECONDS = GONE_SECONDS / LOOKS
"""After so many looks, one each ``RENEW_SECONDS``, the process of an unchanged beat counts as dead."""

RUNS_AT_ONCE = 20
"""How many runs are ended in one transaction: their answers may be large, and a transaction for each takes long."""

_MINE = processes.c.owner == bindparam("process")
_BEAT = update(processes).where(_MINE).values(beat=processes.c.beat + 1)
_TOUCH_PROCESS = update(processes).where(_MINE).values(beat=processes.c.beat)
_REGISTER = insert(processes).values(owner=bindparam("process"), beat=1)
_FORGET = delete(processes).where(_MINE)
_BEATS = select(processes.c.owner, processes.c.beat)
_NOBODY_REGISTERS = text("LOCK TABLE processes IN SHARE MODE")
_GOES_ON = runs.c.finished_at.is_(None) & or_(runs.c.owner.is_not(None), runs.c.status != "waiting")
"""Somebody goes on with the run, or should: a waiting run without an owner is parked."""

_OWNERS = select(runs.c.owner).where(_GOES_ON).distinct()


class _Seen(Struct):
    """The beat of another process, and how many looks have found this beat unchanged."""

    beat: int
    looks: int = 0


class Lease:
    """The lease of this process: enter it before the first run begins. Leaving it gives up all runs that still go on.

    ``on_loss`` is called when another process has taken this one for dead: which runs it has ended, the database says.
    ``on_taken`` is called when this process has ended runs of another, or parked them.
    """

    def __init__(self, database: Database, owner: str, witness: Witness, observer: Observer = UNOBSERVED) -> None:
        self.owner = owner
        self.on_loss: Callable[[], Awaitable[None]] = _nothing
        self.on_taken: Callable[[], None] = lambda: None
        self._witness = witness
        self._observer = observer
        self._database = database
        self._lock = Lock(database.lock_file(self.owner))
        self._seen: dict[str | None, _Seen] = {}
        self._owners: set[str | None] = set()
        self._renewed_at = 0.0
        self._is_lost = False
        """Whether another process has taken this one for dead, and ``on_loss`` has not heard of it yet."""

        self._call = asyncio.Event()
        witness.watch(self._call.set)
        self._tasks = anyio.create_task_group()

    @property
    def is_stale(self) -> bool:
        """Whether the lease was not renewed for so long that another process may be about to end this one's runs."""
        return monotonic() - self._renewed_at > GONE_SECONDS

    async def __aenter__(self) -> Self:
        self._lock.acquire()
        remove_old(self._database.lock_file("*"))
        await self._renew()
        await self._tasks.__aenter__()
        for each in (self._renew_forever, self._heed_forever):
            self._tasks.start_soon(each, name="lease")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tasks.cancel_scope.cancel()  # What is being written is over first: it would register this process again.
        await self._tasks.__aexit__(None, None, None)
        try:
            await self._database.write(partial(_forget, owner=self.owner))
        except Unavailable:
            self._lock.release()  # The file stays: its free lock tells other processes that they need not wait.
        else:
            self._lock.remove()
            self._lock.release()

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._renew_and_tell()
                _report(await self._end_gone(self._owners, {owner: seen.beat for owner, seen in self._seen.items()}))
            except Unavailable:
                # A process that cannot reach the database cannot tell whether others can.
                self._seen.clear()
            except Exception:
                # The task goes on: without it, other processes would take this one for dead.
                logger.exception("the lease could not be renewed")

    async def _renew_and_tell(self) -> None:
        if not await self._renew():
            logger.warning("this process was taken for dead by another: running answers that the other took over end")
            self._is_lost = True
        if self._is_lost:
            self._witness.mistaken()
            await self.on_loss()
            self._is_lost = False

    async def _heed_forever(self) -> None:
        """End what is left of those of whom the witness tells; it tells of them again until there is nothing left."""
        while True:
            await self._call.wait()
            self._call.clear()
            try:
                _report(await self.end_abandoned())
            except Unavailable:
                """It is told again."""
            except Exception:
                logger.exception("what dead processes have left could not be ended")

    async def touch(self) -> None:
        """Write to the database, to find out whether it can be written."""
        await self._database.write(partial(_touch, owner=self.owner))

    async def _renew(self) -> bool:
        """Increment the own beat and look at the others; whether this process was still registered."""
        now = monotonic()
        is_known, self._owners, beats = await self._database.write(partial(_beat, owner=self.owner))
        self._renewed_at = now
        self._seen = {
            owner: _Seen(beat, seen.looks + 1) if (seen := self._seen.get(owner)) and seen.beat == beat else _Seen(beat)
            for owner, beat in beats.items()
            if owner != self.owner
        }
        return is_known

    async def end_abandoned(self) -> list[str]:
        """End the runs of dead processes as interrupted; the ids of these runs."""
        return await self._end_gone(*await self._database.read(_owners_and_beats))

    async def _end_gone(self, owners: Set[str | None], beats: Mapping[str | None, int]) -> list[str]:
        others = (owners | beats.keys()) - {self.owner}
        silent = {each for each in others if each not in beats or self._stands_still(each, beats[each])}
        dead = {each for each in others if each is None or self._lock_of(each).is_free()}
        ended: list[str] = []
        for owner in await self._witness.gone(others, silent, dead):
            ended += await self._end_runs(owner, beats.get(owner))
            if (lock := self._lock_of(owner)).is_free():
                lock.remove()
        return ended

    async def _end_runs(self, owner: str | None, beat: int | None) -> list[str]:
        """End what an owner that is gone has left."""
        left = await self._database.write(partial(_bury, owner=owner, beat=beat))
        ended: list[str] = []
        for start in range(0, len(left), RUNS_AT_ONCE):
            taken = await self._witness.take(left[start : start + RUNS_AT_ONCE], owner)
            end = interrupt if self._witness.is_fence else _interrupt_unregistered
            write = partial(end, left=taken, left_by=owner, owner=self.owner)
            self._observer.left_behind(await self._database.write(write))
            await self._witness.ended(taken)
            self.on_taken()
            ended += taken
        return ended

    def _lock_of(self, owner: str | None) -> Lock:
        return Lock(self._database.lock_file(owner or ""))

    def _stands_still(self, owner: str | None, beat: int) -> bool:
        seen = self._seen.get(owner)
        return seen is not None and seen.beat == beat and seen.looks >= LOOKS


async def _nothing() -> None:
    """Nobody is told."""


def _report(ended: list[str]) -> None:
    if ended:
        logger.warning("runs that a dead process had left were ended: %d", len(ended))


def _beat(connection: Connection, owner: str) -> tuple[bool, set[str | None], dict[str | None, int]]:
    """Increment the beat, or register anew; whether the process was registered, and then owners and beats.

    One transaction for all of it: an idle server should wake rarely.
    """
    mine = {"process": owner}
    is_known = connection.execute(_BEAT, mine).rowcount == 1
    if not is_known:
        connection.execute(_REGISTER, mine)
    return is_known, *_owners_and_beats(connection)


def _touch(connection: Connection, owner: str) -> None:
    connection.execute(_TOUCH_PROCESS, {"process": owner})


def _forget(connection: Connection, owner: str) -> None:
    connection.execute(_FORGET, {"process": owner})


def _owners_and_beats(connection: Connection) -> tuple[set[str | None], dict[str | None, int]]:
    """The owners of unfinished runs (None: runs without an owner), and the beat of every process."""
    return set(connection.scalars(_OWNERS)), {row.owner: row.beat for row in connection.execute(_BEATS)}


def _bury(connection: Connection, owner: str | None, beat: int | None) -> list[str]:
    """Take a process for dead, if its beat is still this one (None: it is not registered); the runs that it has left.

    Whoever dies before these are ended leaves them to others: a process that is not registered is dead.
    """
    if beat is not None:
        is_same = connection.execute(delete(processes).where(processes.c.owner == owner, processes.c.beat == beat))
        if is_same.rowcount == 0:
            return []
    # Read before the registration: a process registers before it begins a run.
    left = unfinished(connection, owner)
    if beat is None and connection.execute(_BEATS.where(processes.c.owner == owner)).one_or_none() is not None:
        return []
    return left


def _interrupt_unregistered(
    connection: Connection, left: Mapping[str, Left], left_by: str | None, owner: str
) -> list[Terminal]:
    """As ``interrupt``, unless the process has registered again: it goes on with what it finds unfinished then."""
    if connection.dialect.name == "postgresql":  # It registers before this transaction, or finds what this has ended.
        connection.execute(_NOBODY_REGISTERS)
    if connection.execute(_BEATS.where(processes.c.owner == left_by)).one_or_none() is not None:
        return []
    return interrupt(connection, left, left_by, owner)


def unfinished(connection: Connection, owner: str | None) -> list[str]:
    """The ids of the runs that a process (None: none) has begun and not ended."""
    query = select(runs.c.run_id).where(_GOES_ON, runs.c.owner == owner)
    return list(connection.scalars(query))
