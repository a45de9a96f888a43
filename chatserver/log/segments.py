"""The records of one log: the newest as they are, those before them in sealed segments, which are compressed.

A token of a few characters takes 200 bytes in a list and 6 in a segment, so a log is kept whole, however long it is.
What is read of a segment is what was appended, byte for byte.
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache

from chatserver.events import Record, as_record
from chatserver.log import READ_BYTES_LIMIT, READ_RECORDS_LIMIT

OPEN_BYTES = 2 * READ_BYTES_LIMIT
"""What is not sealed of a log: enough for readers that keep up, so that nothing is unpacked for them."""

RECORD_BYTES = 110
"""What a record takes beside its document."""

COMPRESSION_LEVEL = 1  # 0.3 µs a token; what the higher levels gain is not worth their time.


class Segments:
    """A sequence that records are appended to. Only the first can be a snapshot; from there on no ``seq`` is missing.

    A segment is what one batch holds at most, so a reader never has more unpacked than it is sent.
    """

    __slots__ = ("_first_seqs", "_open", "_open_bytes", "_sealed", "_sealed_bytes")

    def __init__(self) -> None:
        self._sealed: list[bytes] = []
        self._first_seqs: list[int] = []
        self._sealed_bytes = 0
        self._open: list[Record] = []
        self._open_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._sealed_bytes + self._open_bytes

    def append(self, new: Record) -> None:
        self._open.append(new)
        self._open_bytes += RECORD_BYTES + len(new.data)
        if self._open_bytes > OPEN_BYTES and len(self._open) > 1:
            self._seal()

    def after(self, cursor: int) -> Sequence[Record]:
        """What one batch holds of the records behind a cursor, of which there is one at least."""
        records: Sequence[Record] = self._open
        if cursor == records[-1].seq - 1:
            return records[-1:]
        if self._sealed and cursor < records[0].seq - 1:
            records = _unsealed(self._sealed[max(0, bisect_right(self._first_seqs, cursor + 1) - 1)])
        return _batch(records, max(0, cursor - records[0].seq + 1))

    def parts(self) -> Iterator[Sequence[Record]]:
        """All records that there are now, the oldest first; each part is unpacked when it is asked for."""
        sealed, newest = list(self._sealed), list(self._open)
        yield from map(_unsealed, sealed)
        yield newest

    def _seal(self) -> None:
        oldest = _batch(self._open[:-1], 0)  # The newest stays open: a reader that keeps up asks for no other.
        self._sealed.append(zlib.compress(b"\n".join([each.data for each in oldest]), COMPRESSION_LEVEL))
        self._first_seqs.append(oldest[0].seq)
        self._sealed_bytes += RECORD_BYTES + len(self._sealed[-1])
        self._open_bytes -= sum(RECORD_BYTES + len(each.data) for each in oldest)
        del self._open[: len(oldest)]


@lru_cache(maxsize=16)  # Readers that catch up with a log together share what is unpacked for one of them.
def _unsealed(segment: bytes) -> Sequence[Record]:
    return tuple(map(as_record, zlib.decompress(segment).split(b"\n")))


def _batch(records: Sequence[Record], start: int) -> Sequence[Record]:
    batch = records[start : start + READ_RECORDS_LIMIT]
    room = READ_BYTES_LIMIT
    for count, each in enumerate(batch):
        room -= len(each.data)
        if room < 0 and count:
            return batch[:count]
    return batch
