"""One run by itself: its states, its readers and its ends, without a server."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

import anyio
import pytest

from chatserver.agent import Agent, Step, generated
from chatserver.errors import RunLost, Unavailable
from chatserver.events import Answer, Done, Error, Reasoning, Token, ToolCall, ToolResult, Usage
from chatserver.log.memory import MemoryLog
from chatserver.providers import ModelRequest
from chatserver.records import RunStatus
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.run import TRANSITIONS, Run, RunOverError
from chatserver.runs.subscription import Subscription
from chatserver.sessions import Sessions
from tests.scripted_model import asking, run_of

pytestmark = pytest.mark.anyio

CALL = ToolCall(call_id="c", tool="clock", args={}, needs_approval=False)
RESULT = ToolResult(call_id="c", tool="clock", result=1, is_error=False, truncated=False, duration_ms=1)


DONE = Done(session_id="s", message_id="m", finish_reason="stop", total_tokens=0, usage=Usage(), duration_ms=0)


class Store:
    """Keeps what it is given, but for what it is told to refuse."""

    def __init__(self, refusals: Mapping[str, Exception] | None = None) -> None:
        self.answers: list[dict[str, Answer]] = []
        self.ends: list[Done | Error] = []
        self.refusals = dict(refusals or {})
        self.is_asked = anyio.Event()

    async def checkpoint(self, answers: Mapping[str, Answer]) -> None:
        for run_id in answers:
            if run_id in self.refusals:
                raise self.refusals[run_id]
        self.answers.append(dict(answers))
        self.is_asked.set()

    async def finish(self, run_id: str, ending: Done | Error, **_: Any) -> None:
        if run_id in self.refusals:
            raise self.refusals[run_id]
        self.ends.append(ending)


def says(*steps: Any) -> Agent:
    """An agent of one's own."""

    async def answer(_: ModelRequest) -> AsyncGenerator[Step, None]:
        for step in steps:
            if isinstance(step, anyio.Event):
                await step.wait()
            else:
                yield step

    return generated(answer)


def is_ending(run: Run) -> bool:
    """Somebody, or the end of the grace period, has called it to an end."""
    return run._ending is not None


async def lived(run: Run, agent: Agent, kept: Store) -> tuple[bool, list[str]]:
    """Whether the run's end was stored, and the types of its events."""
    ending = await run.answer(agent, asking())
    is_stored = await run.finish(ending, cast(Sessions, kept))
    return is_stored, [each.type for each in await run.log.records()]


@pytest.mark.parametrize(
    ("status", "after"),
    [
        ("running", {"waiting", "completed", "cancelled", "failed"}),
        ("waiting", {"running", "cancelled", "failed"}),
        ("completed", set()),
        ("cancelled", set()),
        ("failed", set()),
    ],
)
async def test_a_run_becomes_only_what_its_state_allows(status: RunStatus, after: set[str]) -> None:
    for other in TRANSITIONS:
        run = run_of()
        run.status = status
        if other in after:
            run.become(other)
            assert run.status == other
        else:
            with pytest.raises(RuntimeError, match=f"{status} cannot become {other}"):
                run.become(other)
    run = run_of()
    run.status = status
    assert run.is_over == (not after)


@pytest.mark.parametrize("first", ["cancel", "interrupt"])
async def test_the_first_ending_wins(first: str) -> None:
    run, kept = run_of(), Store()
    (run.cancel, run.interrupt)[first == "interrupt"]()
    run.interrupt()
    run.cancel()
    await lived(run, says(), kept)
    (end,) = kept.ends
    assert isinstance(end, Done) == (first == "cancel")
    run.cancel()
    assert (await run.log.records())[-1].type == ("done" if first == "cancel" else "error")


async def test_nothing_is_said_after_a_cancel_was_accepted() -> None:
    run = run_of()
    run.say(Token(content="before"))
    run.cancel()
    with pytest.raises(RunOverError):
        run.say(Token(content="after"))
    assert run.log.last_seq == 1


