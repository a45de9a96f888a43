"""A run in its life: its agent's task, its timers, its checkpoints and the storing of its end, without a server."""

from math import inf
from typing import Any, cast

import anyio
import pytest
from msgspec.structs import replace

from chatserver.agent import Agent
from chatserver.context import RunContext
from chatserver.endings import INTERNAL, INTERRUPTED, UNREAD, WRONG
from chatserver.errors import RunLost, Unavailable
from chatserver.events import Done, FinishReason, Reasoning, Terminal, Token, ToolCall, ToolResult
from chatserver.log.memory import MemoryLog
from chatserver.meter import Meter
from chatserver.parts import ToolCallPart
from chatserver.providers import ModelRequest
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.life import Life
from chatserver.runs.run import Run
from chatserver.runs.states import State
from chatserver.runs.subscription import Subscription
from chatserver.sessions import Sessions
from tests.logs import kept as logged
from tests.scripted_model import (
    RESOURCE,
    WAIT_SECONDS,
    ScriptedModel,
    Store,
    Unanswered,
    agent,
    asking,
    life_of,
    stop,
    told,
    toolbox,
    wants,
)

pytestmark = pytest.mark.anyio

CALL = ToolCall(call_id="c", tool="clock", args={}, needs_approval=False)
RESULT = ToolResult(call_id="c", tool="clock", result=1, is_error=False, truncated=False, duration_ms=1)
WORD = Token(content="So")
WORD_A = Token(content="a")


def says(*steps: Any) -> Agent:
    """An agent of one's own."""

    async def answer(request: ModelRequest, context: RunContext) -> FinishReason:
        await context.settled()
        context.meter.begin_turn(request)
        for step in steps:
            if isinstance(step, anyio.Event):
                await step.wait()
            else:
                context.emit(step)
        return "stop"

    return answer


async def types_of(life: Life) -> list[str]:
    return [each.type for each in logged(life.log)]


# ---- the task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["cancel", "interrupt"])
async def test_a_run_that_is_ended_before_it_asks_asks_nobody(first: str) -> None:
    kept, asked = Store(), list[ModelRequest]()
    life = life_of(kept=kept)

    async def silent(request: ModelRequest, *_: object) -> FinishReason:
        asked.append(request)
        return "stop"

    getattr(life, first)()
    life.interrupt()
    life.cancel()
    assert await life.live(silent, asking())
    (end,) = kept.ends
    assert asked == [] and (isinstance(end, Done) if first == "cancel" else end == INTERRUPTED)
    life.cancel()
    assert await types_of(life) == ["done" if first == "cancel" else "error"]


async def test_a_cancel_ends_what_the_agent_waits_for() -> None:
    kept = Store()
    life = life_of(kept=kept)
    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(life.live, says(WORD, anyio.Event()), asking())
            await anyio.wait_all_tasks_blocked()
            life.cancel()
    (end,) = kept.ends
    assert isinstance(end, Done) and end.finish_reason == "cancelled"
    assert await types_of(life) == ["token", "done"]


async def test_an_agent_that_catches_what_it_should_not_comes_to_its_end() -> None:
    kept = Store()
    life = life_of(Meter(answer_bytes_limit=5), kept)

    async def deaf(request: ModelRequest, context: RunContext) -> FinishReason:
        for __ in range(9):
            try:
                context.emit(Token(content="word"))
            except Exception:  # noqa: BLE001 - that is what it is here for
                await anyio.sleep_forever()
        return "stop"

    with anyio.fail_after(WAIT_SECONDS):
        await life.live(deaf, asking())
    (end,) = kept.ends
    assert isinstance(end, Done) and end.finish_reason == "length"
    assert told(life) == [Token(content="word"), Token(content="w")]


@pytest.mark.parametrize("steps", [[RESULT], ["no event"], [WORD, CALL, CALL]])
async def test_an_agent_that_breaks_the_rules_fails_its_own_run(steps: list[Any]) -> None:
    kept = Store()
    life = life_of(kept=kept)
    assert await life.live(says(*steps), asking())
    assert kept.ends == [WRONG]


async def test_an_agent_that_fails_fails_its_own_run(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: ModelRequest, context: RunContext) -> FinishReason:
        context.emit(WORD)
        raise KeyError("secret")

    kept = Store()
    life = life_of(kept=kept)
    assert await life.live(broken, asking())
    assert kept.ends == [INTERNAL] and "run run failed" in caplog.text and told(life) == [WORD]


async def test_a_session_that_cannot_be_read_fails_the_run() -> None:
    async def unread(_: RunContext) -> ModelRequest:
        raise Unavailable

    kept = Store()
    assert await life_of(kept=kept).live(says(WORD), unread)
    assert kept.ends == [UNREAD]


