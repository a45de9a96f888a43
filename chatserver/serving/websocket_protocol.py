"""WebSocket as a protocol of asyncio: a handshake that the application accepts or refuses, then a ``SocketPeer``.

HANDSHAKE ──accepted──▶ OPEN ──close frame──▶ CLOSING ──▶ LOST
    └──refused──▶ CLOSING
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from http import HTTPStatus
from time import monotonic, time
from typing import Any, cast

from websockets.datastructures import Headers
from websockets.http11 import Response

from chatserver.errors import Internal
from chatserver.serving.access_log import AccessLine
from chatserver.serving.connection import ServedProtocol
from chatserver.serving.http_bytes import refusal_response
from chatserver.serving.http_decoder import Head
from chatserver.serving.http_head import date_header
from chatserver.serving.lost_peers import progress
from chatserver.serving.scope import websocket_scope
from chatserver.serving.websocket_decoder import WebSocketDecoder
from chatserver.transports.asgi import AsgiMessage
from chatserver.transports.close_codes import (
    CLOSE_CODES,
    FAILED,
    GOING_DOWN,
    LOST,
    NO_PONG,
)
from chatserver.transports.peer import PEER, nobody

logger = logging.getLogger("chatserver.websocket")

PING_SECONDS = 45.0
PONG_SECONDS = 15.0
"""These pings find a peer whose kernel answers and whose program does not. What keeps connections alive for proxies is
the clock of ``Connections``."""

CLOSE_SECONDS = 10.0
"""How long a client may take to answer a close."""

BRUSQUE_CLOSE_SECONDS = 1.0
"""The same for a client that takes nothing or breaks the rules: cut off at once, it would never read the close."""


class Stage(Enum):
    """How far the connection is."""

    HANDSHAKE = auto()
    OPEN = auto()
    CLOSING = auto()
    """A close frame was sent. What comes is thrown away, except for the client's close frame."""

    LOST = auto()


_OPEN = Stage.OPEN  # For each write: Python 3.11 takes 80 ns longer to look a member up in its enum.


