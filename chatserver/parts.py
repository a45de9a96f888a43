"""Parts: what a message is made of, in order: texts and calls of an answer; texts, images and files of a user."""

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, TypeGuard, get_args

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


class ImagePart(Struct, frozen=True, tag_field="type", tag="image", kw_only=True):
    """An image of a user: its address, or itself in base64 (``data``) with its media type."""

    url: str | None = None
    data: str | None = None
    media_type: str | None = None


class FilePart(Struct, frozen=True, tag_field="type", tag="file", kw_only=True):
    """A file of a user, under its name: its address, or itself in base64 (``data``) with its media type."""

    name: str
    url: str | None = None
    data: str | None = None
    media_type: str | None = None


Part: TypeAlias = TextPart | ReasoningPart | ToolCallPart
"""A part of an answer."""
Parts: TypeAlias = tuple[Part, ...]

UserPart: TypeAlias = TextPart | ImagePart | FilePart
"""A part of a user's message."""
UserParts: TypeAlias = tuple[UserPart, ...]
USER_PARTS: tuple[type, ...] = get_args(UserPart)  # Made once: a dialogue asks for the kind of each of its parts.

AnyPart: TypeAlias = Part | ImagePart | FilePart
"""A part of a message, whoever's it is."""


def text_of(parts: Iterable[AnyPart]) -> str:
    """The content of a message: its text parts, joined."""
    return "".join([part.text for part in parts if type(part) is TextPart])


def is_user_part(part: AnyPart) -> TypeGuard[UserPart]:
    """Whether a user can say such a part; a text can be of either."""
    return isinstance(part, USER_PARTS)


def text_bytes(text: str) -> int:
    """The length of a text in UTF-8; a text of ASCII is not encoded for that."""
    return len(text) if text.isascii() else len(text.encode())
