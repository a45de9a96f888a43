"""One HTTP request and its response, as ASGI has them."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from enum import Enum, auto
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Protocol

from chatserver.errors import ChatError, Internal
from chatserver.serving.http_bytes import Headers, chunk
from chatserver.transports.connections import Message, Scope

logger = logging.getLogger("chatserver.http")

WAITING_BODY_BYTES_LIMIT = 64 * 1024
"""What of a body may wait for the application; then the peer has to."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_NO_NAME = re.compile(b'[\x00-\x1f\x7f()<>@,;:\\[\\]={} \t\\\\"]')
_NO_VALUE = re.compile(b"[\x00-\x08\x0a-\x1f\x7f]")


@lru_cache(maxsize=1)
def date_header(second: int) -> tuple[bytes, bytes]:
    """The `Date` of a Unix time, written once a second at most, and never while nothing is answered."""
    return b"date", formatdate(second, usegmt=True).encode()


App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Progress(Enum):
    """How far the response is."""

    ASKED = auto()
    STARTED = auto()
    """Its head is written."""

    OVER = auto()


class Framing(Enum):
    """How a client knows where the body of the response ends."""

    NONE = auto()
    """There is no body: whatever the application gives is thrown away."""

    LENGTH = auto()
    CHUNKS = auto()
    CLOSE = auto()
    """With the connection: HTTP/1.0 knows no chunks."""


class Connection(Protocol):
    """What an exchange needs of the connection that it is on."""

    transport: asyncio.Transport
    is_write_paused: bool

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def refuse(self, error: ChatError | None) -> None: ...

    def exchange_is_over(self) -> None: ...


