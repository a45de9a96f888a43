"""Chat Completions chunks: bytes to deltas, without I/O and without the SDK's models.

To build the SDK's object of a chunk takes 65 µs, to read the chunk here 1.3 µs (`python -m benchmarks.libraries`):
nearly every chunk is read as one Struct that holds only texts, any other as a JSON tree. Servers differ in every field
that a client does not need: such fields are not read, and values of a wrong type are ignored.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from chatserver.dialogue import Leavings
from chatserver.events import Reasoning, Token
from chatserver.providers import Finish, OnDelta
from chatserver.providers.api import LEAVINGS_BYTES_LIMIT, PIECES_LIMIT, size_of, tokens_in, usage_of
from chatserver.providers.chat_completions.leavings import MessageFields
from chatserver.providers.chat_completions.repetition import Told
from chatserver.providers.chat_completions.tool_calls import ToolCalls
from chatserver.providers.clean_text import Cleaner
from chatserver.providers.documents import HEARTBEATS, documents, failure_of, without_done
from chatserver.providers.faults import Fault, endless, nonsense
from chatserver.providers.finish_reasons import End, meaning
from chatserver.providers.refusals import given_up, in_stream
from chatserver.providers.thinking import ThinkTags

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The fields that may hold reasoning; the first with any text counts."""


_Thought: TypeAlias = Annotated[str, Meta(min_length=1)] | None
"""An empty one goes back with its turn, and is read as a tree: no token pays for it."""


class _TextDelta(Struct, gc=False):
    """The delta of a chunk that holds only texts, as nearly all do: every other meaningful field is absent or null."""

    content: str | None = None
    reasoning_content: _Thought = None
    reasoning: _Thought = None
    thinking: _Thought = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    reasoning_details: None = None
    extra_content: None = None


class _TextChoice(Struct, gc=False):
    delta: _TextDelta
    index: Literal[0] | None = None
    finish_reason: Literal["", "null"] | None = None
    message: None = None
    error: None = None
    usage: None = None


class _TextChunk(Struct, gc=False):
    choices: tuple[_TextChoice]
    usage: None = None
    error: None = None
    type: None = None
    base_resp: None = None
    x_groq: None = None
    object: Literal["chat.completion.chunk"] | None = None


_decode_texts = msgspec.json.Decoder(_TextChunk).decode


