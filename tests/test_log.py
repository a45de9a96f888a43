"""The event log: whoever reads, from wherever, at whatever speed, gets the run's own events in their one order."""

import asyncio
import gc
import random
from contextlib import aclosing
from types import FunctionType, ModuleType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.answer import fold
from chatserver.events import EVENT_BYTES_LIMIT, Done, Event, Record, Token, ToolCall, ToolResult, Usage, decode
from chatserver.log import BATCH_RECORDS_LIMIT, Fenced
from tests.logs import (
    Store,
    a_run,
    all_of,
    appended,
    data,
    documents_of,
    end,
    in_each_store,
    kept,
    new_log,
    seqs,
    start,
)
from tests.merging import unmerged

pytestmark = [pytest.mark.anyio, in_each_store]

# ---- one reader -----------------------------------------------------------------------------------------------------


async def test_from_every_cursor_comes_what_follows_it(store: Store) -> None:
    """Of a log that goes on, and of one that is over."""
    drafts = list(a_run(600))
    async with new_log(store) as (log, elsewhere):
        documents = documents_of(drafts, log.run_id)
        for draft in drafts[:-1]:
            log.append(draft)
        for cursor in range(599):
            assert unmerged(data(kept(elsewhere, cursor)), documents) == documents[cursor:-1]
        log.append(drafts[-1])
        for cursor in range(601):
            assert unmerged(data(await all_of(elsewhere, cursor)), documents) == documents[cursor:]


async def test_a_reader_ahead_of_the_log_waits_for_its_place(store: Store) -> None:
    """After a crash a cursor may be ahead of what was kept."""
    async with new_log(store) as (log, elsewhere), anyio.create_task_group() as tasks:
        found: list[Record] = []

        async def read() -> None:
            found.extend(await all_of(elsewhere, 3))

        tasks.start_soon(read)
        for draft in a_run(6):
            log.append(draft)
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
                new = log.append(draft)
            assert batch == [new]


async def test_a_reader_that_keeps_up_is_sent_each_event_and_who_comes_late_few(store: Store) -> None:
    async with new_log(store) as (log, elsewhere), aclosing(elsewhere.read(0)) as batches:
        found: list[Record] = []
        for draft in (draft for draft in a_run(5_000) if not isinstance(draft, ToolCall | ToolResult)):
            log.append(draft)
            found.extend(await anext(batches))
        assert seqs(found) == list(range(1, log.last_seq + 1))
        for cursor in (0, 1, 77, 3_333):
            late = kept(elsewhere, cursor)
            assert unmerged(data(late), data(found)) == data(found)[cursor:]


@pytest.mark.parametrize("text", ["word ", "日本語", "👩\u200d👧", "\x01"])
async def test_a_late_reader_of_20_000_tokens_is_sent_fewer_than_40_events(store: Store, text: str) -> None:
    async with new_log(store) as (log, elsewhere):
        for _ in range(20_000):
            log.append(Token(content=text))
        assert len(kept(elsewhere)) < 40
        assert max(len(each.data) for each in kept(elsewhere)) <= EVENT_BYTES_LIMIT
        log.append(end())
        late = await all_of(elsewhere)
        assert len(late) < 40 and fold(decode(each.data) for each in late).content == 20_000 * text


async def test_a_batch_of_large_events_is_bounded_too(store: Store) -> None:
    """A transport writes a batch at once, so a hundred stuck readers hold a hundred batches."""
    async with new_log(store) as (log, elsewhere):
        for _ in range(300):
            log.append(Token(content="x" * 10_000))
        log.append(end())
        sizes = [sum(len(each.data) for each in batch) async for batch in elsewhere.read(0)]
        assert max(sizes) <= 2**19


async def test_a_reader_that_never_waits_leaves_the_loop_to_others(store: Store) -> None:
    """A replay to a peer that takes everything at once, or that has left without being missed."""
    async with new_log(store) as (log, elsewhere), anyio.create_task_group() as tasks:
        for _ in range(300):
            log.append(Token(content="x" * 10_000))
        log.append(end())
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await checkpoint()

        tasks.start_soon(other)
        batches = [batch async for batch in elsewhere.read(0)]
        assert turns >= len(batches) >= 50
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
        log.append(start())
        assert log.append(ending).seq == 2
        for draft in (Token(content="more"), ending):
            with pytest.raises(RuntimeError):
                log.append(draft)
        assert log.last_seq == 2
        assert [each.type for each in await all_of(elsewhere)] == ["start", type(ending).__struct_config__.tag]
        assert await all_of(elsewhere, 2) == []


@pytest.mark.parametrize("drafts", [[], [start()]], ids=["empty", "begun"])
async def test_closing_a_log_ends_the_readers_that_wait(store: Store, drafts: list[Event]) -> None:
    async with new_log(store) as (log, elsewhere):
        for draft in drafts:
            log.append(draft)
        found: list[list[Record]] = []

        async def read(after: int) -> None:
            found.append(await all_of(elsewhere, after))

        async with anyio.create_task_group() as tasks:
            for after in (0, 1):
                tasks.start_soon(read, after)
            await anyio.wait_all_tasks_blocked()
            elsewhere.close()
        assert sorted(map(seqs, found)) == [[], [each + 1 for each in range(len(drafts))]]


async def test_a_cancelled_reader_leaves_nothing_behind(store: Store) -> None:
    async with new_log(store) as (log, elsewhere):
        await appended(log, 2 * BATCH_RECORDS_LIMIT)

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
        log.append(end())
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
        assert (log.last_seq, kept(log)) == (0, [])
        drafts = list(a_run(60))
        for draft in drafts:
            log.append(draft)
        for node in (log, elsewhere):
            assert node.last_seq == 60
            assert node.answer() == fold(drafts)
            documents = documents_of(drafts, log.run_id)
            assert unmerged(data(kept(node)), documents) == documents


async def test_the_answer_is_right_at_any_moment(store: Store) -> None:
    chance, drafts = random.Random(1), list(a_run(3000))
    async with new_log(store) as (log, elsewhere):
        for count, draft in enumerate(drafts, 1):
            log.append(draft)
            if chance.random() < 0.02 or count == len(drafts):
                assert elsewhere.answer() == log.answer() == fold(drafts[:count])


async def test_a_log_is_found_by_its_run_until_it_is_forgotten(store: Store) -> None:
    async with store() as (owner, other):
        log, another = await owner.create("one"), await owner.create("two")
        log.append(start())
        another.append(end())
        found = await other.open("one")
        assert found is not None and found.run_id == "one" and seqs(kept(found)) == [1]
        assert await other.open("three") is None
        with pytest.raises(Fenced):
            await other.create("two")
        other.forget("one")
        assert await other.open("one") is found, "it is its owner's to forget"
        for _ in range(2):
            owner.forget("one")
        assert await other.open("one") is None
        assert await other.open("two") is not None
