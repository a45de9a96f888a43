"""Results of tools: what JSON makes of them, cut to what one event can hold, however large, odd or deep they are."""

import gc
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from chatserver.events import EVENT_BYTES_LIMIT, decode, record
from chatserver.tools.execution import ToolThreads
from chatserver.tools.results import Outcome, cap
from tests.tool_calls import LIMIT, LONG, Function, called, each_way, shown

pytestmark = pytest.mark.anyio

# ---- what a call gives ----------------------------------------------------------------------------------------------


class Place(Struct):
    x: int
    tags: set[str]


def text() -> str:
    return "Hé 🦜"


def nothing() -> None:
    return None


def struct() -> Place:
    return Place(1, {"a"})


def nested() -> dict[str, Any]:
    return {"a": [1, 2.5, None, True], "b": {"c": ()}}


def raw_bytes() -> bytes:
    return b"ab\xff"


def big_number() -> int:
    return 10**50


def half_a_pair() -> str:
    return "a\ud83eb"


RESULTS = {
    text: "Hé 🦜",
    nothing: None,
    struct: {"x": 1, "tags": ["a"]},
    nested: {"a": [1, 2.5, None, True], "b": {"c": []}},
    raw_bytes: "ab\ufffd",
    big_number: 10**50,
    half_a_pair: "a?b",
}


@each_way(list(RESULTS))
async def test_a_result_is_what_json_makes_of_it(function: Function) -> None:
    outcome = await called(ToolThreads(LONG, LIMIT), function)
    expected = next(value for each, value in RESULTS.items() if each.__name__ == function.__name__)
    assert outcome == Outcome(expected, is_error=False, truncated=False, duration_ms=outcome.duration_ms)
    assert outcome.duration_ms >= 0


# ---- results of any size --------------------------------------------------------------------------------------------


def big_text() -> str:
    return "é" * 50_000_000


def big_bytes() -> bytes:
    return b"\xff" * 100_000_000


def big_array() -> bytearray:
    return bytearray(100_000_000)


def big_list() -> list[str]:
    return ["x" * 1_000_000] * 100


def many() -> dict[str, int]:
    return {str(n): n for n in range(200_000)}


def big_error() -> None:
    raise ValueError("x" * 100_000_000)


def odd_line_ends() -> str:
    return "\x85\u2028" * 1_000_000


def odd_line_ends_inside() -> list[str]:
    return ["\x85" * 12, "\u2029" * 12] * 100_000


def controls() -> str:
    return "\x01" * 1_000_000


@each_way([big_text, big_bytes, big_array, big_list, many, big_error, odd_line_ends, odd_line_ends_inside, controls])
async def test_a_hundred_megabytes_become_one_event(function: Function) -> None:
    outcome = await called(ToolThreads(LONG, 49152), function)
    assert outcome.truncated
    assert outcome.is_error == (function.__name__ == "big_error")
    assert 30_000 < len(record(shown(outcome)).data) <= EVENT_BYTES_LIMIT
    gc.collect()


characters = st.characters(codec="utf-8") | st.sampled_from('\0\n"\\\x85\u2028🦜é')
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(characters),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(characters), inner, max_size=5),
    max_leaves=10,
)


@given(values | st.text(characters, max_size=300) | st.binary(max_size=300), st.integers(64, 400))
def test_a_result_fits_its_limit_and_is_whole_where_it_can_be(result: Any, limit: int) -> None:
    capped, truncated = cap(result, limit)
    assert size(capped) <= limit
    whole = result.decode(errors="replace") if isinstance(result, bytes) else result
    fits = size(whole) <= limit
    assert truncated == (not fits)
    if fits:
        assert capped == json.loads(msgspec.json.encode(whole))
    else:
        of = whole if isinstance(whole, str) else msgspec.json.encode(whole).decode()
        assert isinstance(capped, str) and of.startswith(capped.rstrip("\ufffd"))
        assert size(capped) > limit // 2


def size(result: Any) -> int:
    """The bytes it takes in its event."""
    with_result, without = (record(shown(Outcome(each, False, False, 0))).data for each in (result, None))
    return len(with_result) - len(without) + len("null")


def deep(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("depth", [10, 100, 300, 500, *range(700, 1000, 20), 5000])
async def test_a_result_of_any_depth_can_be_sent_and_read_again(depth: int) -> None:
    """What is deeper than a reader goes would kill the run in its log."""

    def answer() -> list[Any]:
        return deep(depth)

    outcome = await called(ToolThreads(LONG, LIMIT), answer)
    event = shown(outcome)
    assert decode(at_depth(100, lambda: record(event).data)) == event
    json.loads(record(event).data)


def at_depth(frames: int, call: Callable[[], Any]) -> Any:
    """Call it so many frames further down, where a server may be when it writes an event."""
    return call() if frames == 0 else at_depth(frames - 1, call)
