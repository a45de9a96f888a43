"""`application/x-ndjson`: one document a line."""

from collections.abc import Sequence

from chatserver.events import Record
from chatserver.replies import PING
from chatserver.transports.formats.format import Format
from chatserver.transports.frames import framed_once


class JsonLines(Format):
    """The ping is the one that WebSocket clients know."""

    name = "ndjson"
    media_type = "application/x-ndjson"
    content_type = b"application/x-ndjson"
    ping = PING + b"\n"

    @staticmethod
    @framed_once
    def frame(records: Sequence[Record]) -> bytes:
        return b"".join([each.data + b"\n" for each in records])
