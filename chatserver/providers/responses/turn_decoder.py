"""The events of a Responses stream to deltas, without I/O and without the SDK's models.

Nearly every event is read as the one Struct that its type names (`python -m benchmarks.libraries`). What is none of
them, or is not quite JSON, is read as a tree: a failure ends the turn, and an unknown type is passed by.
"""

from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from chatserver.dialogue import Leavings
from chatserver.events import Reasoning, Token
from chatserver.providers import Finish, OnDelta
from chatserver.providers.api import PIECES_LIMIT, tokens_in, usage_of
from chatserver.providers.clean_text import Cleaner
from chatserver.providers.documents import HEARTBEATS, UNNAMED, documents, failure_of, without_done
from chatserver.providers.faults import Fault, endless, nonsense
from chatserver.providers.finish_reasons import End, meaning
from chatserver.providers.refusals import given_up, in_stream
from chatserver.providers.responses.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Completed,
    Event,
    Failed,
    Incomplete,
    ItemAdded,
    ItemDone,
    RefusalDelta,
    Response,
    SummaryDelta,
    TextDelta,
    ThoughtDelta,
)
from chatserver.providers.responses.function_calls import FunctionCalls
from chatserver.providers.responses.leavings import OutputItems
from chatserver.providers.thinking import ThinkTags

GAP = "\n\n"
"""Stands between two messages of a turn, and between two pieces of reasoning: the API has them apart."""

TYPES = frozenset(each.__struct_config__.tag for each in get_args(Event))

_decode = msgspec.json.Decoder(Event).decode


