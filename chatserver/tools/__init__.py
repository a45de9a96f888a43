"""Tools that the model may call: the form that every tool has, be it a function, a server's tool or anybody's class."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from chatserver.dialogue import ToolSpecification
from chatserver.tools.context import ToolContext

Approval: TypeAlias = bool | Callable[[dict[str, Any]], bool | Awaitable[bool]]
"""Whether a person must agree to a call before the call is made: always, never, or by a rule on the arguments.

A rule is called in a thread of its own. Where it is async, it is awaited in the event loop that all tools share.
"""


class BadArguments(ValueError):
    """The model's arguments do not fit; the message tells the model why."""


@runtime_checkable
class Tool(Protocol):
    """What the model may call. Any object with these attributes is a tool; `tool` makes one of a function.

    An attribute `needs_approval`, an ``Approval``, may say that a person must agree to a call; without it, nobody must.
    A rule that fails, or takes too long, says yes.
    """

    @property
    def name(self) -> str:
        """1 to 64 of letters, digits, `_` and `-`."""
        ...

    @property
    def description(self) -> str:
        """Tells the model what the tool is for; it may be empty."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON Schema of the arguments, whose ``type`` is ``object``. Only arguments that fit are handed to `call`."""
        ...

    def call(self, args: dict[str, Any], context: ToolContext) -> Any:
        """Do the work; the result is whatever becomes JSON.

        An async method runs in an event loop that all tools share, and is cancelled with its run. A plain method runs
        in a thread of its own, where it may block. Neither runs in the server's thread.

        Raises:
            Exception: the call has failed; the model and the user read the exception's words.
        """
        ...


def specification_of(tool: Tool) -> ToolSpecification:
    """What a model is told of a tool."""
    return ToolSpecification(tool.name, tool.description, tool.parameters)
