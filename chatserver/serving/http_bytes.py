"""HTTP/1.1 as bytes, without a connection: where a message ends, a refusal, a chunk, a head without its offers."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import urlsplit

from chatserver.errors import ChatError
from chatserver.transports.frames import framed_once
from chatserver.transports.refusal import response_of
from chatserver.transports.response import PRIVATE

HEAD_BYTES_LIMIT = 32 * 1024
HEADERS_LIMIT = 100
"""How many headers a head may have, and as many trailers the end of a chunked body."""

END_OF_HEAD = b"\r\n\r\n"
OFFERS = frozenset({b"upgrade", b"connection", b"http2-settings"})

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]


class Unread:
    """The bytes that have come and were not given to the parser yet."""

    __slots__ = ("_at", "_data")

    def __init__(self) -> None:
        self.clear()

    def __len__(self) -> int:
        return len(self._data) - self._at

    def clear(self) -> None:
        self._data, self._at = b"", 0

    def add(self, data: bytes) -> None:
        self._data, self._at = self._data[self._at :] + data, 0

    def next_piece(self, body_bytes_left: int) -> bytes:
        """The next bytes, none of them behind the end of a message; empty: more must come first.

        A message ends with its last header or trailer, or after the ``body_bytes_left`` that it has announced.
        """
        start, end = self._at, self._end(body_bytes_left)
        piece = self._data[start:end]
        self._at = end
        if end == len(self._data):
            self.clear()
        return piece

    def _end(self, body_bytes_left: int) -> int:
        data, start = self._data, self._at
        if body_bytes_left > 0:
            return min(len(data), start + body_bytes_left)
        if (found := data.find(END_OF_HEAD, start)) >= 0:
            return found + len(END_OF_HEAD)
        begun = next((size for size in (3, 2, 1) if data.endswith(END_OF_HEAD[:size])), 0)
        return max(start, len(data) - begun)


def is_too_much(headers: int, size_bytes: int) -> bool:
    """Whether a head or trailers are refused."""
    return headers > HEADERS_LIMIT or size_bytes > HEAD_BYTES_LIMIT


def refusal_response(error: ChatError) -> bytes:
    """A refusal as the bytes of a whole response, the last one on its connection."""
    headers, body = response_of(error)
    lines = [b"%b: %b\r\n" % header for header in (*headers, *PRIVATE, (b"connection", b"close"))]
    phrase = HTTPStatus(error.status).phrase.encode()
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (error.status, phrase, b"".join(lines), body)


@framed_once
def chunk(body: bytes) -> bytes:
    """A part of a body as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n" % len(body) + body + b"\r\n"  # A third less time than one format.


def in_origin_form(target: bytes, headers: Headers) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The path of a target that names its host, and the headers with that `Host`, whatever was there (RFC 9112, 3.2.2).

    Raises:
        ValueError: the target is no URL.
    """
    url = urlsplit(target)
    path = (url.path or b"/") + (b"?" + url.query if url.query else b"")
    others = [header for header in headers if header[0] != b"host"]
    return path, [*others, (b"host", url.netloc.rpartition(b"@")[2])]


def offers_websocket(headers: Headers) -> bool:
    """Whether the head of a request that offers another protocol offers this one."""
    found = dict(headers)
    return found.get(b"upgrade", b"").lower() == b"websocket" and b"upgrade" in found.get(b"connection", b"").lower()


def has_body(headers: Headers) -> bool:
    """Whether the head of a request announces a body."""
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


def without_offers(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """The head of a request as if it had offered no other protocol."""
    headers = list(headers)
    closes = any(name == b"connection" and b"close" in value.lower() for name, value in headers)
    kept = [header for header in headers if header[0] not in OFFERS] + [(b"connection", b"close")] * closes
    lines = [b"%b: %b\r\n" % header for header in kept]
    return b"".join([method, b" ", url, b" HTTP/", version.encode(), b"\r\n", *lines, b"\r\n"])
