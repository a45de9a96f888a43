"""The arguments of a call: JSON that fits into an event."""

from typing import Any

import msgspec

from chatserver.events import to_json
from chatserver.strict_json import NESTING_LIMIT, is_nested_too_deeply
from chatserver.tools import BadArguments

ARGUMENTS_BYTES_LIMIT = 32 * 1024
"""Arguments must fit into one event with room to spare."""

_TOO_LONG = f"over {ARGUMENTS_BYTES_LIMIT} bytes"


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments that a model has written.

    Raises:
        BadArguments: they are no JSON object, or do not fit.
    """
    if len(text) > ARGUMENTS_BYTES_LIMIT:
        raise BadArguments(f"the arguments are {_TOO_LONG}")
    try:
        args = msgspec.json.decode(text, type=dict[str, Any]) if text.strip() else {}
        encoded = to_json(args)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise BadArguments("the arguments are no valid JSON object") from None
    check_size(encoded, "the arguments are")  # Numbers may grow when they are encoded again: 1e15.
    return args


def check_size(encoded: bytes, what_is: str) -> None:
    """Refuse arguments that are too long as JSON, or nested too deeply.

    Raises:
        BadArguments: with ``what_is`` before the words.
    """
    if len(encoded) > ARGUMENTS_BYTES_LIMIT:
        raise BadArguments(f"{what_is} {_TOO_LONG}")
    if is_nested_too_deeply(encoded):
        raise BadArguments(f"{what_is} nested over {NESTING_LIMIT} levels")
