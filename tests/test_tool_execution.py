"""Calling tools: whatever one does, its call ends with an outcome, other tools work, and the server's loop goes on."""

import asyncio
import functools
import gc
import json
import sys
import threading
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from chatserver.events import EVENT_BYTES_LIMIT, ToolResult, decode, record
from chatserver.tools import Tool, tool
from chatserver.tools.execution import ABANDONED_LIMIT, Outcome, ToolThreads, cap
from tests.live import ROOT

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 15.0
LONG = 600.0
"""A timeout that a test never waits for."""
SHORT = 0.05
"""A timeout that a test does wait for."""
LIMIT = 4096

Function: TypeAlias = Callable[..., Any]


async def called(threads: ToolThreads, function: Function, **args: Any) -> Outcome:
    """The outcome of a call, made in a task of its own: whatever gets out of a tool shall not end the test's."""
    calling = asyncio.ensure_future(threads.call(tool(function), args))
    done, _ = await asyncio.wait([calling], timeout=WAIT_SECONDS)
    if not done:
        calling.cancel()
        await asyncio.wait([calling])
        raise TimeoutError("no outcome")
    assert not calling.cancelled(), "the tool cancelled its caller"
    return calling.result()


def both(function: Callable[[], Any]) -> list[Function]:
    """A plain function as the two tools that it can be."""

    @functools.wraps(function)
    async def in_loop() -> Any:
        return function()

    return [function, in_loop]


def each_way(functions: list[Callable[[], Any]]) -> pytest.MarkDecorator:
    """Parameters: every function as a plain tool and as an async one."""
    made = [way for function in functions for way in both(function)]
    kinds = ["plain", "async"] * len(functions)
    ids = [f"{way.__name__}-{kind}" for way, kind in zip(made, kinds, strict=True)]
    return pytest.mark.parametrize("function", made, ids=ids)


