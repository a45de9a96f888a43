"""The event log in memory: what only it promises, and what it costs."""

import gc
import random
import sys
import tracemalloc
import weakref
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from chatserver.answer import fold
from chatserver.events import Event, Reasoning, Record, Token, ToolCall, ToolResult, decode, record
from chatserver.log import READ_BYTES_LIMIT, READ_RECORDS_LIMIT, segments
from chatserver.log.memory import READERS_PER_TURN, MemoryCursor, MemoryLog, MemoryLogs
from chatserver.log.segments import Segments
from chatserver.parts import ToolCallPart
from tests.counting import calls_of
from tests.logs import ENDLESS, a_run, all_of, end, nothing_stored, seqs, start

pytestmark = pytest.mark.anyio


async def test_a_forgotten_log_can_be_read_to_its_end_by_who_has_it() -> None:
    logs = MemoryLogs(ENDLESS, nothing_stored)
    log = await logs.create("one")
    reading = log.read(0)
    for draft in a_run(5):
        log.append(draft)
    logs.forget("one")
    assert await logs.open("one") is None
    assert [seqs(batch) async for batch in reading] == [[1, 2, 3, 4, 5]]


async def test_a_log_that_a_crash_left_is_read_from_any_cursor() -> None:
    """It is numbered above every seq that can have been sent."""
    snapshot = fold([Token(content="kept")]).snapshot("r", 1_000_000)
    records = [record(snapshot), record(replace(end(), run_id="r", seq=1_000_001))]
    log = MemoryLog("r")
    await log.restore(records)
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
    assert fold(decode(each.data) for each in await log.records()) == log.answer()


# ---- segments -------------------------------------------------------------------------------------------------------


def token(seq: int, text: str = "word ") -> Record:
    return record(Token(run_id="r" * 22, seq=seq, content=text))


def kept(records: Sequence[Record]) -> Segments:
    found = Segments()
    for each in records:
        found.append(each)
    return found


def read_to_the_end(log: Segments, cursor: int, last: int) -> list[Record]:
    found: list[Record] = []
    while cursor < last:
        batch = log.after(cursor)
        assert 0 < len(batch) <= READ_RECORDS_LIMIT
        assert len(batch) == 1 or sum(len(each.data) for each in batch) <= READ_BYTES_LIMIT
        found += batch
        cursor = batch[-1].seq
    return found


texts = st.text(st.characters(codec="utf-8") | st.sampled_from("\n\r\x85\u2028\0"), max_size=30)
drafts = st.builds(Token, content=texts) | st.builds(Reasoning, content=texts)


@given(
    st.data(), st.lists(drafts, min_size=1, max_size=60), st.integers(1, 900), st.integers(1, 12), st.integers(1, 700)
)
@settings(deadline=None)
def test_however_a_log_is_cut_into_segments_every_cursor_reads_what_was_appended(
    data: st.DataObject, texts: list[Event], open_bytes: int, records_limit: int, bytes_limit: int
) -> None:
    first = data.draw(st.sampled_from([1, 1000]), label="first seq: behind what is not kept")
    records = [record(replace(each, run_id="r", seq=seq)) for seq, each in enumerate(texts, first)]
    if first > 1:
        records[0] = record(fold(texts[:1]).snapshot("r", first))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "OPEN_BYTES", open_bytes)
        patch.setattr(segments, "READ_RECORDS_LIMIT", records_limit)
        patch.setattr(segments, "READ_BYTES_LIMIT", bytes_limit)
        log = kept(records)
        last = records[-1].seq
        for cursor in (*range(min(3, first)), *range(first - 1, last)):
            assert read_to_the_end(log, cursor, last) == [each for each in records if each.seq > cursor]
        assert [each for part in log.parts() for each in part] == records


