"""Chat Completions chunks: bytes to deltas, without I/O and without the SDK's models.

Building the SDK's chunk objects is the most expensive thing a streaming proxy can do (about 150 µs a token against
1 µs here, see `benchmarks/`), so the SDK sends the request and these Structs read the answer. Servers differ in every
field that a client does not need; what is not needed is not looked at.
"""

import json
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any, Literal

import msgspec
from msgspec import Struct

from chatserver.commands import new_id
from chatserver.errors import UpstreamError
from chatserver.events import Usage
from chatserver.providers import Delta, Finish, ReasoningDelta, TextDelta, ToolCallRequest

FINISH_REASONS = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
FAILURES = frozenset({"error", "abort", "cancelled"})
"""Reasons that some servers give for an answer that is none: a router whose model failed, a server that let it go."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
ARGUMENTS_CHARS_LIMIT = 1024 * 1024


class _Function(Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: Any = None
    function: _Function | None = None


class _Part(Struct):
    text: str | None = None
    thinking: list["_Part"] | None = None


class _Delta(Struct):
    content: str | list[_Part] | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: Any = None
    message: Any = None
    detail: Any = None


class _TextDelta(Struct):
    """Of a chunk that is nothing but text, as nearly all are: whatever else has a meaning is absent or null."""

    content: str
    reasoning: None = None
    reasoning_content: None = None
    tool_calls: None = None
    function_call: None = None


class _TextChoice(Struct):
    delta: _TextDelta
    finish_reason: None = None


class _TextChunk(Struct):
    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None
    object: Literal["chat.completion.chunk"] | None = None


class _Cleaner:
    """Text as it can be stored and sent on: PostgreSQL refuses NUL, UTF-8 has no lone surrogates.

    A pair of surrogates that a server splits over two chunks is put together.
    """

    def __init__(self) -> None:
        self._half = ""

    def clean(self, text: str) -> str:
        if self._half or not text.isascii():
            text = self._half + text
            self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
            whole = text[: len(text) - len(self._half)]
            text = whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text.replace("\0", REPLACEMENT)

    @property
    def is_halfway(self) -> bool:
        return bool(self._half)

    def rest(self) -> str:
        """What stands for a half whose other half never came."""
        return REPLACEMENT if self._half else ""


class _Pending:
    """A tool call whose arguments are still coming."""

    def __init__(self, call_id: str, index: int | None) -> None:
        self.call_id = call_id
        self.index = index
        self.name = ""
        self.arguments = ""
        self.cleaner = _Cleaner()

    @property
    def is_whole(self) -> bool:
        """Nothing can follow: the arguments are a JSON object already."""
        try:
            return isinstance(json.loads(self.arguments), dict)
        except (ValueError, RecursionError):
            return False


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_text = msgspec.json.Decoder(_TextChunk).decode


class TurnDecoder:
    """One turn's chunks to deltas.

    ``has_begun``: something of the answer was seen; ``has_finished``: its finish_reason was; ``is_over``: nothing of
    it can follow.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self.has_finished = False
        self.is_over = False
        self._reason: str | None = None
        self._usage: Usage | None = None
        self._calls: list[_Pending] = []
        self._by_id: dict[str, list[_Pending]] = {}
        self._by_index: dict[int | None, _Pending] = {}
        self._text, self._reasoning = _Cleaner(), _Cleaner()

    def feed(self, events: Iterable[tuple[bytes, bytes]]) -> Iterator[Delta]:
        """The deltas in some events of the stream, each a type and a chunk.

        Raises:
            UpstreamError: `llm_error`: an error chunk, or one that makes no sense.
        """
        for kind, data in events:
            if data == b"[DONE]":
                self.is_over = True
            if self.is_over:
                return
            chunk = _parse(data)
            says_wrong = chunk.choices is None and (chunk.error, chunk.message, chunk.detail) != (None, None, None)
            if kind == b"error" or chunk.error or chunk.object == "error" or says_wrong:
                raise UpstreamError("llm_error", "the model server reported an error in mid answer")
            if chunk.usage is not None and (read := _count(chunk.usage.prompt_tokens)) is not None:
                self._usage = Usage(read, _count(chunk.usage.completion_tokens) or 0)
            for choice in chunk.choices or ():
                if choice.finish_reason:
                    self._reason, self.has_finished = choice.finish_reason, True
                if (delta := choice.delta or choice.message) is not None:
                    yield from self._read(delta)

    def text(self, data: bytes) -> str | None:
        """What a chunk says that is nothing but text; otherwise None, and nothing was done."""
        if self.is_over or self._text.is_halfway:
            return None
        try:
            text = _decode_text(data).choices[0].delta.content
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not text or "\0" in text:
            return None
        self.has_begun = True
        return text

    def finish(self) -> Iterator[Delta]:
        """The collected tool calls and the finish of an answer that has its finish_reason.

        Raises:
            UpstreamError: `llm_error`: the reason is a failure.
        """
        if half := self._reasoning.rest():
            yield ReasoningDelta(half)
        if half := self._text.rest():
            yield TextDelta(half)
        if self._reason in FAILURES:
            raise UpstreamError("llm_error", "the model server gave the answer up", retryable=True)
        # Some servers say `stop` although they called tools; a cut answer's calls are not whole.
        reason = FINISH_REASONS.get(self._reason or "", "tool_calls" if self._calls else "stop")
        if reason == "tool_calls":
            for call in self._calls:
                yield ToolCallRequest(call.call_id, call.name, call.arguments + call.cleaner.rest())
        yield Finish(reason, self._usage)  # type: ignore[arg-type]  # the keys and values above are the literals

    def _read(self, delta: _Delta) -> list[Delta]:
        found: list[Delta] = []
        thought, content = delta.reasoning_content or delta.reasoning, delta.content
        if isinstance(content, list):
            thought = thought or "".join(each.text or "" for part in content for each in part.thinking or ())
            content = "".join(part.text or "" for part in content)
        if thought and isinstance(thought, str):
            self.has_begun = True
            if thought := self._reasoning.clean(thought):
                found.append(ReasoningDelta(thought))
        if text := content or delta.refusal:
            self.has_begun = True
            if text := self._text.clean(text):
                found.append(TextDelta(text))
        for fragment in delta.tool_calls or ():
            self._collect(fragment)
        if delta.function_call is not None:
            self._collect(_ToolCall(index=0, function=delta.function_call))
        return found

    def _collect(self, fragment: _ToolCall) -> None:
        self.has_begun = True
        call = self._call_of(fragment)
        function = fragment.function or _Function()
        if function.name and not call.arguments:
            call.name = cleaned(function.name)
        if isinstance(function.arguments, dict):
            call.arguments = json.dumps(function.arguments)
        elif function.arguments:
            call.arguments += call.cleaner.clean(function.arguments)
        if len(call.arguments) > ARGUMENTS_CHARS_LIMIT:
            raise UpstreamError("llm_error", "the model's tool arguments have no end")

    def _call_of(self, fragment: _ToolCall) -> _Pending:
        """The call that a fragment belongs to; a new one where it begins one.

        A known id decides. A new id with a name begins a call even under an index in use, since some servers count
        every call as number 0. Without an id the index decides, unless that call is whole and this one has a name.
        Without both a name begins a call.
        """
        function, id, index = fragment.function or _Function(), cleaned(str(fragment.id or "")), fragment.index
        for known in reversed(self._by_id.get(id, ())):
            if index is None or known.index in (None, index):
                return known
        if not (function.name and (id or index is None)):
            same = self._by_index.get(index) if index is not None else self._calls[-1] if self._calls else None
            if same and not (function.name and function.arguments and same.is_whole):
                return same
        call = _Pending(id if id and id not in self._by_id else f"call_{new_id()}", index)
        self._by_id.setdefault(id or call.call_id, []).append(call)
        self._by_index[index] = call
        self._calls.append(call)
        return call


def _count(value: object) -> int | None:
    return max(0, round(value)) if isinstance(value, int | float) and isfinite(value) else None


def cleaned(text: str) -> str:
    """A whole text of an upstream, as it can be stored and sent on."""
    cleaner = _Cleaner()
    return cleaner.clean(text) + cleaner.rest()


def _parse(data: bytes) -> _Chunk:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # A lone surrogate escape, or a byte that is no UTF-8, spoils a character and not the answer.
    try:
        return msgspec.convert(json.loads(data.decode(errors="replace")), _Chunk)
    except (ValueError, RecursionError, msgspec.ValidationError):
        raise UpstreamError("llm_error", "the model server sent a chunk that makes no sense") from None
