"""Chat Completions chunks: bytes to deltas, without I/O and without the SDK's models.

Building the SDK's chunk objects is the most expensive thing a streaming proxy can do (about 150 µs a token against
1 µs here, see `benchmarks/`), so the SDK sends the request and the answer is read here: nearly every chunk as one
Struct that is nothing but text, the others as the trees that they are. Servers differ in every field that a client does
not need; what is not needed is not looked at, and what is odd is not taken.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from chatserver.events import Usage
from chatserver.providers import Delta, Finish, ReasoningDelta, TextDelta
from chatserver.providers.chat_completions.chunks import HEARTBEATS, documents, failure_of
from chatserver.providers.chat_completions.finish_reasons import End, meaning
from chatserver.providers.chat_completions.repetition import Told
from chatserver.providers.chat_completions.thinking import ThinkTags
from chatserver.providers.chat_completions.tool_calls import ToolCalls
from chatserver.providers.clean_text import Cleaner
from chatserver.providers.faults import Fault, nonsense
from chatserver.providers.refusals import given_up, in_stream

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The fields that reasoning comes in; the first that has any."""

PIECES_LIMIT = 1_000_000
"""Chunks of a turn that say something: as many as a run has events, also where nothing is to be sent of them."""

TOKENS_BELIEVED = 10**9
"""A usage over this is a mistake."""


class _TextDelta(Struct):
    """Of a chunk that is nothing but text, as nearly all are: whatever else has a meaning is absent or null."""

    content: str
    reasoning: None = None
    reasoning_content: None = None
    thinking: None = None
    tool_calls: None = None
    function_call: None = None


class _TextChoice(Struct):
    delta: _TextDelta
    finish_reason: Literal["", "null"] | None = None
    message: None = None
    error: None = None
    usage: None = None


class _TextChunk(Struct):
    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None
    object: Literal["chat.completion.chunk"] | None = None


_decode_text = msgspec.json.Decoder(_TextChunk).decode


