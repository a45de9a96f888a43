"""Nodes in this process with a real Redis between them, each with a journal; and what tests of journals share."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio

from chatserver.errors import NotFound
from chatserver.events import Event, Record
from chatserver.log import EventLog, StoredLog
from chatserver.nodes.address import Address
from chatserver.nodes.journal import RedisJournal, open_journal
from chatserver.nodes.keys import node_key
from chatserver.nodes.link import Link, open_link
from chatserver.nodes.owned_log import OwnedLog
from chatserver.telemetry import UNOBSERVED, Observer
from tests.logs import all_of, data, documents_of
from tests.merging import unmerged
from tests.redis_process import RedisProcess

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 2.0
"""Of a link. A busy machine may keep a test waiting for half a second, which must not cut the link off."""
WAIT_SECONDS = 20.0


class Node:
    """A node with its link and its journal."""

    def __init__(self, name: str, link: Link, journal: RedisJournal) -> None:
        self.name = name
        self.link = link
        self.journal = journal

    async def register(self) -> None:
        """Take a lease, for ever."""
        await self.link.command("SET", node_key(self.name), 1)

    async def own(self, run_id: str) -> OwnedLog:
        log = await self.journal.own(run_id)
        assert isinstance(log, OwnedLog)
        return log

    async def follow(self, run_id: str) -> EventLog:
        log = await self.journal.follow(run_id)
        assert log is not None
        return log


@asynccontextmanager
async def node(
    server: RedisProcess,
    name: str,
    database: Mapping[str, StoredLog | NotFound] | None = None,
    observer: Observer = UNOBSERVED,
) -> AsyncIterator[Node]:
    """A node; ``database`` has the logs of the runs that are over, and ``NotFound`` of those that were deleted."""

    async def stored(run_id: str) -> StoredLog | None:
        found = (database or {}).get(run_id)
        if isinstance(found, NotFound):
            raise found
        return found

    async with (
        open_link(Address(server.url), PATIENCE_SECONDS) as link,
        open_journal(link, name, stored, LOOK_SECONDS, observer) as journal,
    ):
        made = Node(name, link, journal)
        await made.register()
        yield made


async def until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        while not is_so():  # noqa: ASYNC110 - what is waited for is in another process
            await anyio.sleep(0.005)


async def is_at(log: EventLog, last_seq: int) -> None:
    """Wait until a follower has come so far."""
    await until(lambda: log.last_seq == last_seq)


async def is_shown(log: OwnedLog) -> None:
    """Wait until the owner shows all that was appended."""
    await until(lambda: log.shown.last_seq == log.last_seq)


async def agrees(log: EventLog, drafts: list[Event], step: int = 1) -> None:
    """Wait for the end of a log, and check what is read from all cursors."""
    await until(lambda: log.is_over)
    documents = documents_of(drafts, log.run_id)
    for cursor in range(0, len(documents) + 1, step):
        found = unmerged(data(await all_of(log, cursor)), documents)
        assert found == documents[cursor:], f"behind {cursor} not what the owner wrote"


class Witness:
    """Reads a log from its start, as it grows, and keeps what it was given."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.records: list[Record] = []

    async def read(self) -> None:
        async for batch in self.log.read(0):
            self.records += batch

    def check(self, drafts: list[Event]) -> None:
        documents = documents_of(drafts, self.log.run_id)
        assert unmerged(data(self.records), documents) == documents, "a reader was given something else"