async def test_a_late_reader_does_not_stop_that_a_run_is_forgotten() -> None:
    run, forgotten = run_of(), anyio.Event()
    await lived(run, says(), Store())
    run.retain(0.01, forgotten.set)
    with Subscription(run.log, 0, run, is_at_end=False):
        with anyio.fail_after(5):
            await forgotten.wait()


async def test_the_grace_period_begins_when_the_last_reader_has_left_and_not_before_the_first() -> None:
    run = run_of(grace_seconds=0)
    for _ in range(3):
        await asyncio.sleep(0)
    one, two = Subscription(run.log, 0, run, is_at_end=False), Subscription(run.log, 0, run, is_at_end=False)
    one.close()
    one.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not is_ending(run)
    two.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert is_ending(run)


async def test_what_a_tool_has_done_is_stored_at_once() -> None:
    kept, gate = Store(), anyio.Event()
    checkpoints = Checkpoints(cast(Sessions, kept))
    run = run_of(on_result=checkpoints.hasten)
    checkpoints.add(run.log)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(checkpoints.keep)
        tasks.start_soon(lived, run, says(Token(content="So"), CALL, RESULT, gate), kept)
        with anyio.fail_after(1.5):  # Sooner than any other checkpoint would come.
            await kept.is_asked.wait()
        gate.set()
        tasks.cancel_scope.cancel()
    (call,) = kept.answers[0]["run"].tool_calls
    assert call.result == 1


async def test_a_database_in_trouble_stops_no_tool_and_no_answer() -> None:
    run, kept = run_of(), Store({"run": Unavailable()})
    is_stored, types = await lived(run, says(CALL, RESULT, Token(content="So")), kept)
    assert (is_stored, types) == (False, ["tool_call", "tool_result", "token", "error"])


async def test_the_end_of_a_run_that_was_lost_says_so_and_is_not_stored_again() -> None:
    run, kept = run_of(), Store({"run": RunLost("another one ended the answer")})
    is_stored, types = await lived(run, says(Token(content="So")), kept)
    assert (is_stored, types, run.status) == (True, ["token", "error"], "failed")
    assert b"another one ended the answer" in (await run.log.records())[-1].data


@pytest.mark.parametrize(
    "steps",
    [
        [RESULT],
        [Token(content="Hi"), RESULT],
        [CALL, RESULT, RESULT],
        [CALL, CALL],
        ["no event"],
        [DONE],
    ],
    ids=["a result without its call", "after a text", "two results", "two calls", "no event", "an end of its own"],
)
async def test_an_agent_that_breaks_the_rules_fails_its_own_run(
    steps: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    run, kept = run_of(), Store()
    is_stored, types = await lived(run, says(*steps), kept)
    assert is_stored and types[-1] == "error" and "done" not in types
    (end,) = kept.ends
    assert isinstance(end, Error) and end.code == "internal"
    assert "run run failed" in caplog.text


async def test_a_checkpoint_that_fails_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    kept = Store({"b": ValueError("no text")})
    checkpoints = Checkpoints(cast(Sessions, kept))
    for name in ("a", "b", "c"):
        log = MemoryLog(name)
        log.append(Token(content="1"))
        log.append(Reasoning(content="2"))
        checkpoints.add(log)
    await checkpoints.store(["a", "b", "c"])
    assert [list(answers) for answers in kept.answers] == [["a"], ["c"]]
    assert caplog.text.count("could not be stored") == 1
    await checkpoints.store(["a", "b", "c"])
    assert len(kept.answers) == 2, "what is stored is stored once"


async def test_checkpoints_go_on_when_a_database_is_back() -> None:
    log, kept = MemoryLog("run"), Store({"run": Unavailable()})
    checkpoints = Checkpoints(cast(Sessions, kept))
    checkpoints.add(log)
    log.append(Token(content="1"))
    log.append(Token(content="2"))
    with pytest.raises(Unavailable):
        await checkpoints.store(["run"])
    kept.refusals.clear()
    await checkpoints.store(["run"])
    assert [answers["run"].content for answers in kept.answers] == ["12"]