class TurnDecoder:
    """One turn's chunks to deltas.

    ``pieces``: how many have come of the answer; ``has_finished``: its end was said; ``went_on``: more came after that;
    ``is_over``: nothing of it can follow.
    """

    def __init__(self) -> None:
        self.pieces = 0
        self.has_finished = False
        self.went_on = False
        self.is_over = False
        self._reason: End = "stop"
        self._usage: tuple[int, int] | None = None
        self._calls = ToolCalls()
        self._text, self._reasoning = Cleaner(), Cleaner()
        self._told, self._thought = Told(), Told()
        self._tags = ThinkTags()

    @property
    def has_begun(self) -> bool:
        return self.pieces > 0

    def feed(self, events: Iterable[tuple[bytes, bytes]]) -> Iterator[Delta]:
        """The deltas in some events of the stream, each a type and a chunk.

        Raises:
            Fault: an error chunk, or one that makes no sense; not behind the end of the answer, which stays whole.
        """
        for kind, data in events:
            if self.is_over:
                return
            had_finished, pieces, found, fault = self.has_finished, self.pieces, list[Delta](), None
            chunk, is_done = _without_done(data)
            try:
                for each in documents(kind, chunk):
                    self._chunk(kind, each, found)
                if self.pieces > PIECES_LIMIT:
                    is_done = True
                    raise nonsense("a turn without end", "the model's answer has no end")
            except Fault as failure:
                fault = failure
            self.went_on = self.went_on or (had_finished and self.pieces > pieces)
            self.is_over = is_done
            self.has_finished = self.has_finished or is_done
            yield from found
            if fault is not None and not had_finished:
                raise fault

    def text(self, data: bytes) -> str | None:
        """What a chunk says that is nothing but text; otherwise None, and nothing was done."""
        if self.has_finished or self._text.is_halfway:
            return None
        try:
            text = _decode_text(data).choices[0].delta.content
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not text or "\0" in text or not (self._tags.is_past or self._tags.passes(text)):
            return None
        return text

    def took(self, text: str) -> None:
        """What ``text`` found was taken, and will not be fed."""
        self.pieces += 1
        self._told.add(text)

    def finish(self) -> Iterator[Delta]:
        """The collected tool calls and the finish of an answer that has ended."""
        if half := self._reasoning.rest():
            yield ReasoningDelta(half)
        for is_thought, text in (*self._split(self._text.rest()), *self._tags.rest()):
            yield ReasoningDelta(text) if is_thought else TextDelta(text)
        # Some servers say `stop` although they called tools; a cut answer's calls are not whole.
        calls = list(self._calls.requests()) if self._reason == "stop" else []
        yield from calls
        usage = None
        # A server that counts no tokens at all does not count.
        if self._usage is not None and self._usage[0] and (self._usage[1] or not self.has_begun):
            usage = Usage(*self._usage)
        yield Finish("tool_calls" if calls else self._reason, usage)

    def _chunk(self, kind: bytes, chunk: dict[str, Any], found: list[Delta]) -> None:
        said = chunk.get("type")
        if said is not None and isinstance(said, str) and said.lower() in HEARTBEATS:
            return
        if (failure := failure_of(kind, chunk)) is not None:
            raise in_stream(failure)
        choices = chunk.get("choices") or []
        if not isinstance(choices, list):
            raise nonsense("choices that are none")
        self._count(chunk)
        if (groq := chunk.get("x_groq")) is not None:
            self._count(groq)
        for choice in choices:
            if not isinstance(choice, dict):
                raise nonsense("choices that are none")
            self._count(choice)
            self._choice(choice, chunk.get("object") == "chat.completion", found)

    def _choice(self, choice: dict[str, Any], is_document: bool, found: list[Delta]) -> None:
        delta, message = choice.get("delta"), choice.get("message")
        reason = meaning(choice.get("finish_reason"))
        is_last = reason is not None or self.has_finished
        if isinstance(delta, dict):
            self._read(delta, found, may_repeat=is_last)
        elif delta is not None:
            raise nonsense("a delta that is none")
        if isinstance(message, dict):
            self._read(message, found, is_whole=True)
        elif delta is None and isinstance(choice.get("text"), str):
            self._read({"content": choice["text"]}, found)
        if choice.get("error"):
            raise in_stream(choice["error"])
        if reason == "failure":
            raise given_up(choice["finish_reason"])
        if reason is not None:
            self._reason = reason
        self.has_finished = is_last or (is_document and delta is None)

    def _read(
        self, delta: dict[str, Any], found: list[Delta], *, may_repeat: bool = False, is_whole: bool = False
    ) -> None:
        """What a delta says; or a message, which ``is_whole``: all of the answer so far, or at last."""
        content = delta.get("content")
        thoughts, content = _parts(delta.get("refusal") if content is None or content == "" else content)
        thoughts = _thoughts(delta) or thoughts
        if thoughts and (text := self._thought.new(self._reasoning.clean(thoughts), may_repeat, is_whole)):
            self.pieces += 1
            found.append(ReasoningDelta(text))
        if content and (text := self._told.new(self._text.clean(content), may_repeat, is_whole)):
            self.pieces += 1
            parts = self._split(text)
            found += [ReasoningDelta(part) if is_thought else TextDelta(part) for is_thought, part in parts]
        calls = delta.get("tool_calls")
        if calls is not None:
            for place, fragment in enumerate(calls if isinstance(calls, list) else [calls]):
                self.pieces += self._calls.collect(fragment, place if is_whole else None)
        if isinstance(call := delta.get("function_call"), dict):
            self.pieces += self._calls.collect({"index": 0, "function": call})

    def _split(self, text: str) -> list[tuple[bool, str]]:
        return self._tags.split(text) if text else []

    def _count(self, holder: Any) -> None:
        if isinstance(holder, dict) and isinstance(usage := holder.get("usage"), dict):
            read = _number(usage.get("prompt_tokens", usage.get("input_tokens")))
            if read:
                self._usage = read, _number(usage.get("completion_tokens", usage.get("output_tokens"))) or 0


def _without_done(data: bytes) -> tuple[bytes, bool]:
    """An event without the `[DONE]` that it is, or that stands in a line of its own; and whether there was one."""
    if data.startswith(b"{") and data.endswith(b"}"):
        return data, False
    if data[:32].strip(b" \t\"'").upper().startswith(b"[DONE]"):
        return b"", True
    chunk, done, _ = data.partition(b"\n[DONE]")
    return chunk, bool(done)


def _thoughts(delta: dict[str, Any]) -> str:
    for name in THOUGHTS:
        if (text := delta.get(name)) and isinstance(text, str):
            return text
    return ""


def _parts(content: Any) -> tuple[str, str]:
    """The thoughts and the text of a content, however it is made."""
    if isinstance(content, str):
        return "", content
    if not isinstance(content, list):
        return "", _plain(content)
    thoughts, texts = list[str](), list[str]()
    for part in content:
        texts.append(_plain(part))
        if isinstance(part, dict):
            thinking = part.get("thinking")
            thoughts += map(_plain, thinking if isinstance(thinking, list) else [thinking])
    return "".join(thoughts), "".join(texts)


def _plain(content: Any) -> str:
    """A piece of content as text, also where a server made a number or an object of it."""
    match content:
        case str():
            return content
        case int() | float() if not isinstance(content, bool):
            return json.dumps(content)
        case {"text": str(text)}:
            return text
        case _:
            return ""


def _number(value: object) -> int | None:
    if isinstance(value, int | float) and -TOKENS_BELIEVED <= value <= TOKENS_BELIEVED:
        return max(0, round(value))
    return None