class Gates:
    """Blocks threads until the test has ended."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._opened = threading.Event()

    def wait(self) -> bool:
        """Whether somebody opened in time."""
        return self.wait_for(60)

    def wait_for(self, seconds: float) -> bool:
        self.entered.release()
        return self._opened.wait(seconds)

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def open(self) -> None:
        self._opened.set()

    async def has_entered(self) -> None:
        """Somebody waits here, or has said so."""
        assert await anyio.to_thread.run_sync(self.entered.acquire, True, WAIT_SECONDS)


@pytest.fixture
def gates() -> Iterator[Gates]:
    made = Gates()
    yield made
    made.open()


async def assert_works(threads: ToolThreads) -> None:
    """Other tools, async and plain, still answer."""

    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    def join(parts: list[str]) -> str:
        return "-".join(parts)

    assert (await called(threads, add, a="1", b=2)).result == 3
    assert (await called(threads, join, parts=["a", "b"])).result == "a-b"


# ---- what a call gives ----------------------------------------------------------------------------------------------


class Place(Struct):
    x: int
    tags: set[str]


def text() -> str:
    return "Hé 🦜"


def nothing() -> None:
    return None


def struct() -> Place:
    return Place(1, {"a"})


def nested() -> dict[str, Any]:
    return {"a": [1, 2.5, None, True], "b": {"c": ()}}


def raw_bytes() -> bytes:
    return b"ab\xff"


def big_number() -> int:
    return 10**50


def half_a_pair() -> str:
    return "a\ud83eb"


RESULTS = {
    text: "Hé 🦜",
    nothing: None,
    struct: {"x": 1, "tags": ["a"]},
    nested: {"a": [1, 2.5, None, True], "b": {"c": []}},
    raw_bytes: "ab\ufffd",
    big_number: 10**50,
    half_a_pair: "a?b",
}


@each_way(list(RESULTS))
async def test_a_result_is_what_json_makes_of_it(function: Function) -> None:
    outcome = await called(ToolThreads(LONG, LIMIT), function)
    expected = next(value for each, value in RESULTS.items() if each.__name__ == function.__name__)
    assert outcome == Outcome(expected, is_error=False, truncated=False, duration_ms=outcome.duration_ms)
    assert outcome.duration_ms >= 0


def raises() -> None:
    raise ValueError("no such river")


def raises_without_words() -> None:
    raise KeyError


def raises_what_cannot_be_printed() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    raise Mute


def raises_much() -> None:
    raise ValueError("x" * 100_000)


def exits() -> None:
    sys.exit(3)


def interrupts() -> None:
    raise KeyboardInterrupt


def stops_an_iteration() -> None:
    next(iter(()))


def cancels_itself() -> None:
    raise asyncio.CancelledError


def closes_a_generator() -> None:
    raise GeneratorExit


def times_out() -> None:
    raise TimeoutError("the database is slow")


def an_object() -> object:
    return object()


def a_function() -> object:
    return an_object


def a_generator() -> object:
    return (n for n in range(3))


def an_odd_key() -> object:
    return {(1, 2): 3}


def itself() -> object:
    found: list[Any] = []
    found.append(found)
    return found


def half_a_pair_inside() -> object:
    return ["\ud83e"]


FAILURES: list[Callable[[], Any]] = [
    raises,
    raises_without_words,
    raises_what_cannot_be_printed,
    raises_much,
    exits,
    interrupts,
    stops_an_iteration,
    cancels_itself,
    closes_a_generator,
    times_out,
    an_object,
    a_function,
    a_generator,
    an_odd_key,
    itself,
    half_a_pair_inside,
]


@each_way(FAILURES)
async def test_a_failure_is_an_outcome_at_once_and_other_calls_do_not_feel_it(function: Function, gates: Gates) -> None:
    """Even what is meant to end a program, a task or a loop is only a failure of that tool."""
    threads = ToolThreads(LONG, LIMIT)

    async def other() -> bool:
        return await asyncio.to_thread(gates.wait)

    outcomes: list[Outcome] = []

    async def call_other() -> None:
        outcomes.append(await called(threads, other))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_other)
        await gates.has_entered()
        outcome = await called(threads, function)
        gates.open()
    assert outcome.is_error and isinstance(outcome.result, str) and outcome.result
    assert len(msgspec.json.encode(outcome.result)) <= LIMIT
    assert outcomes[0].result is True
    await assert_works(threads)


async def test_a_failure_says_what_went_wrong() -> None:
    threads = ToolThreads(LONG, LIMIT)
    for function in both(raises):
        assert (await called(threads, function)).result == "no such river"
    for function in both(raises_without_words):
        assert "KeyError" in (await called(threads, function)).result
    for function in both(times_out):
        assert (await called(threads, function)).result == "the database is slow"


async def test_arguments_that_do_not_fit_are_an_outcome_and_nothing_is_called() -> None:
    calls: list[int] = []

    def count(n: int) -> None:
        calls.append(n)

    outcome = await called(ToolThreads(LONG, LIMIT), count, n="many")
    assert outcome.is_error and "$.n" in outcome.result and calls == []


def shown(outcome: Outcome) -> ToolResult:
    """The event of an outcome, with ids and names as long as they may be."""
    return ToolResult(
        run_id="r" * 64,
        seq=10**6,
        call_id="c" * 256,
        tool="t" * 256,
        result=outcome.result,
        is_error=outcome.is_error,
        truncated=outcome.truncated,
        duration_ms=outcome.duration_ms,
    )


# ---- results of any size --------------------------------------------------------------------------------------------


def big_text() -> str:
    return "é" * 50_000_000


def big_bytes() -> bytes:
    return b"\xff" * 100_000_000


def big_array() -> bytearray:
    return bytearray(100_000_000)


def big_list() -> list[str]:
    return ["x" * 1_000_000] * 100


def many() -> dict[str, int]:
    return {str(n): n for n in range(200_000)}


def big_error() -> None:
    raise ValueError("x" * 100_000_000)


def odd_line_ends() -> str:
    return "\x85\u2028" * 1_000_000


def odd_line_ends_inside() -> list[str]:
    return ["\x85" * 12, "\u2029" * 12] * 100_000


def controls() -> str:
    return "\x01" * 1_000_000


@each_way([big_text, big_bytes, big_array, big_list, many, big_error, odd_line_ends, odd_line_ends_inside, controls])
async def test_a_hundred_megabytes_become_one_event(function: Function) -> None:
    outcome = await called(ToolThreads(LONG, 49152), function)
    assert outcome.truncated
    assert outcome.is_error == (function.__name__ == "big_error")
    assert 30_000 < len(record(shown(outcome)).data) <= EVENT_BYTES_LIMIT
    gc.collect()


characters = st.characters(codec="utf-8") | st.sampled_from('\0\n"\\\x85\u2028🦜é')
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(characters),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(characters), inner, max_size=5),
    max_leaves=10,
)


@given(values | st.text(characters, max_size=300) | st.binary(max_size=300), st.integers(64, 400))
def test_a_result_fits_its_limit_and_is_whole_where_it_can_be(result: Any, limit: int) -> None:
    capped, truncated = cap(result, limit)
    assert size(capped) <= limit
    whole = result.decode(errors="replace") if isinstance(result, bytes) else result
    fits = size(whole) <= limit
    assert truncated == (not fits)
    if fits:
        assert capped == json.loads(msgspec.json.encode(whole))
    else:
        of = whole if isinstance(whole, str) else msgspec.json.encode(whole).decode()
        assert isinstance(capped, str) and of.startswith(capped.rstrip("\ufffd"))
        assert size(capped) > limit // 2


def size(result: Any) -> int:
    """The bytes it takes in its event."""
    with_result, without = (record(shown(Outcome(each, False, False, 0))).data for each in (result, None))
    return len(with_result) - len(without) + len("null")


def deep(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("depth", [10, 100, 300, 500, *range(700, 1000, 20), 5000])
async def test_a_result_of_any_depth_can_be_sent_and_read_again(depth: int) -> None:
    """What is deeper than a reader goes would kill the run in its log."""

    def answer() -> list[Any]:
        return deep(depth)

    outcome = await called(ToolThreads(LONG, LIMIT), answer)
    event = shown(outcome)
    assert decode(at_depth(100, lambda: record(event).data)) == event
    json.loads(record(event).data)


def at_depth(frames: int, call: Callable[[], Any]) -> Any:
    """Call it so many frames further down, where a server may be when it writes an event."""
    return call() if frames == 0 else at_depth(frames - 1, call)


# ---- tools that do not come back ------------------------------------------------------------------------------------


async def test_a_tool_that_hangs_is_left_after_the_timeout_and_cancelled() -> None:
    cancelled = threading.Event()

    async def hang() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    threads = ToolThreads(SHORT, LIMIT)
    outcome = await called(threads, hang)
    assert (outcome.is_error, outcome.truncated) == (True, False)
    assert outcome.result == "no answer within 0.05 seconds"
    assert outcome.duration_ms >= 50
    assert await anyio.to_thread.run_sync(cancelled.wait, WAIT_SECONDS)
    await assert_works(ToolThreads(LONG, LIMIT))


async def test_tools_that_fail_after_their_timeout_leave_no_trace_in_the_log(
    gates: Gates, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for what they say any more; the operator cannot do anything about it."""
    came_back = threading.Semaphore(0)

    async def in_loop() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            came_back.release()

    def plain() -> None:
        gates.wait()
        came_back.release()
        raise ValueError("too late")

    threads = ToolThreads(SHORT, LIMIT)
    for function in (in_loop, plain):
        assert (await called(threads, function)).is_error
    gates.open()
    for _ in range(2):
        assert await anyio.to_thread.run_sync(came_back.acquire, True, WAIT_SECONDS)
    await assert_works_slowly(threads)
    gc.collect()
    assert caplog.record_tuples == []


