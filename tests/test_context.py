"""What goes upstream of a session: as much of its newest part as fits, in a form that models accept."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.dialogue import (
    BYTES_PER_TOKEN,
    INTERRUPTED_CALL,
    INTERRUPTED_TEXT,
    Leavings,
    PastMessage,
    SystemText,
    TurnOrigin,
    UserMessage,
    as_text,
    dialogue,
    estimated_tokens,
    told_to,
)
from chatserver.parts import Part, ReasoningPart, TextPart, ToolCallPart
from chatserver.providers.chat_completions.requests import messages_of

ENDLESS = 10**9
MAKER = "chat_completions host m"


def asked(text: str) -> PastMessage:
    return PastMessage(True, (TextPart(text),), ())


def said(*parts: Part | str, transcript: tuple[TurnOrigin, ...] = ()) -> PastMessage:
    """An answer; a text stands for its part."""
    return PastMessage(False, tuple(TextPart(each) if isinstance(each, str) else each for each in parts), transcript)


def called(call_id: str, result: Any, args: dict[str, Any] | None = None) -> ToolCallPart:
    facts: dict[str, Any] = {"result": result, "is_error": False, "truncated": False, "duration_ms": 1}
    return ToolCallPart(call_id=call_id, tool="clock", args=args or {}, **facts)


def pending(call_id: str) -> ToolCallPart:
    return ToolCallPart(call_id=call_id, tool="clock", args={})


def upstream(*messages: PastMessage, system: str | None = None, maker: str = MAKER) -> list[dict[str, Any]]:
    """The dialogue as Chat Completions has it."""
    return messages_of(told_to(maker, dialogue(messages, system, ENDLESS)))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, *calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | fields | ({"tool_calls": list(calls)} if calls else {})


def call(call_id: str, arguments: str = "{}", **fields: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "clock", "arguments": arguments}} | fields


def result(call_id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


@pytest.mark.parametrize(
    ("value", "tokens"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("🦜", 1), ("é" * 4, 2), ([], 1), ({"a": "b"}, 3)],
)
def test_tokens_are_estimated_by_bytes_rounded_up(value: object, tokens: int) -> None:
    assert estimated_tokens(value) == tokens


@pytest.mark.parametrize(
    ("result", "text"),
    [("as it is", "as it is"), (None, "null"), ({"a": [1.5, "é"]}, '{"a":[1.5,"é"]}'), (True, "true")],
)
def test_a_result_becomes_text(result: Any, text: str) -> None:
    assert as_text(result) == text


HI = asked("Hi")
USER = user("Hi")
FAILED = [asked("a"), said(" \n"), asked("b"), said("c")]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        pytest.param([HI], [USER], id="one"),
        pytest.param([HI, said(ReasoningPart("hm"), "Hello"), HI], [USER, assistant("Hello"), USER], id="dialogue"),
        pytest.param(
            [HI, said(called("a", "12", {"timezone": "UTC"}), called("b", {"h": 12}), "Noon"), HI],
            [
                USER,
                assistant(None, call("a", '{"timezone":"UTC"}'), call("b")),
                result("a", "12"),
                result("b", '{"h":12}'),
                assistant("Noon"),
                USER,
            ],
            id="parallel",
        ),
        pytest.param(
            [HI, said("First. ", called("a", 1), "Then. ", called("b", 2), "Last."), HI],
            [
                USER,
                assistant("First. ", call("a")),
                result("a", "1"),
                assistant("Then. ", call("b")),
                result("b", "2"),
                assistant("Last."),
                USER,
            ],
            id="turns",
        ),
        pytest.param([HI, said(), asked("Again")], [user("Hi\n\nAgain")], id="failed"),
        pytest.param([HI, said(ReasoningPart("hm")), HI], [user("Hi\n\nHi")], id="only-thought"),
        pytest.param(
            [*FAILED, *FAILED, asked("d")],
            [user("a\n\nb"), assistant("c"), user("a\n\nb"), assistant("c"), user("d")],
            id="blank",
        ),
        pytest.param(
            [HI, said(called("a", 12), ReasoningPart("so")), HI],
            [USER, assistant(None, call("a")), result("a", "12"), assistant(INTERRUPTED_TEXT), USER],
            id="interrupted-behind-a-tool",
        ),
        pytest.param(
            [HI, said("Look: ", called("a", 12), pending("b")), HI],
            [
                USER,
                assistant("Look: ", call("a"), call("b")),
                result("a", "12"),
                result("b", INTERRUPTED_CALL),
                assistant(INTERRUPTED_TEXT),
                USER,
            ],
            id="interrupted-in-mid-tool",
        ),
    ],
)
def test_messages_as_the_api_has_them(messages: list[PastMessage], told: list[dict[str, Any]]) -> None:
    assert upstream(*messages) == told
    assert upstream(*messages, system="Be kind.") == [{"role": "system", "content": "Be kind."}, *told]


ONE = TurnOrigin({"a": "fn:0", "b": "fn:1"}, Leavings(MAKER, {"message": {"x": 1}, "calls": [{"sig": "s"}, {}]}))
TWO = TurnOrigin({"c": "fn:2"}, Leavings(MAKER, {"message": {}, "calls": [{}]}))
THREE = TurnOrigin({}, Leavings(MAKER, {"message": {"y": 2}, "calls": []}))
ANSWER = (called("a", 1), called("b", 2), called("c", 3), "Done.")
"""Two turns of nothing but calls: that they are two is known of their origin alone."""


def test_each_turn_is_told_with_its_own_ids_and_leavings() -> None:
    assert upstream(HI, said(*ANSWER, transcript=(ONE, TWO, THREE)), HI) == [
        USER,
        assistant(None, call("fn:0", sig="s"), call("fn:1"), x=1),
        result("fn:0", "1"),
        result("fn:1", "2"),
        assistant(None, call("fn:2")),
        result("fn:2", "3"),
        assistant("Done.", y=2),
        USER,
    ]


def test_what_another_model_has_left_is_left_out() -> None:
    assert upstream(HI, said(*ANSWER, transcript=(ONE, TWO, THREE)), HI, maker="another") == [
        USER,
        assistant(None, call("a"), call("b")),
        result("a", "1"),
        result("b", "2"),
        assistant(None, call("c")),
        result("c", "3"),
        assistant("Done."),
        USER,
    ]


def test_words_that_were_cut_off_have_no_leavings_of_the_turn_before() -> None:
    *_, last, _ = upstream(HI, said(*ANSWER, transcript=(ONE, TWO)), HI)
    assert last == assistant("Done.")


words = st.text(max_size=200) | st.sampled_from(["", " ", "\n"])
parts = st.lists(
    st.integers(0, 300).map(lambda size: called("c", "r" * size))
    | st.just(pending("c"))
    | words.map(ReasoningPart)
    | words.map(TextPart),
    max_size=4,
)
turns = st.lists(st.tuples(st.text(min_size=1, max_size=200), parts), max_size=12)


@given(turns, st.text(min_size=1, max_size=100), st.none() | st.text(max_size=100), st.integers(0, 1500))
def test_what_fits_is_the_newest_part_and_the_roles_alternate(
    history: list[tuple[str, list[Part]]], question: str, system: str | None, tokens_limit: int
) -> None:
    messages = [each for text, answer in history for each in (asked(text), said(*answer))]
    messages.append(asked(question))
    whole = list(dialogue(messages, None, ENDLESS))
    told = list(dialogue(messages, system, tokens_limit))
    if system:
        assert told.pop(0) == SystemText(system)
    oldest, as_whole, last = told[0], whole[len(whole) - len(told)], told[-1]
    assert isinstance(oldest, UserMessage) and isinstance(whole[0], UserMessage) and isinstance(as_whole, UserMessage)
    assert told[1:] == whole[len(whole) - len(told) + 1 :]
    assert as_whole.text.endswith(oldest.text)
    assert isinstance(last, UserMessage) and last.text.endswith(question)
    if len(told) > 1:
        size = len(msgspec.json.encode(told)) + len((system or "").encode())
        assert size <= tokens_limit * BYTES_PER_TOKEN + 2 * len(INTERRUPTED_TEXT) * len(history)
    assert_a_strict_template_takes(messages_of(told))


def assert_a_strict_template_takes(told: list[dict[str, Any]]) -> None:
    """User and model alternate, calls and their results left aside; a result stands behind its call."""
    spoken = [each["role"] for each in told if each["role"] != "tool" and "tool_calls" not in each]
    assert spoken == ["user", "assistant"] * (len(spoken) // 2) + ["user"]
    owed: list[str] = []
    for each in told:
        if each["role"] == "tool":
            assert each["tool_call_id"] == owed.pop(0)
            continue
        assert owed == []
        owed = [call["id"] for call in each.get("tool_calls", [])]
        assert owed or each["content"]
    assert owed == []


def test_messages_that_were_never_answered_are_told_in_the_time_of_their_length() -> None:
    messages = [HI, said()] * 50_000
    (told,) = dialogue([*messages, HI], None, ENDLESS)
    assert len(told.text) == 4 * 50_000 + 2


def test_as_much_as_fits_is_told() -> None:
    messages = [asked(f"{number:04}") for number in range(1000)]
    per_message = estimated_tokens([UserMessage("0000")])
    for limit, count in ((10 * per_message, 10), (10 * per_message - 1, 9)):
        (told,) = dialogue(messages, None, limit)
        assert told.text.split() == [f"{number:04}" for number in range(1000 - count, 1000)]
