"""HTTP as uvicorn has it, and what that lacks: an end to its patience and to its memory.

    IDLE ──first byte──▶ HEAD ──▶ BODY ──last byte──▶ ANSWERING ──answer is over──▶ IDLE
                           └───────┴──refused──▶ DEAF ──▶ closed

One request is answered at a time. What comes behind it waits as bytes; over a limit, reading pauses until the request
is answered and the peer takes its answer. A connection has one timer at most; a request that comes at one go has none.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from math import inf
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from chatserver.errors import BadHttp, ChatError, HeadTooLarge, Overloaded, TooSlow
from chatserver.lean_event import LeanEvent
from chatserver.serving.http_bytes import HEAD_BYTES_LIMIT, Unread, in_origin_form, is_too_much, refusal, without_offers
from chatserver.serving.lost_peers import is_lost
from chatserver.serving.response import ToTheEnd, write_now
from chatserver.transports.connections import ON_LEAVE, TRANSPORT, WRITE_NOW

PATIENCE_SECONDS = 8.0
"""How long the head of a request may take, from the connection or its first byte on, and each piece of its body."""

PATIENCE_BYTES = 16 * 1024
"""What must have come of a body in that time; honest clients are faster, or have less to say."""

WAITING_BYTES_LIMIT = 32 * 1024
"""What may have come behind a request that is being answered, beside one read of the socket."""

LINGER_SECONDS = 1.0
"""How long a client that is refused may go on sending: cut off at once, it would never read why."""

HALF_CLOSED_LOOK_SECONDS = 0.2
"""How often it is looked whether a peer that sends no more has left altogether."""
_quiet = logging.getLogger("chatserver.http")
_quiet.setLevel(logging.ERROR)  # uvicorn warns of each broken request: a hostile client could fill the log.


class Stage(Enum):
    """How far the request is that the connection is busy with."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    """The whole request has come. (An answer may also begin, and end, before that.)"""

    WEBSOCKET = auto()
    DEAF = auto()
    """What comes is thrown away until the connection is closed."""


INCOMING = (Stage.HEAD, Stage.BODY)


class HttpProtocol(HttpToolsProtocol):
    """One connection, with what it can do beside ASGI in reach of the application.

    Of more than ``limit_concurrency``, each further one is told so.
    """

    _trailers = _trailer_bytes = 0
    _has_ended = False
    """The peer has closed its half: it asks for no more, and takes what it has asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections_limit, self.limit_concurrency = self.limit_concurrency, None  # uvicorn's answer is plain text
        self.pipeline = cast(Any, ())  # uvicorn's queue of requests: nothing is ever put there.
        self._stage = Stage.IDLE
        self._unread = Unread()
        self._useless_bytes = self._came_bytes = self._body_bytes_left = 0
        self._leave: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_offer = self._is_too_many = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.logger = _quiet
        self.flow._is_writable_event = LeanEvent()
        self.flow._is_writable_event.set()
        self._is_too_many = len(self.connections) > (self._connections_limit or inf)
        if self._is_too_many:
            self.connections.discard(self)  # Who is only here to be sent away takes nobody's place.
        self._wait(LINGER_SECONDS if self._is_too_many else PATIENCE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stage = Stage.DEAF
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn lets a reset connection live until this timer ends.
        self._tell_of_leaving()

    def data_received(self, data: bytes) -> None:
        if self._is_too_many:
            self.refuse(Overloaded())
        elif self._stage is not Stage.DEAF:
            self._unread.add(data)
            self._read()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's never keeps it open
        """Whether there is something to answer. FIN says as little of a peer that has left as of one that listens."""
        if self._stage is not Stage.ANSWERING and not (self._stage is Stage.IDLE and self.flow.write_paused):
            return False
        if not self._has_ended and self.cycle.chunked_encoding and not self.cycle.response_complete:
            # In front of the next chunk's size it means nothing; a peer that has left resets the connection for it.
            self.transport.write(b"0")
        self._has_ended = True
        self._stop_waiting()
        self._wait(HALF_CLOSED_LOOK_SECONDS)
        return True

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._stage is Stage.ANSWERING:
            self._stage = Stage.IDLE
        self._read(has_waited=True)

    def refuse(self, error: ChatError | None) -> None:
        """Answer instead of the application, unless it has begun to, and hear no more; None: without a word."""
        if self._stage is Stage.DEAF:
            return
        cycle: RequestResponseCycle | None = self.cycle if self._stage is Stage.BODY else None
        self._stop_waiting()
        self._stage = Stage.DEAF
        self._unread.clear()
        if error is not None and (cycle is None or not cycle.response_started):
            self.transport.write(refusal(error))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self._tell_of_leaving()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    # reading

    def _read(self, has_waited: bool = False) -> None:
        """Give the parser what has come, a head or a piece of a body at a time, until there is a request to answer."""
        if self.transport.is_closing():
            return
        while self._may_read() and (piece := self._unread.take(self._body_bytes_left)):
            self._useless_bytes += len(piece)
            self._came_bytes += len(piece)
            self._body_bytes_left -= min(len(piece), self._body_bytes_left)
            try:
                self._feed(piece)
            except httptools.HttpParserError:
                self.refuse(None if has_waited else BadHttp())  # Of a broken pair, the first answer is the last.
            if self._stage in INCOMING and self._useless_bytes > HEAD_BYTES_LIMIT:
                self.refuse(HeadTooLarge())
        self._mind_the_peer()

    def _may_read(self) -> bool:
        return self._stage in INCOMING or (self._stage is Stage.IDLE and not self.flow.write_paused)

    def _feed(self, piece: bytes) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._upgraded()

    def _mind_the_peer(self) -> None:
        """After reading: let the peer wait, or go on, or go; and begin to be patient with it."""
        if not self._may_read():
            if len(self._unread) > WAITING_BYTES_LIMIT:
                self.flow.pause_reading()
        elif self._has_ended:
            self.transport.close()
        else:
            if self._stage is not Stage.BODY:  # There, the application decides.
                self.flow.resume_reading()
            if self._stage in INCOMING and self._timer is None:
                self._wait(PATIENCE_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._look)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """The time is over, unless it is ourselves who keep the peer from sending."""
        if self._has_ended:
            if is_lost(self.transport):
                return self.transport.abort()
            self._wait(HALF_CLOSED_LOOK_SECONDS)
        elif self._stage not in INCOMING:
            self.transport.close()  # It has never asked for anything.
        elif self.flow.read_paused or (self._stage is Stage.BODY and self._came_bytes >= PATIENCE_BYTES):
            self._came_bytes = 0
            self._wait(PATIENCE_SECONDS)
        else:
            self.refuse(TooSlow())

    # the parser's calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        cast(dict[str, Any], self.scope)["extensions"] = {TRANSPORT: self.transport}
        self._stage = Stage.HEAD
        self._is_offer = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage is Stage.HEAD:
            super().on_header(name, value)
        elif self._stage is Stage.BODY:
            self._trailers += 1  # Counted and dropped: what a proxy checks in a head must not come behind it.
            self._trailer_bytes += len(name) + len(value)
            if is_too_much(self._trailers, self._trailer_bytes):
                self.refuse(HeadTooLarge())

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if is_too_much(len(self.headers), size):
            return self.refuse(HeadTooLarge())
        # Another protocol than WebSocket (h2c, by curl and Java): the request is meant as it is.
        upgrades = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        self._is_offer = upgrades and not self._should_upgrade()
        if self._is_offer:
            return
        if b"://" in self.url:
            self.url, self.headers[:] = in_origin_form(self.url, self.headers)
        self._useless_bytes = self._came_bytes = self._trailers = self._trailer_bytes = 0
        cycle_before = self.cycle
        super().on_headers_complete()
        if self.cycle is cycle_before:
            self._stage = Stage.WEBSOCKET
            return
        self._stage = Stage.BODY
        self._body_bytes_left = sum(int(value) for name, value in self.headers if name == b"content-length")
        self.cycle.message_event = LeanEvent()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = ToTheEnd
        if self.scope["method"] != "HEAD":
            extensions = cast(dict[str, Any], self.scope)["extensions"]
            extensions |= {WRITE_NOW: partial(write_now, self.cycle), ON_LEAVE: partial(self._on_leave, self.cycle)}

    def on_body(self, body: bytes) -> None:
        self._useless_bytes = 0
        # Who sends more to a request that is answered with a stream is read and not heard.
        is_answered = self._leave is not None and self.cycle.response_started
        if self._stage is Stage.BODY and not is_answered:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._stage is not Stage.BODY:
            return
        self._useless_bytes = 0
        self._stop_waiting()
        super().on_message_complete()
        self._stage = Stage.IDLE if self.cycle.response_complete else Stage.ANSWERING
        if self._has_ended:
            self._wait(HALF_CLOSED_LOOK_SECONDS)

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

    def _upgraded(self) -> None:
        """Take what is offered, if it is a WebSocket; else read the request without the offer."""
        if self._is_offer:
            # For a new parser: this one would take a body for another protocol.
            head = without_offers(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn's own.
            self.parser.feed_data(head)
        elif self._stage is Stage.WEBSOCKET and self._unread:
            self.refuse(BadHttp())  # RFC 6455, 4.1: a client waits until the WebSocket is there.
        elif self._stage is Stage.WEBSOCKET:
            self._stop_waiting()
            self.handle_websocket_upgrade()
            del self.parser  # As when the connection is lost.
