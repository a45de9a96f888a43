"""HTTP/1.1 as a protocol of asyncio: requests to the application, with an end to its patience and to its memory.

    READING ──last byte of a request──▶ RESPONDING ──its response is over──▶ READING
       ├──refused──▶ DEAF ──▶ LOST
       └──▶ WEBSOCKET

One request gets its response at a time. What comes behind it waits as bytes; over a limit, reading pauses until the
response is over and the peer has taken it. A connection has one timer at most; a request that comes at one go has none.
"""

import asyncio
from enum import Enum, auto
from math import inf
from typing import Any, cast

from chatserver.errors import BadHttp, ChatError, HeadTooLarge, Overloaded, TooSlow
from chatserver.serving import http_decoder
from chatserver.serving.access_log import AccessLine
from chatserver.serving.connection import ServedProtocol
from chatserver.serving.http_bytes import refusal_response
from chatserver.serving.http_decoder import Head, RequestDecoder
from chatserver.serving.http_exchange import Exchange, Progress
from chatserver.serving.lost_peers import is_lost
from chatserver.serving.scope import http_scope
from chatserver.transports.peer import PEER

PATIENCE_SECONDS = 8.0
"""How long the head of a request may take, from the connection's or its own first byte; each piece of its body; and
behind the response, all that is left of the body."""

PATIENCE_BYTES = 16 * 1024
"""How many bytes of a body must come in that time. Honest clients are faster, or their body is smaller."""

WAITING_BYTES_LIMIT = 32 * 1024
"""How many bytes may wait behind a request whose response is not over, beside one read of the socket."""

LINGER_SECONDS = 1.0
"""How long a refused client may go on sending: a client that is cut off at once would never read the refusal."""

HALF_CLOSED_LOOK_SECONDS = 0.2
"""How often a half-closed connection is checked for whether its peer has left."""


class Stage(Enum):
    """What the connection is busy with."""

    UNWELCOME = auto()
    """Too many connections are open: the response to the first byte is a refusal."""

    READING = auto()
    """A request comes, or may come. Its response may begin, and even end, before its last byte."""

    RESPONDING = auto()
    """The whole request has come."""

    WEBSOCKET = auto()
    DEAF = auto()
    """What comes is thrown away until the connection is closed."""

    LOST = auto()


