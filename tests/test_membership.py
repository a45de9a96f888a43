"""Nodes on one Redis: who lives, who is gone, who takes its runs, and what nodes tell the owners of runs."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.errors import SettingsError, Unavailable
from chatserver.events import Token
from chatserver.log import EventLog, StoredLog
from chatserver.log.memory import MemoryLog
from chatserver.nodes import membership
from chatserver.nodes.address import Address
from chatserver.nodes.commands import SILENT_LOOKS, OtherNodes
from chatserver.nodes.journal import open_journal
from chatserver.nodes.keys import NODES, cancels_key, node_key, owner_key, run_key
from chatserver.nodes.link import Link, open_link
from chatserver.nodes.membership import Membership, open_membership
from chatserver.sessions.witness import Left
from tests.redis_process import RedisProcess, redis_process

pytestmark = pytest.mark.anyio

SECONDS = 20
NOBODY = frozenset[str | None]()


class Kept:
    """What a journal has of runs."""

    def __init__(self) -> None:
        self.logs: dict[str, MemoryLog] = {}
        self.announced: list[str] = []

    async def follow(self, run_id: str) -> EventLog | None:
        return self.logs.get(run_id)

    def announce(self, run_id: str) -> None:
        self.announced.append(run_id)


class Life:
    """A run as its owner has it, which counts its readers at other nodes."""

    def __init__(self, run_id: str, owner: "Owner") -> None:
        self._run_id = run_id
        self._owner = owner
        self._readers = 0

    def count(self, readers: int) -> None:
        self._readers += readers
        self._owner.do(f"{self._run_id} has {self._readers}")


class Owner:
    """The runs of a node, of which it has some."""

    def __init__(self, *run_ids: str) -> None:
        self.lives = {run_id: Life(run_id, self) for run_id in run_ids}
        self.done: list[str] = []
        self._news = anyio.Event()

    def cancel(self, run_id: str) -> None:
        self.do(f"cancel {run_id}")

    def life(self, run_id: str) -> "Life | None":
        return self.lives.get(run_id)

    def lose(self, run_id: str) -> None:
        self.do(f"lose {run_id}")

    def nudge(self, run_id: str) -> None:
        self.do(f"nudge {run_id}")

    def interrupt(self) -> None:
        self.do("interrupt")

    def do(self, what: str) -> None:
        self.done.append(what)
        self._news.set()
        self._news = anyio.Event()

    async def until(self, *done: str) -> None:
        """Wait until this was done, and nothing else since the last call."""
        with anyio.fail_after(SECONDS):
            while len(self.done) < len(done):
                await self._news.wait()
        assert self.done == list(done)
        self.done.clear()


class Node:
    """A node as far as this is about: its looks, its commands, its runs."""

    def __init__(self, link: Link, member: Membership, kept: Kept) -> None:
        self.link = link
        self.member = member
        self.kept = kept
        self.others = OtherNodes(link, member)
        self.owner = Owner()

    def serve(self, *run_ids: str) -> None:
        self.owner = Owner(*run_ids)
        self.others.serve(self.owner)

    async def look(self) -> None:
        """What a node does every now and then."""
        await self.member.join()


@asynccontextmanager
async def joined(redis_server: RedisProcess, *names: str) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        nodes = []
        for name in names:
            link = await stack.enter_async_context(open_link(Address(redis_server.url)))
            member = await stack.enter_async_context(open_membership(link, name))
            member.journal = kept = Kept()
            nodes.append(Node(link, member, kept))
        yield nodes


class Clock:
    """The time of all nodes; it passes when a test says so."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    async def passes(self, *nodes: Node) -> None:
        """Let so much time pass that whoever was missed before is gone, then look."""
        self.seconds += membership.MISSED_SECONDS
        for node in nodes:
            await node.look()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Nobody looks by himself: the tests look."""
    clock = Clock()
    monkeypatch.setattr(membership, "BETWEEN_LOOKS_SECONDS", 3600.0)
    monkeypatch.setattr(membership, "monotonic", clock)
    return clock


@pytest.fixture
async def nodes(redis_server: RedisProcess) -> AsyncIterator[list[Node]]:
    async with joined(redis_server, "a", "b", "c") as found:
        yield found


async def own(node: Node, *run_ids: str) -> None:
    """As the journal does when a run begins."""
    for run_id in run_ids:
        await node.link.command("HSET", owner_key(run_id), "node", node.member.node)


async def die(node: Node) -> None:
    """The lease of a node has run out."""
    await node.link.command("DEL", node_key(node.member.node))


async def registered(node: Node) -> list[str]:
    return sorted(each.decode() for each in await node.link.command("SMEMBERS", NODES))


# Who lives


async def test_rights_that_the_user_lacks_are_told_at_the_start_and_a_full_memory_is_not() -> None:
    with redis_process() as server:
        server.cli("ACL", "SETUSER", "poor", "on", ">secret", "~*", "&*", "+@all", "-evalsha", "-eval")
        url = f"redis://poor:secret@127.0.0.1:{server.port}/0"
        async with open_link(Address(url)) as link:
            with pytest.raises(SettingsError, match="CHATSERVER_REDIS_URL: Redis cannot be used: NOPERM"):
                async with open_membership(link, "a"):
                    raise AssertionError("it has joined")
        server.cli("CONFIG", "SET", "maxmemory", "1")
        async with joined(server, "a") as (node,):
            assert not node.member.is_answered
            server.cli("CONFIG", "SET", "maxmemory", "0")
            await node.look()
            assert node.member.is_answered


async def test_nobody_is_gone_who_renews_the_lease(nodes: list[Node], clock: Clock) -> None:
    for _ in range(3):
        await clock.passes(*nodes)
        assert await nodes[0].member.gone({"a", "b", "c"}, NOBODY, NOBODY) == NOBODY
        assert await nodes[0].member.gone({"b"}, {"b"}, {"b"}) == NOBODY, "whatever the database says"


async def test_a_node_is_gone_when_its_lease_was_missing_in_all_looks_for_long(nodes: list[Node], clock: Clock) -> None:
    a, b, c = nodes
    told: list[str] = []
    a.member.watch(lambda: told.append("a"))
    await die(b)
    await a.look()
    assert await a.member.gone({"b"}, NOBODY, NOBODY) == NOBODY
    assert await a.member.gone({"b"}, {"b"}, NOBODY) == NOBODY, "though the database has lost it too"
    assert await a.member.gone({"b"}, NOBODY, {"b"}) == {"b"}, "as one that has died on this machine"
    await clock.passes(a, c)
    assert (await a.member.gone({"b", "c"}, NOBODY, NOBODY), told) == ({"b"}, ["a", "a"])
    assert await a.member.gone(NOBODY, NOBODY, NOBODY) == NOBODY
    assert await registered(a) == ["a", "c"], "a node that left nothing is forgotten"


async def test_a_node_that_comes_back_in_time_is_not_gone(nodes: list[Node], clock: Clock) -> None:
    a, b, _ = nodes
    for _ in range(2):
        await die(b)
        await a.look()
        await b.look()
        await clock.passes(a)
        assert await a.member.gone({"b"}, NOBODY, NOBODY) == NOBODY


async def test_a_node_that_waits_for_a_processor_takes_nobody_for_gone(nodes: list[Node], clock: Clock) -> None:
    """The reply has come at once, and was read late: it says nothing of the time since then."""
    a, b, _ = nodes
    await die(b)
    await a.look()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(a.look)
        await checkpoint()
        clock.seconds += membership.MISSED_SECONDS
    assert await a.member.gone({"b"}, NOBODY, NOBODY) == NOBODY
    await a.look()
    assert await a.member.gone({"b"}, NOBODY, NOBODY) == {"b"}


async def test_a_node_that_was_taken_for_gone_looks_what_it_has_lost(nodes: list[Node]) -> None:
    told: list[str] = []
    nodes[0].member.on_forgotten = lambda: told.append("a")
    nodes[0].member.mistaken()
    assert told == ["a"]


async def test_a_look_without_an_answer_begins_the_count_anew(nodes: list[Node], clock: Clock) -> None:
    """As after a stall of Redis in which all leases run out."""
    a, b, _ = nodes
    await die(b)
    await a.look()
    a.member._saw(Unavailable())
    with pytest.raises(Unavailable):
        await a.member.gone({"b"}, {"b"}, {"b"})
    await clock.passes(a)
    assert await a.member.gone({"b"}, NOBODY, NOBODY) == NOBODY
    await clock.passes(a)
    assert await a.member.gone({"b"}, NOBODY, NOBODY) == {"b"}


async def test_a_redis_that_has_lost_its_data_kills_nobody(nodes: list[Node], clock: Clock) -> None:
    a, b, c = nodes
    await a.link.command("FLUSHALL")
    await a.look()
    assert await a.member.gone({"b", "c"}, NOBODY, NOBODY) == NOBODY
    await clock.passes(b, c, a)
    assert await a.member.gone({"b", "c"}, {"b", "c"}, NOBODY) == NOBODY


async def test_a_node_is_gone_that_dies_when_redis_loses_its_data(nodes: list[Node], clock: Clock) -> None:
    a, _, c = nodes
    await a.look()
    await a.link.command("FLUSHALL")
    await a.look()
    clock.seconds += membership.LEASE_SECONDS
    await clock.passes(a)
    assert await a.member.gone({"b"}, NOBODY, NOBODY) == {"b"}
    await c.look()
    await a.look()
    assert await a.member.gone({"b", "c"}, NOBODY, NOBODY) == {"b"}
    assert await a.member.gone(NOBODY, NOBODY, NOBODY) == NOBODY
    told: list[str] = []
    a.member.watch(lambda: told.append("a"))
    await a.look()
    assert told == [], "a node that left nothing is forgotten"


async def test_whose_lease_redis_has_lost_has_the_time_of_a_lease(nodes: list[Node], clock: Clock) -> None:
    """To find the way to Redis again: it may be another server now."""
    a, _, _ = nodes
    await a.look()
    a.member._saw(Unavailable())
    await a.link.command("FLUSHALL")
    await a.look()
    await clock.passes(a)
    assert await a.member.gone({"b", "c"}, NOBODY, NOBODY) == NOBODY
    clock.seconds += membership.LEASE_SECONDS
    await a.look()
    assert await a.member.gone({"b", "c"}, NOBODY, NOBODY) == {"b", "c"}, "though Redis was away and knows of neither"


async def test_a_node_learns_that_redis_has_lost_its_data(nodes: list[Node]) -> None:
    a, b, _ = nodes
    told: list[str] = []
    a.member.on_forgotten = lambda: told.append("a")
    await a.look()
    assert told == []
    await a.link.command("FLUSHALL")
    await b.look()
    await a.look()
    await a.look()
    assert told == ["a"], "once"


async def test_whom_redis_never_knew_the_database_judges_when_redis_had_time_to_hear(
    nodes: list[Node], clock: Clock
) -> None:
    """One of them may live: Redis has lost its lease before this node could see it."""
    a, b, _ = nodes
    asked: tuple[set[str | None], ...] = {"x", "y", "d", "e", None}, {"x", "d"}, {"e", None}
    assert await a.member.gone(*asked) == {"e", None}, "dead, or nobody's"
    await clock.passes(a)
    assert await a.member.gone(*asked) == {"e", None}
    await b.link.command("SADD", NODES, "d")
    await b.link.command("SET", node_key("d"), "1")
    clock.seconds += membership.LEASE_SECONDS
    await a.look()
    assert await a.member.gone(*asked) == {"x", "e", None}


async def test_a_look_without_an_answer_tells_nothing_of_strangers(nodes: list[Node], clock: Clock) -> None:
    a = nodes[0].member
    assert await a.gone({"x"}, {"x"}, NOBODY) == NOBODY
    a._saw(Unavailable())
    clock.seconds += membership.LEASE_SECONDS
    await clock.passes(nodes[0])
    assert await a.gone({"x"}, {"x"}, NOBODY) == NOBODY


async def test_a_node_that_leaves_is_no_node(redis_server: RedisProcess, nodes: list[Node]) -> None:
    async with joined(redis_server, "d"):
        assert await registered(nodes[0]) == ["a", "b", "c", "d"]
    assert await registered(nodes[0]) == ["a", "b", "c"]
    assert await nodes[0].link.command("EXISTS", node_key("d")) == 0


async def test_a_node_that_redis_does_not_answer_ends_its_runs(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a = nodes[0]
    a.serve()
    monkeypatch.setattr(membership, "BETWEEN_LOOKS_SECONDS", 0.001)
    monkeypatch.setattr(membership, "CUT_OFF_SECONDS", 0.01)
    a.member._is_looking = True  # The last look has no answer yet, and gets none.
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(a.member.keep)
        with anyio.fail_after(SECONDS):
            while len(a.owner.done) < 3:
                await a.owner._news.wait()
        tasks.cancel_scope.cancel()
    assert set(a.owner.done) == {"interrupt"}
    await a.look()
    assert a.member._silent_seconds == 0, "it is counted from the last answer"
    await a.look()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "Redis does not answer",
        "Redis answers again",
    ], "once each"


async def test_a_link_that_is_lost_answers_nothing_before_any_look(nodes: list[Node]) -> None:
    a = nodes[0]
    assert a.others.is_reached and a.link._wire is not None
    a.link._wire.abort("a test")
    assert not a.others.is_reached


async def test_looks_that_are_not_answered_count_for_nothing(nodes: list[Node], clock: Clock) -> None:
    a, b, _ = nodes
    await die(b)
    await a.look()
    clock.seconds += 10 * membership.MISSED_SECONDS
    assert await a.member.gone({"b"}, NOBODY, NOBODY) == NOBODY
    await clock.passes(a)
    assert await a.member.gone({"b"}, NOBODY, NOBODY) == {"b"}


# Who takes what is left


async def test_the_runs_of_a_node_that_is_gone_are_taken_with_all_that_was_published(nodes: list[Node]) -> None:
    a, b, _ = nodes
    await own(b, "known", "unknown")
    log = a.kept.logs["known"] = MemoryLog("known")
    log.append(Token(content="So far"))
    assert await a.member.take(["known", "unknown"], "b") == {}, "it lives"
    await die(b)
    assert await a.member.take(["known", "unknown"], "b") == {"known": Left(log.answer()), "unknown": Left()}
    assert await a.member.take(["known"], "b") == {"known": Left(log.answer())}, "again, when it could not be stored"
    await a.member.ended(["known"])
    assert a.kept.announced == ["known"]


async def test_one_that_has_taken_a_run_and_cannot_store_it_keeps_nobody_from_it(nodes: list[Node]) -> None:
    a, b, c = nodes
    await own(b, "run")
    await die(b)
    for node in (a, c):
        assert await node.member.take(["run"], "b") == {"run": Left()}
    await b.look()
    assert await a.member.take(["run"], "b") == {"run": Left()}, "it lives again, and lost its run before"


async def test_a_run_that_the_database_has_given_to_another_node_since_is_not_taken(nodes: list[Node]) -> None:
    """Whoever has the claimed run has taken it from the dead node before, and goes on with it."""
    a, b, c = nodes
    await own(b, "run")
    await die(b)
    async with open_journal(a.link, "a", nothing_stored) as journal:
        await journal.own("run", is_claimed=True)
        assert await c.member.take(["run"], "b") == {}
        await die(a)
        assert await c.member.take(["run"], "a") == {"run": Left()}
        assert await a.member.take(["run"], "b") == {"run": Left()}, "nobody has claimed it again"


async def nothing_stored(run_id: str) -> StoredLog | None:
    return None


async def test_a_run_that_redis_has_forgotten_is_taken_for_a_while(nodes: list[Node]) -> None:
    a, _, _ = nodes
    for run_id, owner in (("run", "gone"), ("nobody's", None)):
        assert await a.member.take([run_id], owner) == {run_id: Left()}
        assert await a.link.command("TTL", owner_key(run_id)) > 0


# What is told


async def test_a_cancel_reaches_the_owner_at_once(nodes: list[Node]) -> None:
    a, b, _ = nodes
    b.serve("run")
    await own(b, "run")
    await a.others.cancel("run")
    await b.owner.until("cancel run")


async def test_a_cancel_whose_message_was_lost_is_found_with_the_next_look(nodes: list[Node]) -> None:
    a, b, _ = nodes
    b.serve("run")
    await own(b, "run")
    b.link.unsubscribe(node_key("b"))
    await a.others.cancel("run")
    await b.look()
    await b.owner.until("cancel run")
    await b.look()
    assert b.owner.done == []
    assert await a.link.command("EXISTS", cancels_key("b")) == 0


async def test_a_cancel_outlives_the_loss_of_the_reply_that_tells_of_it(nodes: list[Node]) -> None:
    a, b, _ = nodes
    b.serve("run")
    await own(b, "run")
    b.link.unsubscribe(node_key("b"))
    await a.others.cancel("run")
    await a.link.call(membership.LOOK, *b.member._asked())  # Redis has answered, and the owner has not heard it.
    await b.look()
    await b.owner.until("cancel run")


async def test_who_takes_a_run_over_knows_of_a_cancel_that_its_owner_may_not_have_obeyed(nodes: list[Node]) -> None:
    a, b, c = nodes
    await own(b, "run", "other")
    await a.others.cancel("run")
    await die(b)
    assert await c.member.take(["run", "other"], "b") == {"run": Left(is_cancelled=True), "other": Left()}


async def test_a_run_that_nobody_owns_cannot_be_cancelled(nodes: list[Node]) -> None:
    await nodes[0].link.command("HSET", owner_key("released"), "node", "")
    for run_id in ("unknown", "released"):
        with pytest.raises(Unavailable, match="cannot be reached"):
            await nodes[0].others.cancel(run_id)


async def test_how_far_a_run_has_come_is_known_from_what_was_published(nodes: list[Node]) -> None:
    others = nodes[0].others
    assert await others.last_seq("run") == 0
    await nodes[1].link.command("XADD", run_key("run"), "3-0", "records", "x")
    await nodes[1].link.command("XADD", run_key("run"), "17-0", "records", "x")
    assert await others.last_seq("run") == 17


async def test_the_owner_counts_each_node_that_has_readers_once(nodes: list[Node]) -> None:
    a, b, c = nodes
    b.serve("run", "other")
    await own(b, "run", "other")
    a.others.count("run", 1)
    a.others.count("run", 1)
    await b.owner.until("run has 1")
    c.others.count("run", 1)
    await b.owner.until("run has 2")
    a.others.count("run", -1)
    c.others.count("run", -1)
    await b.owner.until("run has 1")
    a.others.count("run", -1)
    await b.owner.until("run has 0")
    a.others.count("other", 1)
    await b.owner.until("other has 1")


async def test_the_readers_of_a_node_that_tells_of_none_are_gone(nodes: list[Node]) -> None:
    a, b, c = nodes
    for node in (a, c):
        node.serve()
    b.serve("run")
    await own(b, "run")
    a.others.count("run", 1)
    await b.owner.until("run has 1")
    for _ in range(2 * SILENT_LOOKS):
        await a.look()
        await a.link.command("PING")
        await b.look()
    for _ in range(SILENT_LOOKS - 1):
        await b.look()
    assert b.owner.done == [], "it has told of them"
    for _ in range(2):
        await b.look()
    assert b.owner.done == ["run has 0"]
    await a.look()
    await b.owner.until("run has 0", "run has 1")


async def test_readers_of_a_run_that_is_not_here_are_not_counted(nodes: list[Node]) -> None:
    """It may be about to begin; the node tells of its readers again."""
    a, b, _ = nodes
    a.serve()
    b.serve()
    await own(b, "run", "marker")
    a.others.count("run", 1)
    await a.others.cancel("marker")
    await b.owner.until("cancel marker")
    b.owner.lives["run"] = Life("run", b.owner)
    await a.look()
    await b.owner.until("run has 1")
    a.others.count("run", -1)
    await b.owner.until("run has 0")


async def test_the_readers_of_a_run_that_was_lost_and_revived_are_counted_anew(nodes: list[Node]) -> None:
    a, b, _ = nodes
    a.serve()
    b.serve("run")
    await own(b, "run")
    a.others.count("run", 1)
    await b.owner.until("run has 1")
    b.owner.lives["run"] = Life("run", b.owner)
    await a.look()
    await b.owner.until("run has 1")
    a.others.count("run", -1)
    await b.owner.until("run has 0")


async def test_what_cannot_be_told_now_is_told_with_a_later_look(nodes: list[Node]) -> None:
    a, b, _ = nodes
    a.serve()
    b.serve("run")
    a.others.count("run", 1)
    await a.others._link.command("PING")
    await own(b, "run")
    await a.look()
    await b.owner.until("run has 1")
