"""Tools: what the model is told of a function, how its arguments become Python, and what the built-in ones answer."""

import math
import operator
import sys
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta, Struct, to_builtins

from chatserver import create_app
from chatserver.dialogue import ToolSpecification
from chatserver.errors import SettingsError
from chatserver.tools import BadArguments, Tool, specification_of
from chatserver.tools.builtin import NUMBER_LIMIT, calculator, clock
from chatserver.tools.functions import AsyncFunctionTool, FunctionTool, tool
from chatserver.tools.loading import load_tools

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 10.0


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Point(Struct):
    x: float
    y: float = 0.0


def everything(
    name: Annotated[str, Meta(description="who", min_length=1)],
    count: int,
    ratio: float = 0.5,
    mode: Literal["fast", "slow"] = "fast",
    tags: list[str] = [],  # noqa: B006 - as users write it
    at: Point | None = None,
    color: Color = Color.RED,
    *,
    flag: bool = False,
) -> str:
    """Do everything.

    More words.
    """
    return repr((name, count, ratio, mode, tags, at, color, flag))


def nothing() -> None:
    pass


# ---- what the model is told -----------------------------------------------------------------------------------------


def test_a_function_is_told_by_its_name_its_words_and_the_schema_of_its_arguments() -> None:
    assert to_builtins(specification_of(tool(everything))) == {
        "name": "everything",
        "description": "Do everything.\n\nMore words.",
        "parameters": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "who", "minLength": 1},
                "count": {"type": "integer"},
                "ratio": {"type": "number", "default": 0.5},
                "mode": {"enum": ["fast", "slow"], "default": "fast"},
                "tags": {"type": "array", "items": {"type": "string"}, "default": []},
                "at": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}], "default": None},
                "color": {"$ref": "#/$defs/Color", "default": "red"},
                "flag": {"type": "boolean", "default": False},
            },
            "required": ["name", "count"],
            "additionalProperties": False,
            "$defs": {
                "Point": {
                    "title": "Point",
                    "type": "object",
                    "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0.0}},
                    "required": ["x"],
                },
                "Color": {"title": "Color", "enum": ["blue", "red"]},
            },
        },
    }


def test_a_function_without_parameters_or_words_is_a_tool_too() -> None:
    made = tool(nothing)
    parameters = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert specification_of(made) == ToolSpecification("nothing", "", parameters)
    assert made.bind({}) == {}


async def later(n: int) -> int:
    return n


@pytest.mark.parametrize(("function", "kind"), [(later, AsyncFunctionTool), (nothing, FunctionTool)])
def test_a_tool_knows_where_it_may_run(function: Callable[..., Any], kind: type[FunctionTool]) -> None:
    made = tool(function)
    assert (made.name, made.function, type(made)) == (function.__name__, function, kind)
    assert isinstance(made, Tool)


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "bound"),
    [
        ({}, {}),
        ({"count": "3", "ratio": 1, "flag": "true"}, {"count": 3, "ratio": 1.0, "flag": True}),
        ({"mode": "slow", "tags": ["a"], "color": "blue"}, {"mode": "slow", "tags": ["a"], "color": Color.BLUE}),
        ({"at": {"x": 1}}, {"at": Point(1.0, 0.0)}),
        ({"at": None}, {"at": None}),
    ],
)
def test_arguments_become_what_the_annotations_say(args: dict[str, Any], bound: dict[str, Any]) -> None:
    defaults = {"name": "n", "count": 1, "ratio": 0.5, "mode": "fast", "tags": [], "at": None, "color": Color.RED}
    made = tool(everything)
    found = made.bind({"name": "n", "count": 1} | args)
    assert found == defaults | {"flag": False} | bound
    assert made.function(**found) == repr(tuple(found.values()))


def test_a_default_that_a_call_changes_is_fresh_for_the_next() -> None:
    made = tool(everything)
    made.bind({"name": "n", "count": 1})["tags"].append("x")
    assert made.bind({"name": "n", "count": 1})["tags"] == []


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"name": 1}, "$.name"),
        ({"name": ""}, "$.name"),
        ({"count": "many"}, "$.count"),
        ({"count": 1.5}, "$.count"),
        ({"mode": "medium"}, "$.mode"),
        ({"tags": "a"}, "$.tags"),
        ({"tags": [1]}, "$.tags"),
        ({"at": {}}, "`x`"),
        ({"at": {"x": "far"}}, "$.at.x"),
        ({"color": "green"}, "$.color"),
        ({"colour": "red"}, "`colour`"),
    ],
)
def test_arguments_that_do_not_fit_are_told_by_name(args: dict[str, Any], named: str) -> None:
    with pytest.raises(BadArguments) as refusal:
        tool(everything).bind({"name": "n", "count": 1} | args)
    assert named in str(refusal.value)


def test_a_missing_argument_is_told_by_name() -> None:
    with pytest.raises(BadArguments, match="`count`"):
        tool(everything).bind({"name": "n"})


