"""One HTTP request and its response, as ASGI has them."""

import asyncio
import logging
from enum import Enum, auto
from typing import Protocol

from chatserver.errors import ChatError, Internal
from chatserver.serving.access_log import AccessLine
from chatserver.serving.http_bytes import Headers, chunk
from chatserver.serving.http_head import Framing, response_head
from chatserver.transports.asgi import AsgiApp, AsgiMessage, AsgiScope
from chatserver.transports.peer import nobody

logger = logging.getLogger("chatserver.http")

WAITING_BODY_BYTES_LIMIT = 64 * 1024
"""How many bytes of a body may wait for the application, before the peer has to wait."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_CHUNKS = Framing.CHUNKS  # For each write: Python 3.11 takes 80 ns longer to look a member up in its enum.


class Progress(Enum):
    """How far the response is."""

    ASKED = auto()
    STARTED = auto()
    """Its head is written."""

    TAKEN = auto()
    """A peer writes the body; the application's call may have returned."""

    ENDING = auto()
    """Everything is written; the peer has not taken all of it yet."""

    OVER = auto()


class ExchangeConnection(Protocol):
    """What an exchange needs of the connection that it is on."""

    transport: asyncio.Transport
    is_write_paused: bool

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def rest(self) -> None: ...

    def refuse(self, error: ChatError | None) -> None: ...

    def abort(self) -> None: ...

    def exchange_is_over(self) -> None: ...


class Exchange:
    """A request, and the response that the application gives; also, once it is taken over, a ``BodyPeer``."""

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
        "_line",
        "_method",
        "_news",
        "_version",
        "_writable",
        "has_left",
        "is_writable",
        "on_leave",
        "on_writable",
        "progress",
    )

    def __init__(
        self,
        connection: ExchangeConnection,
        scope: AsgiScope,
        keep_alive: bool,
        expects_continue: bool,
        line: AccessLine | None = None,
    ) -> None:
        self._connection = connection
        self._line = line
        self._method: str = scope["method"]
        self._version: str = scope["http_version"]
        self._keep_alive = keep_alive
        self._expects_continue = expects_continue and self._version != "1.0"  # HTTP/1.0 has no interim responses.
        self.progress = Progress.ASKED
        self.has_left = False
        self.is_writable = True
        self.on_writable = self.on_leave = nobody
        self._framing = Framing.NONE
        self._bytes_left = 0
        self._body = bytearray()
        self._has_all = self._has_news = False
        self._news: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    async def run(self, app: AsgiApp, scope: AsgiScope) -> None:
        """Let the application answer."""
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            if not isinstance(error, Exception):
                self._connection.transport.close()
                raise
            logger.error("the application failed", exc_info=error)
        if self.has_left:
            return
        if self.progress is Progress.ASKED:
            self._connection.refuse(Internal())
        elif self.progress is Progress.STARTED:
            self._connection.transport.close()  # Cut off, so that the client sees the failure.

    # what the connection tells

    def body_came(self, data: bytes) -> None:
        if self.progress not in (Progress.ASKED, Progress.STARTED):
            return  # More of a body whose request is answered is read and thrown away.
        self._body += data
        if len(self._body) > WAITING_BODY_BYTES_LIMIT:
            self._connection.pause_reading()
        self._notify()

    def all_came(self) -> None:
        self._has_all = True
        self._notify()

    def be_last(self) -> None:
        """The connection takes no further request."""
        self._keep_alive = False

    def shutdown(self) -> None:
        """The server goes down: abort a response that a peer writes, since its owner has been told to end it."""
        self.be_last()
        if self.progress is Progress.TAKEN:
            self.abort()

    def probe(self) -> None:
        """Write bytes that mean nothing to a client that reads; a client that has left resets the connection."""
        if self.progress in (Progress.STARTED, Progress.TAKEN) and self._framing is Framing.CHUNKS:
            self._connection.transport.write(b"0")  # A leading zero of the next chunk's size.

    def drained(self) -> None:
        """The peer takes bytes again."""
        if self.progress is Progress.ENDING:
            return self._finish()
        self.is_writable = True
        _wake(self._writable)
        self.on_writable()

    def peer_left(self) -> None:
        """The peer has left. Further calls do nothing."""
        if self.progress is not Progress.OVER and not self.has_left:
            self.has_left = True
            self.is_writable = False
            self._report_left()
        self._notify()
        _wake(self._writable)

    def _report_left(self) -> None:
        if self._line is not None:
            self._line.over(is_whole=self.progress is Progress.OVER)
        self.on_leave()

    def _notify(self) -> None:
        self._has_news = True
        _wake(self._news)

    # ASGI

    async def receive(self) -> AsgiMessage:
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

    async def send(self, message: AsgiMessage) -> None:
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
        head = response_head(self._method, self._version, status, headers, self._keep_alive)
        self._framing, self._bytes_left, self._keep_alive = head.framing, head.length_bytes, head.keep_alive
        self._connection.transport.write(head.encoded)
        self.progress = Progress.STARTED
        if self._line is not None:
            self._line.answered(status, headers)

    def _send_body(self, body: bytes, *, is_last: bool) -> None:
        self.write(body)
        if self._framing is Framing.LENGTH and (self._bytes_left < 0 or (is_last and self._bytes_left > 0)):
            raise RuntimeError(f"the body of a response is {-self._bytes_left} bytes longer than was said")
        if is_last:
            self._end()

    def _end(self) -> None:
        if self._framing is Framing.CHUNKS:
            self._connection.transport.write(LAST_CHUNK)
        self._finish()

    def _finish(self) -> None:
        transport = self._connection.transport
        self.progress = Progress.OVER
        self.is_writable = False
        self._notify()
        if not self._keep_alive:
            transport.close()
        elif not transport.is_closing():
            transport.set_write_buffer_limits()
        self._report_left()
        self._connection.exchange_is_over()

    # as a peer

    def take_over(self) -> "Exchange":
        """Take the response over from the application's call, which may return then."""
        self.progress = Progress.TAKEN
        self._body = bytearray()
        if not self._has_all:
            self._connection.resume_reading()  # A large body may have paused it: then nobody sees the peer leave.
        elif self._framing is not Framing.LENGTH:
            self._connection.rest()
        self.is_writable = not (self.has_left or self._connection.is_write_paused)
        if self.has_left:
            asyncio.get_running_loop().call_soon(self._report_left)
        return self

    def write(self, body: bytes) -> None:
        """A part of the body."""
        if self.has_left:
            return
        if self._framing is _CHUNKS:
            if body:
                self._connection.transport.write(chunk(body))
        elif self._framing is not Framing.NONE:
            self._bytes_left -= len(body)
            self._connection.transport.write(body)

    def end(self, last: bytes = b"") -> None:
        """Send the last part. The response is over when the peer has taken all of it; until then it may be stuck."""
        if self.has_left:
            return
        transport = self._connection.transport
        transport.set_write_buffer_limits(high=0)
        if self._framing is Framing.CHUNKS:
            transport.write(chunk(last) + LAST_CHUNK if last else LAST_CHUNK)
        else:
            self.write(last)
        if transport.get_write_buffer_size():
            self.progress, self.is_writable = Progress.ENDING, False
        else:
            self._finish()

    def cut(self) -> None:
        """Leave the body unfinished. The connection closes when the peer has taken what was written."""
        self.is_writable = False
        self._connection.transport.close()

    def abort(self) -> None:
        if self.progress is not Progress.OVER:
            self._connection.abort()


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
