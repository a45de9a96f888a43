"""Records as text frames of a WebSocket; and framing once what many readers get."""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from chatserver.events import Record

T = TypeVar("T", Sequence[Record], bytes)


def framed_once(frame: Callable[[T], bytes]) -> Callable[[T], bytes]:
    """The same, except that what comes again at once, the same object, is not framed again.

    A log offers one batch to all readers that have come equally far: the second one's event is then a write.
    """
    last: T | None = None
    last_bytes = b""

    def shared(content: T) -> bytes:
        nonlocal last, last_bytes
        if content is not last:
            last, last_bytes = content, frame(content)
        return last_bytes

    return shared


@framed_once
def text_frames(batch: Sequence[Record]) -> bytes:
    """Each document as one text frame, unmasked (RFC 6455, 5.2)."""
    return b"".join([text_frame(each.data) for each in batch]) if len(batch) > 1 else text_frame(batch[0].data)


def text_frame(document: bytes) -> bytes:
    """A document as one text frame."""
    return _text_head(len(document)) + document


def _text_head(length: int) -> bytes:
    """The bytes before a payload. The library takes 2 µs for them."""
    if length < 126:
        return _SHORT_HEADS[length]
    return struct.pack("!BBH", 0x81, 126, length) if length < 65536 else struct.pack("!BBQ", 0x81, 127, length)


_SHORT_HEADS = [bytes((0x81, length)) for length in range(126)]


def texts_of(frames: bytes) -> Iterator[str]:
    """The documents of text frames, one after the other."""
    at = 0
    while at < len(frames):
        length, size = frames[at + 1], 2
        if length >= 126:
            size = 4 if length == 126 else 10
            length = int.from_bytes(frames[at + 2 : at + size], "big")
        yield frames[at + size : at + size + length].decode()
        at += size + length
