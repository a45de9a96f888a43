"""Answers: what a run has said, as parts. ``fold`` is the only place that makes an answer of events."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TypeGuard

from msgspec import UNSET, Struct
from msgspec.structs import replace

from chatserver.dialogue import TurnOrigin
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    Event,
    Reasoning,
    Snapshot,
    Token,
    ToolCall,
    ToolResult,
    pieces,
    record,
    to_json,
)
from chatserver.parts import Part, Parts, ReasoningPart, TextPart, ToolCallPart, text_of


class Answer(Struct, frozen=True):
    """What a run has said up to some event.

    ``transcript`` is what no event tells: how each turn has to be told to the provider that streamed it.
    """

    parts: Parts = ()
    transcript: tuple[TurnOrigin, ...] = ()

    @property
    def content(self) -> str:
        return text_of(self.parts)

    def snapshot(self, run_id: str, seq: int) -> Snapshot:
        return Snapshot(run_id=run_id, seq=seq, parts=self.parts)


_TEXT, _REASONING, _CALL = range(3)
_KIND_BITS = 2


class Folding:
    """An answer that grows event by event.

    Texts that are adjacent and of one kind are one part, whatever turns they are of: events do not tell turns. All text
    is in one array of UTF-8, and each part is kept as the offset where its text begins: so an answer takes its text and
    8 bytes a part.
    """

    __slots__ = ("_begins", "_calls", "_kind", "_text")

    def __init__(self) -> None:
        self._text = bytearray()
        self._begins = array("Q")  # of each part: its offset in the text, and its kind in the lowest bits
        self._calls: dict[str, ToolCallPart] = {}
        self._kind = -1

    @property
    def size_bytes(self) -> int:
        return len(self._text) + len(self._begins) * self._begins.itemsize

    def answer(self) -> Answer:
        return Answer(tuple(self._parts()))

    def _parts(self) -> Iterator[Part]:
        calls = iter(self._calls.values())
        ends = [begin >> _KIND_BITS for begin in self._begins[1:]] + [len(self._text)]
        for begin, end in zip(self._begins, ends, strict=True) if self._begins else ():
            kind = begin & (1 << _KIND_BITS) - 1
            if kind == _CALL:
                yield next(calls)
            else:
                text = self._text[begin >> _KIND_BITS : end].decode()
                yield TextPart(text) if kind == _TEXT else ReasoningPart(text)

    def add(self, event: Event) -> None:
        """Take in the next event.

        Raises:
            KeyError: the result of a call that nobody made; nothing was done.
        """
        if type(event) is Token:  # As nearly all events are: a match takes three times as long.
            if self._kind != _TEXT and event.content:
                self._begin(_TEXT)
            self._text += event.content.encode()
            return
        match event:
            case Reasoning():
                self._say(_REASONING, event.content)
            case ToolCall():
                call = ToolCallPart(
                    call_id=event.call_id,
                    tool=event.tool,
                    args=event.args,
                    needs_approval=event.needs_approval,
                    executor=event.executor,
                )
                self._call(call)
            case ToolResult():
                call = self._calls[event.call_id]
                self._calls[event.call_id] = replace(
                    call,
                    args=call.args if event.args is UNSET else event.args,
                    result=event.result,
                    is_error=event.is_error,
                    truncated=event.truncated,
                    duration_ms=event.duration_ms,
                )
            case Snapshot():
                Folding.__init__(self)
                for part in event.parts:
                    match part:
                        case TextPart():
                            self._say(_TEXT, part.text)
                        case ReasoningPart():
                            self._say(_REASONING, part.text)
                        case ToolCallPart():
                            self._call(part)

    def _say(self, kind: int, text: str) -> None:
        if self._kind != kind and text:
            self._begin(kind)
        self._text += text.encode()

    def _call(self, call: ToolCallPart) -> None:
        if call.call_id not in self._calls:
            self._begin(_CALL)
        self._calls[call.call_id] = call

    def _begin(self, kind: int) -> None:
        self._kind = kind
        self._begins.append(len(self._text) << _KIND_BITS | kind)


def fold(events: Iterable[Event]) -> Answer:
    """The answer after these events."""
    folding = Folding()
    for event in events:
        folding.add(event)
    return folding.answer()


def closed(part: ToolCallPart, words: str, duration_ms: int = 0) -> ToolCallPart:
    """A call whose run has ended before the result: the words take its place. ``duration_ms`` 0: nobody knows it."""
    return replace(part, result=words, is_error=True, truncated=False, duration_ms=duration_ms)


def is_open(part: Part) -> TypeGuard[ToolCallPart]:
    """Whether it is a call without a result."""
    return isinstance(part, ToolCallPart) and part.is_error is None


def interrupted(answer: Answer, known: Callable[[ToolCallPart], str]) -> Answer:
    """The answer of a run that was interrupted, with all its calls closed in the words that say what is ``known``."""
    return replace(answer, parts=tuple([closed(part, known(part)) if is_open(part) else part for part in answer.parts]))


def unfold(parts: Iterable[Part]) -> Iterator[Event]:
    """Events that fold to these parts. A text that is too long for one event becomes several."""
    for part in parts:
        match part:
            case TextPart():
                yield from pieces(Token(content=part.text))
            case ReasoningPart():
                yield from pieces(Reasoning(content=part.text))
            case ToolCallPart():
                yield call_of(part)
                if part.is_error is not None:
                    yield result_of(part)


def call_of(call: ToolCallPart) -> ToolCall:
    """The event of a call, without what came of it."""
    return ToolCall(
        call_id=call.call_id,
        tool=call.tool,
        args=call.args,
        needs_approval=call.needs_approval,
        executor=call.executor,
    )


def result_of(call: ToolCallPart) -> ToolResult:
    """The event of a call's result."""
    return ToolResult(
        call_id=call.call_id,
        tool=call.tool,
        result=call.result,
        is_error=bool(call.is_error),
        truncated=bool(call.truncated),
        duration_ms=call.duration_ms or 0,
    )


def retold(parts: Parts, run_id: str, seq: int) -> Iterator[Event]:
    """Drafts that fold to these parts: a snapshot of those that fit into one event (``seq``), then the others."""
    room = EVENT_BYTES_LIMIT - len(record(Answer().snapshot(run_id, seq)).data) + len(",")  # The first part has none.
    count = 0
    for part in parts:
        room -= len(to_json(part)) + 1
        if room < 0:
            break
        count += 1
    yield Snapshot(parts=parts[:count])
    yield from unfold(parts[count:])
