"""The agent, driven by a scripted model and real tools: what it tells its run, compared as lists."""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from chatserver.call_checks import CALLS_PER_TURN_LIMIT, NO_TOOL
from chatserver.dialogue import TurnOrigin, UserMessage
from chatserver.errors import UpstreamError
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    Event,
    FinishReason,
    Reasoning,
    Token,
    ToolCall,
    ToolResult,
    decode,
    record,
)
from chatserver.meter import Meter
from chatserver.providers import WANTED_CALLS_LIMIT, Finish, ModelRequest, OnDelta
from chatserver.steps import Step
from chatserver.tools import specification_of
from chatserver.tools.arguments import ARGUMENTS_BYTES_LIMIT
from chatserver.tools.functions import tool
from tests.scripted_model import (
    ASKED,
    WAIT_SECONDS,
    Finished,
    ScriptedModel,
    Single,
    Turn,
    add,
    agent,
    called,
    context_of,
    gave,
    results_of,
    sent,
    shout,
    shown,
    steps_of,
    still,
    stop,
    wants,
)

pytestmark = pytest.mark.anyio

# ---- what a model says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "steps"),
    [
        ([stop()], [Finished("stop")]),
        (
            [Token(content="Hel"), Token(content="lo"), stop()],
            [Token(content="Hel"), Token(content="lo"), Finished("stop")],
        ),
        (
            [Reasoning(content="Hm"), Token(content="Hi"), Reasoning(content="!"), stop()],
            [Reasoning(content="Hm"), Token(content="Hi"), Reasoning(content="!"), Finished("stop")],
        ),
        ([Token(content="Hi"), Finish("length", None)], [Token(content="Hi"), Finished("length")]),
        ([Finish("content_filter", None)], [Finished("content_filter")]),
        ([Token(content="Hi"), Finish("tool_calls", None)], [Token(content="Hi"), Finished("stop")]),
    ],
)
async def test_text_and_reasoning_pass_and_the_reason_is_told(turn: Turn, steps: list[Single]) -> None:
    assert await steps_of(agent(ScriptedModel(turn))) == steps


async def test_no_text_is_taken_once_all_that_a_run_may_spend_is_spent() -> None:
    words, asking = ["word " * 4] * 10, Meter()
    await steps_of(agent(ScriptedModel([stop()])), asking)
    steps = await steps_of(agent(ScriptedModel([*words, stop()])), Meter(asking.spent + 15))
    assert steps[-1] == Finished("length")
    assert 1 < len(steps) < len(words)


async def test_each_delta_passes_as_soon_as_it_comes() -> None:
    """By a plain call: when the model has said it, the run has it."""
    told: list[Step] = []
    seen: list[int] = []

    class Counting(ScriptedModel):
        async def stream(self, request: ModelRequest, on_delta: OnDelta) -> Finish:
            for text in ("Hel", "lo"):
                on_delta(Token(content=text))
                seen.append(len(told))
            return stop()

    assert await agent(Counting()).answer(ASKED, context_of(told.append)) == "stop"
    assert (told, seen) == ([Token(content="Hel"), Token(content="lo")], [1, 2])


async def test_the_model_is_asked_with_all_tools_and_what_was_asked_for() -> None:
    model = ScriptedModel([stop()])
    await steps_of(agent(model, add, shout))
    tools = [specification_of(tool(each)) for each in (add, shout)]
    assert model.requests == [replace(ASKED, tools=tools)]


# ---- tools ----------------------------------------------------------------------------------------------------------


async def test_a_turn_with_tools_is_told_to_the_next_and_then_answered() -> None:
    model = ScriptedModel(
        [Token(content="Let me see."), *wants(("c1", "add", '{"a": 1, "b": "2"}'), ("c2", "shout", '{"text": "é"}'))],
        [Token(content="3"), stop()],
    )
    steps = await steps_of(agent(model))
    assert steps[:3] == [Token(content="Let me see."), called("c1", "add", a=1, b="2"), called("c2", "shout", text="é")]
    assert sorted(results_of(steps), key=lambda each: each.call_id) == [gave("c1", "add", 3), gave("c2", "shout", "É")]
    assert steps[5:] == [Token(content="3"), Finished("stop")]
    first, second = model.requests
    assert second == replace(first, messages=second.messages)
    asked, said, *results = sent(second)
    assert asked == {"role": "user", "content": "Hi"}
    arguments = [call["function"].pop("arguments") for call in said["tool_calls"]]
    assert [json.loads(each) for each in arguments] == [{"a": 1, "b": "2"}, {"text": "é"}]
    assert said == {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add"}},
            {"id": "c2", "type": "function", "function": {"name": "shout"}},
        ],
    }
    assert results == [
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "content": "É"},
    ]
    assert ASKED.messages == [UserMessage("Hi")]


