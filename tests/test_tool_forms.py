"""What counts as a tool: functions by the decorator, anybody's objects of the form; what all of them are told."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from chatserver.call_checks import NO_TOOL, Toolbox
from chatserver.calls import Calls
from chatserver.errors import SettingsError
from chatserver.telemetry import UNOBSERVED_RUN
from chatserver.tools import Approval, BadArguments, Tool, execution, specification_of
from chatserver.tools.context import ToolContext
from chatserver.tools.execution import ToolThreads, check
from chatserver.tools.functions import FunctionTool, tool
from chatserver.tools.loading import tools_by_name
from tests.scripted_model import Unanswered
from tests.tool_calls import LIMIT, LONG, SHORT, Gates, open_gates

pytestmark = pytest.mark.anyio

CONTEXT = ToolContext(user="ann", session_id="s", run_id="r", call_id="c")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 2}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city"],
}


class Weather:
    """Anybody's tool: it knows nothing of this package but the form."""

    name = "weather"
    description = "The weather."
    parameters: Any = SCHEMA

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def call(self, args: dict[str, Any], context: ToolContext) -> Any:
        self.calls.append((args, context, threading.current_thread().name))
        await asyncio.sleep(0)
        return {"degrees": 7}


class Ruled(Weather):
    needs_approval: Approval = True


class Blocking(Weather):
    def call(self, args: dict[str, Any], context: ToolContext) -> Any:
        self.calls.append((args, context, threading.current_thread().name))
        return {"degrees": 7}


@pytest.mark.parametrize(("made", "thread"), [(Weather(), "chatserver-tools"), (Blocking(), "chatserver-tool")])
async def test_any_object_of_the_form_is_a_tool_and_runs_in_no_thread_of_the_server(made: Weather, thread: str) -> None:
    assert tools_by_name([made]) == {"weather": made}
    assert specification_of(made).parameters == SCHEMA
    outcome = await ToolThreads(LONG, LIMIT).call(made, {"city": "Oslo"}, CONTEXT)
    assert (outcome.result, outcome.is_error) == ({"degrees": 7}, False)
    assert made.calls == [({"city": "Oslo"}, CONTEXT, thread)]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "at $ it breaks `required`"),
        ({"city": "x"}, "at $.city it breaks `minLength`"),
        ({"city": 1}, "at $.city it breaks `type`"),
        ({"city": "Oslo", "days": [1, "2"]}, "at $.days[1] it breaks `type`"),
    ],
)
async def test_arguments_that_are_not_as_the_schema_says_are_told_and_not_called(
    args: dict[str, Any], words: str
) -> None:
    made = Weather()
    outcome = await ToolThreads(LONG, LIMIT).call(made, args, CONTEXT)
    assert (outcome.result, outcome.is_error, made.calls) == (f"the arguments do not fit: {words}", True, [])


class Renamed(Weather):
    name = "no name"


def described(parameters: Any) -> Weather:
    made = Weather()
    made.parameters = parameters
    return made


NO_PARAMETERS: tuple[Any, ...] = ({"type": "objekt"}, {"type": "object", "properties": []}, True, {}, {"type": "array"})


@pytest.mark.parametrize("found", [Renamed(), *map(described, NO_PARAMETERS), Weather])
def test_what_no_model_can_call_is_refused_by_name(found: Any) -> None:
    with pytest.raises(SettingsError, match="tool `"):
        tools_by_name([found])


