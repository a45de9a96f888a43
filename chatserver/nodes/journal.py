"""The journal of several nodes, in Redis: what this node writes is published, what others write is followed.

The journal has what goes on; the database has what is over, and the database is right.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

import anyio

from chatserver.errors import Unavailable
from chatserver.log import EventLog, Fenced
from chatserver.nodes.chunk import packed_chunk
from chatserver.nodes.follower import JOURNAL_LOOK_SECONDS, STORED, Follower, Stored
from chatserver.nodes.keys import blocks_key, node_key, owner_key, run_key
from chatserver.nodes.link import Link, Script
from chatserver.nodes.owned_log import OwnedLog
from chatserver.nodes.publisher import RUN_TTL_SECONDS, Publisher
from chatserver.nodes.wire import Word, unavailable
from chatserver.telemetry import UNOBSERVED, Observer

RELEASED_SECONDS = 60
"""How long a run that is over is marked as nobody's: a node that was away for longer learns it from the database."""

RENEW_RUNS_SECONDS = RUN_TTL_SECONDS / 10

BLOCKS_PER_MERGE = 16

OWN, MERGE, RELEASE, RENEW = Script("own"), Script("merge"), Script("release"), Script("renew")


class RedisJournal:
    """A ``Journal`` in Redis, of one node."""

    def __init__(self, link: Link, node: str, stored: Stored, observer: Observer = UNOBSERVED) -> None:
        self._link = link
        self._node = node
        self._stored = stored
        self._owned: dict[str, OwnedLog] = {}
        self._follower = Follower(link, stored, observer)
        self._renewed_at = monotonic()
        self.publisher = Publisher(link, node, observer)

    async def own(self, run_id: str, is_claimed: bool = False) -> EventLog:
        try:
            keys = node_key(self._node), owner_key(run_id), run_key(run_id), blocks_key(run_id)
            owner = await self._link.call(OWN, keys, (self._node, RUN_TTL_SECONDS, int(is_claimed)))
        except asyncio.CancelledError:
            self._delete(run_id, 0)
            raise
        if owner is None:  # This node has no lease now.
            raise unavailable()
        if owner != self._node.encode():
            raise Fenced
        self._owned[run_id] = log = OwnedLog(run_id, self.publisher.publish)
        return log

    async def follow(self, run_id: str) -> EventLog | None:
        try:
            return await self._follower.follow(run_id)
        except Unavailable:
            if await self._stored(run_id) is None:
                raise
            return None

    def followed(self) -> Sequence[EventLog]:
        return self._follower.logs_with_readers()

    def release(self, run_id: str) -> None:
        if log := self._owned.get(run_id):
            log.is_released = True
            if not (log.has_ended and log.is_behind):  # Else who follows the run would never be told of its end.
                self._drop(log)

    def _drop(self, log: OwnedLog) -> None:
        del self._owned[log.run_id]
        marked_seconds = RELEASED_SECONDS if log.last_seq else 0  # Nobody has heard of a run that never began.
        log.fence()
        self._delete(log.run_id, marked_seconds)

    def lose(self, run_id: str) -> None:
        self.give_up(run_id)
        self._link.publish(run_key(run_id), STORED)

    def give_up(self, run_id: str) -> None:
        """The run is not ours any more: forget what was not confirmed, and go on with what others have of it."""
        if log := self._owned.pop(run_id, None):
            log.fence()
            self._follower.adopt(log.shown)

    def publish_again(self) -> None:
        """Redis may have lost its data: ask how far it has each run of ours, then publish what it lacks."""
        for log in self._owned.values():
            log.tail = -1
            self.publisher.publish(log)

    def announce(self, run_id: str) -> None:
        """Tell all who follow the run that the database has its log; so nobody needs what Redis has."""
        self._link.publish(run_key(run_id), STORED)
        self._delete(run_id)

    def _delete(self, run_id: str, marked_seconds: int = RELEASED_SECONDS) -> None:
        keys = run_key(run_id), blocks_key(run_id), owner_key(run_id)
        self._link.post(RELEASE, keys, (self._node, marked_seconds), _nobody)

    async def _keep(self, look_seconds: float) -> None:
        """Merge what can be merged, and drop what was released, for ever: once in a while, and nothing per token."""
        while True:
            await anyio.sleep(look_seconds)
            for log in list(self._owned.values()):
                if log.is_released and not log.is_behind:
                    self._drop(log)
                else:
                    self._merge(log)
            if monotonic() - self._renewed_at > RENEW_RUNS_SECONDS:
                self._renewed_at = monotonic()
                self._link.post(RENEW, (), (RUN_TTL_SECONDS, *self._owned), _nobody)

    def _merge(self, log: OwnedLog) -> None:
        merged, start = log.shown.merged, log.merged_blocks
        blocks = [merged.stored_block(index) for index in range(start, merged.closed_blocks)[:BLOCKS_PER_MERGE]]
        if blocks:
            keys = run_key(log.run_id), blocks_key(log.run_id), owner_key(log.run_id)
            args: list[Word] = [self._node, RUN_TTL_SECONDS, start, blocks[-1].last_seq, *map(packed_chunk, blocks)]
            self._link.post(MERGE, keys, args, partial(_merged, log))


def _merged(log: OwnedLog, count: Any) -> None:
    if isinstance(count, int) and count >= 0:
        log.merged_blocks = count


def _nobody(reply: Any) -> None:
    """Nobody waits for it."""


@asynccontextmanager
async def open_journal(
    link: Link,
    node: str,
    stored: Stored,
    look_seconds: float = JOURNAL_LOOK_SECONDS,
    observer: Observer = UNOBSERVED,
) -> AsyncIterator[RedisJournal]:
    """The journal of a node; ``stored`` gives the log of a run that is over from the database."""
    journal = RedisJournal(link, node, stored, observer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal._keep, look_seconds)
        tasks.start_soon(journal._follower.keep, look_seconds)
        tasks.start_soon(journal._follower.complete)
        yield journal
        tasks.cancel_scope.cancel()
