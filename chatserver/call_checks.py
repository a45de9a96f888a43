"""Checks of the calls that a model wants: which are made, and which of them a person must agree to."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chatserver.commands import NAME_CHARS_LIMIT, ClientTool
from chatserver.errors import BadRequest
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
        own = self.toolbox.tools.get(wanted.name)
        tool = self._client_tool(wanted.name) if own is None else own
        name, args, problem = as_told(wanted.name, wanted.arguments)
        problem = self._refusal(in_turn, before + in_turn) or (NO_TOOL if tool is None else problem)
        executor: Executor = "client" if isinstance(tool, ClientTool) else "server"
        return _checked(ToolCall(call_id=call_id, tool=name, args=args, executor=executor), problem)

    def _client_tool(self, name: str) -> ClientTool | None:
        return next((each for each in self.client_tools if each.name == name), None)

    def _refusal(self, in_turn: int, in_answer: int) -> str | None:
        """Why a call is refused that has so many calls before it, in its turn and in its answer; None: it is made."""
        if in_turn >= CALLS_PER_TURN_LIMIT:
            return f"at most {CALLS_PER_TURN_LIMIT} calls in one turn"
        limit = self.toolbox.calls_limit
        return f"at most {limit} calls in one answer" if in_answer >= limit else None

    async def ruled(self, checked: Checked) -> Checked:
        """The call, with whether it needs an approval; nobody is asked about arguments that do not fit."""
        call = checked.call
        if checked.problem is not None:
            return checked
        is_clients = call.executor == "client"
        tool = self._client_tool(call.tool) if is_clients else self.toolbox.tools.get(call.tool)
        if tool is None:  # It has gone since the call was checked.
            return _checked(call, NO_TOOL)
        try:
            await check(tool, call.args)
        except BadArguments as error:
            return _checked(call, str(error))
        if isinstance(tool, ClientTool) or not await self.toolbox.threads.needs_approval(tool, call.args):
            return checked
        return Checked(replace(call, needs_approval=True))


def as_told(name: str, arguments: str) -> tuple[str, dict[str, Any], str | None]:
    """The name and the arguments with which a call is told, and what is wrong with the latter; of any tool, or none."""
    try:
        return name[:NAME_CHARS_LIMIT], arguments_of(arguments), None
    except BadArguments as error:
        return name[:NAME_CHARS_LIMIT], {}, str(error)


async def check_edited(toolbox: Toolbox, name: str, args: dict[str, Any]) -> None:
    """Refuse arguments with which a user approves a call of a tool. Of a tool that is not here, nothing is known.

    Raises:
        BadRequest: they do not fit.
    """
    if (tool := toolbox.tools.get(name)) is not None:
        try:
            await check(tool, args)
        except BadArguments as error:
            raise BadRequest(str(error), "/args") from None


def _checked(call: ToolCall, problem: str | None) -> Checked:
    """The call; one that is not made is the server's, so that no client begins it."""
    return Checked(call if problem is None else replace(call, executor="server"), problem)
