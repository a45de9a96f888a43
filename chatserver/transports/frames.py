"""Records as a WebSocket's text frames; and framing once what many readers are sent."""

import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias

from chatserver.events import Record

FRAMES = "chatserver.frames"
"""ASGI extension of our server: a `websocket.send` that brings any number of whole frames, as bytes."""

Frame: TypeAlias = Callable[[Sequence[Record]], bytes]


def framed_once(frame: Frame) -> Frame:
    """The same, except that a batch which comes again at once is not framed again.

    A log offers one batch, the same object, to all readers that have come equally far: the second one's event is then
    a header and a write.
    """
    last_batch: Sequence[Record] | None = None
    last_bytes = b""

    def shared(batch: Sequence[Record]) -> bytes:
        nonlocal last_batch, last_bytes
        if batch is not last_batch:
            last_batch, last_bytes = batch, frame(batch)
        return last_bytes

    return shared


@framed_once
def text_frames(batch: Sequence[Record]) -> bytes:
    """Each document as one text frame, unmasked (RFC 6455, 5.2)."""
    return b"".join([part for each in batch for part in (_text_head(len(each.data)), each.data)])


def text_frame(document: bytes) -> bytes:
    """A document as one text frame."""
    return _text_head(len(document)) + document


def _text_head(length: int) -> bytes:
    """What stands before a payload: websockets takes 2 µs for it, this 0.7."""
    if length < 126:
        return bytes((0x81, length))
    return struct.pack("!BBH", 0x81, 126, length) if length < 65536 else struct.pack("!BBQ", 0x81, 127, length)
