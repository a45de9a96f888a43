"""The event log in memory: what only it promises, and what it costs."""

import gc
import random
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from chatserver.answer import fold
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    TEXT_CHARS_PER_EVENT,
    Event,
    Reasoning,
    Record,
    Token,
    ToolCall,
    ToolResult,
    appended,
    decode,
    record,
)
from chatserver.log import BATCH_BYTES_LIMIT, BATCH_RECORDS_LIMIT, EventLog, StoredLog, fresh, merged
from chatserver.log.journal import LocalJournal
from chatserver.log.logs import MemoryLogs
from chatserver.log.memory import READERS_PER_TURN, MemoryCursor, MemoryLog
from chatserver.parts import ToolCallPart
from tests.counting import calls_of
from tests.logs import ENDLESS, a_run, all_of, data, documents_of, end, kept, nothing_stored, seqs, start
from tests.merging import unmerged

pytestmark = pytest.mark.anyio


def log_of(drafts: Sequence[Event], run_id: str = "r") -> MemoryLog:
    log = MemoryLog(run_id)
    for draft in drafts:
        log.append(draft)
    return log


async def restored(stored: StoredLog, run_id: str = "r") -> MemoryLog:
    log = MemoryLog(run_id)
    await log.restore(stored)
    return log


async def test_a_forgotten_log_can_be_read_to_its_end_by_who_has_it() -> None:
    logs = MemoryLogs(ENDLESS, nothing_stored, LocalJournal())
    log = await logs.create("one")
    reading = log.read(0)
    for draft in a_run(5):
        log.append(draft)
    logs.forget("one")
    assert await logs.open("one") is None
    assert [each.seq async for batch in reading for each in batch][-1] == 5


async def test_a_log_that_a_crash_left_is_read_from_any_cursor() -> None:
    """It is numbered above every seq that can have been sent."""
    snapshot = fold([Token(content="kept")]).snapshot("r", 1_000_000)
    records = [record(snapshot), record(replace(end(), run_id="r", seq=1_000_001))]
    log = await restored(StoredLog.of(records))
    for cursor in (0, 1, 77, 999_999):
        assert await all_of(log, cursor) == records
    assert await all_of(log, 1_000_000) == records[1:]
    assert await all_of(log, 1_000_001) == []
    assert log.answer().content == "kept"
    with pytest.raises(RuntimeError):
        log.append(Token(content="more"))


async def test_what_a_tool_does_to_the_arguments_it_was_given_changes_no_event_and_no_answer() -> None:
    log, args, result = MemoryLog("r"), {"path": ["a"]}, {"rows": [1]}
    log.append(ToolCall(call_id="c", tool="t", args=args))
    args["path"].append("b")
    log.append(ToolResult(call_id="c", tool="t", result=result, is_error=False, truncated=False, duration_ms=1))
    result["rows"].clear()
    (call,) = log.answer().parts
    assert isinstance(call, ToolCallPart)
    assert (call.args, call.result) == ({"path": ["a"]}, {"rows": [1]})
    assert fold(decode(each.data) for each in kept(log)) == log.answer()


# ---- merged ---------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8") | st.sampled_from("\n\r\x85\u2028\0"), max_size=30)
others = st.builds(start) | st.builds(ToolCall, call_id=st.just("c"), tool=texts, args=st.just({}))
drafts = st.builds(Token, content=texts) | st.builds(Reasoning, content=texts) | others


