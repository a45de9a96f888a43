"""`text/plain`: the tokens' text alone."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from chatserver.events import Record, Snapshot, decode
from chatserver.parts import text_of
from chatserver.transports.formats.format import Format
from chatserver.transports.frames import framed_once


class _Token(Struct):
    """All that is read of a token's document."""

    content: str


_token = msgspec.json.Decoder(_Token)


def _text(each: Record) -> str:
    if each.type == "token":
        return _token.decode(each.data).content
    if each.type != "snapshot":
        return ""
    event = decode(each.data)
    return text_of(event.parts) if isinstance(event, Snapshot) else ""


class PlainText(Format):
    """It has no words for a ping, and none for a failure."""

    name = "text"
    media_type = "text/plain"
    content_type = b"text/plain; charset=utf-8"
    shows_failure = False

    @staticmethod
    @framed_once
    def frame(records: Sequence[Record]) -> bytes:
        return "".join(map(_text, records)).encode()
