"""The journal of several nodes on a real Redis: what followers see is what the owner wrote, byte for byte, in order."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.errors import Unavailable
from chatserver.events import Event, Reasoning, Token, appended
from chatserver.log import SEQ_LIMIT, Fenced, StoredLog
from chatserver.log.fed import FedLog
from chatserver.log.memory import MemoryLog
from chatserver.nodes import follower
from chatserver.nodes.keys import blocks_key, node_key, owner_key, run_key
from chatserver.nodes.owned_log import OwnedLog
from tests.journals import LOOK_SECONDS, agrees, is_at, is_shown, node, until
from tests.logs import a_run, all_of, data, documents_of, end, kept, start
from tests.merging import unmerged
from tests.redis_process import RedisProcess

pytestmark = pytest.mark.anyio


async def test_what_is_appended_is_shown_when_redis_has_it(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as owner:
        log = await owner.own("run")
        new = log.append(start())
        assert (new.seq, log.last_seq, log.shown.last_seq) == (1, 1, 0)
        assert log.cursor(0).take() == ()
        await is_shown(log)
        assert redis_server.cli("XRANGE", run_key("run"), "-", "+").split("\n")[::2] == ["1-0", new.data.decode()]
        assert log.cursor(0).take() == (new,)


async def test_all_nodes_have_the_same_documents(redis_server: RedisProcess) -> None:
    drafts = list(a_run(600))
    async with node(redis_server, "a") as owner, node(redis_server, "b") as early, node(redis_server, "c") as late:
        log = await owner.own("run")
        first = await early.follow("run")
        for draft in drafts[:-1]:
            log.append(draft)
            await checkpoint()
        await is_at(first, 599)
        second = await late.follow("run")
        assert second.last_seq == 599
        log.append(drafts[-1])
        for each in (log, first, second):
            await agrees(each, drafts)
            assert each.stored() == log.stored() and each.answer() == log.answer()


async def test_what_is_appended_meanwhile_shares_the_next_call(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as owner:
        logs = [await owner.own(f"run {number}") for number in range(10)]
        redis_server.cli("CONFIG", "RESETSTAT")
        for _ in range(20):
            for log in logs:
                log.append(Token(content="x"))
        for log in logs:
            await is_shown(log)
        calls = [line for line in redis_server.cli("INFO", "commandstats").split("\n") if "evalsha" in line]
        assert calls and calls[0].startswith("cmdstat_evalsha:calls=1,")
        assert [int(redis_server.cli("XLEN", run_key(log.run_id))) for log in logs] == [1] * 10


async def test_a_run_is_followed_once_however_many_read_it(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as owner, node(redis_server, "b") as other:
        log = await owner.own("run")
        log.append(start())
        await is_shown(log)
        found = []

        async def read() -> None:
            found.append(data(await all_of(await other.follow("run"))))

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(read)
            await until(lambda: redis_server.cli("PUBSUB", "NUMSUB", run_key("run")).endswith("\n1"))
            log.append(Token(content="x"))
            log.append(end())
        assert found == [documents_of([start(), Token(content="x"), end()], "run")] * 200
        await until(lambda: redis_server.cli("PUBSUB", "NUMSUB", run_key("run")).endswith("\n0"))


async def test_a_reader_that_is_cancelled_while_the_run_is_read_disturbs_no_other(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as owner, node(redis_server, "b") as other:
        await owner.own("run")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await other.follow("run")
        assert (await other.follow("run")).run_id == "run"


async def test_a_run_that_nobody_reads_any_more_is_left(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "IDLE_SECONDS", 0.0)
    async with node(redis_server, "a") as owner, node(redis_server, "b") as other:
        log = await owner.own("run")
        found = await other.follow("run")
        cursor = found.cursor(0)
        await anyio.sleep(3 * LOOK_SECONDS)
        assert redis_server.cli("PUBSUB", "NUMSUB", run_key("run")).endswith("\n1")
        cursor.close()
        await until(lambda: redis_server.cli("PUBSUB", "NUMSUB", run_key("run")).endswith("\n0"))
        log.append(start())
        await is_shown(log)
        again = await other.follow("run")
        assert again is not found and again.last_seq == 1


async def test_nothing_is_followed_that_nobody_wrote(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as one:
        assert await one.journal.follow("nothing") is None
        assert redis_server.cli("PUBSUB", "CHANNELS") == ""


# ---- what is kept in Redis ------------------------------------------------------------------------------------------


async def test_closed_blocks_are_moved_and_never_written_again(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as owner, node(redis_server, "b") as other:
        log = await owner.own("run")
        drafts = [start(), *(kind(content=f"{n} ") for n in range(8000) for kind in [Reasoning if n < 2000 else Token])]
        for draft in drafts[:-1]:
            log.append(draft)
            if log.last_seq % 50 == 0:
                await checkpoint()
        await is_shown(log)
        closed = log.shown.merged.closed_blocks
        await until(lambda: log.merged_blocks == closed > 3)
        assert int(redis_server.cli("LLEN", blocks_key("run"))) == closed
        first = int(redis_server.cli("XRANGE", run_key("run"), "-", "+", "COUNT", "1").partition("-")[0])
        assert first > log.shown.merged.stored_block(closed - 1).last_seq
        before = redis_server.cli("LRANGE", blocks_key("run"), "0", "-1")
        log.append(drafts[-1])
        await is_shown(log)
        late = await other.follow("run")
        assert late.stored() == log.stored()
        assert redis_server.cli("LRANGE", blocks_key("run"), "0", "-1") == before


async def test_what_is_kept_has_a_time_to_live_and_goes_with_the_run(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as owner, node(redis_server, "b") as other:
        log = await owner.own("run")
        for _ in range(3):
            log.append(Token(content="x" * 10_000))
        await until(lambda: log.merged_blocks == 2)
        keys = [run_key("run"), blocks_key("run"), owner_key("run")]
        assert all(int(redis_server.cli("TTL", key)) > 3600 for key in keys)
        log.append(end())
        await is_shown(log)
        owner.journal.release("run")
        await until(lambda: redis_server.cli("EXISTS", *keys[:2]) == "0")
        assert 0 < int(redis_server.cli("TTL", keys[2])) <= 60
        assert await other.journal.follow("run") is None
        assert redis_server.cli("HGET", keys[2], "node") == "", "who was away must not take the run for its own"
        assert (await owner.own("run")).last_seq == 0, "the store may begin a run once more"


async def test_nothing_stays_of_a_run_that_never_began(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as owner, node(redis_server, "b") as other:
        await owner.own("refused")
        owner.journal.release("refused")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(owner.own, "cancelled")
            await checkpoint()
            tasks.cancel_scope.cancel()
        assert await owner.link.command("KEYS", owner_key("*")) == []
        await other.own("refused")


# ---- who owns a run -------------------------------------------------------------------------------------------------


async def test_who_does_not_own_a_run_cannot_write_it(redis_server: RedisProcess) -> None:
    async with node(redis_server, "a") as owner, node(redis_server, "b") as other:
        await owner.own("run")
        with pytest.raises(Fenced):
            await other.own("run")
        await owner.link.command("DEL", node_key("a"))
        with pytest.raises(Unavailable):
            await owner.own("another")


async def test_a_fenced_owner_shows_nothing_more_and_goes_on_as_a_reader(
    redis_server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    database = dict[str, StoredLog]()
    async with node(redis_server, "a", database) as owner, node(redis_server, "b", database) as other:
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
        assert "taken runs of this one over, so they end here: 1" in caplog.text
        owner.journal.give_up("run")
        database["run"] = StoredLog.of([appended(end(), "run", SEQ_LIMIT + 2)])
        other.journal.announce("run")
        await until(lambda: log.is_over)
        assert [each.seq for each in await all_of(log)] == [log.last_seq] == [SEQ_LIMIT + 2]


async def test_readers_from_before_a_run_was_ours_come_back_when_it_is_lost(redis_server: RedisProcess) -> None:
    """Two logs of one run would share a channel, and those who read the first one would hear nothing more."""
    async with node(redis_server, "a") as first, node(redis_server, "b") as second:
        (await first.own("run")).append(start())
        followed = await second.follow("run")
        await is_at(followed, 1)
        early = followed.cursor(1)
        log = await second.journal.own("run", is_claimed=True)
        assert isinstance(log, OwnedLog)
        await log.restore(followed.stored())
        await until(lambda: log.tail == 1)
        late = log.cursor(1)
        second.journal.give_up("run")
        await until(lambda: early.is_at_end)
        assert not late.is_at_end
        assert second.journal._follower._followed["run"].log is log.shown, "it is followed on"
        log.close()  # As that of a run that is let go of.
        assert (await second.follow("run")).last_seq == 1
        assert not second.journal._follower._followed["run"].log.is_over, "who comes back reads on"


# ---- a log that is fed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [0, 1, 37, 98, 99, 100])
def test_of_a_merged_event_only_what_is_new_is_kept(known: int) -> None:
    """A stream that was filled again has texts merged that some followers know in part."""
    whole, log = MemoryLog("run"), FedLog("run")
    drafts = [Token(content="word " * (n % 3)) for n in range(100)]
    for draft in drafts:
        new = whole.append(draft)
        if new.seq <= known:
            log.keep(draft, new)
    assert log.feed(whole.stored())
    assert log.stored() == whole.stored()
    documents = documents_of(drafts, "run")
    for cursor in range(100):
        assert unmerged(data(kept(log, cursor)), documents) == documents[cursor:]


def test_what_does_not_follow_is_not_kept() -> None:
    log = FedLog("run")
    drafts: list[Event] = [start(), Token(content="x")]
    for seq, draft in enumerate(drafts, 1):
        log.keep(draft, appended(draft, "run", seq))
    late = StoredLog.of([appended(Token(content="y"), "run", seq) for seq in (4, 5)])
    assert not log.feed(late)
    assert log.last_seq == 2
    known = StoredLog.of([appended(Token(content="x"), "run", 2)])
    assert log.feed(known)
    assert log.last_seq == 2


def test_nothing_follows_the_end() -> None:
    log = FedLog("run")
    log.keep(end(), appended(end(), "run", 1))
    assert log.feed(StoredLog.of([appended(Token(content="late"), "run", 2)]))
    assert (log.last_seq, log.is_over) == (1, True)
