"""HTTP as uvicorn has it, and what that lacks: an end to its patience and to its memory, clients of another age.

    waiting for a head ──▶ waiting for a body ──▶ answering ──▶ waiting for the next head

A connection has one timer at most, and only while a request is on its way; one that comes at one go never has any.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from chatserver.errors import BadHttp, ChatError, HeadTooLarge, Overloaded, TooSlow
from chatserver.lean_event import LeanEvent
from chatserver.transports.connections import ON_LEAVE, TRANSPORT, WRITE_NOW
from chatserver.transports.frames import framed_once

PATIENCE_SECONDS = 8.0
"""How long the head of a request may take, from the connection or its first byte on, and each piece of its body."""

PIECE_BYTES = 16 * 1024
"""What must have come of a body in that time; honest clients are faster, or have less to say."""

HEAD_BYTES_LIMIT = 32 * 1024
HEADERS_LIMIT = 100
LINGER_SECONDS = 1.0
"""How long a client that is refused may go on sending: cut off at once, it would never read why."""

OFFERS = frozenset({b"upgrade", b"connection", b"http2-settings"})


_quiet = logging.getLogger("chatserver.http")
_quiet.setLevel(logging.ERROR)  # uvicorn warns of each broken request: a hostile client could fill the log.


class _Pipeline(list[Any]):
    """Requests behind the one that is answered: a list takes nothing while there are none, uvicorn's deque 0.7 KB."""

    __slots__ = ()

    def appendleft(self, request: Any) -> None:
        self.insert(0, request)