class ResponsesDecoder:
    """The ``TurnDecoder`` of Responses: each delta is handed to ``on_delta`` as soon as it is known."""

    __slots__ = (
        "_calls", "_chars", "_has_items", "_items", "_maker", "_on_delta", "_reason", "_reasoning", "_spans", "_tags",
        "_text", "_text_at", "_thought_at", "_usage", "has_finished", "is_over", "pieces", "went_on",
    )  # fmt: skip

    def __init__(self, on_delta: OnDelta, maker: str = "") -> None:
        """``maker``: who is asked, as the turn's leavings name it.

        ``_text_at``: the number of the item that the last text is of. ``_spans``: where the text of each item begins
        and ends in that of the turn. ``_thought_at``: the last reasoning, by its kind, its item, its part there, and
        the length of the text before it.
        """
        self.pieces = 0
        self.has_finished = False
        self.went_on = False
        self.is_over = False
        self._on_delta = on_delta
        self._maker = maker
        self._reason: End = "stop"
        self._usage: tuple[int, int] | None = None
        self._calls = FunctionCalls(on_delta)
        self._items = OutputItems()
        self._text, self._reasoning = Cleaner(), Cleaner()
        self._tags = ThinkTags()
        self._chars = 0
        self._text_at = -1
        self._spans: dict[int, tuple[int, int]] = {}
        self._thought_at: tuple[type, int, int, int] | None = None
        self._has_items = False

    def feed(self, events: Iterable[tuple[bytes, bytes]]) -> bool:
        for kind, data in events:
            if self.is_over:
                return False
            try:
                event = _decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._read_other(kind, data)
            else:
                if type(event) is TextDelta:  # As nearly all are.
                    if event.delta:
                        self._tell(event.delta, event.output_index)
                else:
                    self._read(event)
            if self.pieces > PIECES_LIMIT:
                raise endless()
        return self.is_over

    def finish(self) -> Finish:
        self._end_text()
        if half := self._reasoning.rest():
            self._on_delta(Reasoning(content=half))
        # The calls of an answer that was cut are not whole.
        calls = list(self._calls.requests()) if self._reason == "stop" else []
        for call in calls:
            self._on_delta(call)
        left = self._items.left(with_calls=bool(calls))
        return Finish(
            "tool_calls" if calls else self._reason,
            usage_of(self._usage, has_begun=self.pieces > 0),
            Leavings(self._maker, left) if left or calls else None,
        )

    def _read(self, event: Event) -> None:
        match event:
            case TextDelta() | RefusalDelta():
                self._tell(event.delta or "", event.output_index)
            case SummaryDelta():
                self._think(SummaryDelta, event.delta or "", event.output_index, event.summary_index)
            case ThoughtDelta():
                self._think(ThoughtDelta, event.delta or "", event.output_index, event.content_index)
            case ArgumentsDelta(delta=str(text)):
                self.pieces += 1
                self._calls.add(event.output_index, text)
            case ArgumentsDone(arguments=str(text)):
                self._calls.replace(event.output_index, text)
            case ItemAdded() if event.item.get("type") == "function_call":
                self.pieces += 1
                self._calls.begin(event.output_index, event.item)
            case ItemDone():
                self._end_item(event.item, event.output_index)
            case Failed():
                raise _failure(event.response)
            case Completed() | Incomplete():
                self._end(event.response, is_cut=isinstance(event, Incomplete))

    def _read_other(self, kind: bytes, data: bytes) -> None:
        chunk, is_done = without_done(data)
        named = kind.decode(errors="replace")
        for tree in documents(b"" if named in TYPES else kind, chunk):
            if kind not in UNNAMED:
                tree.setdefault("type", named)
            self._read_tree(kind, tree)
        if is_done:
            self.has_finished = self.is_over = True

    def _read_tree(self, kind: bytes, tree: dict[str, Any]) -> None:
        name = tree.get("type")
        if name is None and tree.get("object") == "response":
            return self._read_document(msgspec.convert(tree, Response))
        name = name if isinstance(name, str) else ""
        if name.lower() in HEARTBEATS:
            return None
        if (failure := failure_of(kind if kind == b"error" else name.encode(errors="replace"), tree)) is not None:
            raise in_stream(failure)
        if name in TYPES:
            try:
                event = msgspec.convert(tree, Event)
            except msgspec.ValidationError:
                raise nonsense("an event that makes no sense") from None
            self._read(event)
        return None

    def _read_document(self, response: Response) -> None:
        """The whole answer of a server that does not stream."""
        if response.status in ("failed", "cancelled"):
            raise _failure(response)
        self._end(response, is_cut=response.status == "incomplete")

    def _end(self, response: Response, *, is_cut: bool) -> None:
        self._usage = tokens_in(response.usage)
        if not self._has_items and isinstance(response.output, list):
            for index, item in enumerate(response.output):
                if isinstance(item, dict):
                    self._end_item(item, index)
        if is_cut:
            details = response.incomplete_details
            said = details.get("reason") if isinstance(details, dict) else None
            reason = meaning(said) or "length"
            if reason == "failure":
                raise given_up(str(said))
            self._reason = reason
        self.has_finished = self.is_over = True

    def _end_item(self, item: dict[str, Any], index: int) -> None:
        """A whole item. What it says is told if none of it was told yet, since some servers send no pieces."""
        self._has_items = True
        match item.get("type"):
            case "function_call":
                self.pieces += 1
                self._calls.begin(index, item)
            case "message":
                if index not in self._spans:
                    self._tell("".join(_texts(item.get("content"))), index)
                if index == self._text_at:
                    self._end_text()
            case "reasoning" if self._thought_at is None or self._thought_at[1] != index:
                for part, text in enumerate(_texts(item.get("summary")) or _texts(item.get("content"))):
                    self._think(ItemDone, text, index, part)
        self._items.add(item, self._spans.get(index, (0, 0)))

    def _think(self, kind: type, text: str, index: int, part: int) -> None:
        """Tell a piece of reasoning. Of several kinds in one item, the first one counts."""
        text, at = self._reasoning.clean(text), self._thought_at
        if not text or (at is not None and at[1] == index and at[0] is not kind):
            return
        self.pieces += 1
        if at is None or at[1] != index or at[2] != part:
            self._thought_at = kind, index, part, self._chars
            if at is not None and at[3] == self._chars:
                self._on_delta(Reasoning(content=GAP))
        self._on_delta(Reasoning(content=text))

    def _tell(self, text: str, index: int) -> None:
        """Tell a piece of the text of an item."""
        text = self._text.clean(text)
        if not text:
            return
        self.pieces += 1
        if index != self._text_at:
            self._begin_text(index)
        if self._tags.is_past:  # As it is for nearly all: no list is made.
            self._chars += len(text)
            self._on_delta(Token(content=text))
        else:
            self._say(self._tags.split(text))

    def _say(self, parts: Iterable[tuple[bool, str]]) -> None:
        for is_thought, text in parts:
            if is_thought:
                self._on_delta(Reasoning(content=text))
            else:
                self._chars += len(text)
                self._on_delta(Token(content=text))

    def _begin_text(self, index: int) -> None:
        self._end_text()
        if self._chars:
            self._tags.is_past = True  # Thoughts stand at the beginning of a turn.
            self._say([(False, GAP)])
        self._text_at = index
        self._spans[index] = self._chars, self._chars

    def _end_text(self) -> None:
        """The text of the last item is whole: what was held back of it is told."""
        if half := self._text.rest():
            self._text = Cleaner()
            self._say(self._tags.split(half))
        self._say(self._tags.rest())
        if (span := self._spans.get(self._text_at)) is not None:
            self._spans[self._text_at] = span[0], self._chars


def _texts(parts: Any) -> list[str]:
    """The texts of a content or a summary."""
    found = [part.get("text", part.get("refusal")) for part in parts or () if isinstance(part, dict)]
    return [text for text in found if isinstance(text, str) and text]


def _failure(response: Response) -> Fault:
    return in_stream(response.error) if response.error else given_up(str(response.status or "failed"))
