"""The readers' side of the journal: each run of another node that somebody here reads is followed once.

What a run's channel says is kept if it follows what is here. Otherwise the run is read from Redis: when it is followed
for the first time, when a message was lost, and when the link is made again. A run that Redis knows nothing of, or that
is silent, may be over in the database, which then has its whole log.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

import anyio

from chatserver.endings import DELETED
from chatserver.errors import NotFound, Unavailable
from chatserver.events import appended
from chatserver.log import StoredLog
from chatserver.log.fed import FedLog
from chatserver.nodes.chunk import unpacked_chunk
from chatserver.nodes.keys import blocks_key, owner_key, run_key
from chatserver.nodes.link import Link, Script
from chatserver.nodes.wire import unavailable
from chatserver.telemetry import UNOBSERVED, Observer

logger = logging.getLogger(__name__)

READ_BYTES, ENTRIES_AT_ONCE = 1024 * 1024, 256
"""How much one call reads about, at most a megabyte more: Redis does nothing else meanwhile."""

READS_AT_ONCE = 8
"""How many runs are read at a time: Redis hangs up on a connection with channels that has 32 MB to be sent, and would
again when the node comes back to read."""

JOURNAL_LOOK_SECONDS = 1.0
"""Between two looks whether the newest message of a run was lost."""

SILENT_SECONDS = 5.0
"""How long a run says nothing before the database is asked whether it is over."""

IDLE_SECONDS = 10.0
"""How long a run is followed that nobody here reads any more."""

READ, TAILS = Script("read"), Script("tails")

STORED = b""
"""The message of a run's channel that says: the run is over, and the database has its log."""

Stored: TypeAlias = Callable[[str], Awaitable[StoredLog | None]]
"""As ``Sessions.log``."""


class Found(Enum):
    """What the first read of a run has found in Redis."""

    RUN = auto()
    NOTHING = auto()
    NO_ANSWER = auto()


class Followed:
    """A run that is followed."""

    __slots__ = ("blocks", "first_read", "heard_at", "is_ours", "is_reading", "log", "used_at")

    def __init__(self, log: FedLog, is_ours: bool) -> None:
        self.log = log
        self.is_ours = is_ours
        """Whether it was ours, and readers find it elsewhere: it is followed to its end."""

        self.blocks = 0
        """How many blocks of it were read."""

        self.is_reading = False
        """Whether it is being read from Redis. What its channel says meanwhile is among what is read."""

        self.first_read: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

        self.heard_at = self.used_at = monotonic()


