"""What a call of a tool gives, made fit for an event: JSON, at most so large and so deep, or words for a failure."""

from typing import Any

import msgspec
from msgspec import Struct

from chatserver.events import to_json
from chatserver.strict_json import NESTING_LIMIT, is_nested_too_deeply


class ToolFailed(Exception):
    """The call gave no result; the message is for the model and the user."""


class Outcome(Struct, frozen=True):
    """What a call gave: JSON-ready, at most the cap in size."""

    result: Any
    is_error: bool
    truncated: bool
    duration_ms: int


def cap(result: Any, bytes_limit: int) -> tuple[Any, bool]:
    """A result as JSON can hold it, and whether it had to be cut to ``bytes_limit`` bytes of JSON.

    Raises:
        TypeError: JSON has no form for it.
        ToolFailed: it is nested too deeply.
    """
    if isinstance(result, bytes | bytearray | memoryview):
        result = bytes(result[: bytes_limit + 1]).decode(errors="replace")
    if isinstance(result, str):
        # Cut first: encoding 100 MB would hold the interpreter's lock, and so every thread.
        cut = result[: bytes_limit + 1].encode(errors="replace").decode()
        fitting = _prefix(cut, bytes_limit)
        return fitting, len(fitting) < len(cut)
    encoded = msgspec.json.encode(result)
    if len(encoded) > bytes_limit or len(to_json(result)) > bytes_limit:
        return _prefix(encoded[:bytes_limit].decode(errors="replace"), bytes_limit), True
    if is_nested_too_deeply(encoded):
        raise ToolFailed(f"the result is nested over {NESTING_LIMIT} levels")
    return msgspec.json.decode(encoded), False


def _prefix(text: str, bytes_limit: int) -> str:
    """The longest prefix, to within an eighth, whose JSON fits."""
    while len(to_json(text)) > bytes_limit:
        text = text[: len(text) * 7 // 8]
    return text


def failed(error: BaseException) -> ToolFailed:
    """A tool's failure in words, found where the tool runs: `__str__` is foreign code too."""
    return ToolFailed(words_of(error))


def words_of(error: BaseException) -> str:
    """What an exception says; of one that says nothing, or fails in saying it, its type."""
    name = type(error).__name__
    try:
        words = str(error)
    except Exception:  # noqa: BLE001 - whatever it raises
        return name
    if words and isinstance(error, KeyError | SystemExit):  # They say a bare value.
        return f"{name}: {words}"
    return words or name
