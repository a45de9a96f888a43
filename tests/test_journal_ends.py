"""How a log of the journal ends: whoever reads it on any node is told, however early its owner lets it go."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from chatserver.endings import DELETED
from chatserver.errors import NotFound
from chatserver.events import Event, Token, appended
from chatserver.log import EventLog, StoredLog
from chatserver.nodes import follower
from chatserver.nodes.keys import blocks_key, node_key, owner_key, run_key
from chatserver.nodes.owned_log import OwnedLog
from tests.clients import SSE, documents_of, text_of
from tests.cluster import live_cluster
from tests.fake_upstream import say
from tests.journals import Node, agrees, is_at, is_shown, node, until
from tests.logs import end, start
from tests.redis_process import RedisProcess
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

DRAFTS: list[Event] = [start(), Token(content="Hi"), end()]


@dataclass
class Run:
    """A run that has said all but its end, with a reader at its owner and at another node."""

    database: dict[str, StoredLog | NotFound]
    owner: Node
    other: Node
    log: OwnedLog
    followed: EventLog

    def end_and_release(self) -> None:
        """As when its session is deleted, or when there is no room for its log."""
        self.log.append(end())
        self.owner.journal.release("run")

    async def is_told(self) -> None:
        for each in (self.log, self.followed):
            await agrees(each, DRAFTS)


@pytest.fixture
async def run(redis_server: RedisProcess) -> AsyncIterator[Run]:
    database = dict[str, StoredLog | NotFound]()
    async with node(redis_server, "a", database) as owner, node(redis_server, "b", database) as other:
        log = await owner.own("run")
        for draft in DRAFTS[:-1]:
            log.append(draft)
        await is_shown(log)
        made = Run(database, owner, other, log, await other.follow("run"))
        await is_at(made.followed, log.last_seq)
        yield made


# ---- a log that is released -----------------------------------------------------------------------------------------


async def test_a_log_that_is_released_at_its_end_is_told_to_all_and_then_deleted(
    run: Run, redis_server: RedisProcess
) -> None:
    run.end_and_release()
    await run.is_told()
    await until(lambda: redis_server.cli("EXISTS", run_key("run"), blocks_key("run")) == "0")
    assert redis_server.cli("HGET", owner_key("run"), "node") == ""
    assert run.owner.journal._owned == {}


@contextmanager
def stalled(server: RedisProcess) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextmanager
def without_a_lease(server: RedisProcess) -> Iterator[None]:
    server.cli("DEL", node_key("a"))
    yield
    server.cli("SET", node_key("a"), "1")


@pytest.mark.parametrize("trouble", [stalled, without_a_lease])
async def test_a_log_that_is_released_in_trouble_is_told_to_all_when_that_is_over(
    run: Run, redis_server: RedisProcess, trouble: Callable[[RedisProcess], AbstractContextManager[None]]
) -> None:
    with trouble(redis_server):
        run.end_and_release()
        await agrees(run.log, DRAFTS)  # The database has it.
        assert not run.followed.is_over
    await run.is_told()
    await until(lambda: not run.owner.journal._owned)


async def test_a_log_that_was_released_and_is_owned_by_another_goes_on_with_what_that_says(
    run: Run, redis_server: RedisProcess
) -> None:
    run.owner.journal.publisher.on_fenced = lambda log: run.owner.journal.give_up(log.run_id)
    redis_server.cli("HSET", owner_key("run"), "node", "b")
    run.end_and_release()
    await until(lambda: run.log.is_fenced and not run.owner.journal._owned)
    assert redis_server.cli("HGET", owner_key("run"), "node") == "b"


async def test_a_run_ends_for_whose_log_there_is_no_room(tmp_path: Path) -> None:
    async with RedisServer() as redis, live_cluster(tmp_path, 1, redis, max_logs_bytes=1) as nodes:
        nodes.upstream.script(*say("Next"))
        reading = await SSE.start(nodes[0], {"message": "Hi"})
        with anyio.fail_after(20):
            assert text_of(await documents_of(reading)) == "Next"


async def test_the_end_of_a_run_is_told_at_once_by_a_redis_that_is_full(
    run: Run, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "SILENT_SECONDS", 3600.0)
    run.database["run"] = run.log.stored(appended(end(), "run", 3))
    redis_server.cli("CONFIG", "SET", "maxmemory", "1")
    try:
        run.log.append(end())
        await run.is_told()
    finally:
        redis_server.cli("CONFIG", "SET", "maxmemory", "0")


async def test_the_end_of_a_run_that_is_not_ours_any_more_is_told_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new owner may die before it has told anybody."""
    monkeypatch.setattr(follower, "SILENT_SECONDS", 3600.0)
    run.owner.journal.give_up("run")
    run.database["run"] = run.log.stored(appended(end(), "run", 3))
    run.owner.journal.lose("run")
    await run.is_told()


# ---- a run that was deleted -----------------------------------------------------------------------------------------


async def test_the_readers_of_a_run_that_was_deleted_are_told_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(follower, "IDLE_SECONDS", 0.0)
    readers = [each.cursor(0) for each in (run.log, run.followed)]
    run.owner.journal.give_up("run")
    run.database["run"] = NotFound()
    for log in (run.log, run.followed):
        await agrees(log, [*DRAFTS[:-1], DELETED])
    for reader in readers:
        reader.close()
    await until(lambda: not any(each.journal._follower._followed for each in (run.owner, run.other)))


async def test_a_run_that_is_lost_when_the_database_has_its_end_is_told_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "SILENT_SECONDS", 3600.0)
    run.database["run"] = run.log.stored(appended(end(), "run", 3))
    run.owner.journal.lose("run")
    await agrees(run.log, DRAFTS)


async def test_a_lost_message_is_found_while_the_database_does_not_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = anyio.Event()

    async def never(_: str) -> None:
        asked.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(run.other.journal._follower, "_stored", never)
    run.other.journal._follower._ask_database(run.other.journal._follower._followed["run"])
    await asked.wait()
    monkeypatch.setitem(run.other.link._channels, run_key("run").encode(), lambda _: None)
    run.log.append(end())
    await run.is_told()