async def test_nothing_is_stored_and_no_tool_is_called_before_the_run_is_on_disk() -> None:
    called: list[str] = []

    def note() -> None:
        called.append("tool")

    kept = Store()
    life = life_of(kept=kept, is_settled=False)
    model = ScriptedModel(["a", *wants(("c", "note", "{}"))], ["b", stop()])
    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(life.live, agent(model, note).answer, asking())
            await anyio.wait_all_tasks_blocked()
            assert (len(model.requests), told(life), called) == (1, [WORD_A], [])
            life.settle()
            life.settle()
    assert called == ["tool"] and len(kept.ends) == 1


async def test_a_run_that_ends_before_it_is_on_disk_is_stored_when_it_is() -> None:
    kept = Store()
    life = life_of(kept=kept, is_settled=False)
    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(life.live, agent(ScriptedModel(["a", stop()])).answer, asking())
            await anyio.wait_all_tasks_blocked()
            assert (kept.ends, await types_of(life)) == ([], ["token"])
            life.settle()
    assert len(kept.ends) == 1 and await types_of(life) == ["token", "done"]


async def test_somebodys_own_agent_begins_when_the_run_is_on_disk() -> None:
    life = life_of(is_settled=False)
    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(life.live, says(WORD), asking())
            await anyio.wait_all_tasks_blocked()
            assert told(life) == []
            life.settle()
    assert told(life) == [WORD]


# ---- the end --------------------------------------------------------------------------------------------------------


async def test_a_database_in_trouble_stops_no_tool_and_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatserver.runs.ends.WAIT_SECONDS", 0.0)
    life = life_of(kept=Store({"run": Unavailable()}))
    assert not await life.live(says(CALL, RESULT, WORD), asking())
    assert await types_of(life) == ["tool_call", "tool_result", "token", "error"]


class Away(Store):
    """A database that is gone for so many tries to store an end."""

    def __init__(self, tries: float) -> None:
        super().__init__()
        self.tries = 0
        self._refused = tries

    async def finish(self, run_id: str, ending: Terminal, **about: Any) -> None:
        self.tries += 1
        if self.tries <= self._refused:
            raise Unavailable
        await super().finish(run_id, ending, **about)


async def test_a_database_that_is_back_soon_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatserver.runs.ends.STORE_AGAIN_SECONDS", 0.001)
    kept = Away(tries=3)
    life = life_of(kept=kept)
    assert await life.live(says(WORD), asking())
    assert (kept.tries, await types_of(life)) == (4, ["token", "done"])
    assert [type(each) for each in kept.ends] == [Done]


async def test_a_database_that_stays_away_is_waited_for_until_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("chatserver.runs.ends.WAIT_SECONDS", 0.05)
    kept = Away(tries=inf)
    life = life_of(kept=kept)
    with anyio.fail_after(WAIT_SECONDS):
        assert not await life.live(says(WORD), asking())
    assert kept.tries >= 2 and await types_of(life) == ["token", "error"]
    assert caplog.text == ""


