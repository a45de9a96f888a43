"""Providers: where a model's deltas come from. A provider streams one turn; it knows no run and no tool."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from chatserver.dialogue import Dialogue, Leavings, ToolSpecification
from chatserver.events import Reasoning, Token, Usage
from chatserver.structured import ResponseFormat
from chatserver.telemetry import UNOBSERVED_RUN, RunObserver

WANTED_CALLS_LIMIT = 256
"""Calls that a model may want in one turn; more fail it."""


class ModelRequest(Struct, frozen=True, kw_only=True):
    """What a model is asked in one turn. ``run_id`` is for the log alone, ``observer`` for metrics and traces."""

    model: str
    messages: Dialogue
    tools: Sequence[ToolSpecification] = ()
    temperature: float | None = None
    max_output_tokens: int | None = None
    response_format: ResponseFormat | None = None
    run_id: str = ""
    observer: RunObserver = UNOBSERVED_RUN

    def __repr__(self) -> str:
        return f"ModelRequest(model={self.model!r}, …)"


class ToolCallRequest(Struct, frozen=True, gc=False):
    """The model wants a tool called; ``arguments`` is its JSON, complete but not checked."""

    call_id: str
    name: str
    arguments: str


class ToolCallFragment(Struct, frozen=True, gc=False):
    """The next piece of a call that the model is writing, to be shown; the ``ToolCallRequest`` of its id has it all.

    ``name`` is empty where it is not known yet. Of a call that comes whole there need be none.
    """

    call_id: str
    name: str
    arguments: str


Delta: TypeAlias = Token | Reasoning | ToolCallFragment | ToolCallRequest
"""What comes next in a turn. A text is the draft of its event already: nothing is made of it on its way to the log."""

OnDelta: TypeAlias = Callable[[Delta], None]
"""Is told of each delta as soon as it has come, from within the callback of the upstream's socket."""


class Finish(Struct, frozen=True):
    """The turn has ended as it should. ``usage`` is None when the upstream did not say.

    ``leavings``: what the provider wants back with this turn.
    """

    reason: Literal["stop", "length", "content_filter", "tool_calls"]
    usage: Usage | None
    leavings: Leavings | None = None


class Provider(Protocol):
    """A source of turns."""

    async def stream(self, request: ModelRequest, on_delta: OnDelta) -> Finish:
        """One turn, which has ended when this returns. Cancelling it closes the upstream connection at once.

        Raises:
            UpstreamError: the turn has failed.
            Exception: what ``on_delta`` raised; that ends the turn too.
        """
        ...