class Follower:
    """The runs of other nodes that have readers on this one."""

    def __init__(self, link: Link, stored: Stored, observer: Observer = UNOBSERVED) -> None:
        """``stored`` gives the log of a run that is over from the database."""
        self._link = link
        self._stored = stored
        self._observer = observer
        self._followed: dict[str, Followed] = {}
        self._unread = deque[Followed]()  # What is read next, as soon as another read has its reply.
        self._reads = 0
        self._maybe_over: dict[str, None] = {}  # Runs that the database is asked about next.
        self._news = asyncio.Event()
        link.on_up.append(self._read_all)

    async def follow(self, run_id: str) -> FedLog | None:
        """The log of a run, as far as Redis has it; None: Redis has nothing of it.

        Raises:
            Unavailable: Redis cannot be used now.
        """
        followed = self._followed.get(run_id)
        if followed is None or followed.log.is_closed:
            followed = self._begin(FedLog(run_id))
        followed.used_at = monotonic()
        match await asyncio.shield(followed.first_read):
            case Found.RUN:
                return followed.log
            case Found.NOTHING:
                return None
            case Found.NO_ANSWER:
                raise unavailable()  # One for each who waits: the traceback of one would grow with their number.

    def logs_with_readers(self) -> list[FedLog]:
        """The logs of runs that go on and are read here."""
        logs = [followed.log for followed in self._followed.values()]
        return [log for log in logs if log.has_readers and not log.is_over]

    def adopt(self, log: FedLog) -> None:
        """Follow a run that was ours, from where it is, to its end, which the database may have already.

        Who has read it here before it was ours, or when it was ours earlier, comes back: one log hears the channel.
        """
        if before := self._followed.get(log.run_id):
            before.log.close()
        self._ask_database(self._begin(log, is_ours=True))

    def _begin(self, log: FedLog, is_ours: bool = False) -> Followed:
        self._followed[log.run_id] = followed = Followed(log, is_ours)
        self._link.subscribe(run_key(log.run_id), partial(self._hear, followed))
        self._read(followed)
        return followed

    def _leave(self, followed: Followed) -> None:
        self._hear_no_more(followed)
        if self._followed.get(followed.log.run_id) is followed:
            del self._followed[followed.log.run_id]

    def _hear_no_more(self, followed: Followed) -> None:
        if self._followed.get(followed.log.run_id) is followed:  # Else another log of the run hears its channel.
            self._link.unsubscribe(run_key(followed.log.run_id))

    # What Redis says.

    def _hear(self, followed: Followed, message: bytes) -> None:
        followed.heard_at = monotonic()
        if message == STORED:
            self._ask_database(followed)
        elif not followed.is_reading and not self._feed(followed, message):
            self._read(followed)

    def _feed(self, followed: Followed, chunk: bytes) -> bool:
        """Keep what is new; False: something before it is missing."""
        follows = followed.log.feed(unpacked_chunk(chunk))
        if followed.log.is_over:
            self._hear_no_more(followed)
        return follows

    def _read_all(self) -> None:
        for followed in self._followed.values():
            if not followed.log.is_over and not followed.is_reading:
                self._read(followed)

    def _read(self, followed: Followed) -> None:
        followed.is_reading = True
        self._unread.append(followed)
        self._read_next()

    def _read_next(self) -> None:
        while self._unread and self._reads < READS_AT_ONCE:
            self._reads += 1
            followed = self._unread.popleft()
            run_id, after = followed.log.run_id, followed.log.last_seq
            keys = run_key(run_id), blocks_key(run_id), owner_key(run_id)
            args = followed.blocks, after, READ_BYTES, ENTRIES_AT_ONCE
            self._link.post(READ, keys, args, partial(self._got, followed))

    def _got(self, followed: Followed, reply: Any) -> None:
        followed.is_reading = False
        self._reads -= 1
        self._read_next()
        if isinstance(reply, Exception):
            if not isinstance(reply, Unavailable):
                logger.error("run %s cannot be read from Redis: %s", followed.log.run_id, reply)
            return self._tell_first(followed, Found.NO_ANSWER)
        is_there, blocks, chunks, has_more = reply
        followed.blocks += len(blocks)
        if not all(self._feed(followed, chunk) for chunk in (*blocks, *chunks)):
            followed.blocks = 0  # Redis lacks something, until the owner notices: the next look reads all of it.
        elif has_more:
            return self._read(followed)
        self._tell_first(followed, Found.RUN if is_there else Found.NOTHING)

    def _tell_first(self, followed: Followed, found: Found) -> None:
        if not followed.first_read.done():
            followed.first_read.set_result(found)
            if found is not Found.RUN and not followed.is_ours:
                self._leave(followed)

    # What is looked at once in a while.

    async def keep(self, look_seconds: float) -> None:
        """Find what was lost, and leave what nobody reads, for ever."""
        while True:
            await anyio.sleep(look_seconds)
            self._look()

    async def complete(self) -> None:
        """Find what is over, for ever. The database may not answer for long: nothing else waits for it."""
        while True:
            await self._news.wait()
            self._news.clear()
            run_ids, self._maybe_over = self._maybe_over, {}
            for run_id in run_ids:
                if followed := self._followed.get(run_id):
                    with suppress(Unavailable):
                        await self._complete(followed)

    def _look(self) -> None:
        now, looked_at = monotonic(), list[Followed]()
        for followed in list(self._followed.values()):
            if followed.log.has_readers:
                followed.used_at = now
            is_idle = now - followed.used_at > IDLE_SECONDS
            if is_idle and (followed.log.is_over or not followed.is_ours):
                self._leave(followed)
            elif not followed.log.is_over:
                looked_at.append(followed)
                if now - followed.heard_at > SILENT_SECONDS:
                    self._ask_database(followed)
        if looked_at:
            run_ids = [followed.log.run_id for followed in looked_at]
            self._link.post(TAILS, (), run_ids, partial(self._compare, looked_at))

    def _compare(self, looked_at: Sequence[Followed], tails: Any) -> None:
        if isinstance(tails, list):
            for followed, tail in zip(looked_at, tails, strict=True):
                self._observer.follower_lagged(max(0, tail - followed.log.last_seq))
                if tail > followed.log.last_seq and not followed.is_reading:
                    self._read(followed)

    def _ask_database(self, followed: Followed) -> None:
        followed.heard_at = monotonic()
        self._maybe_over[followed.log.run_id] = None
        self._news.set()

    async def _complete(self, followed: Followed) -> None:
        """Complete the log of a run that is over in the database, or was deleted there."""
        log = followed.log
        try:
            if (stored := await self._stored(log.run_id)) and not log.is_over:
                self._hear_no_more(followed)
                await log.complete(stored)
        except NotFound:
            if not log.is_over:
                self._hear_no_more(followed)
                log.keep(DELETED, appended(DELETED, log.run_id, log.last_seq + 1))
                log.tell()
