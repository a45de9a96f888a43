"""The arguments of calls as they are written: few events, soon, the whole text, under the id of the call to come."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.answer import fold
from chatserver.commands import is_id
from chatserver.events import EVENT_BYTES_LIMIT, TEXT_CHARS_PER_EVENT, Event, Token, ToolCall, ToolInput, record
from chatserver.providers import WANTED_CALLS_LIMIT, ToolCallFragment, ToolCallRequest
from chatserver.tools.inputs import INPUT_CHARS_LIMIT, INPUT_SHARE, ToolInputs
from tests.cost import LINEAR, growth
from tests.scripted_model import ScriptedModel, agent, steps_of, stop, wants

pytestmark = pytest.mark.anyio


def shown(pieces: Sequence[str], begins: bool = False) -> list[str]:
    """The deltas of a call that comes in these pieces; ``begins``: behind a fragment that only names it."""
    events: list[ToolInput] = []
    inputs = ToolInputs(events.append, str.upper)
    if begins:
        inputs.add(ToolCallFragment("c", "add", ""))
    for piece in pieces:
        inputs.add(ToolCallFragment("c", "add", piece))
    assert inputs.end("c") == "C"
    assert {(each.call_id, each.tool) for each in events} <= {("C", "add")}
    return [each.delta for each in events]


def test_pieces_are_shown_at_once_and_the_last_ones_together() -> None:
    assert shown(["a"] * 12) == [*["a"] * 9, "aa", "a"]


def test_a_call_that_comes_in_one_piece_is_not_shown() -> None:
    assert shown(['{"a":1}']) == shown(['{"a":1}'], begins=True) == shown(["", '{"a":1}', ""]) == []
    assert shown([]) == shown([""] * 9) == []
    assert shown(['{"a"', ":1}"]) == ['{"a"', ":1}"]


@given(st.lists(st.text(max_size=40), max_size=60), st.booleans())
def test_what_is_shown_is_all_that_was_written(pieces: list[str], begins: bool) -> None:
    deltas = shown(pieces, begins)
    comes_whole = sum(map(bool, pieces)) <= 1
    assert "".join(deltas) == ("" if comes_whole else "".join(pieces))
    assert all(deltas)


def test_a_long_call_is_some_hundred_events_at_most() -> None:
    deltas = shown(["x"] * INPUT_CHARS_LIMIT)
    assert len(deltas) < 120
    assert "".join(deltas) == "x" * INPUT_CHARS_LIMIT
    total = 0
    for delta in deltas[:-1]:
        assert len(delta) * INPUT_SHARE >= total
        total += len(delta)


@pytest.mark.parametrize("piece", ["x" * 100_000, "\x01" * 100_000, "x"])
def test_no_more_is_shown_than_a_call_may_have_and_each_event_fits(piece: str) -> None:
    deltas = shown([piece] * (10 if len(piece) > 1 else 2 * INPUT_CHARS_LIMIT))
    assert len("".join(deltas)) == INPUT_CHARS_LIMIT
    assert max(map(len, deltas)) <= TEXT_CHARS_PER_EVENT
    event = ToolInput(run_id="r" * 64, seq=10**6, call_id="c" * 64, tool="\x01" * 256, delta=max(deltas, key=len))
    assert len(record(event).data) <= EVENT_BYTES_LIMIT


def test_a_name_that_comes_late_is_waited_for() -> None:
    events: list[ToolInput] = []
    inputs = ToolInputs(events.append, str)
    for name in ("", "", "add", ""):
        inputs.add(ToolCallFragment("c", name, "1"))
    assert [(each.tool, each.delta) for each in events] == [("add", "111"), ("add", "1")]


def test_a_model_that_begins_calls_without_end_is_not_followed() -> None:
    events: list[ToolInput] = []
    inputs = ToolInputs(events.append, str)
    for _ in range(2):
        for number in range(2 * WANTED_CALLS_LIMIT):
            inputs.add(ToolCallFragment(f"c{number}", "add", "1"))
    assert len({each.call_id for each in events}) == WANTED_CALLS_LIMIT


def test_to_show_arguments_costs_about_as_much_as_their_length() -> None:
    def write(count: int) -> None:
        inputs = ToolInputs(lambda _: None, str)
        for _ in range(count):
            inputs.add(ToolCallFragment("c", "add", "x"))

    assert growth(write, 5_000) < LINEAR


# ---- through the agent ----------------------------------------------------------------------------------------------


def fragments(own_id: str, name: str, *pieces: str) -> list[ToolCallFragment]:
    return [ToolCallFragment(own_id, name, ""), *(ToolCallFragment(own_id, name, each) for each in pieces)]


@pytest.mark.parametrize("own_id", ["c1", "call.1", "", "x" * 65])
async def test_inputs_have_the_id_of_their_call_in_every_turn_also_where_the_agent_gives_another(own_id: str) -> None:
    turn = [
        Token(content="Hm"),
        *fragments(own_id, "add", '{"a": 1,', ' "b": 2}'),
        *wants((own_id, "add", '{"a": 1, "b": 2}')),
    ]
    steps = await steps_of(agent(ScriptedModel(turn, turn, [stop()])))
    calls = [each for each in steps if isinstance(each, ToolCall)]
    inputs = [each for each in steps if isinstance(each, ToolInput)]
    assert len({each.call_id for each in calls}) == 2 and all(is_id(each.call_id) for each in calls)
    assert (calls[0].call_id == own_id) is (own_id == "c1")
    assert [each.call_id for each in inputs] == [each.call_id for each in calls for _ in "12"]
    for call in calls:
        shown = "".join(each.delta for each in inputs if each.call_id == call.call_id)
        assert json.loads(shown) == call.args == {"a": 1, "b": 2}
    order = [type(each).__name__ for each in steps]
    assert order[:5] == ["Token", "ToolInput", "ToolInput", "ToolCall", "ToolResult"]


async def test_calls_that_are_written_at_the_same_time_are_told_apart() -> None:
    first, second = fragments("a", "add", "{", '"a":1,"b":2}'), fragments("b", "shout", '{"text"', ':"x"}')
    mixed = [each for pair in zip(first, second, strict=True) for each in pair]
    turn = [*mixed, *wants(("a", "add", '{"a":1,"b":2}'), ("b", "shout", '{"text":"x"}'))]
    steps = await steps_of(agent(ScriptedModel(turn, [stop()])))
    for call in (each for each in steps if isinstance(each, ToolCall)):
        written = [each.delta for each in steps if isinstance(each, ToolInput) and each.call_id == call.call_id]
        assert json.loads("".join(written)) == call.args


async def test_two_calls_under_one_id_of_the_provider_are_two_calls() -> None:
    request = ToolCallRequest("c", "add", '{"a":1,"b":2}')
    turn = [*fragments("c", "add", "{", "}"), request, *wants(("c", "add", '{"a":3,"b":4}'))]
    steps = await steps_of(agent(ScriptedModel(turn, [stop()])))
    first, second = (each for each in steps if isinstance(each, ToolCall))
    assert first.call_id == "c" != second.call_id
    assert {each.call_id for each in steps if isinstance(each, ToolInput)} == {"c"}


def test_the_answer_is_the_same_with_and_without_what_is_for_showing_only() -> None:
    call = ToolCall(call_id="c", tool="add", args={})
    shown_only = [ToolInput(call_id="c", tool="add", delta="{"), ToolInput(call_id="c", tool="add", delta="}")]
    events: list[Event] = [Token(content="a"), shown_only[0], Token(content="b"), shown_only[1], call]
    assert fold(events) == fold([Token(content="ab"), call])
