"""The merged form of a log: adjacent texts of one kind are one text, with the length of each, so that none is lost.

A token of a few characters takes 250 bytes as a record; here it takes its text and 2 bytes.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from struct import unpack
from typing import TypeAlias

from msgspec import UNSET

from chatserver.events import (
    TEXT_CHARS_PER_EVENT,
    TEXTS,
    TYPE_NAMES,
    Event,
    Reasoning,
    Record,
    Token,
    decode,
    record,
)
from chatserver.log import StoredLog, batch_of

BLOCK_BYTES = 250
"""What a block takes beside its text and the lengths, or beside its document."""


class Texts:
    """Adjacent texts of one kind, joined; cut between any two of them.

    ``room``: how many characters more they may have. An empty text takes the room of one character, so that their
    number has a limit too: a reader who has some of them makes the server count up to them.
    """

    __slots__ = ("first_seq", "kind", "lengths", "room", "text")

    def __init__(self, kind: type[Token | Reasoning], first_seq: int) -> None:
        self.kind = kind
        self.first_seq = first_seq
        self.text = bytearray()  # UTF-8
        self.lengths = array("H")  # in characters; one event has no more than 10,000
        self.room = TEXT_CHARS_PER_EVENT

    def event(self, run_id: str, after: int = 0) -> Token | Reasoning:
        """What follows a cursor, which is before the last of them."""
        skipped = self._skipped(after)
        first, last = self.first_seq + skipped, self.first_seq + len(self.lengths) - 1
        content = self.text.decode()[sum(self.lengths[:skipped]) :]
        return self.kind(run_id=run_id, seq=last, first_seq=first if first < last else UNSET, content=content)

    def lengths_after(self, after: int) -> Sequence[int]:
        """Those of the texts that follow a cursor."""
        return self.lengths[self._skipped(after) :]

    def _skipped(self, after: int) -> int:
        return max(0, after + 1 - self.first_seq)

    def seal(self) -> None:
        """Nothing more is added: let go of the room for it."""
        self.text, self.lengths = bytearray(self.text), self.lengths[:]


Block: TypeAlias = Texts | Record


class Merged:
    """All events of a log in their order. Only the first can be a snapshot; from there on no ``seq`` is missing."""

    __slots__ = ("_blocks", "_run_id", "_texts")

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._blocks: list[Block] = []
        self._texts: Texts | None = None  # The last block, where it is texts.

    @property
    def size_bytes(self) -> int:
        """About what it takes of the memory."""
        return sum(map(_size_bytes, self._blocks))

    @property
    def is_over(self) -> bool:
        """Whether the terminal event is there."""
        last = self._blocks[-1] if self._blocks else None
        return isinstance(last, Record) and last.is_terminal

    def add(self, new: Record) -> None:
        """Add an event that is no text."""
        self.seal()
        self._blocks.append(new)

    def add_text(self, seq: int, text: Token | Reasoning) -> None:
        """Add a single text."""
        chars = len(text.content)
        texts = self._with_room(chars or 1, type(text), seq)
        texts.text += text.content.encode()
        texts.lengths.append(chars)

    def _with_room(self, taken: int, kind: type[Token | Reasoning], first_seq: int) -> Texts:
        """The last block, of which so much room is taken; a new one, where the last block has no room for this."""
        texts = self._texts
        if texts is None or texts.kind is not kind or texts.room < taken:
            self.seal()
            self._texts = texts = Texts(kind, first_seq)
            self._blocks.append(texts)
        texts.room -= taken
        return texts

    def seal(self) -> None:
        """What is added from now on is not joined to what there is."""
        if self._texts is not None:
            self._texts.seal()
            self._texts = None

    def after(self, cursor: int) -> Sequence[Record]:
        """What one batch holds of the events behind a cursor, of which there is one at least."""
        return batch_of(self._record(block, cursor) for block in islice(self._blocks, self._start(cursor), None))

    def _start(self, cursor: int) -> int:
        """The index of the block that has the first event behind a cursor."""
        return max(0, bisect_right(self._blocks, cursor + 1, key=_first_seq) - 1)

    def _record(self, block: Block, after: int = 0) -> Record:
        return block if isinstance(block, Record) else record(block.event(self._run_id, after))

    def events(self) -> Iterator[Event]:
        """All events, the oldest first."""
        for block in self._blocks:
            yield decode(block.data) if isinstance(block, Record) else block.event(self._run_id)

    def stored(self, last: Sequence[Record] = ()) -> StoredLog:
        """The log as it is stored, with some events behind it that are not in it."""
        return self._stored(self._blocks, last=last)

    def stored_after(self, cursor: int) -> StoredLog:
        """About what one batch holds of the events behind a cursor, of which there is one at least, as it is stored."""
        start = self._start(cursor)
        return self._stored(self._blocks[start : start + len(self.after(cursor))], cursor)

    @property
    def closed_blocks(self) -> int:
        """How many blocks have another behind them: nothing is added to them any more."""
        return max(0, len(self._blocks) - 1)

    def stored_block(self, index: int) -> StoredLog:
        """One block, as it is stored."""
        return self._stored(self._blocks[index : index + 1])

    def _stored(self, blocks: Iterable[Block], after: int = 0, last: Sequence[Record] = ()) -> StoredLog:
        records, lengths = list[Record](), array("H")
        for block in blocks:
            records.append(self._record(block, after))
            if isinstance(block, Texts) and len(left := block.lengths_after(after)) > 1:
                lengths.extend(left)
        return StoredLog.of([*records, *last], lengths)

    def restore(self, stored: StoredLog) -> Iterator[int]:
        """Add what was stored, an event for each ``seq`` that is asked for: a long log takes a while."""
        for event, document, lengths in events_of(stored):
            self.add_stored(event, document, lengths)
            yield event.seq
        self.seal()

    def add_stored(self, event: Event, document: bytes, lengths: tuple[int, ...]) -> None:
        """Add an event as ``events_of`` gives it."""
        if not isinstance(event, TEXTS):
            self.add(Record(event.seq, TYPE_NAMES[type(event)], document))
        elif event.first_seq is UNSET:
            self.add_text(event.seq, event)
        else:
            texts = self._with_room(sum(lengths) + lengths.count(0), type(event), event.first_seq)
            texts.text += event.content.encode()
            texts.lengths.extend(lengths)


def events_of(stored: StoredLog) -> Iterator[tuple[Event, bytes, tuple[int, ...]]]:
    """What was stored: each event, its document, and the lengths of the texts that it has merged, if it has."""
    lengths, start = unpack(f"<{len(stored.lengths) // 2}H", stored.lengths), 0
    for document in stored.documents.split(b"\n"):
        event = decode(document)
        count = event.seq - event.first_seq + 1 if isinstance(event, TEXTS) and event.first_seq is not UNSET else 0
        yield event, document, lengths[start : start + count]
        start += count


def _first_seq(block: Block) -> int:
    return block.seq if isinstance(block, Record) else block.first_seq


def _size_bytes(block: Block) -> int:
    return BLOCK_BYTES + (len(block.data) if isinstance(block, Record) else len(block.text) + 2 * len(block.lengths))
