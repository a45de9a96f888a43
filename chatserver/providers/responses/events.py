"""The events of a Responses stream that say something, as Structs, so that each is read in one pass.

Servers have more types of events, and all of them more fields: these are passed by.
"""

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct


class TextDelta(Struct, tag_field="type", tag="response.output_text.delta", gc=False):
    """A piece of the answer, in the item with this number in the output."""

    delta: str | None = None
    output_index: int = 0


class RefusalDelta(Struct, tag_field="type", tag="response.refusal.delta", gc=False):
    """A piece of the model's refusal, which stands where the answer would stand."""

    delta: str | None = None
    output_index: int = 0


class SummaryDelta(Struct, tag_field="type", tag="response.reasoning_summary_text.delta", gc=False):
    """A piece of a summary of the model's reasoning."""

    delta: str | None = None
    output_index: int = 0
    summary_index: int = 0


class ThoughtDelta(Struct, tag_field="type", tag="response.reasoning_text.delta", gc=False):
    """A piece of the reasoning itself, of open models."""

    delta: str | None = None
    output_index: int = 0
    content_index: int = 0


class ArgumentsDelta(Struct, tag_field="type", tag="response.function_call_arguments.delta", gc=False):
    """A piece of a call's arguments."""

    delta: str | None = None
    output_index: int = 0


class ArgumentsDone(Struct, tag_field="type", tag="response.function_call_arguments.done", gc=False):
    """All arguments of a call."""

    arguments: str | None = None
    output_index: int = 0


class ItemAdded(Struct, tag_field="type", tag="response.output_item.added"):
    """An item of the output begins."""

    item: dict[str, Any]
    output_index: int = 0


class ItemDone(Struct, tag_field="type", tag="response.output_item.done"):
    """A whole item of the output."""

    item: dict[str, Any]
    output_index: int = 0


class Response(Struct):
    """A whole response. A server that does not stream has it as its only document."""

    status: Any = None
    output: Any = None
    usage: Any = None
    error: Any = None
    incomplete_details: Any = None


class Completed(Struct, tag_field="type", tag="response.completed"):
    """The end of an answer."""

    response: Response = msgspec.field(default_factory=Response)


class Incomplete(Struct, tag_field="type", tag="response.incomplete"):
    """The end of an answer that was cut short."""

    response: Response = msgspec.field(default_factory=Response)


class Failed(Struct, tag_field="type", tag="response.failed"):
    """The end of an answer that has failed."""

    response: Response = msgspec.field(default_factory=Response)


Event: TypeAlias = (
    TextDelta
    | RefusalDelta
    | SummaryDelta
    | ThoughtDelta
    | ArgumentsDelta
    | ArgumentsDone
    | ItemAdded
    | ItemDone
    | Completed
    | Incomplete
    | Failed
)
