"""Events: what the server says about a run, in the order it happened.

An event is made as a draft (``Token(content="Hi")``) by whoever knows the fact, and is given its ``run_id`` and
``seq`` by the log that appends it.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import fields, replace

from chatserver.parts import Executor, Parts

PROTOCOL_VERSION = 1

EVENT_BYTES_LIMIT = 64 * 1024
"""One event's document. The smallest default of the clients in use is a 64 KiB WebSocket message."""

TEXT_CHARS_PER_EVENT = 10_000
"""Longer text becomes several events. JSON writes a character in 6 bytes at most, so 10,000 always fit."""

FinishReason: TypeAlias = Literal["stop", "length", "content_filter", "cancelled", "turn_limit"]
ErrorCode: TypeAlias = Literal[
    "rate_limited",
    "llm_error",
    "upstream_unavailable",
    "upstream_timeout",
    "upstream_truncated",
    "context_length",
    "auth_failed",
    "interrupted",
    "internal",
]


class Usage(Struct, frozen=True, gc=False):
    """Model tokens that a run took; ``estimated`` when the upstream did not say."""

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.estimated or other.estimated,
        )


class BaseEvent(Struct, frozen=True, tag_field="type"):
    """What every event has: the run and its place there (1, 2, 3 …; 0 in a draft)."""

    run_id: str = ""
    seq: int = 0


class Start(BaseEvent, frozen=True, kw_only=True, tag="start"):
    """The run has begun; the first event, sent before the upstream answers."""

    session_id: str
    message_id: str
    user_message_id: str
    model: str
    protocol: int
    heartbeat_ms: int


class Token(BaseEvent, frozen=True, kw_only=True, tag="token", gc=False):
    """Text to append to the answer; with a ``first_seq`` that of several events, from this number to ``seq``."""

    first_seq: int | UnsetType = UNSET
    content: str


class Reasoning(BaseEvent, frozen=True, kw_only=True, tag="reasoning", gc=False):
    """Reasoning text to append, where the model gives any; ``first_seq`` as in a `token`."""

    first_seq: int | UnsetType = UNSET
    content: str


class ToolInput(BaseEvent, frozen=True, kw_only=True, tag="tool_input", gc=False):
    """The next piece of the arguments of a call that the model is writing; for showing only."""

    call_id: str
    tool: str
    delta: str


class ToolCall(BaseEvent, frozen=True, kw_only=True, tag="tool_call"):
    """The agent calls a tool; the arguments are complete."""

    call_id: str
    tool: str
    args: dict[str, Any]
    needs_approval: bool = False
    executor: Executor = "server"


class ToolProgress(BaseEvent, frozen=True, kw_only=True, tag="tool_progress"):
    """A tool that runs tells how far it is; ``progress`` of ``total``, in a unit of its own."""

    call_id: str
    message: str | None
    progress: float | None
    total: float | None


class ToolResult(BaseEvent, frozen=True, kw_only=True, tag="tool_result"):
    """What a tool call gave back, or what went wrong; ``args``: with which arguments, where a user has edited them."""

    call_id: str
    tool: str
    result: Any
    is_error: bool
    truncated: bool
    duration_ms: int
    args: dict[str, Any] | UnsetType = UNSET


class Snapshot(BaseEvent, frozen=True, kw_only=True, tag="snapshot"):
    """All state up to and including this ``seq``; sent instead of older events that are not kept any more."""

    parts: Parts


class Done(BaseEvent, frozen=True, kw_only=True, tag="done"):
    """Terminal: the run has ended and the answer is stored."""

    session_id: str
    message_id: str
    finish_reason: FinishReason
    total_tokens: int
    usage: Usage
    duration_ms: int


class Error(BaseEvent, frozen=True, kw_only=True, tag="error"):
    """Terminal: the run has failed; what it produced until then is stored and marked."""

    code: ErrorCode
    message: str
    retryable: bool
    retry_after: float | None = None


Event: TypeAlias = (
    Start | Token | Reasoning | ToolInput | ToolCall | ToolProgress | ToolResult | Snapshot | Done | Error
)
Terminal: TypeAlias = Done | Error
EVENT_TYPES: tuple[type[Event], ...] = get_args(Event)
TERMINAL_TYPES = frozenset({"done", "error"})
TYPE_NAMES: dict[type[Event], str] = {each: str(each.__struct_config__.tag) for each in EVENT_TYPES}
"""The type of each event as it stands in the document."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)

_LINE_ENDS = tuple((mark.encode()[0], mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\x85\u2028\u2029")
"""Characters that are text in JSON and in SSE, but end a line for Python's `splitlines` and clients built on it.

The first byte of each, as a number, is found in a tenth of the time, and most languages do not have it.
"""


class Record(Struct, frozen=True, gc=False):
    """An entry of a log: an event's number, its type, and its JSON document, which is encoded once."""

    seq: int
    type: str
    data: bytes

    @property
    def is_terminal(self) -> bool:
        return self.type in TERMINAL_TYPES


def to_json(value: object) -> bytes:
    """JSON as events are written: one line, whatever characters a reader takes for line ends."""
    data = _encoder.encode(value)
    if not data.isascii():
        for first, raw, escaped in _LINE_ENDS:
            if first in data:
                data = data.replace(raw, escaped)
    return data


def appended(draft: Event, run_id: str, seq: int) -> Record:
    """The record of a draft, which gets its run and its number. Only here does an event become bytes."""
    return Record(seq, TYPE_NAMES[type(draft)], to_json(replace(draft, run_id=run_id, seq=seq)))


def record(event: Event) -> Record:
    """The record of an event that has its run and its number."""
    return appended(event, event.run_id, event.seq)


def decode(document: bytes) -> Event:
    """The event in a document that ``record`` made.

    Raises:
        msgspec.ValidationError: the document is no event.
    """
    return _decoder.decode(document)


TEXTS = (Token, Reasoning)


def pieces(text: Token | Reasoning) -> Sequence[Token | Reasoning]:
    """A text as the events it takes: one, or several when the text is longer than one event may be."""
    starts = range(0, len(text.content) or 1, TEXT_CHARS_PER_EVENT)
    return [type(text)(content=text.content[start : start + TEXT_CHARS_PER_EVENT]) for start in starts]


def schema(reference: str = "#/$defs/{name}") -> dict[str, Any]:
    """JSON Schema (2020-12) of the events. All fields are always on the wire, but for those that may be UNSET."""
    (union,), definitions = msgspec.json.schema_components([Event], ref_template=reference)
    kinds = {each.__name__: each for each in EVENT_TYPES}
    for name, definition in definitions.items():
        absent = {each.name for each in fields(kinds[name]) if each.default is UNSET} if name in kinds else set()
        for field in definition.get("properties", {}).values():
            field.pop("default", None)
        definition["required"] = [each for each in definition["properties"] if each not in absent]
    header = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Event"}
    return header | union | {"$defs": definitions}
