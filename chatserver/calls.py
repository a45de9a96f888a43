"""Calls: the tool calls of one run. Each is checked, told to the run, made, and told again with its result.

A call that needs an approval, or that the client makes, is held until somebody has answered it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

import anyio
from msgspec import UNSET, Struct
from msgspec.structs import replace

from chatserver.answer import Answer, call_of, is_open
from chatserver.commands import NAME_CHARS_LIMIT, ClientTool, is_id, new_id
from chatserver.dialogue import INTERRUPTED_CALL, NO_ORIGIN, Leavings, ToolSpecification, TurnOrigin, is_question
from chatserver.events import ToolCall, ToolResult, to_json
from chatserver.parts import Executor, ToolCallPart
from chatserver.providers import ToolCallFragment, ToolCallRequest
from chatserver.questions import Questions
from chatserver.steps import Emit, Settled
from chatserver.telemetry import RunObserver
from chatserver.tools import BadArguments, Tool, specification_of
from chatserver.tools.arguments import arguments_of
from chatserver.tools.context import ToolContext
from chatserver.tools.execution import ToolThreads, check
from chatserver.tools.inputs import ToolInputs
from chatserver.tools.progress import told_progress
from chatserver.tools.results import Outcome, ToolFailed
from chatserver.waiting import GONE, WITHDRAWN, Approved, Refused, Resolution, Resulted

CALLS_PER_TURN_LIMIT = 32
"""How many of the calls that a model wants in one turn are made. The model is told that the others were refused."""

OWN_ID_CHARS_LIMIT = 1024
"""A longer call id of a provider is not kept: no provider is known that would miss it."""


NO_TOOL = "there is no such tool"

Hold: TypeAlias = Callable[[ToolCall, str | None], Awaitable[Resolution]]
"""Waits until a call that was told to the run is answered. The id is that of the call whose tool asks, if one does."""


class Toolbox(Struct, frozen=True):
    """The tools of a server by name, and how they are called. ``calls_limit`` bounds the calls of one answer."""

    tools: Mapping[str, Tool]
    threads: ToolThreads
    calls_limit: int


class Checked(Struct, frozen=True):
    """A call that the model wants, as readers see it; ``problem``: why it is not made."""

    call: ToolCall
    problem: str | None = None


class MadeTurn(Struct, frozen=True):
    """The calls of a turn with their results, as they were told to the run, and how the turn goes back upstream."""

    steps: Sequence[ToolCall | ToolResult]
    origin: TurnOrigin


class Calls:
    """The tool calls of one run.

    ``told`` is what each tool is told of the run, ``client_tools`` are those that its client runs, and ``hold`` waits
    for an answer.
    """

    __slots__ = (
        "_call_ids", "_client_tools", "_emit", "_hold", "_inputs", "_observer",
        "_settled", "_told", "_toolbox",
    )  # fmt: skip

    def __init__(
        self,
        toolbox: Toolbox,
        emit: Emit,
        settled: Settled,
        observer: RunObserver,
        told: ToolContext,
        hold: Hold,
        client_tools: Sequence[ClientTool] = (),
    ) -> None:
        self._toolbox = toolbox
        self._emit = emit
        self._settled = settled
        self._observer = observer
        self._told = told
        self._hold = hold
        self._client_tools = client_tools
        self._call_ids: dict[str, None] = {}  # No set: an empty one takes 0.2 KB of each run.
        self._inputs = ToolInputs(emit, partial(_named, self._call_ids))

    def specifications(self) -> list[ToolSpecification]:
        """What a model is told of the tools."""
        theirs = [ToolSpecification(each.name, each.description, each.parameters) for each in self._client_tools]
        return [*map(specification_of, self._toolbox.tools.values()), *theirs]

    def show(self, fragment: ToolCallFragment) -> None:
        """Show the next piece of a call that the model is writing."""
        self._inputs.add(fragment)

    async def make(self, wanted: Sequence[ToolCallRequest], leavings: Leavings | None = None) -> MadeTurn:
        """Make the calls that a model wants in a turn, all at the same time; each is told as it happens.

        ``leavings`` are those of the turn. Of a turn without calls only these are told.
        """
        before = len(self._call_ids)
        calls = [self._checked(each, position, before) for position, each in enumerate(wanted)]
        origin = _origin(wanted, calls, leavings)
        if origin != NO_ORIGIN:
            self._emit(origin)
        if not calls:
            return MadeTurn((), origin)
        await self._settled()
        calls = [await self._ruled(each) for each in calls]
        for each in calls:
            self._emit(each.call)
        results = await self._complete_all(calls)
        return MadeTurn([*(each.call for each in calls), *results], origin)

    async def call(self, name: str, args: dict[str, Any]) -> ToolResult:
        """Make one call, for an agent that makes calls by itself."""
        made = await self.make([ToolCallRequest("", name, to_json(args).decode())])
        return next(each for each in made.steps if isinstance(each, ToolResult))

    async def resume(self, said: Answer, waiting: Container[str]) -> None:
        """Complete the calls that an earlier process has left without a result; of those, these wait.

        What became of any other of them nobody knows. A question is withdrawn, if nobody has answered it.
        """
        made = [part for part in said.parts if isinstance(part, ToolCallPart)]
        questions = {part.call_id for part in made if is_question(part)}
        self._call_ids.update({part.call_id: None for part in made})
        left = [
            Checked(call_of(part), None if part.call_id in waiting else INTERRUPTED_CALL)
            for part in made
            if is_open(part)
        ]
        await self._complete_all(left, questions)

    async def _complete_all(self, calls: Sequence[Checked], questions: Container[str] = ()) -> list[ToolResult]:
        results: list[ToolResult] = []

        async def complete(call: Checked) -> None:
            results.append(await self._complete(call, GONE if call.call.call_id in questions else None))

        async with anyio.create_task_group() as tasks:
            for each in calls:
                tasks.start_soon(complete, each)
        return results

    async def _complete(self, checked: Checked, asker: str | None = None) -> ToolResult:
        """Make one call, as soon as it may be made, and tell its result; ``asker``: the call whose tool asks this."""
        call, args = checked.call, checked.call.args
        if checked.problem is not None:
            outcome = _failed(checked.problem)
        elif call.needs_approval or call.executor == "client":
            outcome, args = await self._answered(call, asker)
        else:
            outcome = await self._made(call, args)
        return self._tell(call, outcome, args)

    def _tell(self, call: ToolCall, outcome: Outcome, args: dict[str, Any]) -> ToolResult:
        result = ToolResult(
            call_id=call.call_id,
            tool=call.tool,
            result=outcome.result,
            is_error=outcome.is_error,
            truncated=outcome.truncated,
            duration_ms=outcome.duration_ms,
            args=UNSET if args == call.args else args,
        )
        self._emit(result)
        return result

    async def _answered(self, call: ToolCall, asker: str | None) -> tuple[Outcome, dict[str, Any]]:
        """What comes of a call that somebody has to answer, and with which arguments."""
        began = monotonic()
        resolution = await self._hold(call, asker)
        match resolution:
            case Approved(edited):
                args = call.args if edited is None else edited
                return await self._made(call, args), args
            case Refused(words):
                return _failed(words), call.args
            case Resulted():
                duration_ms = round((monotonic() - began) * 1000)
                return Outcome(resolution.result, resolution.is_error, resolution.truncated, duration_ms), call.args

    async def _made(self, call: ToolCall, args: dict[str, Any]) -> Outcome:
        tool = self._toolbox.tools.get(call.tool)
        if tool is None:  # It was there when the call began to wait.
            return _failed(NO_TOOL)
        with self._observer.tool(call.tool, call.call_id) as told:
            limit = self._toolbox.threads.time_limit()
            questions = Questions(self._emit, self._answer_to_question, self._question_id)
            with told_progress(self._emit) as report:
                async with questions.of(call.call_id, limit) as put:
                    context = replace(self._told, call_id=call.call_id, report=report, put=put)
                    outcome = await self._toolbox.threads.call(tool, args, context, limit)
            told.returned(is_error=outcome.is_error)
        return outcome

    def _question_id(self) -> str:
        if len(self._call_ids) >= self._toolbox.calls_limit:
            raise ToolFailed(f"at most {self._toolbox.calls_limit} calls and questions in one answer")
        call_id = _named(self._call_ids, "")
        self._call_ids[call_id] = None
        return call_id

    async def _answer_to_question(self, call: ToolCall, asker: str) -> ToolResult:
        try:
            return await self._complete(Checked(call), asker)
        except asyncio.CancelledError:
            with suppress(Exception):  # The run takes no more.
                self._tell(call, _failed(WITHDRAWN), call.args)
            raise

    def _checked(self, wanted: ToolCallRequest, in_turn: int, before: int) -> Checked:
        """The call, and why it is not made, if so."""
        call_id = self._inputs.end(wanted.call_id)
        self._call_ids[call_id] = None
        executor: Executor | None = "server" if wanted.name in self._toolbox.tools else None
        if executor is None and any(each.name == wanted.name for each in self._client_tools):
            executor = "client"
        args, problem = dict[str, Any](), None if executor else NO_TOOL
        if executor:
            try:
                args = arguments_of(wanted.arguments)
            except BadArguments as error:
                problem = str(error)
        problem = self._refusal(in_turn, before + in_turn) or problem
        name = wanted.name if executor else wanted.name[:NAME_CHARS_LIMIT]
        return Checked(ToolCall(call_id=call_id, tool=name, args=args, executor=executor or "server"), problem)

    def _refusal(self, in_turn: int, in_answer: int) -> str | None:
        """Why a call is refused that has so many calls before it, in its turn and in its answer; None: it is made."""
        if in_turn >= CALLS_PER_TURN_LIMIT:
            return f"at most {CALLS_PER_TURN_LIMIT} calls in one turn"
        limit = self._toolbox.calls_limit
        return f"at most {limit} calls in one answer" if in_answer >= limit else None

    async def _ruled(self, checked: Checked) -> Checked:
        """The call, with whether it needs an approval; nobody is asked about arguments that do not fit."""
        call = checked.call
        if checked.problem is not None or call.executor == "client":
            return checked
        tool = self._toolbox.tools[call.tool]
        try:
            check(tool, call.args)
        except BadArguments as error:
            return Checked(call, str(error))
        if await self._toolbox.threads.needs_approval(tool, call.args):
            return Checked(replace(call, needs_approval=True))
        return checked


def _named(call_ids: Container[str], own_id: str) -> str:
    """A call's id in the run, valid and not used yet: some servers count from 0 in every turn."""
    return own_id if is_id(own_id) and own_id not in call_ids else f"call_{new_id()}"


def _failed(words: str) -> Outcome:
    return Outcome(words, is_error=True, truncated=False, duration_ms=0)


def _origin(wanted: Sequence[ToolCallRequest], calls: Sequence[Checked], leavings: Leavings | None) -> TurnOrigin:
    """The turn's leavings, and the id that the provider gave to each call, where these ids tell the calls apart."""
    own_ids: dict[str, str] = {}
    for each, checked in zip(wanted, calls, strict=True):
        is_id_upstream = each.call_id.isprintable() and 0 < len(each.call_id) <= OWN_ID_CHARS_LIMIT
        is_unique = each.call_id not in own_ids.values()
        call_id = checked.call.call_id
        own_ids[call_id] = each.call_id if is_id_upstream and is_unique else call_id
    return TurnOrigin(own_ids, leavings)
