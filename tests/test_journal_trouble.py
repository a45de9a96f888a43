"""What the journal does when Redis loses data, stalls, is full or is away: nothing is skipped, and all heals."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from chatserver.errors import Unavailable
from chatserver.events import Event, Token, appended
from chatserver.log import EventLog, StoredLog
from chatserver.log.memory import MemoryLog
from chatserver.nodes import follower
from chatserver.nodes.chunk import packed_chunk
from chatserver.nodes.keys import blocks_key, node_key, owner_key, run_key
from chatserver.nodes.owned_log import OwnedLog
from tests.journals import Node, agrees, is_at, is_shown, node, until
from tests.logs import end, start
from tests.redis_process import RedisProcess, redis_process

pytestmark = pytest.mark.anyio

DRAFTS: list[Event] = [start(), *(Token(content=f"{number} ") for number in range(300)), end()]


class Writer:
    """Appends ``DRAFTS`` piece by piece; two nodes read them, one of which comes in the middle."""

    def __init__(self, log: OwnedLog, owner: Node, others: list[Node], follower: EventLog) -> None:
        self.log = log
        self.owner = owner
        self.others = others
        self.followers = [follower]
        self._drafts = iter(DRAFTS)

    def say(self, count: int) -> None:
        for _ in range(count):
            self.log.append(next(self._drafts))

    async def said(self, count: int) -> None:
        """Append so many, and wait until all have them."""
        self.say(count)
        await is_shown(self.log)
        for each in self.followers:
            await is_at(each, self.log.last_seq)

    async def finish(self) -> None:
        """Append the rest; the followers, one more, and the owner agree."""
        self.followers.append(await self.others[1].follow("run"))
        self.say(len(DRAFTS) - self.log.last_seq)
        for each in (self.log, *self.followers):
            await agrees(each, DRAFTS, 25)


@asynccontextmanager
async def writer(server: RedisProcess) -> AsyncIterator[Writer]:
    async with node(server, "a") as owner, node(server, "b") as other, node(server, "c") as late:
        log = await owner.own("run")
        made = Writer(log, owner, [other, late], await other.follow("run"))
        await made.said(150)
        yield made


@asynccontextmanager
async def registering(nodes: list[Node]) -> AsyncIterator[None]:
    """Nodes that take their leases again and again, as membership does."""

    async def register() -> None:
        while True:
            for each in nodes:
                with suppress(Unavailable):
                    await each.register()
            await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(register)
        yield
        tasks.cancel_scope.cancel()


LOSSES = {
    "the stream": lambda server: server.cli("DEL", run_key("run")),
    "all entries": lambda server: server.cli("XTRIM", run_key("run"), "MAXLEN", "0"),
    "all but the lease": lambda server: server.cli("DEL", run_key("run"), owner_key("run")),
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_journal_that_has_lost_its_end_is_filled_again(redis_server: RedisProcess, loss: str) -> None:
    async with writer(redis_server) as run:
        LOSSES[loss](redis_server)
        await run.said(50)
        await run.finish()


async def test_after_flushall_the_runs_go_on(redis_server: RedisProcess) -> None:
    async with writer(redis_server) as run:
        redis_server.cli("FLUSHALL")
        run.say(50)
        await anyio.sleep(0.1)
        assert run.log.shown.last_seq == 150, "without a lease nothing is shown"
        await run.owner.register()
        await is_shown(run.log)
        await run.finish()


@pytest.mark.parametrize("loss", ["nothing", *LOSSES])
async def test_what_is_lost_of_a_quiet_run_is_published_again(redis_server: RedisProcess, loss: str) -> None:
    """No token needs to come, whatever has become of the run meanwhile."""
    async with writer(redis_server) as run:
        if loss in LOSSES:
            LOSSES[loss](redis_server)
        run.owner.journal.publish_again()
        assert run.log.is_behind and run.log.chunk() == (150, b""), "what Redis has is not sent to it again"
        await until(lambda: not run.log.is_behind)
        assert redis_server.cli("HGET", owner_key("run"), "node") == "a"
        await is_at(await run.others[1].follow("run"), 150)
        await run.finish()


@pytest.mark.parametrize("kept", ["nothing", "all", "an older state"])
async def test_after_a_restart_of_redis_the_runs_go_on(kept: str) -> None:
    with redis_process() as server:
        async with writer(server) as run, registering([run.owner]):
            if kept == "all":
                await run.said(50)
            if kept != "nothing":
                server.cli("SAVE")
            if kept == "an older state":
                await run.said(50)
            server.stop()
            run.say(30)
            server.start()
            await is_shown(run.log)
            await run.finish()


async def test_a_stalled_redis_shows_nothing_and_loses_nothing(redis_server: RedisProcess) -> None:
    async with writer(redis_server) as run:
        redis_server.freeze()
        try:
            run.say(50)
            await until(lambda: not run.owner.link.is_up)
            assert run.log.shown.last_seq == 150
            with pytest.raises(Unavailable):
                await run.owner.own("another")
            with pytest.raises(Unavailable):
                await run.others[0].journal.follow("another")
        finally:
            redis_server.thaw()
        await is_shown(run.log)
        await run.finish()


async def test_a_full_redis_is_trouble_and_no_end(redis_server: RedisProcess, caplog: pytest.LogCaptureFixture) -> None:
    async with writer(redis_server) as run:
        redis_server.cli("CONFIG", "SET", "maxmemory", "1")
        try:
            run.say(50)
            await until(lambda: "Redis refuses" in caplog.text)
            assert run.log.shown.last_seq == 150 and not run.log.is_fenced
        finally:
            redis_server.cli("CONFIG", "SET", "maxmemory", "0")
        await is_shown(run.log)
        await run.finish()


async def test_a_finished_answer_is_shown_whole_without_redis(redis_server: RedisProcess) -> None:
    """When its terminal event is appended, the database has it; other nodes read it from there."""
    with redis_process() as server:
        database = dict[str, StoredLog]()
        async with node(server, "a") as owner, node(server, "b", database) as other:
            log = await owner.own("run")
            log.append(start())
            await is_shown(log)
            follower_log = await other.follow("run")
            server.stop()
            log.append(Token(content="x"))
            database["run"] = log.stored(appended(end(), "run", 3))
            log.append(end())
            await until(lambda: log.is_over)
            await agrees(log, [start(), Token(content="x"), end()])
            assert await other.journal.follow("run") is not None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(follower, "SILENT_SECONDS", 0.0)
                await agrees(follower_log, [start(), Token(content="x"), end()])
            server.start()


async def test_what_redis_has_not_is_asked_of_the_database_while_redis_is_away() -> None:
    with redis_process() as server:
        database = {"over": StoredLog.of([appended(end(), "over", 1)])}
        async with node(server, "a", database) as one:
            server.stop()
            assert await one.journal.follow("over") is None, "its log comes from the database"
            with pytest.raises(Unavailable):
                await one.journal.follow("unknown")
            server.start()


async def test_a_last_message_that_was_lost_is_found(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writer(redis_server) as run:
        monkeypatch.setitem(run.others[0].link._channels, run_key("run").encode(), lambda _: None)
        run.say(1)
        await is_shown(run.log)
        await is_at(run.followers[0], 151)


async def test_a_follower_of_a_crashed_run_is_given_what_the_database_says(redis_server: RedisProcess) -> None:
    database = dict[str, StoredLog]()
    async with node(redis_server, "a") as owner, node(redis_server, "b", database) as other:
        log = await owner.own("run")
        log.append(start())
        await is_shown(log)
        found = await other.follow("run")
        cursor = found.cursor(1)
        assert cursor.take() == ()
        database["run"] = StoredLog.of([appended(end(), "run", 1_000_002)])
        owner.journal.announce("run")
        await until(lambda: found.is_over)
        assert [each.seq for each in cursor.take()] == [1_000_002] and cursor.is_at_end


async def test_a_node_without_a_lease_shows_nothing(redis_server: RedisProcess) -> None:
    async with writer(redis_server) as run:
        redis_server.cli("DEL", node_key("a"))
        run.say(50)
        await anyio.sleep(0.1)
        assert (run.log.shown.last_seq, run.followers[0].last_seq) == (150, 150)
        await run.owner.register()
        await run.finish()


@pytest.mark.parametrize("place", ["blocks", "entries"])
async def test_a_node_that_follows_many_runs_comes_back_to_redis(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Redis hangs up on a connection with channels when what it has to send there is too much."""
    monkeypatch.setattr(follower, "READ_BYTES", 100_000)
    whole, count = MemoryLog("run"), 64
    while whole._merged.closed_blocks < count:
        whole.append(Token(content="x" * 9000))
    blocks = [packed_chunk(whole._merged.stored_block(index)) for index in range(count)]
    run_ids = [f"run {number}" for number in range(3 * follower.READS_AT_ONCE)]
    limit = str(sum(map(len, blocks)) * follower.READS_AT_ONCE // 2)
    with redis_process("--client-output-buffer-limit", "pubsub", limit, "0", "0") as server:
        async with node(server, "b") as one:
            for run_id in run_ids:
                await one.link.command("HSET", owner_key(run_id), "node", "a")
            logs = [await one.follow(run_id) for run_id in run_ids]
            for run_id in run_ids:
                if place == "blocks":
                    await one.link.command("RPUSH", blocks_key(run_id), *blocks)
                else:
                    for seq, block in enumerate(blocks, 1):
                        await one.link.command("XADD", run_key(run_id), f"{seq}-0", "d", block)
            lost = list[None]()
            one.link.on_down.append(lambda: lost.append(None))
            server.cli("CLIENT", "KILL", "TYPE", "pubsub")
            for log in logs:
                await is_at(log, count)
            assert len(lost) == 1


@pytest.mark.parametrize("fault", ["chunk", "confirm"])
async def test_a_log_that_cannot_be_published_is_lost_alone(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    lost = list[OwnedLog]()

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    def lose(log: OwnedLog) -> None:
        lost.append(log)
        fail()

    async with node(redis_server, "a") as owner:
        owner.journal.publisher.on_fenced = lose
        broken, sound = await owner.own("broken"), await owner.own("sound")
        monkeypatch.setattr(broken, fault, fail)
        broken.append(start())
        for draft in DRAFTS[:2]:
            sound.append(draft)
            await is_shown(sound)
        assert lost == [broken] and broken.is_fenced
        assert [each.getMessage().split()[:2] for each in caplog.records] == [["run", "broken"], ["nobody", "could"]]
