"""Checks of the calls that a model wants: which are made, and which of them a person must agree to."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chatserver.commands import NAME_CHARS_LIMIT, ClientTool
from chatserver.events import ToolCall
from chatserver.parts import Executor
from chatserver.providers import ToolCallRequest
from chatserver.tools import BadArguments, Tool
from chatserver.tools.arguments import arguments_of
from chatserver.tools.execution import ToolThreads, check

CALLS_PER_TURN_LIMIT = 32
"""How many of the calls that a model wants in one turn are made. The model is told that the others were refused."""

NO_TOOL = "there is no such tool"


class Toolbox(Struct, frozen=True):
    """The tools of a server by name, and how they are called. ``calls_limit`` bounds the calls of one answer."""

    tools: Mapping[str, Tool]
    threads: ToolThreads
    calls_limit: int


class Checked(Struct, frozen=True):
    """A call that the model wants, as readers see it; ``problem``: why it is not made."""

    call: ToolCall
    problem: str | None = None

    @property
    def waits(self) -> bool:
        """Whether somebody has to answer it."""
        return self.problem is None and (self.call.needs_approval or self.call.executor == "client")


class Checks(Struct, frozen=True):
    """The checks of one run's calls."""

    toolbox: Toolbox
    client_tools: Sequence[ClientTool]

    def checked(self, wanted: ToolCallRequest, call_id: str, in_turn: int, before: int) -> Checked:
        """The call, and why it is not made, if so; so many are before it in its turn, and before the turn."""
        executor: Executor | None = "server" if wanted.name in self.toolbox.tools else None
        if executor is None and any(each.name == wanted.name for each in self.client_tools):
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
        limit = self.toolbox.calls_limit
        return f"at most {limit} calls in one answer" if in_answer >= limit else None

    async def ruled(self, checked: Checked) -> Checked:
        """The call, with whether it needs an approval; nobody is asked about arguments that do not fit."""
        call = checked.call
        if checked.problem is not None or call.executor == "client":
            return checked
        tool = self.toolbox.tools[call.tool]
        try:
            check(tool, call.args)
        except BadArguments as error:
            return Checked(call, str(error))
        if await self.toolbox.threads.needs_approval(tool, call.args):
            return Checked(replace(call, needs_approval=True))
        return checked
