"""The journal of several nodes on a real Redis: what followers see is what the owner wrote, byte for byte, in order."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from chatserver.errors import Unavailable
from chatserver.events import Token, appended
from chatserver.log import EventLog, Fenced, StoredLog
from chatserver.nodes.address import Address
from chatserver.nodes.journal import RedisJournal, open_journal
from chatserver.nodes.keys import node_key, owner_key, run_key
from chatserver.nodes.link import Link, open_link
from chatserver.nodes.owned_log import OwnedLog
from tests.logs import a_run, all_of, data, documents_of, end, start
from tests.merging import unmerged
from tests.redis_servers import RedisServer

pytestmark = pytest.mark.anyio

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 0.4


class Node:
    """A node with its journal, and a database that all nodes share."""

    def __init__(self, name: str, link: Link, journal: RedisJournal, database: dict[str, StoredLog]) -> None:
        self.name = name
        self.link = link
        self.journal = journal
        self.database = database

    async def register(self) -> None:
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
async def node(server: RedisServer, name: str, database: dict[str, StoredLog] | None = None) -> AsyncIterator[Node]:
    logs = {} if database is None else database

    async def stored(run_id: str) -> StoredLog | None:
        return logs.get(run_id)

    async with (
        open_link(Address(server.url), PATIENCE_SECONDS) as link,
        open_journal(link, name, stored, LOOK_SECONDS) as journal,
    ):
        made = Node(name, link, journal, logs)
        await made.register()
        yield made


async def until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not is_so():  # noqa: ASYNC110 - what is waited for is in another process
            await anyio.sleep(0.005)


async def is_at(log: EventLog, last_seq: int) -> None:
    await until(lambda: log.last_seq == last_seq)


async def is_shown(log: OwnedLog) -> None:
    await until(lambda: log.shown.last_seq == log.last_seq)


async def test_what_is_appended_is_shown_when_redis_has_it(redis_server: RedisServer) -> None:
    async with node(redis_server, "a") as owner:
        log = await owner.own("run")
        new = log.append(start())
        assert (new.seq, log.last_seq, log.shown.last_seq) == (1, 1, 0)
        assert log.cursor(0).take() == ()
        await is_shown(log)
        assert redis_server.cli("XRANGE", run_key("run"), "-", "+").split("\n")[::2] == ["1-0", new.data.decode()]
        assert log.cursor(0).take() == (new,)


async def test_all_nodes_have_the_same_documents(redis_server: RedisServer) -> None:
    drafts = list(a_run(600))
    async with node(redis_server, "a") as owner, node(redis_server, "b") as early, node(redis_server, "c") as late:
        log = await owner.own("run")
        follower = await early.follow("run")
        documents = documents_of(drafts, "run")
        for draft in drafts[:-1]:
            log.append(draft)
            await anyio.lowlevel.checkpoint()
        await is_at(follower, 599)
        another = await late.follow("run")
        assert another.last_seq == 599
        log.append(drafts[-1])
        for each in (log, follower, another):
            await until(lambda each=each: each.is_over)  # type: ignore[misc]
            for cursor in range(601):
                assert unmerged(data(await all_of(each, cursor)), documents) == documents[cursor:]
            assert each.stored() == log.stored() and each.answer() == log.answer()


async def test_who_does_not_own_a_run_cannot_write_it(redis_server: RedisServer) -> None:
    async with node(redis_server, "a") as owner, node(redis_server, "b") as other:
        await owner.own("run")
        with pytest.raises(Fenced):
            await other.own("run")
        await owner.link.command("DEL", node_key("a"))
        with pytest.raises(Unavailable):
            await owner.own("another")


async def test_a_fenced_owner_shows_nothing_more_and_goes_on_as_a_reader(redis_server: RedisServer) -> None:
    async with node(redis_server, "a") as owner, node(redis_server, "b", owner.database) as other:
        fenced = list[OwnedLog]()
        owner.journal.publisher.on_fenced = fenced.append
        log = await owner.own("run")
        log.append(start())
        await is_shown(log)
        await other.link.command("HSET", owner_key("run"), "node", "b")
        log.append(Token(content="never seen"))
        await until(lambda: bool(fenced))
        assert (fenced, log.is_fenced, log.last_seq) == ([log], True, 1)
        with pytest.raises(Fenced):
            log.append(Token(content="nor this"))
        owner.journal.lose("run")
        owner.database["run"] = log.stored(appended(end(), "run", 2))
        other.journal.announce("run")
        await until(lambda: log.is_over)
        assert [each.seq for each in await all_of(log)] == [1, 2]
