"""The event log: whoever reads, from wherever, at whatever speed, gets the run's own events in their one order.

Written against ``EventLogs``; a shared store joins by a line in ``STORES``, which gives it two nodes.
"""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from chatserver.commands import new_id
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    Done,
    Error,
    Event,
    Reasoning,
    Record,
    Start,
    Token,
    ToolCall,
    ToolResult,
    Usage,
    decode,
    fold,
    record,
)
from chatserver.log import READ_RECORDS_LIMIT, EventLog, EventLogs
from chatserver.log.memory import MemoryLog, MemoryLogs
from tests.conftest import Scale

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
ENDLESS = 2**40
"""A budget that no log of a test passes: it is never compacted."""
SMALL = 20_000

Nodes: TypeAlias = tuple[EventLogs, EventLogs]
"""A store as the node of the owner sees it, and as another one does."""


@asynccontextmanager
async def memory(budget_bytes: int) -> AsyncIterator[Nodes]:
    logs = MemoryLogs(budget_bytes)
    yield logs, logs


Store: TypeAlias = Callable[[int], AbstractAsyncContextManager[Nodes]]
STORES: dict[str, Store] = {"memory": memory}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Store:
    return STORES[request.param]


@asynccontextmanager
async def new_log(store: Store, budget_bytes: int = ENDLESS) -> AsyncIterator[tuple[EventLog, EventLog]]:
    """A log as its owner has it, and as a reader elsewhere does."""
    async with store(budget_bytes) as (owner, other):
        run_id = new_id()
        log = await owner.create(run_id)
        found = await other.open(run_id)
        assert found is not None
        yield log, found


def start() -> Start:
    return Start(session_id="s", message_id="m", user_message_id="u", model="x", protocol=1, heartbeat_ms=1)


def end() -> Error:
    return Error(code="interrupted", message="", retryable=True)


def seqs(records: Iterable[Record]) -> list[int]:
    return [each.seq for each in records]


async def appended(log: EventLog, count: int) -> None:
    """Tokens until there are ``count`` events."""
    for number in range(await log.last_seq() + 1, count + 1):
        await log.append(Token(content=f"{number} "))


async def all_of(log: EventLog, after: int = 0) -> list[Record]:
    with anyio.fail_after(WAIT_SECONDS):
        return [each async for batch in log.read(after) for each in batch]


# ---- hundreds of readers --------------------------------------------------------------------------------------------