@contextmanager
def small(chars: int, records: int, size: int, fresh_bytes: int) -> Iterator[None]:
    """Limits that small logs meet too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "TEXT_CHARS_PER_EVENT", chars)
        patch.setattr("chatserver.log.BATCH_RECORDS_LIMIT", records)
        patch.setattr("chatserver.log.BATCH_BYTES_LIMIT", size)
        patch.setattr(fresh, "FRESH_BYTES", fresh_bytes)
        patch.setattr(fresh, "ONE_BATCH_BYTES", min(size, records * fresh.RECORD_BYTES))
        yield


limits = st.tuples(*(st.integers(1, most) for most in (90, 12, 700, 2000)))


@given(st.lists(drafts, min_size=1, max_size=60), limits)
@settings(deadline=None)
async def test_every_cursor_of_every_log_is_served_what_follows_it(
    drafts: list[Event], limits: tuple[int, int, int, int]
) -> None:
    """While it is written, when it is over, and as it was stored: numbering and answer are the same for all."""
    drafts, documents = [*drafts, end()], documents_of([*drafts, end()], "r")
    with small(*limits):
        log = log_of(drafts[:-1])
        stored = log.stored(record(replace(end(), run_id="r", seq=len(drafts))))
        check_all_cursors(log, documents[:-1])
        log.append(end())
        check_all_cursors(log, documents)
        again = await restored(stored)
        check_all_cursors(again, documents)
        for cursor in range(len(documents)):
            assert data(kept(again, cursor)) == data(kept(log, cursor)), "a client sees no difference"
        assert log.answer() == again.answer() == fold(drafts)
        assert again.stored() == log.stored() == stored


def check_all_cursors(log: MemoryLog, documents: list[bytes]) -> None:
    for cursor in range(len(documents) + 1):
        assert unmerged(data(kept(log, cursor)), documents) == documents[cursor:]


async def test_a_batch_is_bounded_in_events_and_in_bytes_merged_or_fresh() -> None:
    for draft, count in ((Token(content="x" * 9_000), 300), (ToolCall(call_id="c", tool="t", args={}), 2_000)):
        log = log_of([draft] * count)
        for after in (0, count - 50):
            cursor = log.cursor(after)
            for batch in iter(cursor.take, ()):
                assert len(batch) <= BATCH_RECORDS_LIMIT
                assert len(batch) == 1 or sum(len(each.data) for each in batch) <= BATCH_BYTES_LIMIT


@pytest.mark.parametrize("char", ["x", '"', "\x01", "\x85", "\u2028", "日", "👩"])
async def test_no_merged_event_is_too_large_whatever_json_makes_of_its_text(char: str) -> None:
    log = log_of([Token(content=char * 7)] * 5_000)
    assert max(len(each.data) for each in kept(log)) <= EVENT_BYTES_LIMIT
    assert len(kept(log)) == -(-5_000 // (TEXT_CHARS_PER_EVENT // 7))


async def test_a_log_of_a_database_of_old_is_read_as_it_was_stored() -> None:
    """With a snapshot in place of its beginning, and texts that were not merged."""
    answer = fold([Token(content="before ")])
    rest: list[Event] = [Token(content="and "), Token(content="after"), Reasoning(content="hm"), end()]
    records = [record(answer.snapshot("r", 7))]
    records += [appended(each, "r", seq) for seq, each in enumerate(rest, 8)]
    log = await restored(StoredLog.of(records))
    assert log.answer() == fold([Token(content="before and after"), Reasoning(content="hm")])
    whole = [b""] * 6 + data(records)
    for cursor in range(12):
        assert unmerged(data(kept(log, cursor)), whole) == whole[max(6, cursor) :]


def test_a_long_log_costs_its_text_and_a_few_bytes_an_event() -> None:
    """Text that the log has for itself: the words that are appended are shared."""
    chance = random.Random(1)
    words = [Token(content="".join(chance.choices("etaoinshrdlu", k=4)) + " ") for _ in range(3000)]
    gc.collect()
    tracemalloc.start()
    try:
        log = MemoryLog("r" * 22)
        for _ in range(40_000):
            log.append(chance.choice(words))
        log.append(end())
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 40_000 * (5 + 8)
    assert 0.9 < log.size_bytes / taken < 1.1, "what it says of its size is what it takes"


def test_what_a_log_costs_grows_as_it_does() -> None:
    """Also what is read of it, and that it is stored."""
    costs = {"append": list[int](), "read": list[int](), "store": list[int]()}
    for count in (2000, 4000, 8000):
        drafts = [Token(content="word ")] * count
        log = log_of(drafts)
        costs["append"].append(calls_of(lambda drafts=drafts: log_of(drafts)))  # type: ignore[misc]
        costs["read"].append(calls_of(lambda log=log: kept(log)))  # type: ignore[misc]
        costs["store"].append(calls_of(log.stored))
    for found in costs.values():
        assert found[2] < 2.2 * found[1] < 2.2**2 * 1.1 * found[0]


async def test_a_batch_of_fresh_events_is_taken_in_one_go() -> None:
    log = log_of([Token(content="word ")] * 50)
    assert calls_of(log.cursor(49 - 16).take) == calls_of(log.cursor(49 - 2).take)


async def test_a_reader_that_is_a_little_behind_is_sent_events_as_they_were_appended() -> None:
    log = MemoryLog("r")
    for count in range(1, 1001):
        log.append(word())
        behind = min(count, 64)
        assert seqs(kept(log, count - behind)) == list(range(count - behind + 1, count + 1))


async def test_who_reads_a_log_as_it_is_written_gets_its_end_as_it_is_and_who_comes_later_merged() -> None:
    log = log_of([start(), word(), word(), word()])
    reader = log.cursor(1)
    log.append(end())
    assert seqs(kept(log)) == [1, 2, 3, 4, 5]
    assert seqs(reader.take()) == [2, 3, 4, 5]
    for _ in range(2):
        reader.close()
        assert seqs(kept(log)) == [1, 4, 5]


# ---- readers --------------------------------------------------------------------------------------------------------


class Reader:
    """Takes all that is ready when it is woken, as a pump does; then it waits."""

    def __init__(self, log: MemoryLog, told: list["Reader"], after: int | None = None) -> None:
        self.cursor = log.cursor(log.last_seq if after is None else after)
        self.batches: list[Sequence[Record]] = []
        self.told = told
        self.cursor.wake = self.wake
        self.pump()

    def wake(self) -> None:
        self.told.append(self)
        self.pump()

    def pump(self) -> None:
        while batch := self.cursor.take():
            self.batches.append(batch)

    @property
    def seqs(self) -> list[int]:
        return [seq for batch in self.batches for seq in seqs(batch)]


def word() -> Token:
    return Token(content="x")


async def test_a_waiting_reader_has_taken_an_event_before_its_append_returns() -> None:
    log, told = MemoryLog("r"), list[Reader]()
    readers = [Reader(log, told) for _ in range(READERS_PER_TURN)]
    for count in (1, 2, 3):
        log.append(word())
        assert told == readers * count
    log.append(end())
    assert all(each.seqs == [1, 2, 3, 4] and each.cursor.is_at_end for each in readers)


async def test_readers_equally_far_are_given_the_same_batch() -> None:
    """What is framed for one of them is framed for all."""
    log, told = MemoryLog("r"), list[Reader]()
    readers = [Reader(log, told) for _ in range(3 * READERS_PER_TURN)]
    for _ in range(5):
        log.append(word())
    for _ in range(9):
        await checkpoint()
    for group in (readers[:READERS_PER_TURN], readers[READERS_PER_TURN:]):
        assert {tuple(each.seqs) for each in group} == {(1, 2, 3, 4, 5)}
        for batches in zip(*(each.batches for each in group), strict=True):
            assert len(set(map(id, batches))) == 1


async def test_many_readers_are_woken_some_in_each_turn_of_the_loop() -> None:
    log, told = MemoryLog("r"), list[Reader]()
    readers = [Reader(log, told) for _ in range(3 * READERS_PER_TURN + 1)]
    log.append(word())
    turns = [len(told)]
    for _ in range(3):
        log.append(word())  # Nobody is woken for it twice.
        await checkpoint()
        turns.append(len(told))
    assert turns == [READERS_PER_TURN, 2 * READERS_PER_TURN, 3 * READERS_PER_TURN, 3 * READERS_PER_TURN + 1]
    assert told == readers
    log.append(end())
    for _ in range(9):
        await checkpoint()
    assert all(each.seqs == [1, 2, 3, 4, 5] for each in readers)


async def test_a_reader_is_woken_once_a_wait_and_not_while_it_has_something_to_take() -> None:
    log, wakes = MemoryLog("r"), list[int]()
    cursor = log.cursor(0)
    cursor.wake = lambda: wakes.append(log.last_seq)

    def take() -> tuple[list[int], bool]:
        return seqs(cursor.take()), cursor.is_waiting

    log.append(start())
    log.append(word())
    with small(90, 1, 700, 2000):
        assert not wakes and take() == ([1], False)
        log.append(word())
        assert not wakes and take() == ([2], False)
        assert take() == ([3], True) and take() == ([], True)
    for _ in range(3):
        log.append(word())
    assert wakes == [4] and take() == ([4, 5, 6], True)
    log.close()
    assert wakes == [4, 6] and cursor.is_at_end and take() == ([], False)


async def test_what_is_appended_by_who_is_woken_wakes_in_a_later_turn() -> None:
    """Else a wake would call itself, as deep as readers answer each other."""
    log, told = MemoryLog("r"), list[Reader]()
    before = Reader(log, told)
    answering = log.cursor(0)

    def answer() -> None:
        log.append(word())

    answering.wake = answer
    assert not answering.take()
    log.append(word())
    assert before.seqs == [1]
    await checkpoint()
    assert before.seqs == [1, 2]


async def test_readers_that_leave_together_cost_no_more_each_than_one_that_leaves_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In whatever order they leave, none looks at the others."""
    log, looks = MemoryLog("r"), 0

    def look(self: object, other: object) -> bool:
        nonlocal looks
        looks += 1
        return self is other

    readers = [Reader(log, []) for _ in range(400)]
    random.Random(1).shuffle(readers)
    monkeypatch.setattr(MemoryCursor, "__eq__", look)
    monkeypatch.setattr(MemoryCursor, "__hash__", object.__hash__)
    for reader in readers:
        reader.cursor.close()
    assert not log._readers and looks <= len(readers)


