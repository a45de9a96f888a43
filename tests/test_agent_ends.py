"""The agent's account and its ends: usage at any moment, a model that fails, answers that are left or cancelled."""

import asyncio
import threading
from collections.abc import Iterator

import anyio
import pytest
from msgspec.structs import replace

from chatserver.context import RunContext
from chatserver.dialogue import INTERRUPTED_CALL, estimated_tokens
from chatserver.events import Done, Error, FinishReason, Reasoning, Token, ToolCall, ToolResult, Usage
from chatserver.meter import Meter
from chatserver.providers import Finish, ModelRequest, ToolCallRequest
from chatserver.steps import Step
from tests.scripted_model import (
    ASKED,
    FAILURE,
    WAIT_SECONDS,
    Said,
    ScriptedModel,
    Store,
    Turn,
    agent,
    asking,
    called,
    context_of,
    gave,
    life_of,
    shown,
    steps_of,
    stop,
    told,
    wants,
)

pytestmark = pytest.mark.anyio

# ---- usage ----------------------------------------------------------------------------------------------------------

CALLS = ("c", "add", '{"a":1,"b":2}')


async def test_usage_is_what_the_upstream_told_over_all_turns() -> None:
    meter = Meter()
    model = ScriptedModel(wants(CALLS, usage=Usage(10, 5)), [Token(content="3"), stop(20, 1)])
    await steps_of(agent(model), meter)
    assert meter.usage() == Usage(30, 6, estimated=False)


@pytest.mark.parametrize("tells", [(False, False), (True, False), (False, True)], ids=str)
async def test_usage_that_is_not_told_is_estimated_and_says_so(tells: tuple[bool, bool]) -> None:
    meter = Meter()
    told = [Usage(1000, 500) if each else None for each in tells]
    said: list[Said] = [Reasoning(content="r" * 40), Token(content="t" * 41)]
    model = ScriptedModel([*said, *wants(CALLS, usage=told[0])], [Token(content="x" * 8), Finish("stop", told[1])])
    await steps_of(agent(model), meter)
    asked = [estimated_tokens([*request.messages, *request.tools]) for request in model.requests]
    answered = [-(-(40 + 41 + len(CALLS[2])) // 4), 2]
    parts = [told[turn] or Usage(asked[turn], answered[turn], estimated=True) for turn in (0, 1)]
    assert meter.usage() == parts[0] + parts[1]
    assert meter.usage().estimated


async def test_usage_is_right_at_any_moment() -> None:
    """A run may be cancelled at any."""
    meter = Meter()
    assert meter.usage() == Usage()
    model = ScriptedModel([Token(content="t" * 4), Token(content="t" * 4), stop(7, 2)])
    seen: list[Usage] = []
    run = life_of(meter).run

    def emit(step: Step) -> None:
        run.say(step)
        seen.append(meter.usage())

    await agent(model).answer(ASKED, context_of(emit, meter))
    seen.append(meter.usage())
    asked = estimated_tokens([*model.requests[0].messages, *model.requests[0].tools])
    assert seen == [Usage(asked, 1, estimated=True), Usage(asked, 2, estimated=True), Usage(7, 2)]


# ---- failing and leaving --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [[], [Token(content="Hel")], [Reasoning(content="H")], [ToolCallRequest(*CALLS)]])
async def test_a_failing_model_fails_the_answer(said: list[Said]) -> None:
    meter = Meter()
    model = ScriptedModel(wants(CALLS, usage=Usage(10, 5)), [*said, FAILURE])
    kept = Store()
    life = life_of(meter, kept)
    with anyio.fail_after(WAIT_SECONDS):
        await life.live(agent(model).answer, asking())
    (ending,) = kept.ends
    assert isinstance(ending, Error) and (ending.code, ending.message) == (FAILURE.code, FAILURE.message)
    steps = told(life)
    texts = [each for each in said if not isinstance(each, ToolCallRequest)]
    assert steps[:2] == [called("c", "add", a=1, b=2), gave("c", "add", 3)]
    assert len(steps) == 2 + len(texts)
    assert model.open == 0
    usage = meter.usage()
    assert usage.estimated and usage.input_tokens > 10 and usage.output_tokens >= 5 + len(texts)


def busy_turns() -> Iterator[Turn]:
    yield [
        Reasoning(content="Hm"),
        Token(content="Let "),
        Token(content="me"),
        *wants(CALLS, ("d", "shout", '{"text":"a"}')),
    ]
    yield [Token(content="Once more"), *wants(("e", "add", '{"a":1,"b":2}'))]
    yield [Token(content="Done"), stop()]


@pytest.mark.parametrize("count", range(1, 11))
async def test_a_run_that_takes_no_more_leaves_nothing_behind(count: int) -> None:
    """What is raised at any step goes through the model, the tools and all that they wait for."""
    model, kept, steps = ScriptedModel(*busy_turns()), Store(), list[Step]()
    life = life_of(kept=kept)
    before = asyncio.all_tasks()

    def emit(step: Step) -> None:
        life.run.say(step)
        steps.append(step)
        if len(steps) == count:
            life.cancel()
            life.run.say(Token(content="more"))

    async def answer(request: ModelRequest, context: RunContext) -> FinishReason:
        return await agent(model).answer(request, replace(context, emit=shown(emit)))

    with anyio.fail_after(WAIT_SECONDS):
        await life.live(answer, asking())
    (ending,) = kept.ends
    assert isinstance(ending, Done) and ending.finish_reason == "cancelled"
    calls = {each.call_id for each in steps if isinstance(each, ToolCall)}
    results = {each.call_id for each in steps if isinstance(each, ToolResult)}
    assert {each.call_id for each in told(life)[count:] if isinstance(each, ToolResult)} == calls - results
    assert (len(told(life)), model.open, asyncio.all_tasks()) == (count + len(calls - results), 0, before)


async def test_cancelling_while_the_model_speaks_leaves_it_at_once() -> None:
    model = ScriptedModel([Token(content="Hel"), anyio.Event(), stop()])
    steps: list[Step] = []
    with anyio.fail_after(WAIT_SECONDS), anyio.CancelScope() as scope:

        def emit(step: Step) -> None:
            steps.append(step)
            scope.cancel()

        await agent(model).answer(ASKED, context_of(emit))
    assert steps == [Token(content="Hel")]
    assert model.open == 0


async def test_cancelling_while_tools_run_cancels_them_and_waits_for_none() -> None:
    entered, left, never = threading.Semaphore(0), threading.Event(), threading.Event()

    async def in_loop() -> None:
        entered.release()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            left.set()

    def plain() -> None:
        entered.release()
        never.wait(60)

    model = ScriptedModel(wants(("c", "in_loop", "{}"), ("d", "plain", "{}")), [stop()])
    steps: list[Step] = []

    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as outer:
            outer.start_soon(agent(model, in_loop, plain).answer, ASKED, context_of(shown(steps.append)))
            for _ in range(2):
                assert await anyio.to_thread.run_sync(entered.acquire, True, WAIT_SECONDS)
            outer.cancel_scope.cancel()
    assert steps[:2] == [called("c", "in_loop"), called("d", "plain")]
    given_up = [step for step in steps[2:] if isinstance(step, ToolResult)]  # No run that was cancelled takes them.
    assert sorted((each.call_id, each.result) for each in given_up) == [
        ("c", INTERRUPTED_CALL),
        ("d", INTERRUPTED_CALL),
    ]
    assert await anyio.to_thread.run_sync(left.wait, WAIT_SECONDS)
    never.set()