async def test_a_database_that_was_waited_for_by_the_first_try_is_not_waited_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("chatserver.runs.ends.WAIT_SECONDS", 0.01)

    class Locked(Away):
        async def finish(self, run_id: str, ending: Terminal, **about: Any) -> None:
            await anyio.sleep(0.02)
            await super().finish(run_id, ending, **about)

    kept = Locked(tries=inf)
    assert not await life_of(kept=kept).live(says(WORD), asking())
    assert kept.tries == 1 and caplog.text == ""


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_server_that_ends_waits_for_no_database(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    for name in ("WAIT_SECONDS", "STORE_AGAIN_SECONDS", "STORE_AGAIN_AT_MOST_SECONDS"):
        monkeypatch.setattr(f"chatserver.runs.ends.{name}", 3600.0)
    kept, gate = Away(tries=inf), anyio.Event()
    life = life_of(kept=kept)
    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(life.live, says(WORD, gate), asking())
            await anyio.wait_all_tasks_blocked()
            if when == "meanwhile":
                gate.set()
                await anyio.wait_all_tasks_blocked()
                assert (kept.tries, await types_of(life)) == (1, ["token"])
            life.interrupt()
    assert (kept.tries, await types_of(life)) == (1, ["token", "error"])


async def test_the_end_of_a_run_that_was_lost_says_so_and_is_not_stored_again() -> None:
    life = life_of(kept=Store({"run": RunLost("another one ended the answer")}))
    assert await life.live(says(WORD), asking())
    assert life.run.state is State.OVER and await types_of(life) == ["token", "error"]
    assert b"another one ended the answer" in logged(life.log)[-1].data


async def test_a_failure_of_the_last_resort_is_told_once_and_it_is_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatserver.runs.ends.STORE_AGAIN_SECONDS", 0.001)
    monkeypatch.setattr("chatserver.runs.ends.STORE_AGAIN_AT_MOST_SECONDS", 0.001)
    refusals: list[Exception | None] = [ValueError("no text"), Unavailable(), ValueError("no text"), None]

    class Broken(Store):
        async def interrupt(self, run_id: str) -> None:
            if refusal := refusals.pop(0):
                raise refusal

    life = life_of(kept=Broken({"run": ValueError("no text")}))
    assert not await life.live(says(WORD), asking())
    caplog.clear()
    with anyio.fail_after(WAIT_SECONDS):
        await life.store_late()
    assert refusals == []
    assert [each.message for each in caplog.records] == [
        "of the answer of run run only its last checkpoint is kept",
        "run run cannot be stored as ended: its session takes no other",
    ]


# ---- readers and timers ---------------------------------------------------------------------------------------------


async def test_the_grace_period_ends_a_run_when_the_last_reader_has_left() -> None:
    kept = Store()
    life = life_of(kept=kept, grace_seconds=0.01)
    readers = [Subscription(life.log, 0, life.count) for _ in range(2)]
    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(life.live, says(WORD, anyio.Event()), asking())
            await anyio.wait_all_tasks_blocked()
            readers[0].close()
            readers[0].close()
            assert life._timer is None, "one is left, who has left once"
            readers[1].close()
            await life.over()
    (end,) = kept.ends
    assert isinstance(end, Done) and end.finish_reason == "cancelled"


async def test_a_late_reader_does_not_stop_that_a_run_is_forgotten() -> None:
    life, forgotten = life_of(), anyio.Event()
    await life.live(says(), asking())
    life.keep(0.01, forgotten.set)
    with Subscription(life.log, 0, life.count), anyio.fail_after(WAIT_SECONDS):
        await forgotten.wait()


async def test_all_who_wait_for_the_end_are_told() -> None:
    life, gate = life_of(), anyio.Event()
    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(life.over)
            tasks.start_soon(life.live, says(gate), asking())
            await anyio.wait_all_tasks_blocked()
            gate.set()
        await life.over()


# ---- checkpoints ----------------------------------------------------------------------------------------------------


async def test_what_a_tool_has_done_is_stored_at_once() -> None:
    kept, gate = Store(), anyio.Event()
    checkpoints = Checkpoints(cast(Sessions, kept))
    life = Life(
        "ann", Run(RESOURCE, MemoryLog("run"), Meter(), None, 0.0), cast(Sessions, kept), checkpoints, toolbox()
    )
    life.hold = lambda life: Unanswered(life.say)
    checkpoints.add(life.run)
    life.settle()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(checkpoints.store_forever)
        tasks.start_soon(life.live, says(WORD, CALL, RESULT, gate), asking())
        with anyio.fail_after(1.5):  # Sooner than any other checkpoint would come.
            await kept.is_asked.wait()
        gate.set()
        tasks.cancel_scope.cancel()
    *_, call = kept.answers[0]["run"].parts
    assert isinstance(call, ToolCallPart) and call.result == 1


def checkpoints_of(kept: Store, *names: str) -> Checkpoints:
    """Of runs that have said a little."""
    checkpoints = Checkpoints(cast(Sessions, kept))
    for name in names:
        run = Run(replace(RESOURCE, run_id=name), MemoryLog(name), Meter(), None, 0.0)
        run.say(Token(content="1"))
        run.say(Reasoning(content="2"))
        checkpoints.add(run)
    return checkpoints


async def test_a_checkpoint_that_fails_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    kept = Store({"b": ValueError("no text")})
    checkpoints = checkpoints_of(kept, "a", "b", "c")
    await checkpoints.store(["a", "b", "c"])
    assert [list(answers) for answers in kept.answers] == [["a"], ["c"]]
    assert caplog.text.count("could not be stored") == 1
    await checkpoints.store(["a", "b", "c"])
    assert len(kept.answers) == 2, "what is stored is stored once"


async def test_checkpoints_go_on_when_a_database_is_back() -> None:
    kept = Store({"run": Unavailable()})
    checkpoints = checkpoints_of(kept, "run")
    with pytest.raises(Unavailable):
        await checkpoints.store(["run"])
    kept.refusals.clear()
    await checkpoints.store(["run"])
    assert [answers["run"].content for answers in kept.answers] == ["1"]


async def test_an_answer_that_somebody_else_stores_from_now_on_is_stored_here_no_more() -> None:
    """A run with a call that waits is stored with its log: the answer must not get ahead of that."""
    kept = Store()
    checkpoints = checkpoints_of(kept, "run")
    async with anyio.create_task_group() as tasks, checkpoints.order:
        tasks.start_soon(checkpoints.store, ["run"])
        await anyio.wait_all_tasks_blocked()
        checkpoints.remove("run")
    assert not any(kept.answers)
