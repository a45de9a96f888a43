"""Calls: the tool calls of one run. Each is checked, told to the run, made, and told again with its result."""

from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from chatserver.commands import NAME_CHARS_LIMIT, is_id, new_id
from chatserver.dialogue import NO_ORIGIN, Leavings, ToolSpecification, TurnOrigin
from chatserver.events import ToolCall, ToolResult, to_json
from chatserver.providers import ToolCallRequest
from chatserver.steps import Emit, Settled
from chatserver.strict_json import NESTING_LIMIT, is_nested_too_deeply
from chatserver.telemetry import RunObserver
from chatserver.tools import Tool
from chatserver.tools.execution import Outcome, ToolThreads

ARGUMENTS_BYTES_LIMIT = 32 * 1024
"""A call's arguments must fit into one event with room to spare."""

CALLS_PER_TURN_LIMIT = 32
"""How many of the calls that a model wants in one turn are made. The model is told that the others were refused."""

OWN_ID_CHARS_LIMIT = 1024
"""A longer call id of a provider is not kept: no provider is known that would miss it."""


class Toolbox(Struct, frozen=True):
    """The tools of a server by name, and how they are called. ``calls_limit`` bounds the calls of one answer."""

    tools: Mapping[str, Tool]
    threads: ToolThreads
    calls_limit: int


class Checked(Struct, frozen=True):
    """A call that the model wants, as readers see it and as the tool gets it; ``problem``: why it is not made."""

    call_id: str
    name: str
    args: dict[str, Any]
    problem: str | None = None


class MadeTurn(Struct, frozen=True):
    """The calls of a turn with their results, as they were told to the run, and how the turn goes back upstream."""

    steps: Sequence[ToolCall | ToolResult]
    origin: TurnOrigin


class Calls:
    """The tool calls of one run."""

    __slots__ = ("_call_ids", "_emit", "_observer", "_settled", "_toolbox")

    def __init__(self, toolbox: Toolbox, emit: Emit, settled: Settled, observer: RunObserver) -> None:
        self._toolbox = toolbox
        self._emit = emit
        self._settled = settled
        self._observer = observer
        self._call_ids: dict[str, None] = {}  # No set: an empty one takes 0.2 KB of each run.

    def specifications(self) -> list[ToolSpecification]:
        """What a model is told of the tools."""
        return [each.specification() for each in self._toolbox.tools.values()]

    async def make(self, wanted: Sequence[ToolCallRequest], leavings: Leavings | None = None) -> MadeTurn:
        """Make the calls that a model wants in a turn, all at the same time; each is told as it happens.

        ``leavings`` are those of the turn. Of a turn without calls only these are told.
        """
        made = len(self._call_ids)
        calls = [checked(each, self._toolbox.tools, self._call_ids) for each in wanted]
        origin = _origin(wanted, calls, leavings)
        if origin != NO_ORIGIN:
            self._emit(origin)
        if not calls:
            return MadeTurn((), origin)
        await self._settled()
        called = [ToolCall(call_id=call.call_id, tool=call.name, args=call.args) for call in calls]
        for event in called:
            self._emit(event)
        results: list[ToolResult] = []

        async def complete(call: Checked, refusal: str | None) -> None:
            results.append(await self._complete(call, refusal))

        async with anyio.create_task_group() as tasks:
            for position, call in enumerate(calls):
                tasks.start_soon(complete, call, self._refusal(position, made + position))
        return MadeTurn([*called, *results], origin)

    def _refusal(self, in_turn: int, in_answer: int) -> str | None:
        """Why a call is refused that has so many calls before it, in its turn and in its answer; None: it is made."""
        if in_turn >= CALLS_PER_TURN_LIMIT:
            return f"at most {CALLS_PER_TURN_LIMIT} calls in one turn"
        limit = self._toolbox.calls_limit
        return f"at most {limit} calls in one answer" if in_answer >= limit else None

    async def _complete(self, call: Checked, refusal: str | None) -> ToolResult:
        outcome = await self._outcome(call, refusal or call.problem)
        result = ToolResult(
            call_id=call.call_id,
            tool=call.name,
            result=outcome.result,
            is_error=outcome.is_error,
            truncated=outcome.truncated,
            duration_ms=outcome.duration_ms,
        )
        self._emit(result)
        return result

    async def _outcome(self, call: Checked, problem: str | None) -> Outcome:
        if problem is not None:
            return Outcome(problem, is_error=True, truncated=False, duration_ms=0)
        with self._observer.tool(call.name, call.call_id) as told:
            outcome = await self._toolbox.threads.call(self._toolbox.tools[call.name], call.args)
            told.returned(is_error=outcome.is_error)
        return outcome


def checked(wanted: ToolCallRequest, tools: Mapping[str, Tool], call_ids: dict[str, None]) -> Checked:
    """The call, under an id that is valid and unique in the run: some servers count from 0 in every turn."""
    call_id = wanted.call_id
    if call_id in call_ids or not is_id(call_id):
        call_id = f"call_{new_id()}"
    call_ids[call_id] = None
    problem = None
    if wanted.name not in tools:
        problem = "there is no such tool"
    elif len(wanted.arguments) > ARGUMENTS_BYTES_LIMIT:
        problem = f"the arguments are over {ARGUMENTS_BYTES_LIMIT} bytes"
    else:
        try:
            args = _arguments(wanted.arguments)
            problem = problem_of(args)
            if problem is None:
                return Checked(call_id, wanted.name, args)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            problem = "the arguments are no valid JSON object"
    return Checked(call_id, wanted.name[:NAME_CHARS_LIMIT], {}, problem)


def problem_of(args: dict[str, Any]) -> str | None:
    """Why a call with these arguments cannot be told; None: it can."""
    encoded = to_json(args)
    if len(encoded) > ARGUMENTS_BYTES_LIMIT:  # Numbers may grow when they are encoded again: 1e15.
        return f"the arguments are over {ARGUMENTS_BYTES_LIMIT} bytes"
    return f"the arguments are nested over {NESTING_LIMIT} levels" if is_nested_too_deeply(encoded) else None


def _arguments(text: str) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any]) if text.strip() else {}


def _origin(wanted: Sequence[ToolCallRequest], calls: Sequence[Checked], leavings: Leavings | None) -> TurnOrigin:
    """The turn's leavings, and the id that the provider gave to each call, where these ids tell the calls apart."""
    own_ids: dict[str, str] = {}
    for each, call in zip(wanted, calls, strict=True):
        is_id_upstream = each.call_id.isprintable() and 0 < len(each.call_id) <= OWN_ID_CHARS_LIMIT
        is_unique = each.call_id not in own_ids.values()
        own_ids[call.call_id] = each.call_id if is_id_upstream and is_unique else call.call_id
    return TurnOrigin(own_ids, leavings)
