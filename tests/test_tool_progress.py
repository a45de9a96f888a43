"""The progress of tools: from a tool's reports to the events of its run, however many, from wherever they come."""

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.events import ToolProgress
from chatserver.runs.states import CannotHappen
from chatserver.tools.context import PROGRESS_CHARS_LIMIT, ToolContext
from chatserver.tools.execution import ToolThreads
from chatserver.tools.functions import tool
from chatserver.tools.progress import PROGRESS_SECONDS, told_progress
from tests.clients import NDJSON, SSE, TRANSPORTS, WS, documents_of, types_of
from tests.fake_upstream import Done, FakeUpstream, finish, role, say, tool_call
from tests.live import LiveServer, live_server
from tests.scripted_model import Finished, ScriptedModel, agent, called, gave, steps_of, stop, wants
from tests.tool_calls import LIMIT, LONG, WAIT_SECONDS, Gates, open_gates
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio


def report_of(number: int) -> ToolProgress:
    return ToolProgress(call_id="c", message=None, progress=number, total=None)


# ---- what a tool may say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ((), (None, None, None)),
        (("half", 5, 10), ("half", 5, 10)),
        ((None, 0.5), (None, 0.5, None)),
        ((7, True), ("7", 1.0, None)),
        (("", nan, inf), ("", None, None)),
        (("a\ud83eb\0", 2**60), ("a?b\0", float(2**60), None)),
        (("x" * 501,), ("x" * 499 + "…", None, None)),
    ],
)
def test_a_progress_is_an_event_whatever_a_tool_says(said: tuple[Any, ...], told: tuple[Any, ...]) -> None:
    heard: list[ToolProgress] = []
    context = ToolContext(call_id="c", report=heard.append)
    context.progress(*said)  # type: ignore[unused-awaitable]
    (event,) = heard
    assert event == ToolProgress(call_id="c", message=told[0], progress=told[1], total=told[2])
    assert len(event.message or "") <= PROGRESS_CHARS_LIMIT


@pytest.mark.parametrize("wrong", ["many", object(), [1]])
def test_what_is_no_number_is_refused_where_the_tool_says_it(wrong: Any) -> None:
    heard: list[ToolProgress] = []
    with pytest.raises((TypeError, ValueError)):
        ToolContext(report=heard.append).progress(None, wrong)  # type: ignore[unused-awaitable]
    assert heard == []


# ---- how much of it is told -----------------------------------------------------------------------------------------


def in_virtual_time(work: Callable[[], Any]) -> None:
    loop = VirtualTimeLoop()
    try:
        loop.run_until_complete(work())
    finally:
        loop.close()


def test_the_first_report_is_told_at_once_then_the_newest_and_always_the_last() -> None:
    told: list[tuple[float, float | None]] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        with told_progress(lambda event: told.append((round(loop.time() - start, 2), event.progress))) as report:
            for number in range(10):
                report(report_of(number))
                await asyncio.sleep(0.06)
            report(report_of(10))
        report(report_of(11))
        await asyncio.sleep(10)

    in_virtual_time(work)
    assert told == [(0.0, 0), (0.2, 3), (0.4, 6), (0.6, 9), (0.6, 10)]


def test_a_report_before_a_long_silence_is_told_in_time() -> None:
    told: list[float | None] = []

    async def work() -> None:
        with told_progress(lambda event: told.append(event.progress)) as report:
            report(report_of(1))
            report(report_of(2))
            await asyncio.sleep(0)
            report(report_of(3))
            await asyncio.sleep(0.21)
            assert told == [2, 3]
            await asyncio.sleep(3600)
        assert told == [2, 3]

    in_virtual_time(work)


def test_the_events_of_a_call_that_takes_an_hour_are_few() -> None:
    told: list[float] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        with told_progress(lambda event: told.append(loop.time())) as report:
            for number in range(36_000):
                report(report_of(number))
                await asyncio.sleep(0.1)

    in_virtual_time(work)
    assert 200 < len(told) < 400
    assert min(later - sooner for sooner, later in pairwise(told[:-1])) > PROGRESS_SECONDS - 0.001