class HttpProtocol(ServedProtocol):
    """One connection. Of more than ``limit_concurrency``, each further one is told so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stage = Stage.READING
        self._decoder = RequestDecoder(self)
        self._exchange: Exchange | None = None
        self._is_half_closed = False
        """The peer asks for no more, and takes what it has asked for."""
        self._is_last = False
        """The next request is the last one on this connection."""
        self.is_read_paused = False

    # what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if len(self._connections) >= (self._config.limit_concurrency or inf):
            self._stage = Stage.UNWELCOME  # Not counted: a refused connection must not take the place of another.
        else:
            self._connections.add(self)
        self._wait(LINGER_SECONDS if self._stage is Stage.UNWELCOME else PATIENCE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()
        self._stage = Stage.LOST
        exchange, self._exchange = self._exchange, None
        self._decoder.close()
        if exchange is not None:
            exchange.peer_left()

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.UNWELCOME:
            self.refuse(Overloaded())
        elif self._stage not in (Stage.DEAF, Stage.LOST):
            self._decoder.unread.add(data)
            self._read()

    def eof_received(self) -> bool:
        """Keep the connection open while a response is due: a peer that sends FIN may have left, or may still read."""
        if not (self._stage is Stage.RESPONDING or (self._is_idle and self.is_write_paused)):
            return False
        if not self._is_half_closed and self._exchange is not None:
            self._exchange.probe()
        self._is_half_closed = True
        self._wait_anew(HALF_CLOSED_LOOK_SECONDS)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._exchange is not None:
            self._exchange.is_writable = False

    def _drained(self) -> None:
        if self._stage is Stage.LOST:
            return
        if self._exchange is not None:
            self._exchange.drained()
        self._read()

    # what the server tells

    def shutdown(self) -> None:
        """The server goes down: close when the open response is over."""
        if self._exchange is None or self._exchange.progress is Progress.OVER:
            self.transport.close()
        else:
            self._exchange.shutdown()

    def ask_no_more(self) -> None:
        self._is_last = True
        if self._exchange is not None:
            self._exchange.be_last()

    @property
    def is_awaited(self) -> bool:
        return self._stage is Stage.READING and (self._exchange is None or self._decoder.is_in_request)

    def close_if_idle(self) -> None:
        if self._is_idle:
            self.transport.close()

    # what an exchange asks for

    def pause_reading(self) -> None:
        if not self.is_read_paused:
            self.is_read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_read_paused:
            self.is_read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def rest(self) -> None:
        """The response is a stream: nothing is read for as long as it lasts."""
        self._decoder.rest()

    def exchange_is_over(self) -> None:
        self._server.total_requests += 1
        if self.transport.is_closing() or self._stage is Stage.DEAF:
            return
        self.resume_reading()
        if self._stage is Stage.RESPONDING:
            self._stage = Stage.READING
            self._wait_anew(HALF_CLOSED_LOOK_SECONDS if self._is_half_closed else self._config.timeout_keep_alive)
        else:
            self._wait_anew(PATIENCE_SECONDS)  # For all of the body's rest: a client may read the response behind it.
        self._read(has_waited=True)

    def refuse(self, error: ChatError | None) -> None:
        """Send a refusal, unless a response has begun, and ignore what comes; None: send nothing."""
        if self._stage in (Stage.DEAF, Stage.LOST):
            return
        is_asked = self._stage is Stage.RESPONDING or self._decoder.stage is http_decoder.Stage.BODY
        exchange = self._exchange if is_asked else None
        self._stage = Stage.DEAF
        self._decoder.unread.clear()
        if error is not None and (exchange is None or exchange.progress is Progress.ASKED):
            self._observer.refused(error.code)
            self.transport.write(refusal_response(error))
        if exchange is not None:
            exchange.peer_left()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._stop_waiting()
        self._timer = self._loop.call_later(LINGER_SECONDS, self.transport.close)

    # reading

    @property
    def _is_idle(self) -> bool:
        return self._stage is Stage.READING and not self._decoder.is_in_request

    def _may_read(self) -> bool:
        return self._stage is Stage.READING and (self._decoder.is_in_request or not self.is_write_paused)

    @property
    def _wants_body(self) -> bool:
        """Whether the application may still read the body: not when the response is over, or written by a peer."""
        return self._exchange is not None and self._exchange.progress in (Progress.ASKED, Progress.STARTED)

    def _read(self, has_waited: bool = False) -> None:
        """Read what has come until there is a request to respond to."""
        if self.transport.is_closing():
            return
        was_idle = self._is_idle
        try:
            while self._may_read() and self._decoder.decode_next():
                pass
        except BadHttp as error:
            self.refuse(None if has_waited else error)  # Bytes behind a response: that response was the last.
        except HeadTooLarge as error:
            self.refuse(error)
        if self._stage is Stage.WEBSOCKET:
            return self._decoder.close()
        if was_idle and self._decoder.is_in_request:
            self._stop_waiting()  # The timer of the first byte.
        self._mind_the_peer()

    def _mind_the_peer(self) -> None:
        """After reading: pause or resume the peer, or close; and start the timer of an incomplete request."""
        if not self._may_read():
            if len(self._decoder.unread) > WAITING_BYTES_LIMIT:
                self.pause_reading()
        elif self._is_half_closed:
            self.transport.close()
        else:
            if self._decoder.stage is not http_decoder.Stage.BODY:  # During a body, the application decides.
                self.resume_reading()
            if self._decoder.is_in_request and self._timer is None:
                self._wait(PATIENCE_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._on_timeout)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait_anew(self, seconds: float) -> None:
        self._stop_waiting()
        self._wait(seconds)

    def _on_timeout(self) -> None:
        """The timer has gone off: the peer took too long, unless this server has paused it."""
        if self._is_half_closed:
            if is_lost(self.transport):
                return self.lose()
            self._wait(HALF_CLOSED_LOOK_SECONDS)
        elif self._stage is not Stage.READING or not self._decoder.is_in_request:
            self.transport.close()  # The peer has sent no request, or no further one.
        elif self._wants_body and (self.is_read_paused or self._decoder.came_bytes >= PATIENCE_BYTES):
            self._decoder.came_bytes = 0
            self._wait(PATIENCE_SECONDS)
        else:
            self.refuse(TooSlow())

    # what the decoder tells

    def request_began(self, head: Head) -> None:
        scope = http_scope(self._config, self.transport, head) | {"state": self._app_state.copy()}
        expects_continue = any(name == b"expect" and value.lower() == b"100-continue" for name, value in head.headers)
        line = AccessLine(scope) if self._has_access_log else None
        keep_alive = head.keep_alive and not self._is_last
        self._exchange = exchange = Exchange(self, scope, keep_alive, expects_continue, line)
        scope["extensions"] = {PEER: exchange.take_over}
        self._start(exchange.run(self._config.loaded_app, scope))

    def body_came(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.body_came(data)

    def request_came(self) -> None:
        if self._stage is not Stage.READING or self._exchange is None:
            return
        self._exchange.all_came()
        has_response = self._exchange.progress is Progress.OVER
        self._stage = Stage.READING if has_response else Stage.RESPONDING
        self._stop_waiting()
        if self._is_half_closed:
            self._wait(HALF_CLOSED_LOOK_SECONDS)
        elif has_response:
            self._wait(self._config.timeout_keep_alive)

    def websocket_asked(self, head: Head) -> None:
        """Hand the connection over, unless the handshake is wrong."""
        websocket = cast(Any, self._config.ws_protocol_class)(self._config, self._server, self._app_state, self._loop)
        websocket.shake_hands(self.transport, head)
        self._stage = Stage.WEBSOCKET
        self._stop_waiting()
        self._connections.discard(self)
        self.transport.set_protocol(websocket)