# ---- what is no tool ------------------------------------------------------------------------------------------------


def untyped(x) -> None:  # type: ignore[no-untyped-def]
    pass


def star(*xs: int) -> None:
    pass


def named(**xs: int) -> None:
    pass


def positional(x: int, /) -> None:
    pass


def foreign(x: Callable[[], None]) -> None:
    pass


def unknown(x: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


def bad_default(x: list[int] = [1]) -> None:  # noqa: B006
    pass


def called(name: str) -> Callable[..., Any]:
    """A function of that name."""

    def made() -> None:
        pass

    made.__name__ = name
    return made


@pytest.mark.parametrize(
    "function",
    [untyped, star, named, positional, foreign, unknown, bad_default, *map(called, ["<lambda>", "für", "x" * 65, ""])],
    ids=lambda function: function.__name__[:12],
)
def test_a_function_that_no_model_can_call_is_refused_by_name(function: Callable[..., Any]) -> None:
    """Chat Completions takes names of 1 to 64 of A-Z a-z 0-9 _ - and arguments that have names."""
    with pytest.raises(SettingsError) as refusal:
        tool(function)
    assert function.__name__[:12] in str(refusal.value)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An operator's module of tools, importable as ``mine``."""
    made = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", made)
    return made


def function_of(made: Tool) -> Callable[..., Any]:
    assert isinstance(made, FunctionTool)
    return made.function


@pytest.mark.parametrize("reference", [None, "", "chatserver.tools.builtin", "chatserver.tools.builtin:TOOLS"])
def test_without_a_reference_the_built_in_tools_are_there(reference: str | None) -> None:
    assert {name: function_of(each) for name, each in load_tools(reference).items()} == {
        "clock": clock,
        "calculator": calculator,
    }


def test_tools_of_ones_own_are_functions_or_tools_in_any_iterable(module: types.ModuleType) -> None:
    module.__dict__["MINE"] = (everything, tool(nothing))
    module.__dict__["TOOLS"] = [later]
    assert list(load_tools("mine:MINE")) == ["everything", "nothing"]
    assert list(load_tools("mine")) == ["later"]
    assert all(isinstance(each, Tool) for each in load_tools("mine:MINE").values())


def test_the_name_of_questions_is_reserved() -> None:
    """A call of it is a question of a tool, for clients and for models."""

    def ask_user() -> None: ...

    for each in (ask_user, tool(ask_user), tool(ask_user, needs_approval=True)):
        with pytest.raises(SettingsError, match="`ask_user`: this name is reserved"):
            create_app(tools=[nothing, each])


@pytest.mark.parametrize(
    "found",
    [5, None, nothing, [5], ["nothing"], [untyped], [nothing, tool(nothing)]],
    ids=["number", "None", "function", "numbers", "names", "untyped", "twice"],
)
def test_what_holds_no_tools_is_refused(module: types.ModuleType, found: object) -> None:
    module.__dict__["TOOLS"] = found
    with pytest.raises(SettingsError):
        load_tools("mine:TOOLS")


@pytest.mark.parametrize(
    "reference",
    [
        "nowhere",
        "nowhere:TOOLS",
        "nowhere.deep:TOOLS",
        "chatserver:nothing",
        "chatserver.tools:TOOLS",
        ":x",
        "..x",
        ":",
    ],
)
def test_a_reference_to_nothing_is_refused_by_name(reference: str) -> None:
    with pytest.raises(SettingsError, match=r"\ACHATSERVER_TOOLS: ") as refusal:
        load_tools(reference)
    assert reference in str(refusal.value)


@pytest.mark.parametrize("source", ["1 / 0", "def", "import nowhere"])
def test_a_module_that_cannot_be_imported_is_refused_by_name(
    source: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_tools.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"\ACHATSERVER_TOOLS: broken_tools"):
        load_tools("broken_tools:TOOLS")


def test_the_working_directory_is_looked_at_last_and_only_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools_of_here.py").write_text("import sys\nPATH = list(sys.path)\nTOOLS = []\n")
    before = list(sys.path)
    assert load_tools("tools_of_here:TOOLS") == {}
    assert [*before, str(tmp_path)] == sys.modules.pop("tools_of_here").PATH
    (tmp_path / "broken_of_here.py").write_text("1 / 0")
    with pytest.raises(SettingsError):
        load_tools("broken_of_here:TOOLS")
    load_tools(None)
    assert sys.path == before


# ---- the calculator -------------------------------------------------------------------------------------------------

numbers = st.integers(0, 10**6).map(str) | st.floats(0.001, 1e6).map(repr)
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.builds("({}{}{})".format, inner, st.sampled_from(["+", " - ", "*", "/", "//", "%"]), inner)
        | st.builds("({} ** {})".format, inner, st.sampled_from(["0", "1", "2", "0.5", "-1"]))
        | st.builds("{}({})".format, st.sampled_from(["-", "+", ""]), inner)
    ),
    max_leaves=6,
).filter(lambda text: len(text) <= 200)


