"""The demo model costs what its input is long, and looks at a thousand characters: it runs on the server's loop."""

import json
import random
from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from chatserver.providers import demo_script
from chatserver.providers.demo import CompletionRequest, completion
from chatserver.providers.demo_script import ASKED_CHARS_LIMIT, PromptMessage, Script, script_for
from tests.cost import LINEAR, growth

TOOLS = {"clock", "calculator", "book_table", "work"}
UNITS = (
    *("1", "1.", "..1", ".", "(", ")", "(1", "(-1", "1)", "1(", ".(", "-", "-1", "1 ", "1 -", "1+", "1 * ", "1**", " "),
    *(
        "count ",
        "count 1a",
        "fail ",
        "fail with ",
        "please ",
        "think",
        "\n",
        "x",
        "*",
        "a",
        "time ",
        "book table ",
        "for 1",
        "at 1",
        "work for 1",
        "2026-11-22 ",
        "٣",
    ),
)
ENDS = ("", "!", "1", "fail with", " count")


def script(text: str) -> Script:
    return script_for([PromptMessage("user", msgspec.Raw(json.dumps(text).encode()))], TOOLS)


@pytest.mark.parametrize("unit", UNITS)
def test_a_message_is_looked_through_in_linear_time(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the cut: 32,700 digits stopped everybody for 23 s."""
    monkeypatch.setattr(demo_script, "ASKED_CHARS_LIMIT", 10**9)

    def look(end: str, size: int) -> Script:
        return script(unit * (size // len(unit)) + end)

    assert [end for end in ENDS if growth(partial(look, end), 2000) > LINEAR] == []


def test_only_the_beginning_of_a_message_is_looked_at() -> None:
    rng = random.Random(4)
    for _ in range(300):
        text = "".join(rng.choice(UNITS + ENDS) for _ in range(600)).ljust(ASKED_CHARS_LIMIT)
        assert script(text) == script(text[:ASKED_CHARS_LIMIT])
    assert script(" " * ASKED_CHARS_LIMIT + "Count to 3") == script("Hello")


def listed(item: str, size: int) -> str:
    return f"[{','.join([item] * (size // (len(item) + 1)))}]"


def told(content: str, role: str = "user") -> str:
    return f'{{"messages":[{{"role":"{role}","content":{content}}}]}}'


BODIES: dict[str, Callable[[int], str]] = {
    "messages": lambda size: f'{{"messages":{listed("{}", size)}}}',
    "messages of numbers": lambda size: f'{{"messages":{listed(NUMBER, size)}}}',
    "results": lambda size: f'{{"messages":{listed(RESULT, size)}}}',
    "tools": lambda size: f'{{"tools":{listed(TOOL, size)}}}',
    "numbers": lambda size: told(listed("1e300", size)),
    "arrays": lambda size: told(listed("[]", size)),
    "a long message": lambda size: told(f'"{"1" * size}"'),
    "a long result": lambda size: told(f'"{"a " * (size // 2)}"', "tool"),
    "a blank result": lambda size: told(f'"{" " * size}"', "tool"),
}
NUMBER = '{"content":1e300}'
RESULT = '{"role":"tool","content":"x"}'
TOOL = '{"function":{"name":"x"}}'


@pytest.mark.parametrize("name", BODIES)
def test_a_request_is_read_in_linear_time(name: str) -> None:
    """In `none` mode anybody on this machine may send one, of 8 MiB."""
    bodies = {size: BODIES[name](size) for size in (100_000, 1_600_000)}
    assert growth(lambda size: completion(msgspec.json.decode(bodies[size], type=CompletionRequest)), 100_000) < LINEAR


def test_a_number_costs_no_more_than_its_text() -> None:
    """msgspec takes 16 µs to make a float of `1e300`: contents are not decoded before they are looked at."""
    request = msgspec.json.decode('{"messages":[{"role":"user","content":[1e300]}]}', type=CompletionRequest)
    assert request.messages is not None
    assert (bytes(request.messages[0].content), request.messages[0].text) == (b"[1e300]", "[1e300]")