class Half:
    name, description = "half", "No schema, and nothing to call."


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Half(), "tool `Half`: it is no function, and it has no `parameters`, `call`"),
        (
            partial(print),
            "tool `partial`: it is no function, and it has no `name`, `description`, `parameters`, `call`",
        ),
        (5, "tool `int`: it is no function, and it has no `name`, `description`, `parameters`, `call`"),
    ],
)
def test_what_an_object_lacks_to_be_a_tool_is_named(found: Any, words: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        tools_by_name([found])
    assert str(refusal.value) == words


# ---- functions ------------------------------------------------------------------------------------------------------


def test_the_decorator_works_with_and_without_arguments() -> None:
    @tool
    def plain(n: int) -> int:
        """Plain."""
        return n

    @tool(needs_approval=True)
    async def careful(n: int) -> int:
        """Careful."""
        return n

    made: list[FunctionTool] = [plain, careful]
    assert [(each.name, each.description, each.needs_approval) for each in made] == [
        ("plain", "Plain.", False),
        ("careful", "Careful.", True),
    ]
    assert all(isinstance(each, Tool) for each in made)
    assert tools_by_name(made).keys() == {"plain", "careful"}


async def test_a_function_is_told_of_its_call_where_it_asks_for_that() -> None:
    def plain(context: ToolContext, n: int) -> Any:
        return [context.user, context.session_id, context.run_id, context.call_id, n]

    async def in_loop(n: int, *, told: ToolContext, also: ToolContext) -> Any:
        return [told.user, also.session_id, told.run_id, also.call_id, n]

    for made in (tool(plain), tool(in_loop)):
        assert made.parameters["properties"] == {"n": {"type": "integer"}}
        outcome = await ToolThreads(LONG, LIMIT).call(made, {"n": 1}, CONTEXT)
        assert outcome.result == ["ann", "s", "r", "c", 1]
        forged = await ToolThreads(LONG, LIMIT).call(made, {"n": 1, "context": {}, "told": {}}, CONTEXT)
        assert forged.is_error


def test_a_context_that_cannot_be_given_by_name_is_refused() -> None:
    def positional(context: ToolContext, /) -> None:
        pass

    with pytest.raises(SettingsError, match="`context`"):
        tool(positional)


# ---- approval -------------------------------------------------------------------------------------------------------


def pay(amount: float, currency: str = "EUR") -> None:
    """Pay."""


def fails(args: dict[str, Any]) -> bool:
    raise SystemExit


async def is_much(args: dict[str, Any]) -> bool:
    await asyncio.sleep(0)
    return bool(args["amount"] > 100)


async def fails_later(args: dict[str, Any]) -> bool:
    await asyncio.sleep(0)
    raise SystemExit


@pytest.mark.parametrize(
    ("rule", "args", "needed"),
    [
        (is_much, {"amount": "150"}, True),
        (is_much, {"amount": 50}, False),
        (partial(is_much), {"amount": 50}, False),
        (fails_later, {"amount": 1}, True),
        (True, {"amount": 1}, True),
        (False, {"amount": 1}, False),
        (lambda args: args["amount"] > 100, {"amount": "150"}, True),
        (lambda args: args["amount"] > 100, {"amount": 50}, False),
        (lambda args: args["currency"] != "EUR", {"amount": 50}, False),
        (lambda args: args["currency"] != "EUR", {"amount": 50, "currency": "USD"}, True),
        (fails, {"amount": 1}, True),
        (lambda args: args["nothing"], {"amount": 1}, True),
        (lambda args: args.get("nothing"), {"amount": 1}, False),
        (lambda args: object(), {"amount": 1}, True),
    ],
)
async def test_a_rule_decides_on_the_arguments_as_the_function_gets_them_and_fails_to_the_safe_side(
    rule: Approval, args: dict[str, Any], needed: bool
) -> None:
    assert await ToolThreads(LONG, LIMIT).needs_approval(tool(pay, needs_approval=rule), args) is needed


@pytest.mark.parametrize("made", [Weather(), Ruled()])
async def test_an_object_needs_an_approval_only_where_it_says_so(made: Weather) -> None:
    assert await ToolThreads(LONG, LIMIT).needs_approval(made, {"city": "Oslo"}) is isinstance(made, Ruled)


async def test_a_rule_that_blocks_says_yes_and_blocks_nobody() -> None:
    for gates in open_gates():
        made = tool(pay, needs_approval=_blocks(gates))
        assert await ToolThreads(SHORT, LIMIT).needs_approval(made, {"amount": 1}) is True


async def test_an_async_rule_runs_where_async_tools_do_and_says_yes_when_it_takes_too_long() -> None:
    threads = list[str]()

    async def endless(args: dict[str, Any]) -> bool:
        threads.append(threading.current_thread().name)
        await asyncio.Event().wait()
        return False

    made = tool(pay, needs_approval=endless)
    assert await ToolThreads(SHORT, LIMIT).needs_approval(made, {"amount": 1}) is True
    assert threads == ["chatserver-tools"]


def _blocks(gates: Gates) -> Callable[[dict[str, Any]], bool]:
    return lambda args: not gates.wait()


async def test_the_words_of_a_schema_are_short_whatever_the_arguments() -> None:
    with pytest.raises(BadArguments) as refusal:
        await check(Weather(), {"city": ["x" * 10_000]})
    assert len(str(refusal.value)) < 100


async def test_arguments_are_checked_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema may be anybody's, and take a second."""
    threads: list[threading.Thread] = []
    monkeypatch.setattr(execution, "mistake_in", lambda *_: threads.append(threading.current_thread()))
    await check(Weather(), {"city": "Oslo"})
    assert threads and threading.main_thread() not in threads


async def test_a_tool_that_goes_before_its_call_is_made_costs_the_call_alone() -> None:
    """Those of an MCP server do."""
    tools: dict[str, Tool] = {"weather": Weather()}

    async def settled() -> None:
        tools.clear()

    calls = Calls(
        Toolbox(tools, ToolThreads(LONG, LIMIT), 9),
        lambda _: None,
        settled,
        UNOBSERVED_RUN,
        ToolContext(),
        Unanswered(lambda _: None),
    )
    result = await calls.call("weather", {"city": "Oslo"})
    assert (result.is_error, result.result) == (True, NO_TOOL)