async def value_of(expression: str) -> float | int:
    with anyio.fail_after(WAIT_SECONDS):
        return await calculator(expression)


@given(expressions)
async def test_an_expression_is_worth_what_python_says(expression: str) -> None:
    try:
        expected = eval(expression)
    except ArithmeticError:
        expected = math.inf
    try:
        found = await value_of(expression)
    except (ArithmeticError, ValueError):
        # On the way to a result within the limit there may be one beyond it.
        assert "**" in expression or expected == math.inf
    else:
        assert (found, type(found)) == (expected, type(expected))


@given(st.integers(-1000, 1000) | st.floats(-100, 100), st.integers(-300, 400))
@example(2, 128)
@example(10, 99)
@example(-3, 200)
@example(2, -200)
async def test_every_power_below_the_limit_is_worth_what_python_says(base: float, exponent: int) -> None:
    try:
        expected = operator.pow(base, exponent)
    except ArithmeticError:
        return
    if abs(expected) < NUMBER_LIMIT:
        assert await value_of(f"({base!r}) ** {exponent}") == expected


WORDS = (
    "1",
    "0x1f",
    "1_0",
    "0b1",
    "0o7",
    "1e5",
    ".5",
    "if",
    "or",
    "and",
    "is",
    "in",
    "not",
    "else",
    "for",
    "j",
    "'\\d'",
    "(",
    ")",
)


@given(st.lists(st.sampled_from((*WORDS, *"+-*/%~<=\n\t\0x,[]{}:;@!", " ")), max_size=12).map("".join))
@example("1if 1 else 2")
@example("0x1for x in y")
@example("1or 2")
@example("'\\d'")
@example("1 is 1")
async def test_pythons_parser_never_warns_of_an_expression(expression: str) -> None:
    """Once for each text there was a line on stderr."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with suppress(ValueError, ArithmeticError):
            await value_of(expression)
    assert said == []


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("17 * 23", 391),
        ("0x1F + 0b11 + 0o17 + 1e2", 149),
        (" 1+1 ", 2),
        ("-(2 - 5)", 3),
        ("7 // 2", 3),
        ("7 / 2", 3.5),
        ("2 ** 10", 1024),
        ("1_000 % 7", 6),
    ],
)
async def test_a_sum(expression: str, value: float) -> None:
    assert await value_of(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "  ",
        "1 +",
        "x",
        "1; 2",
        "a = 1",
        "1\n2",
        "'a' * 3",
        "[1] * 3",
        "(1, 2)",
        "True + 1",
        "None",
        "1j",
        "1 < 2",
        "1 and 2",
        "~1",
        "1 << 9",
        "1 if 1 else 2",
        "abs(1)",
        "__import__('os')",
        "(1).__class__",
        "f'{1}'",
        "lambda: 1",
        "1 / 0",
        "1 // 0",
        "1 % 0",
        "0 ** -1",
        "(-8) ** 0.5",
        "9 ** 9 ** 9 ** 9",
        "9 ** 999",
        "2 ** 1e9",
        "(10 ** 99) ** 99",
        "10 ** 99 * 10 ** 99",
        "0.1 ** -500",
        "1e999",
        "1e99 * 1e99 * 1e99 * 1e99",
        "-1e999",
        "9" * 101,
        "9" * 200,
        "(" * 199,
        "-" * 199,
        "1" + "+1" * 100,
        "1\0",
        "\ud800",
        "１+１" * 100,
        "0x" + "f" * 198,
    ],
    ids=lambda text: ascii(text[:20]),
)
async def test_a_hostile_expression_is_an_error_at_once(expression: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        await value_of(expression)


@given(st.text(st.sampled_from("0123456789.eE+-*/%() _jx"), max_size=40))
async def test_any_text_is_a_bounded_number_or_an_error(expression: str) -> None:
    try:
        found = await value_of(expression)
    except (ValueError, ArithmeticError):
        return
    assert type(found) in (int, float) and abs(found) < NUMBER_LIMIT


# ---- the clock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "offsets"),
    [
        ("UTC", {0}),
        ("Asia/Tokyo", {9}),
        ("Europe/Berlin", {1, 2}),
        ("America/New_York", {-5, -4}),
        ("Asia/Kolkata", {5.5}),
    ],
)
async def test_the_clock_tells_now_in_the_zone(zone: str, offsets: set[float]) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    told = datetime.fromisoformat(await clock(zone))
    assert before <= told <= datetime.now(UTC)
    assert told.utcoffset() in {timedelta(hours=each) for each in offsets}


async def test_the_clock_without_a_zone_tells_utc() -> None:
    assert datetime.fromisoformat(await clock()).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "zone", ["", "Nowhere", "Europe", "../../etc/passwd", "/etc/passwd", "x" * 5000, "a\0b", "\ud800"]
)
async def test_a_zone_that_does_not_exist_is_an_error(zone: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        await clock(zone)
