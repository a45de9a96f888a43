"""A part of a run's log as nodes hand it over: documents, one a line, and behind an empty line the merged lengths."""

from collections.abc import Sequence

from chatserver.events import Record
from chatserver.log import StoredLog

_MARK = b"\n\n"


def chunk_of(records: Sequence[Record]) -> bytes:
    """A chunk of records of which none is merged."""
    return b"\n".join([each.data for each in records])


def packed_chunk(part: StoredLog) -> bytes:
    """A chunk of a part of a log in its stored form."""
    return part.documents + _MARK + part.lengths if part.lengths else part.documents


def unpacked_chunk(chunk: bytes) -> StoredLog:
    """The part of a log that a chunk holds; what reads it knows its last number."""
    documents, _, lengths = chunk.partition(_MARK)
    return StoredLog(0, documents, lengths)