class Exchange:
    """A request, and the response that the application gives."""

    __slots__ = (
        "__weakref__",
        "_body",
        "_bytes_left",
        "_connection",
        "_expects_continue",
        "_framing",
        "_has_all",
        "_has_news",
        "_keep_alive",
        "_leave",
        "_news",
        "_version",
        "_writable",
        "has_left",
        "method",
        "progress",
    )

    def __init__(self, connection: Connection, scope: Scope, keep_alive: bool, expects_continue: bool) -> None:
        self._connection = connection
        self.method: str = scope["method"]
        self._version: str = scope["http_version"]
        self._keep_alive = keep_alive
        self._expects_continue = expects_continue and self._version != "1.0"  # It knows nothing before the answer.
        self.progress = Progress.ASKED
        self.has_left = False
        self._framing = Framing.NONE
        self._bytes_left = 0
        self._body = bytearray()
        self._has_all = self._has_news = False
        self._news: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._leave: Callable[[], None] | None = None

    async def run(self, app: App, scope: Scope) -> None:
        """Let the application answer."""
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            if not isinstance(error, Exception):
                self._connection.transport.close()
                raise
            logger.error("the application failed", exc_info=error)
        if self.has_left or self.progress is Progress.OVER:
            return
        if self.progress is Progress.ASKED:
            self._connection.refuse(Internal())
        else:
            self._connection.transport.close()  # A body that is cut off is a failure that clients can see.

    # what the connection tells

    def body_came(self, data: bytes) -> None:
        if self.progress is Progress.OVER or self._leave is not None:
            return  # Who sends more to a request that has its answer is read and not heard.
        self._body += data
        if len(self._body) > WAITING_BODY_BYTES_LIMIT:
            self._connection.pause_reading()
        self._tell()

    def all_came(self) -> None:
        self._has_all = True
        self._tell()

    def is_last(self) -> None:
        """The connection shall not be used again."""
        self._keep_alive = False

    def probe(self) -> None:
        """Write what means nothing to a peer that listens; one that has left resets the connection for it."""
        if self.progress is Progress.STARTED and self._framing is Framing.CHUNKS:
            self._connection.transport.write(b"0")  # In front of the size of the next chunk.

    def drained(self) -> None:
        """The peer takes bytes again."""
        _wake(self._writable)

    def peer_left(self) -> None:
        """Nothing can be sent any more; once is enough."""
        if self.progress is not Progress.OVER:
            self.has_left = True
            if self._leave is not None:
                self._leave()
        self._tell()
        _wake(self._writable)

    def _tell(self) -> None:
        self._has_news = True
        _wake(self._news)

    # ASGI

    async def receive(self) -> Message:
        if self._expects_continue and self.progress is Progress.ASKED and not self.has_left:
            self._connection.transport.write(CONTINUE)
            self._expects_continue = False
        if not self.has_left and self.progress is not Progress.OVER:
            self._connection.resume_reading()
            if not self._has_news:
                self._news = asyncio.get_running_loop().create_future()
                await self._news
        self._has_news = False
        if self.has_left or self.progress is Progress.OVER:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": not self._has_all}

    async def send(self, message: Message) -> None:
        while self._connection.is_write_paused and not self.has_left:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable
        if self.has_left:
            return
        match self.progress, message["type"]:
            case Progress.ASKED, "http.response.start":
                self._start(message["status"], message.get("headers", ()))
            case Progress.STARTED, "http.response.body":
                self._send_body(message.get("body", b""), is_last=not message.get("more_body", False))
            case _:
                raise RuntimeError(f"{message['type']} of a response that is {self.progress.name.lower()}")

    def _start(self, status: int, headers: Headers) -> None:
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b""))]
        headers = [date_header(int(time())), *((name.lower(), value) for name, value in headers)]
        for name, value in headers:
            if _NO_NAME.search(name) or _NO_VALUE.search(value):
                raise RuntimeError(f"{name!r}: {value!r} is no header")
            if name == b"connection" and b"close" in value.lower():
                self._keep_alive = False
        self._framing, own = self._framed(status, dict(headers).get(b"content-length"))
        lines += [b"%b: %b\r\n" % header for header in headers]
        self._connection.transport.write(b"".join([*lines, *own, b"\r\n"]))
        self.progress = Progress.STARTED

    def _framed(self, status: int, length: bytes | None) -> tuple[Framing, Iterable[bytes]]:
        """How the body will be framed, and the header lines that say so."""
        framing, lines = Framing.CHUNKS, list[bytes]()
        if self.method == "HEAD" or status in (204, 304):
            framing = Framing.NONE
        elif length is not None:
            framing, self._bytes_left = Framing.LENGTH, int(length)
        elif self._version == "1.0":
            framing, self._keep_alive = Framing.CLOSE, False
        else:
            lines = [b"transfer-encoding: chunked\r\n"]
        return framing, lines if self._keep_alive else [*lines, b"connection: close\r\n"]

    def _send_body(self, body: bytes, *, is_last: bool) -> None:
        self.write(body)
        if self._framing is Framing.LENGTH and (self._bytes_left < 0 or (is_last and self._bytes_left > 0)):
            raise RuntimeError(f"the body of a response is {-self._bytes_left} bytes longer than was said")
        if is_last:
            self.end()

    def write(self, body: bytes) -> None:
        """A part of the body."""
        if self._framing is Framing.CHUNKS:
            if body:
                self._connection.transport.write(chunk(body))
        elif self._framing is not Framing.NONE:
            self._bytes_left -= len(body)
            self._connection.transport.write(body)

    def end(self) -> None:
        """The body is whole."""
        if self._framing is Framing.CHUNKS:
            self._connection.transport.write(LAST_CHUNK)
        self.progress = Progress.OVER
        self._tell()
        if not self._keep_alive:
            self._connection.transport.close()
        self._connection.exchange_is_over()

    # what ASGI has no words for

    def write_now(self, body: bytes) -> bool:
        """A part of the body, if that can be written without waiting."""
        if self.has_left or self._connection.is_write_paused or self.progress is not Progress.STARTED:
            return False
        self.write(body)
        return True

    def on_leave(self, call: Callable[[], None] | None) -> None:
        self._leave = call
        if call is not None:
            self._body = bytearray()
            self._connection.resume_reading()  # A large body may have paused it: nobody would see the peer leave.
            if self.has_left:
                call()


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
