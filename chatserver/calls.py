"""Calls: the tool calls of one run. Each is checked, told to the run, made, and told again with its result.

A call that needs an approval, or that the client makes, is held until somebody has answered it.
"""

import asyncio
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol

import anyio
from msgspec import UNSET, Struct
from msgspec.structs import replace

from chatserver.answer import Answer, call_of, is_open
from chatserver.call_checks import NO_TOOL, Checked, Checks, Toolbox
from chatserver.commands import ClientTool, is_id, new_id
from chatserver.dialogue import INTERRUPTED_CALL, NO_ORIGIN, Leavings, ToolSpecification, TurnOrigin, is_question
from chatserver.events import ToolCall, ToolResult, to_json
from chatserver.parts import ToolCallPart
from chatserver.providers import ToolCallFragment, ToolCallRequest
from chatserver.questions import Questions
from chatserver.steps import Emit, Settled
from chatserver.telemetry import RunObserver
from chatserver.tools import specification_of
from chatserver.tools.context import ToolContext
from chatserver.tools.inputs import ToolInputs
from chatserver.tools.progress import told_progress
from chatserver.tools.results import Outcome, ToolFailed
from chatserver.waiting import Approved, Refused, Resolution, Resulted, given_up

OWN_ID_CHARS_LIMIT = 1024
"""A longer call id of a provider is not kept: no provider is known that would miss it."""


class Hold(Protocol):
    """What has the calls of a run wait for their answers."""

    async def ask(self, calls: Sequence[ToolCall], waiting: Sequence[str], asker: str | None = None) -> None:
        """Tell the run these calls, of which some wait. Where any call of the run waits, they are stored after that.

        ``asker`` is the call whose tool asks this, if one does.
        """
        ...

    async def answer(self, call_id: str, is_gone: bool = False) -> Resolution:
        """Wait for the answer to a call that waits; ``is_gone``: of a question whose tool has ended with its process.

        Such a question is withdrawn, unless it was answered.
        """
        ...

    async def withdraw(self, call_id: str) -> bool:
        """Take a call back that nobody waits for any more; whether it waited still."""
        ...


class MadeTurn(Struct, frozen=True):
    """The calls of a turn with their results, as they were told to the run, and how the turn goes back upstream."""

    steps: Sequence[ToolCall | ToolResult]
    origin: TurnOrigin


