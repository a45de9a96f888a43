"""The demo model is a function of the dialogue: what it says to results, refusals and answers of clients."""

import json
from typing import Any

import msgspec
import pytest

from chatserver.providers.demo_script import PromptMessage, Script, script_for

TOOLS = {"clock", "calculator", "book_table", "work"}


def message(role: str, content: str | None, **more: Any) -> PromptMessage:
    return msgspec.json.decode(json.dumps({"role": role, "content": content} | more), type=PromptMessage)


def asked(text: str, *tools: str) -> Script:
    before = [message("user", "Book a table"), message("assistant", "No.")]
    return script_for([*before, message("user", text)], TOOLS | {*tools})


def told(*results: tuple[str, Any]) -> str:
    """What is said when these tools have answered."""
    names = [{"id": f"call_{i}", "type": "function", "function": {"name": name}} for i, (name, _) in enumerate(results)]
    outputs = [
        message("tool", text if isinstance(text, str) else json.dumps(text), tool_call_id=f"call_{i}")
        for i, (_, text) in enumerate(results)
    ]
    said = script_for([message("user", "Book a table"), message("assistant", None, tool_calls=names), *outputs], TOOLS)
    assert not said.calls
    return said.text


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("Book a table", [("book_table", {"people": 2, "time": "19:00"})]),
        ("please RESERVE a table for 4 at 20:15", [("book_table", {"people": 4, "time": "20:15"})]),
        ("Book a table for dinner", [("book_table", {"people": 2, "time": "19:00"})]),
        ("What is a table?", []),
        ("Work for 10 seconds", [("work", {"seconds": 10})]),
        ("work 3 s", [("work", {"seconds": 3})]),
        ("Does it work for 10 people?", []),
        ("Work and work", []),
    ],
)
def test_what_it_is_asked_for_is_a_call(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert list(asked(text).calls) == calls


def test_a_tool_of_the_client_is_called_where_it_is_offered() -> None:
    assert list(asked("What is my screen size?", "screen_size").calls) == [("screen_size", {})]
    without = asked("What is my screen size?")
    assert not without.calls and "screen_size" in without.text and "client" in without.text


def test_results_are_told_in_words() -> None:
    booked = told(("book_table", {"people": 4, "time": "19:30", "confirmation": "T-0042"}))
    assert booked == "A table for **4** at **19:30** is booked, under **T-0042**."
    assert told(("work", {"worked_seconds": 10})) == "I have worked for **10** s."
    screen = {"screen": {"width": 1440, "height": 900}, "pixel_ratio": 2}
    assert told(("screen_size", screen)) == "Your screen has **1440 × 900** pixels."


def test_several_results_are_told_together() -> None:
    said = told(("clock", "12:00"), ("work", {"worked_seconds": 1}), ("calculator", 391))
    assert said == "The tools answered: **12:00**, **391**. I have worked for **1** s."


@pytest.mark.parametrize("name", ["book_table", "work", "screen_size"])
@pytest.mark.parametrize("text", ["The user refused: too late", "", "7", '{"people": "x"}', "[1]", "\x00{"])
def test_what_is_no_result_is_told_as_it_is(name: str, text: str) -> None:
    said = told((name, text))
    assert said.endswith(f" {text}") and " no" in said.lower() and "booked," not in said


def test_odd_calls_are_tools_without_a_name() -> None:
    messages = [message("user", "Hi"), message("assistant", None, tool_calls=None), message("tool", "x")]
    assert script_for(messages, TOOLS).text == "The tools answered: **x**."