class Gates:
    """Tools that all run at once, each until its gate opens."""

    def __init__(self, names: Sequence[str]) -> None:
        self.events = {name: threading.Event() for name in names}
        self.all_run = threading.Barrier(len(names))

    def plain(self, gate: str) -> str:
        self.all_run.wait(WAIT_SECONDS)
        return gate if self.events[gate].wait(WAIT_SECONDS) else "never opened"

    async def in_loop(self, gate: str) -> str:
        return await asyncio.to_thread(self.plain, gate)


@pytest.mark.parametrize("kind", ["plain", "in_loop"])
@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
async def test_tools_run_at_the_same_time_and_results_come_as_they_complete(kind: str, order: str) -> None:
    gates = Gates("abc")
    calls = wants(*((name, kind, json.dumps({"gate": name})) for name in "abc"))
    made = agent(ScriptedModel(calls, [stop()]), gates.plain, gates.in_loop)
    told, heard = anyio.create_memory_object_stream[Step](9)
    with anyio.fail_after(WAIT_SECONDS), told, heard:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.answer, ASKED, context_of(shown(told.send_nowait)))
            assert [await heard.receive() for _ in "abc"] == [called(name, kind, gate=name) for name in "abc"]
            for name in order:
                gates.events[name].set()
                assert still(await heard.receive()) == gave(name, kind, name)
    last = sent(made.provider.requests[-1])[2:]
    assert [each["tool_call_id"] for each in last] == ["a", "b", "c"]


async def test_the_upstream_is_left_before_a_tool_is_called() -> None:
    """Tools may take minutes, and the connection has nothing more to say."""
    model = ScriptedModel(wants(("c", "look", "{}")), [stop()])
    seen: list[int] = []

    def look() -> None:
        seen.append(model.open)

    await steps_of(agent(model, look))
    assert seen == [0]


NO_OBJECTS = [
    "[1]",
    "1",
    "null",
    '"a"',
    "{",
    '{"a": 1',
    "a=1",
    '{"a": NaN}',
    '{"a": 1e999}',
    '{"a": "\\ud83e"}',
    "{}{}",
]
TOO_LONG = json.dumps({"text": "x" * ARGUMENTS_BYTES_LIMIT})