async def test_a_failure_that_takes_long_to_say_does_not_block_the_server(gates: Gates) -> None:
    """The gate opens only if the server's loop runs while the words are found."""

    class SlowError(Exception):
        def __str__(self) -> str:
            return "opened" if gates.wait_for(5) else "blocked"

    def fail() -> None:
        raise SlowError

    for function in both(fail):
        outcomes: list[Outcome] = []

        async def call(function: Function = function, outcomes: list[Outcome] = outcomes) -> None:
            outcomes.append(await called(ToolThreads(LONG, LIMIT), function))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await gates.has_entered()
            gates.open()
        assert outcomes[0].result == "opened"


async def test_a_tool_that_ignores_cancellation_is_left_behind(gates: Gates) -> None:
    async def ignore() -> str:
        while not gates.is_open:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                gates.entered.release()
        return "too late"

    threads = ToolThreads(SHORT, LIMIT)
    assert (await called(threads, ignore)).result == "no answer within 0.05 seconds"
    await gates.has_entered()
    gates.open()
    await assert_works(threads)


async def test_a_tool_that_blocks_blocks_neither_the_server_nor_for_ever_the_other_tools(gates: Gates) -> None:
    """The gate opens only if the server's loop runs while the tool blocks."""
    threads = ToolThreads(LONG, LIMIT)
    for function in both(gates.wait):
        outcomes: list[Outcome] = []

        async def call(function: Function = function, outcomes: list[Outcome] = outcomes) -> None:
            outcomes.append(await called(threads, function))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await gates.has_entered()
            gates.open()
        assert outcomes[0].result is True
    await assert_works(threads)


