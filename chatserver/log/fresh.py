"""The newest events of a log, as they were appended: what readers that keep up are given."""

from collections.abc import Sequence
from itertools import islice

from chatserver.events import Record
from chatserver.log import batch_of

FRESH_BYTES = 12 * 1024
"""How much is fresh about, at least: 64 tokens. At most it is twice as much, and one event."""

RECORD_BYTES = 100
"""What a record takes beside its document."""


class Fresh:
    """Records without a gap between them; the older half goes when the newer one is full."""

    __slots__ = ("_bytes", "_half", "_records", "after")

    def __init__(self) -> None:
        self.clear(0)

    def clear(self, last_seq: int) -> None:
        """Nothing is fresh any more, up to this ``seq``."""
        self.after = last_seq
        self._records: list[Record] = []
        self._half = 0
        self._bytes = 0

    def append(self, new: Record) -> None:
        self._records.append(new)
        self._bytes += RECORD_BYTES + len(new.data)
        if self._bytes > FRESH_BYTES:
            del self._records[: self._half]
            self.after += self._half
            self._half, self._bytes = len(self._records), 0

    def following(self, cursor: int) -> Sequence[Record]:
        """What one batch holds of the records behind a cursor, which is not before ``after``."""
        return batch_of(islice(self._records, cursor - self.after, None))