def test_a_long_log_is_kept_whole_in_a_few_bytes_an_event() -> None:
    """Of texts that say something: some that repeats itself would prove nothing."""
    chance = random.Random(1)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randrange(1, 8))) + " " for _ in range(3000)]
    gc.collect()
    tracemalloc.start()
    try:
        log = kept([])
        for seq in range(1, 40_001):
            log.append(token(seq, chance.choice(words)))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 40_000 * 16 + 2 * segments.OPEN_BYTES
    assert 0.7 < log.size_bytes / taken < 1.4, "what it says of its size is what it takes"


def test_what_a_log_costs_grows_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = 0

    def compress(data: bytes, level: int) -> bytes:
        nonlocal packed
        packed += len(data)
        return zlib.compress(data, level)

    class Zlib:
        decompress = staticmethod(zlib.decompress)

    Zlib.compress = staticmethod(compress)  # type: ignore[attr-defined]
    monkeypatch.setattr(segments, "zlib", Zlib)
    for open_bytes in (1, 1000, segments.OPEN_BYTES):
        monkeypatch.setattr(segments, "OPEN_BYTES", open_bytes)
        records = [token(seq) for seq in range(1, 8001)]
        costs: list[int] = []
        for count in (2000, 4000, 8000):
            packed = 0
            costs.append(calls_of(partial(kept, records[:count])))
            assert packed <= sum(len(each.data) + 1 for each in records[:count]), "an event is sealed once"
        assert costs[2] < 2.2 * costs[1] < 2.2**2 * 1.1 * costs[0]


def test_readers_that_keep_up_are_given_nothing_that_was_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_unsealed", None)
    log = Segments()
    for seq in range(1, 5001):
        log.append(token(seq))
        assert log.after(seq - 1) == [token(seq)]
        if seq > 200:
            assert seqs(log.after(seq - 200)) == list(range(seq - 199, seq + 1))


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
    log.append(word())
    assert not wakes and seqs(cursor.take()) == [1]
    log.append(word())
    assert not wakes and seqs(cursor.take()) == [2] and not cursor.take()
    for _ in range(3):
        log.append(word())
    assert wakes == [3] and seqs(cursor.take()) == [3, 4, 5] and not cursor.take()
    log.close()
    assert wakes == [3, 5] and cursor.is_at_end and not cursor.take()


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
    assert not log.waiting and looks <= len(readers)


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


async def test_a_batch_is_held_by_nobody_but_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has stopped reading would hold it for as long as the log allows."""
    monkeypatch.setattr(segments, "OPEN_BYTES", 1)
    log = MemoryLog("r")
    for _ in range(10):
        log.append(Token(content="x" * 10_000))
    batch = log.cursor(0).take()
    segments._unsealed.cache_clear()
    assert sys.getrefcount(batch) == 2, "this function's own, and that of the argument"


# ---- what is kept when a run is over --------------------------------------------------------------------------------


async def finished(logs: MemoryLogs, run_id: str, text: str, forget: Callable[[str], None]) -> MemoryLog:
    log = await logs.create(run_id)
    log.append(start())
    log.append(Token(content=text))
    log.append(end())
    logs.retain(run_id, forget)
    return log


async def test_logs_that_are_over_are_forgotten_the_oldest_first_when_there_is_no_room_for_all() -> None:
    one = MemoryLogs(ENDLESS, nothing_stored)
    size = (await finished(one, "x", "x" * 1000, one.forget)).size_bytes
    logs, forgotten = MemoryLogs(3 * size + size // 2, nothing_stored), list[str]()

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

    async def stored(run_id: str) -> list[Record]:
        loads.append(run_id)
        await gate.wait()
        draft = replace(end(), run_id=run_id, seq=700)
        return [*(token(seq) for seq in range(1, 700)), record(draft)] if run_id != "none" else []

    logs, found = MemoryLogs(ENDLESS, stored), list[MemoryLog | None]()

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
    assert again is not None and seqs(await all_of(again)) == list(range(1, 701))
    assert await logs.open("none") is None
    left = weakref.ref(again)
    found.clear()
    del again
    gc.collect()
    assert left() is None and not logs._restored and not logs._restoring
    await logs.open("a")
    assert loads.count("a") == 2
