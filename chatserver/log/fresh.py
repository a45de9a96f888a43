"""The newest events of a log, as they were appended: what readers that keep up are given."""

from collections.abc import Sequence

from chatserver.events import Record
from chatserver.log import BATCH_BYTES_LIMIT, BATCH_RECORDS_LIMIT, batch_of

FRESH_BYTES = 12 * 1024
"""How much is fresh about, at least: 64 tokens. At most it is twice as much, and one event."""

RECORD_BYTES = 100
"""What a record takes beside its document."""

ONE_BATCH_BYTES = min(BATCH_BYTES_LIMIT, BATCH_RECORDS_LIMIT * RECORD_BYTES)
"""While no more than this is fresh, any part of it fits into one batch: nearly always, and nothing is counted then."""


class Fresh:
    """Records without a gap between them; the older half goes when the newer one is full."""

    __slots__ = ("_bytes", "_half", "_older_bytes", "_records", "after")

    def __init__(self) -> None:
        self.clear(0)

    def clear(self, last_seq: int) -> None:
        """Nothing is fresh any more, up to this ``seq``."""
        self.after = last_seq
        self._records: list[Record] = []
        self._half = 0
        self._bytes = self._older_bytes = 0

    def append(self, new: Record) -> None:
        self._records.append(new)
        self._bytes += RECORD_BYTES + len(new.data)
        if self._bytes > FRESH_BYTES:
            del self._records[: self._half]
            self.after += self._half
            self._half = len(self._records)
            self._bytes, self._older_bytes = 0, self._bytes

    def following(self, cursor: int) -> Sequence[Record]:
        """What one batch holds of the records behind a cursor, which is not before ``after``."""
        records = self._records[cursor - self.after :]
        return records if self._bytes + self._older_bytes <= ONE_BATCH_BYTES else batch_of(records)
