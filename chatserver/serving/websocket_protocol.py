"""WebSocket as uvicorn has it, and what that lacks: a limit of frames, a close that can be read, joined frames."""

from typing import Any, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from chatserver.errors import BadHttp
from chatserver.lean_event import LeanEvent
from chatserver.limits import Bucket
from chatserver.serving.http_bytes import refusal
from chatserver.serving.http_protocol import LINGER_SECONDS
from chatserver.transports.close_codes import FAILED, NOT_UTF8, TOO_MANY_FRAMES
from chatserver.transports.connections import TRANSPORT, WRITE_NOW, Message
from chatserver.transports.frames import FRAMES

FRAMES_PER_SECOND_LIMIT = 200
FRAMES_AT_ONCE_LIMIT = 2000
"""How many frames, of whatever kind, one WebSocket may send in each second in the long run, and how many at once."""


class _LeanQueue:
    """What the application has still to receive. One task waits for it; asyncio's queue is ready for many, in 3 KB."""

    __slots__ = ("_has_come", "_messages")

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._has_come = LeanEvent()

    def put_nowait(self, message: Message) -> None:
        self._messages.append(message)
        self._has_come.set()

    def empty(self) -> bool:
        return not self._messages

    async def get(self) -> Message:
        while not self._messages:
            self._has_come.clear()
            await self._has_come.wait()
        return self._messages.pop(0)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection, with the transport in reach of the application and many frames in one write."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = cast(Any, _LeanQueue())
        self.writable = LeanEvent()
        self.writable.set()
        self._frames_left = Bucket(FRAMES_AT_ONCE_LIMIT, FRAMES_PER_SECOND_LIMIT)
        self._is_deaf = False

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            cast(dict[str, Any], self.scope)["extensions"] |= {
                TRANSPORT: self.transport,
                WRITE_NOW: self._write_now,
                FRAMES: {},
            }

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(refusal(BadHttp()))  # Too many headers, or too long ones; uvicorn would wait for ever.
            self.transport.close()

    def handle_events(self) -> None:
        if self.handshake_complete and any(self._frames_left.take() for _ in self.conn.events) and not self.close_sent:
            self.conn.events.clear()
            self.conn.send_close(TOO_MANY_FRAMES.code, TOO_MANY_FRAMES.reason)
            return self.handle_parser_exception()
        super().handle_events()

    def handle_parser_exception(self) -> None:
        """As uvicorn's, but for a while the peer may go on sending: cut off at once, it would never read why."""
        sent = self.conn.close_sent
        code, reason = (sent.code, sent.reason) if sent is not None else (FAILED.code, FAILED.reason)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = self._is_deaf = True
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self.frames = []  # uvicorn closes with 1007 too, but with a traceback in the log.
            self.conn.send_close(NOT_UTF8.code, NOT_UTF8.reason)
            return self.handle_parser_exception()
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        if self.close_sent and message["type"] in ("websocket.send", "websocket.close"):
            raise ClientDisconnected
        frames: bytes | None = message.get(FRAMES)
        if frames is None:
            await super().send(message)
            if message["type"] == "websocket.accept":
                self._forget_handshake()
            if message["type"] == "websocket.http.response.body":
                self.handshake_complete = True  # Refused is complete too; uvicorn would log it as a fault of the app.
            return
        await self.writable.wait()
        if not self._write_now(frames):
            raise ClientDisconnected

    def _forget_handshake(self) -> None:
        """Who asked for what has been looked at; left alone, it is 4 KB for as long as the connection is open."""
        for headers in (self.request.headers, self.response.headers, self.scope["headers"]):
            cast(Any, headers).clear()

    def _write_now(self, frames: bytes) -> bool:
        if self.disconnected or self.close_sent or self.conn.state is not State.OPEN or not self.writable.is_set():
            return False
        self.transport.write(frames)
        return True


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
