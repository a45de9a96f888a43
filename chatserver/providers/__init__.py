"""Providers: where a model's deltas come from. A provider streams one turn; it knows no run, no event and no tool."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import Struct

from chatserver.events import Usage

WANTED_CALLS_LIMIT = 256
"""Calls that a model may want in one turn; more fail it."""


class ModelRequest(Struct, frozen=True, kw_only=True):
    """What a model is asked in one turn; ``messages`` and ``tools`` as Chat Completions has them.

    ``run_id`` is for the log alone.
    """

    model: str
    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] = ()
    temperature: float | None = None
    max_output_tokens: int | None = None
    run_id: str = ""

    def __repr__(self) -> str:
        return f"ModelRequest(model={self.model!r}, …)"


class TextDelta(Struct, frozen=True, gc=False):
    """Text to append to the answer."""

    text: str


class ReasoningDelta(Struct, frozen=True, gc=False):
    """Reasoning to append."""

    text: str


class ToolCallRequest(Struct, frozen=True, gc=False):
    """The model wants a tool called; ``arguments`` is its JSON, complete but not checked."""

    call_id: str
    name: str
    arguments: str


class Finish(Struct, frozen=True):
    """The turn has ended as it should; the last delta. ``usage`` is None when the upstream did not say."""

    reason: Literal["stop", "length", "content_filter", "tool_calls"]
    usage: Usage | None


Delta: TypeAlias = TextDelta | ReasoningDelta | ToolCallRequest | Finish


TakeText: TypeAlias = Callable[[str], bool]
"""Take text of the answer at once; False: not now, and nothing was done."""


class Provider(Protocol):
    """A source of turns."""

    def stream(self, request: ModelRequest, take: TakeText) -> AsyncGenerator[Delta, None]:
        """One turn. Closing the generator closes the upstream connection at once, whatever it was doing.

        Text that comes while the generator is waited for is given to ``take`` first: a token then wakes no task. What
        that takes does not come out.

        Raises:
            UpstreamError: while iterating; the turn has failed.
        """
        ...