class Truth:
    """What was written, and by which it is judged what was read."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.drafts: list[Event] = []
        self.documents: list[bytes] = []
        self.snapshots: set[bytes] = set()
        """Those that were seen, each of them right."""
        self._gates: dict[int, anyio.Event] = {}

    def add(self, draft: Event) -> None:
        """Before it is appended."""
        self.drafts.append(draft)
        self.documents.append(record(replace(draft, run_id=self.run_id, seq=len(self.drafts))).data)
        if gate := self._gates.pop(len(self.drafts), None):
            gate.set()

    async def grown_by(self, count: int) -> None:
        """Time passes by what is written, not by a clock."""
        await self._gates.setdefault(len(self.drafts) + count, anyio.Event()).wait()

    def check(self, snapshot: Record) -> None:
        if snapshot.data not in self.snapshots:
            assert fold([decode(snapshot.data)]) == fold(self.drafts[: snapshot.seq])
            assert len(snapshot.data) <= EVENT_BYTES_LIMIT
            self.snapshots.add(snapshot.data)


@dataclass
class Reader:
    """A client of any manners: it begins anywhere, may be slow, leaves and comes back with its cursor."""

    log: EventLog
    truth: Truth
    chance: random.Random
    pause: Callable[[], Awaitable[None]]
    cursor: int
    is_over: bool = False

    async def run(self) -> None:
        while not self.is_over:
            match self.chance.randrange(4):
                case 0:
                    await self._until_cancelled()
                case 1:
                    await self._some(self.chance.randrange(1, 2000))
                case 2:
                    await self.pause()
                    await self._some(self.chance.randrange(1, 200))
                case _:
                    await self._some(ENDLESS)

    async def _until_cancelled(self) -> None:
        """Cancelled wherever it may be at some moment; waiting, or in the middle of a batch."""
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await self.pause()
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel)
            await self._some(ENDLESS)
            tasks.cancel_scope.cancel()

    async def _some(self, count: int) -> None:
        """Read so many events at least, then close; a slow one waits after each batch, as for its peer."""
        is_slow = self.chance.random() < 0.3
        async with aclosing(self.log.read(self.cursor)) as batches:
            async for batch in batches:
                self._take(batch)
                count -= len(batch)
                if is_slow and not self.is_over:
                    await self.pause()
                if count <= 0:
                    return
        assert self.is_over, "the iterator ended before the run did"

    def _take(self, batch: Sequence[Record]) -> None:
        assert not self.is_over, "a batch behind the terminal event"
        assert 0 < len(batch) <= READ_RECORDS_LIMIT
        first, rest = batch[0], batch
        if first.type == "snapshot":
            assert first.seq > self.cursor
            self.truth.check(first)
            self.cursor, rest = first.seq, batch[1:]
        assert [each.seq for each in rest] == list(range(self.cursor + 1, self.cursor + 1 + len(rest)))
        assert [each.data for each in rest] == self.truth.documents[self.cursor : self.cursor + len(rest)]
        self.cursor = batch[-1].seq
        self.is_over = batch[-1].is_terminal


def a_run(count: int) -> Iterator[Event]:
    """The drafts of a run of ``count`` events of all kinds, no two alike."""
    yield start()
    for number in range(2, count):
        match number % 100:
            case 50:
                yield ToolCall(call_id=f"c{number}", tool="clock", args={"n": number})
            case 51:
                yield ToolResult(
                    call_id=f"c{number - 1}",
                    tool="clock",
                    result=number,
                    is_error=False,
                    truncated=False,
                    duration_ms=1,
                )
            case rest if rest < 20:
                yield Reasoning(content=f"<{number}>")
            case _:
                yield Token(content=f"{number} ")
    yield end()


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("budget_bytes", [ENDLESS, SMALL, 300_000], ids=["whole", "small", "compacted"])
async def test_no_reader_misses_doubles_or_reorders_an_event(
    store: Store, budget_bytes: int, seed: int, scale: Scale
) -> None:
    """Hundreds of mixed cursors and speeds; cancelled ones, late joiners, some after the end."""
    chance = random.Random(seed)
    events_count, readers_count = scale(5_000, 100_000), scale(200, 400)
    readers: list[Reader] = []
    with anyio.fail_after(scale(50, 850)):
        async with new_log(store, budget_bytes) as (log, elsewhere), anyio.create_task_group() as tasks:
            truth = Truth(log.run_id)

            async def pause() -> None:
                count = chance.choice([0, 1, 30, events_count // 20])
                if count and len(truth.drafts) + count <= events_count:
                    await truth.grown_by(count)
                else:
                    await checkpoint()

            def join() -> None:
                cursor = chance.choice([0, chance.randint(0, len(truth.drafts))])
                readers.append(Reader(elsewhere, truth, chance, pause, cursor))
                tasks.start_soon(readers[-1].run)

            arrivals = sorted(chance.randint(-events_count, events_count) for _ in range(readers_count))
            for seq, draft in enumerate(a_run(events_count), 1):
                while arrivals and arrivals[0] < seq:
                    arrivals.pop(0)
                    join()
                truth.add(draft)
                assert await log.append(draft) == seq
                if chance.random() < 0.05:
                    await checkpoint()
            for _ in range(20):
                join()
    assert [(reader.cursor, reader.is_over) for reader in readers] == [(events_count, True)] * (readers_count + 20)
    assert bool(truth.snapshots) == (budget_bytes < ENDLESS)


# ---- one reader -----------------------------------------------------------------------------------------------------


async def test_from_every_cursor_comes_what_follows_it(store: Store) -> None:
    async with new_log(store) as (log, elsewhere):
        await log.append(start())
        await appended(log, 600)
        await log.append(end())
        for cursor in range(602):
            assert seqs(await all_of(elsewhere, cursor)) == list(range(cursor + 1, 602))


async def test_from_every_cursor_of_a_compacted_log_comes_its_snapshot_or_what_follows(store: Store) -> None:
    async with new_log(store, SMALL) as (log, elsewhere):
        await log.append(start())
        await appended(log, 600)
        await log.append(end())
        oldest = (await elsewhere.records())[0]
        assert oldest.type == "snapshot" and oldest.seq > 1
        for cursor in range(602):
            records = await all_of(elsewhere, cursor)
            assert seqs(records) == list(range(max(cursor + 1, oldest.seq), 602))
            assert (records[:1] == [oldest]) == (cursor < oldest.seq)


async def test_a_reader_ahead_of_the_log_waits_for_its_place(store: Store) -> None:
    """After a crash a cursor may be ahead of what was kept."""
    async with new_log(store) as (log, elsewhere), anyio.create_task_group() as tasks:
        found: list[Record] = []

        async def read() -> None:
            found.extend(await all_of(elsewhere, 3))

        tasks.start_soon(read)
        for draft in a_run(6):
            await log.append(draft)
            await anyio.wait_all_tasks_blocked()
        assert seqs(found) == [4, 5, 6]


async def test_a_waiting_reader_sees_each_event_as_soon_as_it_is_appended(store: Store) -> None:
    async with new_log(store) as (log, elsewhere), aclosing(elsewhere.read(0)) as batches:
        for draft in a_run(10):
            async with anyio.create_task_group() as tasks:
                batch: list[Record] = []

                async def read(batch: list[Record] = batch) -> None:
                    batch.extend(await anext(batches))

                tasks.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                assert not batch
                with anyio.fail_after(WAIT_SECONDS):
                    seq = await log.append(draft)
            assert seqs(batch) == [seq]


async def test_a_reader_that_fell_behind_gets_all_that_is_ready_in_full_batches(store: Store) -> None:
    async with new_log(store) as (log, elsewhere):
        await appended(log, 3 * READ_RECORDS_LIMIT + 5)
        await log.append(end())
        sizes = [len(batch) async for batch in elsewhere.read(0)]
        assert sizes == [READ_RECORDS_LIMIT] * 3 + [6]


async def test_a_batch_of_large_events_is_bounded_too(store: Store) -> None:
    """A transport writes a batch at once, so a hundred stuck readers hold a hundred batches."""
    async with new_log(store) as (log, elsewhere):
        for _ in range(300):
            await log.append(Token(content="x" * 10_000))
        await log.append(end())
        sizes = [sum(len(each.data) for each in batch) async for batch in elsewhere.read(0)]
        assert max(sizes) <= 2**19


async def test_a_reader_that_never_waits_leaves_the_loop_to_others(store: Store) -> None:
    """A replay to a peer that takes everything at once, or that has left without being missed."""
    async with new_log(store) as (log, elsewhere), anyio.create_task_group() as tasks:
        await appended(log, 50 * READ_RECORDS_LIMIT)
        await log.append(end())
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await checkpoint()

        tasks.start_soon(other)
        async for _ in elsewhere.read(0):
            pass
        assert turns >= 50
        tasks.cancel_scope.cancel()


# ---- the end --------------------------------------------------------------------------------------------------------

ENDINGS: list[Event] = [
    end(),
    Done(
        session_id="s",
        message_id="m",
        finish_reason="stop",
        total_tokens=3,
        usage=Usage(1, 2),
        duration_ms=4,
    ),
]


@pytest.mark.parametrize("ending", ENDINGS, ids=["error", "done"])
async def test_nothing_follows_a_terminal_event(store: Store, ending: Event) -> None:
    async with new_log(store) as (log, elsewhere):
        await log.append(start())
        assert await log.append(ending) == 2
        for draft in (Token(content="more"), ending):
            with pytest.raises(RuntimeError):
                await log.append(draft)
        assert await log.last_seq() == 2
        assert [each.type for each in await all_of(elsewhere)] == ["start", type(ending).__struct_config__.tag]
        assert await all_of(elsewhere, 2) == []


@pytest.mark.parametrize("drafts", [[], [start()]], ids=["empty", "begun"])
async def test_closing_a_log_ends_the_readers_that_wait(store: Store, drafts: list[Event]) -> None:
    async with new_log(store) as (log, elsewhere):
        for draft in drafts:
            await log.append(draft)
        found: list[list[Record]] = []

        async def read(after: int) -> None:
            found.append(await all_of(elsewhere, after))

        async with anyio.create_task_group() as tasks:
            for after in (0, 1):
                tasks.start_soon(read, after)
            await anyio.wait_all_tasks_blocked()
            await elsewhere.close()
        assert sorted(map(seqs, found)) == [[], [each + 1 for each in range(len(drafts))]]


async def test_a_cancelled_reader_leaves_nothing_behind(store: Store) -> None:
    async with new_log(store) as (log, elsewhere):
        await appended(log, 2 * READ_RECORDS_LIMIT)

        async def read(after: int) -> None:
            await all_of(elsewhere, after)

        async def come_and_go() -> None:
            async with anyio.create_task_group() as tasks:
                for after in range(100):
                    tasks.start_soon(read, after)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()

        await come_and_go()
        before = len(asyncio.all_tasks()), reachable(elsewhere)
        for _ in range(5):
            await come_and_go()
        assert (len(asyncio.all_tasks()), reachable(elsewhere)) == before
        await log.append(end())
        assert (await all_of(elsewhere))[-1].is_terminal


def reachable(root: object) -> int:
    """How many objects something holds on to, the event loop and code aside."""
    gc.collect()
    aside = (type, ModuleType, FunctionType, asyncio.AbstractEventLoop)
    seen: set[int] = set()
    found: list[Any] = [root]
    while found:
        each = found.pop()
        if id(each) not in seen and not isinstance(each, aside):
            seen.add(id(each))
            found += gc.get_referents(each)
    return len(seen)


# ---- what is kept ---------------------------------------------------------------------------------------------------


async def test_what_was_appended_can_be_asked_for(store: Store) -> None:
    async with new_log(store) as (log, elsewhere):
        assert (await log.last_seq(), await log.records()) == (0, [])
        drafts = list(a_run(60))
        for draft in drafts:
            await log.append(draft)
        for node in (log, elsewhere):
            assert await node.last_seq() == 60
            assert await node.answer() == fold(drafts)
            assert [decode(each.data) for each in await node.records()] == [
                replace(draft, run_id=log.run_id, seq=seq) for seq, draft in enumerate(drafts, 1)
            ]


@pytest.mark.parametrize("budget_bytes", [ENDLESS, SMALL], ids=["whole", "compacted"])
async def test_the_answer_is_right_at_any_moment(store: Store, budget_bytes: int) -> None:
    chance, drafts = random.Random(1), list(a_run(3000))
    async with new_log(store, budget_bytes) as (log, elsewhere):
        for count, draft in enumerate(drafts, 1):
            await log.append(draft)
            if chance.random() < 0.02 or count == len(drafts):
                assert await elsewhere.answer() == await log.answer() == fold(drafts[:count])


async def test_long_text_becomes_several_events_and_append_tells_the_last(store: Store) -> None:
    async with new_log(store) as (log, elsewhere):
        text = "\x01🦜" * 40_000
        assert await log.append(Token(content=text)) == 8
        records = await elsewhere.records()
        assert seqs(records) == list(range(1, 9))
        assert max(len(each.data) for each in records) <= EVENT_BYTES_LIMIT
        assert (await log.answer()).content == text


async def test_a_log_stays_near_its_budget_while_its_answer_fits_into_one_event(store: Store) -> None:
    async with new_log(store, SMALL) as (log, elsewhere):
        for _ in range(20_000):
            await log.append(Token(content="x"))
            if (await log.last_seq()) % 1000 == 0:
                assert sum(len(each.data) for each in await elsewhere.records()) <= 2 * SMALL + EVENT_BYTES_LIMIT
        assert (await elsewhere.answer()).content == "x" * 20_000


async def test_a_log_is_found_by_its_run_until_it_is_forgotten(store: Store) -> None:
    async with store(ENDLESS) as (owner, other):
        log, another = await owner.create("one"), await owner.create("two")
        await log.append(start())
        await another.append(end())
        found = await other.open("one")
        assert found is not None and found.run_id == "one" and seqs(await found.records()) == [1]
        assert await other.open("three") is None
        for _ in range(2):
            owner.forget("one")
        assert await other.open("two") is not None


async def test_a_forgotten_log_can_be_read_to_its_end_by_who_has_it() -> None:
    logs = MemoryLogs(ENDLESS)
    log = await logs.create("one")
    reading = log.read(0)
    for draft in a_run(5):
        await log.append(draft)
    logs.forget("one")
    assert await logs.open("one") is None
    assert [seqs(batch) async for batch in reading] == [[1, 2, 3, 4, 5]]


async def test_a_log_that_a_crash_left_is_read_from_any_cursor() -> None:
    """It is numbered above every seq that can have been sent."""
    snapshot = fold([Token(content="kept")]).snapshot("r", 1_000_000)
    records = [record(snapshot), record(replace(end(), run_id="r", seq=1_000_001))]
    log = MemoryLog("r", ENDLESS, records)
    for cursor in (0, 1, 77, 999_999):
        assert await all_of(log, cursor) == records
    assert await all_of(log, 1_000_000) == records[1:]
    assert await all_of(log, 1_000_001) == []
    with pytest.raises(RuntimeError):
        await log.append(Token(content="more"))