async def test_readers_are_woken_in_the_order_of_their_coming_also_after_some_have_left() -> None:
    log, told = MemoryLog("r"), list[Reader]()
    readers = [Reader(log, told) for _ in range(10)]
    for number in (0, 4, 9):
        readers[number].cursor.close()
    for _ in range(2):
        log.append(word())
    assert told == [readers[number] for number in (1, 2, 3, 5, 6, 7, 8)] * 2


async def test_a_reader_that_leaves_while_others_are_woken_is_not_woken_any_more() -> None:
    log, told = MemoryLog("r"), list[Reader]()
    first = log.cursor(0)
    assert not first.take()
    readers = [Reader(log, told) for _ in range(2 * READERS_PER_TURN)]
    first.wake = readers[1].cursor.close
    log.append(word())
    readers[-1].cursor.close()
    for _ in range(4):
        await checkpoint()
    assert told == [readers[0], *readers[2:-1]]


async def test_a_reader_that_fails_when_it_is_woken_takes_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, told = MemoryLog("r"), list[Reader]()

    def fail() -> None:
        raise ValueError("a bug")

    failing = log.cursor(0)
    failing.wake = fail
    assert not failing.take()
    other = Reader(log, told)
    for _ in range(3):
        log.append(word())
        failing.take()
        failing.take()
    assert other.seqs == [1, 2, 3]
    assert caplog.text.count("could not be woken") == 3