class Calls:
    """The tool calls of one run.

    ``told`` is what each tool is told of the run, ``client_tools`` are those that its client runs.
    """

    __slots__ = (
        "_call_ids", "_checks", "_emit", "_hold", "_inputs", "_observer",
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
        self._checks = Checks(toolbox, client_tools)
        self._call_ids: dict[str, None] = {}  # No set: an empty one takes 0.2 KB of each run.
        self._inputs = ToolInputs(emit, partial(_named, self._call_ids))

    def specifications(self) -> list[ToolSpecification]:
        """What a model is told of the tools."""
        theirs = [ToolSpecification(each.name, each.description, each.parameters) for each in self._checks.client_tools]
        return [*map(specification_of, self._toolbox.tools.values()), *theirs]

    def show(self, fragment: ToolCallFragment) -> None:
        """Show the next piece of a call that the model is writing."""
        self._inputs.add(fragment)

    async def make(self, wanted: Sequence[ToolCallRequest], leavings: Leavings | None = None) -> MadeTurn:
        """Make the calls that a model wants in a turn, all at the same time; each is told as it happens.

        ``leavings`` are those of the turn. Of a turn without calls only these are told.
        """
        before = len(self._call_ids)
        calls = [
            self._checks.checked(each, self._begin(each), position, before) for position, each in enumerate(wanted)
        ]
        origin = _origin(wanted, calls, leavings)
        if origin != NO_ORIGIN:
            self._emit(origin)
        if not calls:
            return MadeTurn((), origin)
        await self._settled()
        calls = [await self._checks.ruled(each) for each in calls]
        results: list[ToolResult] = []
        began = monotonic()
        try:
            await self._hold.ask([each.call for each in calls], [each.call.call_id for each in calls if each.waits])
            await self._complete_all(calls, results)
        except asyncio.CancelledError:
            known = {each.call_id for each in results}
            await self._give_up([each for each in calls if each.call.call_id not in known], began)
            raise
        return MadeTurn([*(each.call for each in calls), *results], origin)

    async def _give_up(self, calls: Sequence[Checked], began: float) -> None:
        """Nobody waits any more for these calls, which ``began`` then: take them back, and tell what is known."""
        with suppress(Exception):  # The run takes no more.
            for each in calls:
                is_taken_back = await self._hold.withdraw(each.call.call_id)
                words = given_up(each.call) if is_taken_back else INTERRUPTED_CALL
                self._tell(each.call, _failed(each.problem or words, _ms_since(began)), each.call.args)

    def _begin(self, wanted: ToolCallRequest) -> str:
        """The id of a call whose arguments are complete."""
        call_id = self._inputs.end(wanted.call_id)
        self._call_ids[call_id] = None
        return call_id

    async def call(self, name: str, args: dict[str, Any]) -> ToolResult:
        """Make one call, for an agent that makes calls by itself."""
        made = await self.make([ToolCallRequest("", name, to_json(args).decode())])
        return next(each for each in made.steps if isinstance(each, ToolResult))

    async def resume(self, said: Answer, waiting: Container[str], answers: Mapping[str, Resolution]) -> None:
        """Complete the calls that an earlier process has left without a result; of those, these wait.

        Of any other of them is told what the recorded ``answers`` say. A question is withdrawn, if nobody has answered.
        """
        made = [part for part in said.parts if isinstance(part, ToolCallPart)]
        questions = {part.call_id for part in made if is_question(part)}
        self._call_ids.update({part.call_id: None for part in made})
        left = [call_of(part) for part in made if is_open(part)]
        for call in left:
            if call.call_id not in waiting:
                self._tell(call, *_left(call, answers.get(call.call_id)))
        await self._complete_all([Checked(call) for call in left if call.call_id in waiting], [], questions)

    async def _complete_all(
        self, calls: Sequence[Checked], results: list[ToolResult], questions: Container[str] = ()
    ) -> None:
        async def complete(call: Checked) -> None:
            results.append(await self._complete(call, is_gone=call.call.call_id in questions))

        async with anyio.create_task_group() as tasks:
            for each in calls:
                tasks.start_soon(complete, each)

    async def _complete(self, checked: Checked, is_gone: bool = False) -> ToolResult:
        """Make one call, as soon as it may be made, and tell its result; ``is_gone`` as for ``Hold``."""
        call, args = checked.call, checked.call.args
        if checked.problem is not None:
            outcome = _failed(checked.problem)
        elif checked.waits:
            outcome, args = await self._answered(call, is_gone)
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

    async def _answered(self, call: ToolCall, is_gone: bool) -> tuple[Outcome, dict[str, Any]]:
        """What comes of a call that somebody has to answer, and with which arguments."""
        began = monotonic()
        resolution = await self._hold.answer(call.call_id, is_gone)
        if isinstance(resolution, Approved):
            args = _approved(call, resolution)
            return await self._made(call, args), args
        return _answer(resolution, began), call.args

    async def _made(self, call: ToolCall, args: dict[str, Any]) -> Outcome:
        tool = self._toolbox.tools.get(call.tool)
        if tool is None:  # It was there when the call began to wait.
            return _failed(NO_TOOL)
        with self._observer.tool(call.tool, call.call_id) as told:
            limit = self._toolbox.threads.time_limit()
            questions = Questions(self._answer_to_question, self._question_id)
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
        began = monotonic()
        try:
            await self._hold.ask([call], [call.call_id], asker)
            return await self._complete(Checked(call))
        except asyncio.CancelledError:
            await self._give_up([Checked(call)], began)
            raise


def _named(call_ids: Container[str], own_id: str) -> str:
    """A call's id in the run, valid and not used yet: some servers count from 0 in every turn."""
    return own_id if is_id(own_id) and own_id not in call_ids else f"call_{new_id()}"


def _failed(words: str, duration_ms: int = 0) -> Outcome:
    return Outcome(words, is_error=True, truncated=False, duration_ms=duration_ms)


def _ms_since(began: float) -> int:
    return round((monotonic() - began) * 1000)


def _approved(call: ToolCall, approved: Approved) -> dict[str, Any]:
    return call.args if approved.args is None else approved.args


def _answer(resolution: Refused | Resulted, began: float) -> Outcome:
    """What comes of a call that is not made here."""
    if isinstance(resolution, Refused):
        return _failed(resolution.words)
    return Outcome(resolution.result, resolution.is_error, resolution.truncated, _ms_since(began))


def _left(call: ToolCall, resolution: Resolution | None) -> tuple[Outcome, dict[str, Any]]:
    """What is known of a call that was going on in another process, and with which arguments it was made."""
    if isinstance(resolution, Approved):
        return _failed(INTERRUPTED_CALL), _approved(call, resolution)
    return _failed(INTERRUPTED_CALL) if resolution is None else _answer(resolution, monotonic()), call.args


def _origin(wanted: Sequence[ToolCallRequest], calls: Sequence[Checked], leavings: Leavings | None) -> TurnOrigin:
    """The turn's leavings, and the id that the provider gave to each call, where these ids tell the calls apart."""
    own_ids: dict[str, str] = {}
    for each, checked in zip(wanted, calls, strict=True):
        is_id_upstream = each.call_id.isprintable() and 0 < len(each.call_id) <= OWN_ID_CHARS_LIMIT
        is_unique = each.call_id not in own_ids.values()
        call_id = checked.call.call_id
        own_ids[call_id] = each.call_id if is_id_upstream and is_unique else call_id
    return TurnOrigin(own_ids, leavings)