async def test_a_call_of_a_tool_that_is_none_has_its_args() -> None:
    (call, result, _) = await steps_of(agent(ScriptedModel(wants(("c", "subtract", '{"a": 1}')), [stop()])))
    assert call == called("c", "subtract", a=1) and isinstance(result, ToolResult) and result.result == NO_TOOL


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *[("add", arguments) for arguments in NO_OBJECTS],
        ("shout", TOO_LONG),
        ("shout", json.dumps({"text": "é" * (ARGUMENTS_BYTES_LIMIT // 2)}, ensure_ascii=False)),
        ("add", '{"a":' * 100_000),
        ("add", '{"a": ' + "1" * 5000 + "}"),
        ("", "{}"),
        ("Add", "{}"),
        ("x" * 100_000, "{}"),
    ],
    ids=lambda text: ascii(text[:20]),
)
async def test_a_call_that_cannot_be_made_has_no_args_and_one_error_that_the_model_reads(
    name: str, arguments: str
) -> None:
    model = ScriptedModel(wants(("c", name, arguments)), [stop()])
    call, result, last = await steps_of(agent(model))
    assert isinstance(call, ToolCall) and isinstance(result, ToolResult) and last == Finished("stop")
    assert (call.call_id, call.args) == ("c", {}) and name.startswith(call.tool)
    assert (result.call_id, result.tool, result.is_error, result.truncated) == ("c", call.tool, True, False)
    assert sent(model.requests[1])[2] == {"role": "tool", "tool_call_id": "c", "content": result.result}
    assert_are_events([call, result])
    msgspec.json.encode(model.requests[1].messages)


@pytest.mark.parametrize(
    ("arguments", "args", "named"),
    [
        ('{"a": 1}', {"a": 1}, "`b`"),
        ('{"a": "x", "b": 1}', {"a": "x", "b": 1}, "$.a"),
        ('{"a": 1, "b": 2, "c": 3}', {"a": 1, "b": 2, "c": 3}, "`c`"),
        ("", {}, "`a`"),
        ("{}", {}, "`a`"),
    ],
)
async def test_arguments_that_do_not_fit_are_shown_and_the_model_is_told_why(
    arguments: str, args: dict[str, Any], named: str
) -> None:
    call, result, _ = await steps_of(agent(ScriptedModel(wants(("c", "add", arguments)), [stop()])))
    assert call == called("c", "add", **args)
    assert isinstance(result, ToolResult) and result.is_error and named in result.result


def assert_are_events(steps: Sequence[Single]) -> None:
    """A run appends each of them: it must have a document, within the limit, that can be read again."""
    for step in steps:
        assert not isinstance(step, Finished | TurnOrigin)
        event: Event = replace(step, run_id="r" * 22, seq=10**6)
        data = at_depth(100, record, event).data
        assert len(data) <= EVENT_BYTES_LIMIT
        assert decode(data) == event
        json.loads(data)


def at_depth(frames: int, call: Callable[..., Any], *args: Any) -> Any:
    """Call it so many frames further down, where a server may be when it writes an event."""
    return call(*args) if frames == 0 else at_depth(frames - 1, call, *args)


def fitting(piece: str, start: str = "[", end: str = "]") -> str:
    """A JSON array of as many such pieces as arguments may have."""
    count = (ARGUMENTS_BYTES_LIMIT - len('{"x":}' + start + end)) // len(f"{piece},".encode())
    return start + ",".join([piece] * count) + end


@pytest.mark.parametrize(
    "value",
    [
        fitting("1e15"),
        fitting("-1E-5"),
        fitting('"\\u0001"'),
        fitting("\x85" * 100, '["', '"]').replace(",", " "),
        fitting('"\\/"'),
        fitting("12345678901234567890123"),
        fitting("é" * 100, '["', '"]').replace(",", " "),
        *["[" * depth + "]" * depth for depth in (31, 200, 600, *range(800, 1000, 20))],
    ],
    ids=lambda text: ascii(text[:12]) + str(len(text)),
)
async def test_any_arguments_within_their_limit_become_an_event(value: str) -> None:
    """JSON that is read and written again may be longer than it was, and deeper than a reader goes."""

    def take(x: Any) -> str:
        return "taken"

    steps = await steps_of(agent(ScriptedModel(wants(("c", "take", '{"x":' + value + "}")), [stop()]), take))
    assert len(steps) == 3
    assert_are_events(steps[:2])


@pytest.mark.parametrize("call_id", ["", "x" * 100_000, "é", "a\0b", "a\nb", "call 1"], ids=lambda id: ascii(id[:9]))
async def test_whatever_id_a_model_gives_its_call_is_an_event(call_id: str) -> None:
    model = ScriptedModel(wants((call_id, "add", '{"a":1,"b":2}'), (call_id, "add", '{"a":3,"b":4}')), [stop()])
    steps = await steps_of(agent(model))
    assert_are_events(steps[:4])
    results = {each.call_id: each.result for each in results_of(steps)}
    assert sorted(results.values()) == [3, 7]
    assert all(results)
    said = sent(model.requests[1])[1]
    first, second = (each["id"] for each in said["tool_calls"])
    assert first != second and first.isprintable() and second.isprintable()
    assert first == call_id or not call_id.isprintable() or len(call_id) not in range(1, 1000)
    msgspec.json.encode(model.requests[1].messages)


async def test_calls_have_ids_of_their_own_over_all_turns() -> None:
    """Some servers count from 0 in every turn, or give every call the same id."""
    turns = [wants(*(("call_0", "add", json.dumps({"a": turn, "b": n})) for n in range(3))) for turn in range(4)]
    model = ScriptedModel(*turns, [stop()])
    steps = await steps_of(agent(model))
    calls = {step.call_id: step for step in steps if isinstance(step, ToolCall)}
    results = {step.call_id: step for step in results_of(steps)}
    assert len(calls) == 12 and results.keys() == calls.keys() and "call_0" in calls
    assert all(results[id].result == sum(call.args.values()) for id, call in calls.items())
    messages = sent(model.requests[-1])
    ids = [[each["id"] for each in said["tool_calls"]] for said in messages if "tool_calls" in said]
    assert [each["tool_call_id"] for each in messages if each["role"] == "tool"] == [id for turn in ids for id in turn]
    assert [turn[0] for turn in ids] == ["call_0"] * 4, "each turn has the upstream's own ids"
    assert all(len(set(turn)) == 3 for turn in ids), "as far as those tell its calls apart"


async def test_the_model_is_asked_so_many_times_at_most() -> None:
    turn = [Token(content="again "), *wants(("c", "add", '{"a": 1, "b": 2}'))]
    model = ScriptedModel(*[turn] * 5)
    steps = await steps_of(agent(model, turns_limit=3))
    assert len(model.requests) == 3
    assert [type(step) for step in steps] == [Token, ToolCall, ToolResult] * 3 + [Finished]
    assert steps[-1] == Finished("turn_limit")


async def test_more_calls_than_a_turn_may_make_are_answered_but_not_made() -> None:
    count = CALLS_PER_TURN_LIMIT + 8
    made: list[int] = []

    def note(n: int) -> int:
        made.append(n)
        return n

    model = ScriptedModel(wants(*((f"c{n}", "note", json.dumps({"n": n})) for n in range(count))), [stop()])
    steps = await steps_of(agent(model, note))
    assert [step.call_id for step in steps if isinstance(step, ToolCall)] == [f"c{n}" for n in range(count)]
    results = results_of(steps)
    assert sorted(int(each.call_id[1:]) for each in results) == list(range(count))
    assert sorted(made) == list(range(CALLS_PER_TURN_LIMIT))
    refused = {each.call_id for each in results if each.is_error}
    assert refused == {f"c{n}" for n in range(CALLS_PER_TURN_LIMIT, count)}
    assert len(model.requests[1].messages) == 2 + count


async def test_a_turn_that_wants_more_calls_than_can_be_meant_fails_the_answer_and_makes_none() -> None:
    made: list[int] = []

    def note() -> None:
        made.append(1)

    calls = [(f"c{n}", "note", "{}") for n in range(WANTED_CALLS_LIMIT + 1)]
    steps = await steps_of(agent(ScriptedModel(wants(*calls[1:]), [stop()]), note))
    assert len(results_of(steps)) == WANTED_CALLS_LIMIT and len(made) == CALLS_PER_TURN_LIMIT
    with pytest.raises(UpstreamError) as failure:
        await agent(ScriptedModel(wants(*calls)), note).answer(ASKED, context_of(lambda _: None))
    assert (failure.value.code, failure.value.retryable) == ("llm_error", False)
    assert len(made) == CALLS_PER_TURN_LIMIT


# ---- how much text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "texts", "end"),
    [
        (["1234", "56789", "0"], ["1234", "56789", "0"], "stop"),
        (["1234", "567890", "x"], ["1234", "567890"], "length"),
        (["1234", "567890x", "y"], ["1234", "567890"], "length"),
        (["x" * 100], ["x" * 10], "length"),
        (["éééé", "ééé"], ["éééé", "é"], "length"),
        (["123456789", "é"], ["123456789"], "length"),
        (["🦜🦜", "🦜"], ["🦜🦜"], "length"),
        ([Reasoning(content="12345"), "1234567"], ["12345", "12345"], "length"),
        ([Reasoning(content="12345678901"), "1"], ["1234567890"], "length"),
    ],
)
async def test_an_answer_has_so_much_text_and_not_a_byte_more(turn: Turn, texts: list[str], end: FinishReason) -> None:
    meter = Meter(answer_bytes_limit=10)
    *said, last = await steps_of(agent(ScriptedModel([*turn, stop()])), meter)
    assert [step.content for step in said if isinstance(step, Token | Reasoning)] == texts
    assert last == Finished(end)


async def test_the_text_of_all_turns_counts_and_what_tools_are_asked_does_not() -> None:
    turns = [["1234", *wants(("c", "shout", json.dumps({"text": "x" * 100})))] for _ in range(2)]
    steps = await steps_of(agent(ScriptedModel(*turns, ["5678", stop()])), Meter(answer_bytes_limit=10))
    assert [step.content for step in steps if isinstance(step, Token)] == ["1234", "1234", "56"]
    assert len(results_of(steps)) == 2 and steps[-1] == Finished("length")


@pytest.mark.parametrize(
    ("name", "told"),
    [("multi_tool_use.parallel", "multi_tool_use_parallel"), ("", "_"), ("größe 1", "gr__e_1"), ("x" * 99, "x" * 64)],
)
async def test_a_name_that_the_model_made_up_is_told_in_a_form_that_its_server_takes(name: str, told: str) -> None:
    model = ScriptedModel(wants(("c", name, "{}")), [Token(content="Sorry"), stop()])
    steps = await steps_of(agent(model))
    assert [each.tool for each in steps if isinstance(each, ToolCall | ToolResult)] == [name, name]
    assert sent(model.requests[1])[1]["tool_calls"][0]["function"]["name"] == told