class WebSocketProtocol(ServedProtocol):
    """One connection, from the head of its handshake on; as a peer, once it is taken over."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._line: AccessLine | None = None
        self._stage = Stage.HANDSHAKE
        self._is_accepted = False
        self._decoder = WebSocketDecoder(self._config.ws_max_size)
        self._response: Response | None = None
        self._refusal: AsgiMessage = {}
        self._came: asyncio.Future[None] | None = None
        self._pinged_at = monotonic()
        """When the ping was sent; or when bytes in front of it were last seen that the peer had not taken yet."""
        self._ping_end = 0
        """How many bytes the peer has taken when it has taken the ping."""
        self.is_writable = True
        self.on_writable = self.on_leave = nobody
        self.on_text: Callable[[str | None], None] = _unheard

    # what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stage = Stage.LOST
        if self._timer is not None:
            self._timer.cancel()
        if self._line is not None:
            self._line.over(is_whole=self._decoder.has_closed or self._refusal != {})
        if self._is_accepted:
            close = self._decoder.conn.close_sent
            code = LOST if close is None else close.code
            self._observer.websocket_closed(code if code in CLOSE_CODES else None)
        self._leave()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.is_writable = False

    def _drained(self) -> None:
        if self._stage is Stage.OPEN:
            self.is_writable = True
            self.on_writable()

    def data_received(self, data: bytes) -> None:
        for text in self._decoder.decode(data):
            if self._stage is Stage.OPEN:
                self._deliver(text)
        if self._stage is Stage.OPEN:
            self._flush()
        elif self._stage is Stage.CLOSING and self._decoder.conn.close_rcvd is not None:
            self.transport.close()

    def _deliver(self, text: str | None) -> None:
        try:
            self.on_text(text)
        except Exception:
            logger.exception("a WebSocket failed")
            self.close(FAILED.code, FAILED.reason)

    def _flush(self) -> None:
        if data := self._decoder.data_to_send():
            self.transport.write(data)
        if self._decoder.has_closed:
            self._hear_no_more()

    # what the server tells

    def shutdown(self) -> None:
        """The server goes down; the owner of this peer has been told."""
        if self._stage is Stage.OPEN:
            self.close(GOING_DOWN.code, GOING_DOWN.reason)
        self.transport.close()

    def check_peer(self) -> None:
        """Find out by pings whether a program still runs behind the peer's kernel."""
        if self._stage is not Stage.OPEN:
            return
        now = monotonic()
        if self._decoder.has_pong:
            if now - self._pinged_at >= PING_SECONDS:
                self._ping(now)
        elif progress(self.transport)[0] < self._ping_end:
            self._pinged_at = now  # A slow reader: how long it may take nothing at all, the send timeout says.
        elif now - self._pinged_at >= PONG_SECONDS:
            self._observer.peer_dropped("no_pong")
            self._decoder.fail(NO_PONG)
            self._flush()
            self.abort()

    def _ping(self, now: float) -> None:
        self._pinged_at, self._decoder.has_pong = now, False
        self._decoder.conn.send_ping(b"")
        self._flush()
        _, self._ping_end = progress(self.transport)

    # the handshake

    def shake_hands(self, transport: asyncio.Transport, head: Head) -> None:
        """Take a connection over, and let the application respond to its handshake.

        Raises:
            BadHttp, HttpParserInvalidURLError, UnicodeDecodeError: the handshake is wrong; nothing is taken over.
        """
        scope = websocket_scope(self._config, transport, head)
        self._response = self._decoder.response_to(head)
        self.connection_made(transport)
        scope |= {"state": self._app_state.copy(), "extensions": {"websocket.http.response": {}, PEER: self.take_over}}
        if self._has_access_log:
            self._line = AccessLine(scope)
        self.transport.pause_reading()  # Until the application's call has returned: no text comes before its owner.
        self._start(self._run(scope))

    async def _run(self, scope: dict[str, Any]) -> None:
        """Let the application respond to the handshake, and take the connection over."""
        try:
            await self._config.loaded_app(scope, self.receive, self.send)
        except Exception:
            logger.exception("the application failed")
        except BaseException:
            self.abort()  # The connection has no owner that would ever close it.
            raise
        self._response = self._came = None
        if not self.transport.is_closing():
            self.transport.resume_reading()
        if self._stage is Stage.HANDSHAKE:
            self.transport.write(refusal_response(Internal()))
            self.transport.close()
        elif self._stage is Stage.OPEN and self.on_leave is nobody:
            self.close(FAILED.code, FAILED.reason)

    async def receive(self) -> AsgiMessage:
        """The handshake's messages; what comes behind the handshake goes to the peer's owner."""
        if self._came is None:
            self._came = self._loop.create_future()
            return {"type": "websocket.connect"}
        if self._stage is not Stage.LOST:
            await self._came
        return {"type": "websocket.disconnect", "code": LOST}

    async def send(self, message: AsgiMessage) -> None:
        if self._stage is Stage.LOST:
            raise ConnectionResetError
        match self._stage, message["type"]:
            case Stage.HANDSHAKE, "websocket.accept":
                self._accept(message)
            case Stage.HANDSHAKE, "websocket.http.response.start":
                self._refusal = message
            case Stage.HANDSHAKE, "websocket.http.response.body":
                self._refuse(self._refusal["status"], self._refusal["headers"], message["body"])
            case Stage.HANDSHAKE, "websocket.close":
                self._refuse(HTTPStatus.FORBIDDEN, [], b"")
            case Stage.OPEN, "websocket.close":
                self.close(message["code"], message["reason"])
            case _:
                raise RuntimeError(f"{message['type']} on a WebSocket that is {self._stage.name.lower()}")

    def _accept(self, message: AsgiMessage) -> None:
        response = cast(Response, self._response)
        del response.headers["Date"]
        headers = [date_header(int(time())), *message.get("headers", ())]
        response.headers.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        if subprotocol := message.get("subprotocol"):
            response.headers["Sec-WebSocket-Protocol"] = subprotocol
        self.transport.write(_encoded(response))
        self._stage = Stage.OPEN
        self._is_accepted = True
        self._decoder.has_pong = True

    def _refuse(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        headers = [date_header(int(time())), *headers]
        said = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        said["Connection"] = "close"
        said.setdefault("Content-Length", str(len(body)))
        self.transport.write(_encoded(Response(status, HTTPStatus(status).phrase, said, body)))
        self._stage = Stage.CLOSING
        self.transport.close()

    # as a peer

    def take_over(self) -> "WebSocketProtocol":
        """Take the connection over from the application's call, which may return then."""
        if self._stage is not Stage.OPEN:
            self._loop.call_soon(self._leave)
        return self

    def write(self, data: bytes) -> None:
        """Send whole frames."""
        if self._stage is _OPEN:
            self.transport.write(data)

    def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what was written, and hear no more."""
        if self._stage is Stage.OPEN:
            if not self._decoder.has_closed:
                self._decoder.conn.send_close(code, reason)
            self._flush()

    def _hear_no_more(self) -> None:
        conn = self._decoder.conn
        if self._line is not None and conn.close_sent is not None:
            self._line.answered(conn.close_sent.code)
        self._stage = Stage.CLOSING
        self.on_text = _unheard
        if conn.close_rcvd is not None:
            self.transport.close()
        else:
            is_patient = self.is_writable and not self._decoder.is_broken
            self._timer = self._loop.call_later(CLOSE_SECONDS if is_patient else BRUSQUE_CLOSE_SECONDS, self.abort)
        self.is_writable = False

    def _leave(self) -> None:
        if self._came is not None and not self._came.done():
            self._came.set_result(None)
        self.on_text = _unheard
        self.on_leave()


def _unheard(_: str | None) -> None:
    """Ignore a text: the peer has no owner yet, or is closing."""


def _encoded(response: Response) -> bytes:
    """The bytes that the application has given: the library before its version 17 would encode headers as UTF-8."""
    head = f"HTTP/1.1 {response.status_code} {response.reason_phrase}\r\n{response.headers}"
    return head.encode("latin-1") + response.body