@pytest.mark.parametrize("kind", [0, 1], ids=["plain", "async"])
async def test_after_a_tool_that_blocks_for_ever_others_work(gates: Gates, kind: int) -> None:
    threads = ToolThreads(SHORT, LIMIT)
    for _ in range(2):
        outcome = await called(threads, both(gates.wait)[kind])
        assert outcome.result == "no answer within 0.05 seconds"
        await gates.has_entered()
        await assert_works_slowly(threads)


async def assert_works_slowly(threads: ToolThreads) -> None:
    """Other tools answer, though with so short a timeout a busy machine may need several tries."""

    async def one() -> int:
        return 1

    def two() -> int:
        return 2

    for function, result in ((one, 1), (two, 2)):
        with anyio.fail_after(WAIT_SECONDS):
            while (await threads.call(tool(function), {})).result != result:
                pass


async def test_lost_threads_are_limited_and_come_back_into_use(gates: Gates) -> None:
    threads = ToolThreads(1.0, LIMIT)
    outcomes: list[Outcome] = []

    async def call() -> None:
        outcomes.append(await called(threads, gates.wait))

    async with anyio.create_task_group() as tasks:
        for _ in range(ABANDONED_LIMIT):
            tasks.start_soon(call)
    for _ in range(ABANDONED_LIMIT):
        await gates.has_entered()
    assert {outcome.result for outcome in outcomes} == {"no answer within 1 seconds"}
    refused = await called(threads, text)
    assert refused.is_error and "not come back" in refused.result
    gates.open()
    with anyio.fail_after(WAIT_SECONDS):
        while (await threads.call(tool(text), {})).is_error:
            await checkpoint()


async def test_many_plain_calls_at_once_all_get_their_turn() -> None:
    """Only those that never come back count as lost."""
    threads, start = ToolThreads(LONG, LIMIT), threading.Event()

    def wait() -> bool:
        return start.wait(WAIT_SECONDS)

    outcomes: list[Outcome] = []

    async def call() -> None:
        outcomes.append(await called(threads, wait))

    async with anyio.create_task_group() as tasks:
        for _ in range(3 * ABANDONED_LIMIT):
            tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        start.set()
    assert [outcome.result for outcome in outcomes] == [True] * (3 * ABANDONED_LIMIT)


# ---- cancelled calls ------------------------------------------------------------------------------------------------


async def test_cancelling_a_call_cancels_an_async_tool(gates: Gates) -> None:
    cancelled = threading.Event()

    async def hang() -> None:
        gates.entered.release()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    await cancel_when(gates, ToolThreads(LONG, LIMIT), tool(hang))
    assert await anyio.to_thread.run_sync(cancelled.wait, WAIT_SECONDS)


async def test_cancelling_a_call_does_not_wait_for_the_tool(gates: Gates) -> None:
    threads = ToolThreads(LONG, LIMIT)
    for function in both(gates.wait):
        await cancel_when(gates, threads, tool(function))
    gates.open()
    await assert_works(threads)


async def cancel_when(gates: Gates, threads: ToolThreads, made: Tool) -> None:
    """Cancel the call as soon as the tool runs; it ends without an outcome."""
    outcomes: list[Outcome] = []

    async def call() -> None:
        outcomes.append(await threads.call(made, {}))

    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await gates.has_entered()
            tasks.cancel_scope.cancel()
    assert outcomes == []


# ---- the end of the program -----------------------------------------------------------------------------------------

SCRIPT = """
    import asyncio, threading, time
    import anyio
    from chatserver.tools import tool
    from chatserver.tools.execution import ToolThreads

    def plain() -> None:
        time.sleep(3600)

    async def blocks() -> None:
        time.sleep(3600)

    async def ignores() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for function in (plain, blocks, ignores):
                threads = ToolThreads(0.05, 1000)
                outcome = await threads.call(tool(function), {})
                assert outcome.is_error
                tasks.start_soon(threads.call, tool(function), {})
            await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    print(threading.active_count() > 1)
"""


async def test_lost_tools_do_not_keep_the_program_from_ending() -> None:
    with anyio.fail_after(2 * WAIT_SECONDS):
        ended = await anyio.run_process([sys.executable, "-c", dedent(SCRIPT)], cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"True\n", b"")