async def test_a_batch_is_held_by_nobody_but_its_reader() -> None:
    """One that has stopped reading would hold it for as long as the log allows."""
    log = MemoryLog("r")
    for _ in range(10):
        log.append(Token(content="x" * 10_000))
    batch = log.cursor(0).take()
    assert sys.getrefcount(batch) == 2, "this function's own, and that of the argument"


# ---- what is kept when a run is over --------------------------------------------------------------------------------


async def finished(logs: MemoryLogs, run_id: str, text: str, forget: Callable[[str], None]) -> EventLog:
    log = await logs.create(run_id)
    log.append(start())
    log.append(Token(content=text))
    log.append(end())
    logs.retain(run_id, forget)
    return log


async def test_logs_that_are_over_are_forgotten_the_oldest_first_when_there_is_no_room_for_all() -> None:
    one = MemoryLogs(ENDLESS, nothing_stored, LocalJournal())
    size = (await finished(one, "x", "x" * 1000, one.forget)).size_bytes
    logs, forgotten = MemoryLogs(3 * size + size // 2, nothing_stored, LocalJournal()), list[str]()

    def forget(run_id: str) -> None:
        forgotten.append(run_id)
        logs.forget(run_id)

    running = await logs.create("running")
    for number in range(5):
        await finished(logs, f"r{number}", "x" * 1000, forget)
    assert forgotten == ["r0", "r1"]
    logs.forget("r3")
    await finished(logs, "r5", "x" * 1000, forget)
    assert forgotten == ["r0", "r1"]
    await finished(logs, "large", "x" * 9000, forget)
    assert forgotten == ["r0", "r1", "r2", "r4", "r5", "large"]
    assert await logs.open("running") is running
    await finished(logs, "r6", "x" * 1000, forget)
    assert len(forgotten) == 6 and await logs.open("r6") is not None


async def test_readers_of_a_stored_run_share_one_log_while_there_is_one() -> None:
    loads: list[str] = []
    gate = anyio.Event()

    async def stored(run_id: str) -> StoredLog | None:
        loads.append(run_id)
        await gate.wait()
        return log_of([*[word()] * 699, end()], run_id).stored() if run_id != "none" else None

    logs, found = MemoryLogs(ENDLESS, stored, LocalJournal()), list[EventLog | None]()

    async def read(run_id: str) -> None:
        found.append(await logs.open(run_id))

    async with anyio.create_task_group() as tasks:
        for run_id in ("a", "a", "b", "a"):
            tasks.start_soon(read, run_id)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert sorted(loads) == ["a", "b"]
    assert len({id(each) for each in found}) == 2
    again = await logs.open("a")
    assert again in found and sorted(loads) == ["a", "b"]
    assert again is not None and seqs(await all_of(again)) == [699, 700]
    assert await logs.open("none") is None
    left = weakref.ref(again)
    found.clear()
    del again
    gc.collect()
    assert left() is None and not logs._restored and not logs._restoring
    await logs.open("a")
    assert loads.count("a") == 2