def test_a_call_that_was_cancelled_or_a_run_that_takes_no_more_is_told_nothing() -> None:
    told: list[float | None] = []

    def tell(event: ToolProgress) -> None:
        told.append(event.progress)
        raise CannotHappen

    async def work() -> None:
        with suppress(KeyError), told_progress(tell) as report:
            report(report_of(1))
            await asyncio.sleep(0.01)
            report(report_of(2))
            raise KeyError
        await asyncio.sleep(1)

    in_virtual_time(work)
    assert told == [1]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_flood_of_reports_is_a_few_events_and_holds_up_nobody(is_async: bool) -> None:
    told: list[float | None] = []

    def plain(context: ToolContext) -> str:
        for number in range(100_001):
            context.progress(None, number)  # type: ignore[unused-awaitable]
        return "done"

    async def in_loop(context: ToolContext) -> str:
        for number in range(100_000):
            context.progress(None, number)  # type: ignore[unused-awaitable]
        await context.progress(None, 100_000)
        return "done"

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count())
    with told_progress(lambda event: told.append(event.progress)) as report:
        context = ToolContext(report=report)
        outcome = await ToolThreads(LONG, LIMIT).call(tool(in_loop if is_async else plain), {}, context)
    counting.cancel()
    assert outcome.result == "done" and turns > 10
    assert told[-1] == 100_000 and told == sorted(set(told), key=lambda each: each or 0)
    assert len(told) <= 2 + outcome.duration_ms / 1000 / PROGRESS_SECONDS


async def test_a_tool_that_was_given_up_is_not_heard_any_more() -> None:
    told: list[ToolProgress] = []
    said = threading.Event()
    for gates in open_gates():

        def late(context: ToolContext, gates: Gates = gates) -> None:
            gates.wait()
            context.progress("too late")  # type: ignore[unused-awaitable]
            said.set()

        made = tool(_without_gates(late))
        with told_progress(told.append) as report:
            outcome = await ToolThreads(0.05, LIMIT).call(made, {}, ToolContext(report=report))
        assert outcome.is_error
        gates.open()
        assert await anyio.to_thread.run_sync(said.wait, WAIT_SECONDS)
        await asyncio.sleep(0)
    assert told == []


def _without_gates(function: Callable[..., None]) -> Callable[..., None]:
    def late(context: ToolContext) -> None:
        function(context)

    return late


# ---- in a run -------------------------------------------------------------------------------------------------------


async def test_progress_comes_between_the_call_and_its_result() -> None:
    async def work(context: ToolContext) -> str:
        await context.progress(f"in {context.run_id}", 1, 2)
        return context.call_id

    model = ScriptedModel(wants(("c1", "work", "{}")), [stop()])
    assert await steps_of(agent(model, work)) == [
        called("c1", "work"),
        ToolProgress(call_id="c1", message="in run", progress=1, total=2),
        gave("c1", "work", "c1"),
        Finished("stop"),
    ]


# ---- in a server ----------------------------------------------------------------------------------------------------

GO = threading.Event()


async def work(context: ToolContext, steps: int) -> str:
    """Report, and go on when the test says so."""
    await context.progress(f"{context.user}: begun", 0, steps)
    while not GO.is_set():  # noqa: ASYNC110 - the test is in another thread
        await asyncio.sleep(0.01)
    await context.progress("done", steps, steps)
    return "worked"


TOOLS = [work]
SETTINGS: dict[str, Any] = {"tools": f"{__name__}:TOOLS"}


async def test_progress_is_seen_while_the_tool_works_and_kept_exactly_for_every_cursor(tmp_path: Path) -> None:
    GO.clear()
    async with FakeUpstream() as upstream:
        upstream.script(role(), *tool_call("work", {"steps": 2}, pieces=3), finish("tool_calls"), Done())
        upstream.script(*say("Done."))
        async with live_server(upstream.url, directory=tmp_path, **SETTINGS) as server:
            with anyio.fail_after(WAIT_SECONDS):
                readings = [await SSE.start(server, {"message": "Work"})]
                readings += [await each.attach(server, readings[0].run_id) for each in (WS, NDJSON)]
                for reading in readings:
                    while json.loads(await reading.next() or b"{}")["type"] != "tool_progress":
                        pass
                GO.set()
                await documents_of(readings[0])
                documents = readings[0].documents
                for reading in readings[1:]:
                    await documents_of(reading)
                    assert reading.documents == documents
            await assert_every_cursor(server, readings[0].run_id, documents)
        async with live_server(upstream.url, directory=tmp_path, **SETTINGS) as server:
            await assert_every_cursor(server, readings[0].run_id, documents)
    inputs = ["tool_input"] * 3
    assert types_of(documents) == [
        "start", *inputs, "tool_call", "tool_progress", "tool_progress", "tool_result", "token", "done",
    ]  # fmt: skip
    told = [json.loads(each) for each in documents if b'"tool_progress"' in each]
    assert [(each["message"], each["progress"], each["total"]) for each in told] == [
        ("local: begun", 0, 2),
        ("done", 2, 2),
    ]


async def assert_every_cursor(server: LiveServer, run_id: str, documents: list[bytes]) -> None:
    for transport in TRANSPORTS:
        for after in range(len(documents)):
            with anyio.fail_after(WAIT_SECONDS):
                assert await documents_of(await transport.attach(server, run_id, after)) == documents[after:]
