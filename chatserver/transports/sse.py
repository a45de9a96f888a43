"""How a run's records are written over plain HTTP: as SSE, NDJSON or text. Bytes only: `stream` sends them."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from chatserver.errors import NotAcceptable
from chatserver.events import Event, Record, Snapshot, Token, decode
from chatserver.parts import text_of
from chatserver.replies import PING
from chatserver.transports.frames import framed_once

RETRY_MS = 1000
"""How long a browser's EventSource waits before it comes back."""


class Format(Protocol):
    """One way to write records as the body of a response."""

    media_type: str
    content_type: bytes
    ping: bytes

    def opening(self) -> bytes:
        """The first bytes, sent before any event."""
        ...

    def frame(self, records: Sequence[Record]) -> bytes:
        """The records as the bytes of one write."""
        ...

    def farewell(self) -> bytes:
        """The last bytes of a stream that ends before its run."""
        ...


@framed_once
def _events(records: Sequence[Record]) -> bytes:
    return b"".join(map(_event, records)) if len(records) > 1 else _event(records[0])


def _event(each: Record) -> bytes:
    return b"event: %b\ndata: %b\nid: %d\n\n" % (each.type.encode(), each.data, each.seq)


class EventStream:
    """`text/event-stream`, LF only: some clients split on nothing else.

    An empty line stands only behind events: some clients take each block for an event, also a block without data.
    `id:` stands behind `data:`: some clients take an event for handled as soon as they know its id.
    """

    media_type = "text/event-stream"
    content_type = b"text/event-stream"  # Always UTF-8. Some clients compare the whole header, so it names no charset.
    ping = b": ping\n"

    def opening(self) -> bytes:
        return b"retry: %d\n" % RETRY_MS

    def frame(self, records: Sequence[Record]) -> bytes:
        return _events(records)

    def farewell(self) -> bytes:
        # At random, or all readers would come back at the same moment.
        return b"retry: %d\n" % random.randint(RETRY_MS // 2, RETRY_MS * 2)  # noqa: S311


class JsonLines:
    """`application/x-ndjson`: one document a line; the ping is the one that WebSocket clients know."""

    media_type = "application/x-ndjson"
    content_type = b"application/x-ndjson"
    ping = PING + b"\n"

    def opening(self) -> bytes:
        return b""

    def frame(self, records: Sequence[Record]) -> bytes:
        return b"".join([each.data + b"\n" for each in records])

    def farewell(self) -> bytes:
        return b""


class PlainText:
    """`text/plain`: the tokens' text alone."""

    media_type = "text/plain"
    content_type = b"text/plain; charset=utf-8"
    ping = b""

    def opening(self) -> bytes:
        return b""

    def frame(self, records: Sequence[Record]) -> bytes:
        return "".join(_text(decode(each.data)) for each in records if each.type in ("token", "snapshot")).encode()

    def farewell(self) -> bytes:
        return b""


def _text(event: Event) -> str:
    match event:
        case Token():
            return event.content
        case Snapshot():
            return text_of(event.parts)
        case _:
            return ""


FORMATS: tuple[Format, ...] = (EventStream(), JsonLines(), PlainText())


@lru_cache(maxsize=16)  # Few entries: the client chooses the text, and it may be long.
def chosen(accept: str) -> Format:
    """The format that an `Accept` header prefers; the first one where it does not care, or is empty.

    Raises:
        NotAcceptable: it takes none of them.
    """
    ranges = [_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    wishes = [(_quality(each.media_type, ranges), -index, each) for index, each in enumerate(FORMATS)]
    quality, _, best = max(wishes, key=lambda wish: wish[:2])
    if quality <= 0:
        raise NotAcceptable(f"this can be had as {', '.join(each.media_type for each in FORMATS)}")
    return best


def _range(part: str) -> tuple[str, float]:
    media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
    try:
        return media_type, min(1.0, max(0.0, float(quality)))
    except ValueError:
        return media_type, 0.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The quality that the most specific matching range gives."""
    for form in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if matching := [quality for name, quality in ranges if name == form]:
            return max(matching)
    return 0.0
