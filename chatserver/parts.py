"""Parts: what an answer is made of, in the order in which it happened. A user's message is one text."""

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from msgspec import Struct

Executor: TypeAlias = Literal["server", "client"]
"""Who runs a tool."""


class TextPart(Struct, frozen=True, tag_field="type", tag="text", gc=False):
    """Text of a message."""

    text: str


class ReasoningPart(Struct, frozen=True, tag_field="type", tag="reasoning", gc=False):
    """Reasoning, where the model gives any."""

    text: str


class ToolCallPart(Struct, frozen=True, tag_field="type", tag="tool_call", kw_only=True):
    """A tool call with its result; the last four fields are ``None`` until there is a result."""

    call_id: str
    tool: str
    args: dict[str, Any]
    needs_approval: bool = False
    executor: Executor = "server"
    result: Any = None
    is_error: bool | None = None
    truncated: bool | None = None
    duration_ms: int | None = None


Part: TypeAlias = TextPart | ReasoningPart | ToolCallPart
Parts: TypeAlias = tuple[Part, ...]


def text_of(parts: Iterable[Part]) -> str:
    """The content of a message: its text parts, joined."""
    return "".join([part.text for part in parts if type(part) is TextPart])