class HttpProtocol(HttpToolsProtocol):
    """One connection, with what it can do beside ASGI in reach of the application.

    ``limit_concurrency`` is how many there may be; one too many is told so.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections_limit, self.limit_concurrency = self.limit_concurrency, None  # uvicorn's answer is plain text
        self.pipeline = cast(Any, _Pipeline())
        self._leave: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_coming, self._is_head = False, True
        self._came_bytes = 0
        self._is_offer = False
        self._is_refused = False
        self._is_too_many = False

    # the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.logger = _quiet
        self.flow._is_writable_event = LeanEvent()
        self.flow._is_writable_event.set()
        limit = self._connections_limit
        self._is_too_many = limit is not None and len(self.connections) > limit
        if self._is_too_many:
            self.connections.discard(self)  # Who is only here to be sent away takes nobody's place.
        self._wait(LINGER_SECONDS if self._is_too_many else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn lets a reset connection live until this timer ends.
        self._tell_of_leaving()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._is_too_many:
            return self.refuse(Overloaded())
        self._unset_keepalive_if_required()
        self._came_bytes += len(data)
        rest = data
        while rest:
            try:
                self.parser.feed_data(rest)
                rest = b""
            except httptools.HttpParserUpgrade as offer:
                rest = self._upgraded(rest[offer.args[0] :])
            except httptools.HttpParserError:
                return self.refuse(BadHttp())
        if self._is_coming and not self._is_refused:
            if self._is_head and self._came_bytes > HEAD_BYTES_LIMIT:
                self.refuse(HeadTooLarge())
            elif self._timer is None:
                self._wait()

    def refuse(self, error: ChatError) -> None:
        """Answer instead of the application, unless it has begun to, and hear no more."""
        self._is_refused = True
        self._stop_waiting()
        cycle: RequestResponseCycle | None = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if cycle is not None and is_answering and self._is_head:
            cycle.keep_alive = False  # What is answered came before what is wrong: it is the last answer.
            return
        if cycle is None or self._is_head or not cycle.response_started:
            self.transport.write(answer(error))
        if cycle is not None and is_answering:
            cycle.disconnected = True
            cycle.message_event.set()
            self._tell_of_leaving()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    # the clock

    def _wait(self, seconds: float | None = None) -> None:
        self._timer = self.loop.call_later(PATIENCE_SECONDS if seconds is None else seconds, self._look)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """The time is over. Nobody waits who is kept from reading by ourselves, or gives an answer meanwhile."""
        cycle: RequestResponseCycle | None = self.cycle
        is_answering = self._is_head and cycle is not None and not cycle.response_complete
        if self.flow.read_paused or is_answering or (not self._is_head and self._came_bytes >= PIECE_BYTES):
            self._came_bytes = 0
            self._wait()
        elif self._is_coming:
            self.refuse(TooSlow())
        else:
            self.transport.close()  # It has never asked for anything.

    # the parser's calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {TRANSPORT: self.transport}
        self._is_coming = self._is_head = True
        self._is_offer = False

    def on_headers_complete(self) -> None:
        self._is_head = False
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES_LIMIT or len(self.headers) > HEADERS_LIMIT:
            self._is_head = True
            return self.refuse(HeadTooLarge())
        self._came_bytes = 0
        # Another protocol than WebSocket (h2c, by curl and Java): the request is meant as it is.
        upgrades = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        self._is_offer = upgrades and not self._should_upgrade()
        if self._is_offer:
            return
        cycle_before = self.cycle
        super().on_headers_complete()
        if self.cycle is cycle_before:
            return  # It is a WebSocket.
        self.cycle.message_event = LeanEvent()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _ToTheEnd
        if self.scope["method"] != "HEAD":
            extensions = cast(dict[str, Any], self.scope)["extensions"]
            extensions |= {WRITE_NOW: partial(_write_now, self.cycle), ON_LEAVE: partial(self._on_leave, self.cycle)}

    def on_body(self, body: bytes) -> None:
        # Who sends more to a request that is answered with a stream is read and not heard.
        is_answered = self._leave is not None and self.cycle.response_started
        if not self._is_refused and not self._is_offer and not is_answered:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused or self._is_offer:
            return
        self._is_coming, self._is_head = False, True
        self._stop_waiting()
        super().on_message_complete()

    # what ASGI has no words for

    def _on_leave(self, cycle: RequestResponseCycle, call: Callable[[], None] | None) -> None:
        self._leave = call
        if call is not None:
            cycle.body = bytearray()
            self.flow.resume_reading()  # A large body may have paused it, and then nobody would see the peer leave.
            self._tell_of_leaving()

    def _tell_of_leaving(self) -> None:
        if self._leave is not None and self.cycle.disconnected:
            self._leave()

    # what is offered and not taken

    def _upgraded(self, rest: bytes) -> bytes:
        """Take what is offered, if it is a WebSocket; what is left for the parser."""
        if self._is_offer:
            return self._without_offer() + rest
        if not self._is_refused:
            self._stop_waiting()
            self.handle_websocket_upgrade()
            del self.parser  # As when the connection is lost.
        return b""

    def _without_offer(self) -> bytes:
        """The head of the request again, for a new parser: this one would take a body for another protocol."""
        closes = any(name == b"connection" and b"close" in value.lower() for name, value in self.headers)
        lines = [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name not in OFFERS]
        lines += [b"connection: close\r\n"] * closes
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn's own.
        return b"".join([method, b" ", self.url, b" HTTP/", version, b"\r\n", *lines, b"\r\n"])


def _write_now(cycle: RequestResponseCycle, body: bytes) -> bool:
    """A part of a response as uvicorn's cycle sends it, where that would neither wait nor do anything else.

    uvicorn's way is a coroutine, a message and a list for it: with waking the reader's task, a third of an event's CPU.
    """
    if not cycle.chunked_encoding or cycle.response_complete or cycle.disconnected or cycle.flow.write_paused:
        return False
    if body:
        cycle.transport.write(_chunk(body))
    return True


@framed_once
def _chunk(body: bytes) -> bytes:
    """A part of a body as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class _ToTheEnd(RequestResponseCycle):
    """An answer to HTTP/1.0, which knows no chunks: a body of unknown length ends with the connection."""

    is_unmeasured = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.is_unmeasured = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            self.chunked_encoding = False if self.is_unmeasured else None
        elif self.is_unmeasured:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


def answer(error: ChatError) -> bytes:
    """A refusal as the bytes of a whole answer, the last one on its connection."""
    body = msgspec.json.encode(error.problem())
    head = f"HTTP/1.1 {error.status} {error.problem()['title']}\r\ncontent-type: application/problem+json\r\n"
    more = {"connection": "close", "content-length": str(len(body))} | error.headers()
    return head.encode() + "".join(f"{name}: {value}\r\n" for name, value in more.items()).encode() + b"\r\n" + body
