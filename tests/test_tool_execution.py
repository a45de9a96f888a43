"""Tools that do not come back: their call ends, other tools work, and the server's loop and its end wait for none."""

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from textwrap import dedent

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.tools import Tool, execution
from chatserver.tools import loops as loops_of_tools
from chatserver.tools.context import ToolContext
from chatserver.tools.execution import ABANDONED_LIMIT, ToolThreads
from chatserver.tools.functions import tool
from chatserver.tools.results import Outcome
from tests.live import ROOT
from tests.tool_calls import LIMIT, LONG, SHORT, WAIT_SECONDS, Function, Gates, assert_works, both, called, open_gates

pytestmark = pytest.mark.anyio


@pytest.fixture
def gates() -> Iterator[Gates]:
    yield from open_gates()


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
            while (await threads.call(tool(function), {}, ToolContext())).result != result:
                pass


def works() -> bool:
    return True


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
    refused = await called(threads, works)
    assert refused.is_error and "not come back" in refused.result
    gates.open()
    with anyio.fail_after(WAIT_SECONDS):
        while (await threads.call(tool(works), {}, ToolContext())).is_error:
            await checkpoint()


async def test_loops_that_tools_block_are_limited_and_come_back_into_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gates: Gates
) -> None:
    monkeypatch.setattr(loops_of_tools, "STUCK_SECONDS", 0.1)
    monkeypatch.setattr(execution, "ABANDONED_LIMIT", 4)
    threads, before = ToolThreads(0.2, LIMIT), loops()

    async def blocks() -> bool:
        return gates.wait()

    with anyio.fail_after(WAIT_SECONDS):
        while (await called(threads, blocks)).result == "no answer within 0.2 seconds":
            pass  # Five times; more on a machine so busy that a loop that has just begun seems stuck.
        for _ in range(4):
            await gates.has_entered()
        assert len(threads._lost) == 4 and loops() == before + 4
        for function in both(works_plainly):
            assert "not come back" in (await called(threads, function)).result
        gates.open()
        while threads._lost or loops() > before:  # noqa: ASYNC110 - a thread tells nobody
            await anyio.sleep(0.01)
        for function in both(works_plainly):
            while (await called(threads, function)).result is not True:
                pass
    assert caplog.record_tuples == []


def loops() -> int:
    return [each.name for each in threading.enumerate()].count("chatserver-tools")


def works_plainly() -> bool:
    return True


async def test_a_loop_that_works_serves_also_when_no_further_thread_is_begun(
    monkeypatch: pytest.MonkeyPatch, gates: Gates
) -> None:
    monkeypatch.setattr(execution, "ABANDONED_LIMIT", 1)
    threads = ToolThreads(LONG, LIMIT)

    async def works() -> bool:
        return True

    assert (await called(threads, works)).result is True
    await cancel_when(gates, threads, tool(gates.wait))
    assert (await called(threads, works_plainly)).is_error
    assert (await called(threads, works)).result is True


async def test_what_else_runs_on_a_loop_that_was_stuck_comes_to_its_end(
    monkeypatch: pytest.MonkeyPatch, gates: Gates
) -> None:
    """One that blocks the loop costs the others time, and nothing else if they have enough of it."""
    monkeypatch.setattr(loops_of_tools, "STUCK_SECONDS", 0.02)
    threads = ToolThreads(LONG, LIMIT)
    outcomes: list[Outcome] = []

    async def waits() -> str:
        gates.entered.release()
        await anyio.to_thread.run_sync(gates.wait)
        await asyncio.sleep(0.01)
        return "done"

    async def blocks() -> bool:
        return gates.wait()

    async def call() -> None:
        outcomes.append(await called(threads, waits))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await gates.has_entered()
        monkeypatch.setattr(threads, "_timeout_seconds", 0.02)
        assert (await called(threads, blocks)).is_error
        assert len(threads._lost) == 1
        monkeypatch.setattr(threads, "_timeout_seconds", LONG)
        for function in both(works_plainly):
            assert (await called(threads, function)).result is True
        assert not outcomes
        gates.open()
    assert outcomes[0].result == "done"


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
        outcomes.append(await threads.call(made, {}, ToolContext()))

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
    from chatserver.tools.context import ToolContext
    from chatserver.tools.execution import ToolThreads
    from chatserver.tools.functions import tool

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
                outcome = await threads.call(tool(function), {}, ToolContext())
                assert outcome.is_error
                tasks.start_soon(threads.call, tool(function), {}, ToolContext())
            await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    print(threading.active_count() > 1)
"""


async def test_lost_tools_do_not_keep_the_program_from_ending() -> None:
    with anyio.fail_after(2 * WAIT_SECONDS):
        ended = await anyio.run_process([sys.executable, "-c", dedent(SCRIPT)], cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"True\n", b"")