class TurnDecoder:
    """The ``TurnDecoder`` of Chat Completions: each delta is handed to ``on_delta`` as soon as it is known."""

    __slots__ = (
        "_calls", "_fields", "_maker", "_on_delta", "_reason", "_reasoning", "_tags", "_text", "_thought", "_told",
        "_usage", "has_finished", "is_over", "pieces", "went_on",
    )  # fmt: skip

    def __init__(self, on_delta: OnDelta, maker: str = "") -> None:
        """``maker``: who is asked, as the turn's leavings name it."""
        self.pieces = 0
        self.has_finished = False
        self.went_on = False
        self.is_over = False
        self._on_delta = on_delta
        self._maker = maker
        self._reason: End = "stop"
        self._usage: tuple[int, int] | None = None
        self._calls = ToolCalls(on_delta)
        self._text, self._reasoning = Cleaner(), Cleaner()
        self._told, self._thought = Told(), Told()
        self._tags = ThinkTags()
        self._fields = MessageFields()

    def feed(self, events: Iterable[tuple[bytes, bytes]]) -> bool:
        is_ending = False
        for kind, data in events:
            if kind or self.has_finished or not self._read_texts(data):
                if self.is_over:
                    break
                is_ending = self._read_event(kind, data) or is_ending
            if self.pieces > PIECES_LIMIT:
                self.is_over = is_ending = True
                if not self.has_finished:
                    raise endless()
        return is_ending

    def finish(self) -> Finish:
        if half := self._reasoning.rest():
            self._on_delta(Reasoning(content=half))
        for is_thought, text in (*self._split(self._text.rest()), *self._tags.rest()):
            self._on_delta(Reasoning(content=text) if is_thought else Token(content=text))
        # Some servers say `stop` although they called tools; a cut answer's calls are not whole.
        calls = list(self._calls.requests()) if self._reason == "stop" else []
        for call, _ in calls:
            self._on_delta(call)
        usage = usage_of(self._usage, has_begun=self.pieces > 0)
        return Finish("tool_calls" if calls else self._reason, usage, self._leavings([left for _, left in calls]))

    def _leavings(self, calls: list[dict[str, Any]]) -> Leavings | None:
        message = self._fields.left(with_calls=bool(calls))
        if size_of(calls) > LEAVINGS_BYTES_LIMIT:
            message, calls = {}, [{} for _ in calls]
        if not (message or calls):
            return None
        return Leavings(self._maker, {"message": message, "calls": calls})

    def _read_texts(self, data: bytes) -> bool:
        """Read a chunk that is nothing but texts; False: it is not, and nothing was done.

        As a Struct it takes a third of the time that the tree of the same chunk takes.
        """
        try:
            delta = _decode_texts(data).choices[0].delta
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if thoughts := delta.reasoning_content or delta.reasoning or delta.thinking:
            if self._fields.reasoning_field is None:
                self._fields.reasoning_field = next(name for name in THOUGHTS if getattr(delta, name))
            self._think(thoughts)
        if content := delta.content:
            self._tell(content)
        return True

    def _read_event(self, kind: bytes, data: bytes) -> bool:
        had_finished, pieces = self.has_finished, self.pieces
        chunk, is_done = without_done(data)
        try:
            for each in documents(kind, chunk):
                self._read_chunk(kind, each)
        except Fault:
            if not had_finished:
                raise
        self.went_on = self.went_on or (had_finished and self.pieces > pieces)
        self.is_over = is_done
        self.has_finished = self.has_finished or is_done
        return is_done or self.has_finished is not had_finished

    def _read_chunk(self, kind: bytes, chunk: dict[str, Any]) -> None:
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
            if choice.get("index") in (None, 0, "0"):  # Any other is one more answer, which nobody has asked for.
                self._read_choice(choice, chunk.get("object") == "chat.completion")

    def _read_choice(self, choice: dict[str, Any], is_document: bool) -> None:
        delta, message = choice.get("delta"), choice.get("message")
        reason = meaning(choice.get("finish_reason"))
        is_last = reason is not None or self.has_finished
        if isinstance(delta, dict):
            self._read_delta(delta, may_repeat=is_last)
        elif delta is not None:
            raise nonsense("a delta that is none")
        if isinstance(message, dict):
            self._read_delta(message, is_whole=True)
        elif delta is None and isinstance(choice.get("text"), str):
            self._read_delta({"content": choice["text"]})
        if choice.get("error"):
            raise in_stream(choice["error"])
        if reason == "failure":
            raise given_up(choice["finish_reason"])
        if reason is not None:
            self._reason = reason
        self.has_finished = is_last or (is_document and delta is None)

    def _read_delta(self, delta: dict[str, Any], *, may_repeat: bool = False, is_whole: bool = False) -> None:
        """What a delta says; or a message, which ``is_whole``: all of the answer so far, or at last."""
        content = delta.get("content")
        thoughts, content = _parts(delta.get("refusal") if content is None or content == "" else content)
        fields = [name for name in THOUGHTS if isinstance(delta.get(name), str)]
        if field := next((name for name in fields if delta[name]), None):
            self._fields.reasoning_field = self._fields.reasoning_field or field
            thoughts = delta[field]
        elif fields:
            self._fields.empty_field = self._fields.empty_field or fields[0]
        self._fields.collect(delta, is_whole=is_whole)
        if thoughts:
            self._think(thoughts, may_repeat, is_whole)
        if content:
            self._tell(content, may_repeat, is_whole)
        calls = delta.get("tool_calls")
        if calls is not None:
            for place, fragment in enumerate(calls if isinstance(calls, list) else [calls]):
                self.pieces += self._calls.collect(fragment, place if is_whole else None)
        if isinstance(call := delta.get("function_call"), dict):
            self.pieces += self._calls.collect({"index": 0, "function": call})

    def _think(self, thoughts: str, may_repeat: bool = False, is_whole: bool = False) -> None:
        if text := self._thought.new(self._reasoning.clean(thoughts), may_repeat, is_whole):
            self.pieces += 1
            self._fields.think(text)
            self._on_delta(Reasoning(content=text))

    def _tell(self, content: str, may_repeat: bool = False, is_whole: bool = False) -> None:
        if text := self._told.new(self._text.clean(content), may_repeat, is_whole):
            self.pieces += 1
            if self._tags.is_past:  # As it is for nearly all: no list is made.
                return self._on_delta(Token(content=text))
            for is_thought, part in self._tags.split(text):
                self._on_delta(Reasoning(content=part) if is_thought else Token(content=part))

    def _split(self, text: str) -> list[tuple[bool, str]]:
        return self._tags.split(text) if text else []

    def _count(self, holder: Any) -> None:
        if isinstance(holder, dict):
            self._usage = tokens_in(holder.get("usage")) or self._usage


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
