"""The head of a response as bytes, and how a client knows where its body ends."""

import re
from collections.abc import Iterable
from email.utils import formatdate
from enum import Enum, auto
from functools import lru_cache
from http import HTTPStatus
from time import time

from msgspec import Struct

from chatserver.serving.http_bytes import Headers

_NO_HEADER_NAME = re.compile(b'[\x00-\x1f\x7f()<>@,;:\\[\\]={} \t\\\\"]')
_NO_VALUE = re.compile(b"[\x00-\x08\x0a-\x1f\x7f]")
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class Framing(Enum):
    """How a client knows where the body of the response ends."""

    NONE = auto()
    """There is no body: what the application sends as one is thrown away."""

    LENGTH = auto()
    CHUNKS = auto()
    CLOSE = auto()
    """The body ends with the connection: HTTP/1.0 has no chunks."""


class ResponseHead(Struct, frozen=True):
    """A head, and what follows from it."""

    encoded: bytes
    framing: Framing
    length_bytes: int
    keep_alive: bool


def response_head(method: str, version: str, status: int, headers: Headers, keep_alive: bool) -> ResponseHead:
    """The head of the response to a request; ``keep_alive``: as far as the request is concerned.

    Raises:
        RuntimeError: a header is not valid.
    """
    headers = [date_header(int(time())), *((name.lower(), value) for name, value in headers)]
    for name, value in headers:
        if _NO_HEADER_NAME.search(name) or _NO_VALUE.search(value):
            raise RuntimeError(f"{name!r}: {value!r} is no header")
    found = dict(headers)
    framing, own = _framing(method, version, status, b"content-length" in found), list[bytes]()
    keep_alive = keep_alive and framing is not Framing.CLOSE and b"close" not in found.get(b"connection", b"").lower()
    if framing is Framing.CHUNKS:
        own = [b"transfer-encoding: chunked\r\n"]
    if not keep_alive and b"connection" not in found:
        own += [b"connection: close\r\n"]
    return ResponseHead(_encoded(status, headers, own), framing, int(found.get(b"content-length", 0)), keep_alive)


def _framing(method: str, version: str, status: int, has_length: bool) -> Framing:
    if method == "HEAD" or status in (204, 304):
        return Framing.NONE
    if has_length:
        return Framing.LENGTH
    return Framing.CLOSE if version == "1.0" else Framing.CHUNKS


def _encoded(status: int, headers: Headers, own: Iterable[bytes]) -> bytes:
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"".join([b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"")), *lines, *own, b"\r\n"])


@lru_cache(maxsize=1)
def date_header(second: int) -> tuple[bytes, bytes]:
    """The `Date` header of a Unix time, formatted once a second at most, and only when a response needs it."""
    return b"date", formatdate(second, usegmt=True).encode()
