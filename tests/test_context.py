"""What goes upstream of a session: as much of its newest part as fits, in a form that models accept."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.dialogue import BYTES_PER_TOKEN, INTERRUPTED_TEXT, as_text, dialogue, estimated_tokens
from chatserver.events import ToolCallState
from chatserver.records import MessageRecord, Role

ENDLESS = 10**9


def message(role: Role, content: str, *calls: ToolCallState, reasoning: str = "") -> MessageRecord:
    return MessageRecord(
        message_id="m",
        parent_id=None,
        role=role,
        content=content,
        reasoning=reasoning,
        tool_calls=calls,
        status="complete",
        finish_reason=None,
        run_id=None,
        usage=None,
        created_at="2026-01-01T00:00:00.000Z",
    )


def called(call_id: str, result: Any, args: dict[str, Any] | None = None) -> ToolCallState:
    return ToolCallState(call_id, "clock", args or {}, result=result, is_error=False, truncated=False, duration_ms=1)


PENDING = ToolCallState("pending", "clock", {})


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


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "upstream"),
    [
        ([message("user", "Hi")], [USER]),
        (
            [message("user", "Hi"), message("assistant", "Hello", reasoning="never told"), message("user", "Hi")],
            [USER, {"role": "assistant", "content": "Hello"}, USER],
        ),
        (
            [
                message("user", "Hi"),
                message("assistant", "Noon", called("a", "12", {"timezone": "UTC"}), PENDING, called("b", {"h": 12})),
                message("user", "Hi"),
            ],
            [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "clock", "arguments": '{"timezone":"UTC"}'},
                        },
                        {"id": "b", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
                    ],
                },
                {"role": "tool", "tool_call_id": "a", "content": "12"},
                {"role": "tool", "tool_call_id": "b", "content": '{"h":12}'},
                {"role": "assistant", "content": "Noon"},
                USER,
            ],
        ),
        (
            [message("user", "Hi"), message("assistant", "", PENDING), message("user", "Again")],
            [{"role": "user", "content": "Hi\n\nAgain"}],
        ),
        (
            [message("user", "a"), message("assistant", " \n"), message("user", "b"), message("assistant", "c")] * 2
            + [message("user", "d")],
            [
                {"role": "user", "content": "a\n\nb"},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "a\n\nb"},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "d"},
            ],
        ),
        (
            [message("user", "Hi"), message("assistant", "", called("a", 12)), message("user", "Hi")],
            [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "a", "content": "12"},
                {"role": "assistant", "content": INTERRUPTED_TEXT},
                USER,
            ],
        ),
    ],
    ids=["one", "dialogue", "tools", "failed", "blank", "interrupted-behind-a-tool"],
)
def test_messages_as_the_api_has_them(messages: list[MessageRecord], upstream: list[dict[str, Any]]) -> None:
    assert dialogue(messages, None, ENDLESS) == upstream
    system = {"role": "system", "content": "Be kind."}
    assert dialogue(messages, "Be kind.", ENDLESS) == [system, *upstream]


said = st.text(max_size=200) | st.sampled_from(["", " ", "\n"])
turns = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=200),
        said,
        st.lists(st.integers(0, 300).map(lambda size: called("c", "r" * size)) | st.just(PENDING), max_size=3),
    ),
    max_size=12,
)


@given(turns, st.text(min_size=1, max_size=100), st.none() | st.text(max_size=100), st.integers(0, 1500))
def test_what_fits_is_the_newest_part_and_the_roles_alternate(
    history: list[tuple[str, str, list[ToolCallState]]], question: str, system: str | None, tokens_limit: int
) -> None:
    messages = [
        each for asked, said, calls in history for each in (message("user", asked), message("assistant", said, *calls))
    ]
    messages.append(message("user", question))
    whole = dialogue(messages, None, ENDLESS)
    told = dialogue(messages, system, tokens_limit)
    if system:
        assert told.pop(0) == {"role": "system", "content": system}
    assert told[0]["role"] == "user"
    assert whole[0]["role"] == "user"
    assert told[1:] == whole[len(whole) - len(told) + 1 :]
    assert whole[len(whole) - len(told)]["content"].endswith(told[0]["content"])
    assert told[-1]["role"] == "user"
    assert told[-1]["content"].endswith(question)
    if len(told) > 1:
        size = len(msgspec.json.encode(told)) + len((system or "").encode())
        assert size <= tokens_limit * BYTES_PER_TOKEN + 2 * len(INTERRUPTED_TEXT) * len(history)
    assert_a_strict_template_takes(told)


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
    messages = [message("user", "Hi"), message("assistant", "")] * 50_000
    (told,) = dialogue([*messages, message("user", "Hi")], None, ENDLESS)
    assert len(told["content"]) == 4 * 50_000 + 2


def test_as_much_as_fits_is_told() -> None:
    messages = [message("user", f"{number:04}") for number in range(1000)]
    per_message = estimated_tokens([{"role": "user", "content": "0000"}])
    for limit, count in ((10 * per_message, 10), (10 * per_message - 1, 9)):
        (told,) = dialogue(messages, None, limit)
        assert told["content"].split() == [f"{number:04}" for number in range(1000 - count, 1000)]
