"""Bodies that a server has compressed although it was asked not to: compressed bytes to plain ones, without I/O."""

import zlib
from collections.abc import Callable, Iterator

UNPACKED_BYTES = 64 * 1024
"""At most so much is unpacked at once: a small body may become a thousand times larger."""

_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


def is_known(encoding: str) -> bool:
    """Whether an ``Unpacker`` can read a body of this `Content-Encoding`."""
    return encoding in _WINDOWS


class Unpacker:
    """Reads one body. Of gzip, a body may be several members, one after the other."""

    def __init__(self, encoding: str) -> None:
        self._window = _WINDOWS[encoding]
        self._inflate = zlib.decompressobj(self._window)
        self._has_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes of the body hold, in pieces.

        Raises:
            zlib.error: the body is not what it says.
        """
        piece = b""
        while data or len(piece) == UNPACKED_BYTES:
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(self._window)
            if piece := self._inflated(data):
                yield piece
            data = self._inflate.unconsumed_tail or self._inflate.unused_data

    def _inflated(self, data: bytes) -> bytes:
        is_first, self._has_begun = not self._has_begun, True
        try:
            return self._inflate.decompress(data, UNPACKED_BYTES)
        except zlib.error:
            if not is_first or self._window != zlib.MAX_WBITS:
                raise
        # By `deflate`, some servers mean the bare form, without the head that the standard wants.
        self._window = -zlib.MAX_WBITS
        self._inflate = zlib.decompressobj(self._window)
        return self._inflate.decompress(data, UNPACKED_BYTES)


def unpacked(encoding: str, sink: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
    """A sink for the bytes of a body in an encoding that is known; ``sink`` gets what they hold."""
    unpacker = Unpacker(encoding)

    def receive(data: bytes) -> bool:
        is_ending = False
        for piece in unpacker.feed(data):
            is_ending = sink(piece) or is_ending
        return is_ending

    return receive
