"""The bytes of a WebSocket's client to texts, without a connection: within its limits, and closed where it breaks them.

Frames are decoded by websockets' own protocol class, which also answers pings and closes.
"""

import logging
from collections.abc import Iterator

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from chatserver.errors import BadHttp
from chatserver.limits import TokenBucket
from chatserver.serving.http_decoder import Head
from chatserver.transports.close_codes import NOT_UTF8, TOO_MANY_FRAMES, Closing

FRAMES_PER_SECOND_LIMIT = 200
FRAMES_AT_ONCE_LIMIT = 2000
"""How many frames, of whatever kind, one WebSocket may send in each second in the long run, and how many at once."""

_quiet = logging.getLogger("chatserver.websocket.frames")
_quiet.setLevel(logging.CRITICAL)  # The library would log each broken handshake.


class WebSocketDecoder:
    """The messages of one client, and the protocol's own answers to them."""

    def __init__(self, message_bytes_limit: int) -> None:
        # Open from the start: the bytes of the handshake were decoded by HTTP's own decoder.
        self.conn = ServerProtocol(state=State.OPEN, max_size=message_bytes_limit, logger=_quiet)
        self.has_pong = False
        """Whether a pong has come since the owner set this to False."""
        self.is_broken = False
        """Whether the connection was failed: what comes is thrown away, the answer to the close too."""
        self._frames_left = TokenBucket(FRAMES_AT_ONCE_LIMIT, FRAMES_PER_SECOND_LIMIT)
        self._fragments: list[bytes] = []
        self._is_text = True

    @property
    def has_closed(self) -> bool:
        """Whether a close frame was sent, or is among the bytes to be sent."""
        return self.conn.close_sent is not None

    def response_to(self, handshake: Head) -> Response:
        """The response that accepts a handshake.

        Raises:
            BadHttp: the handshake is wrong.
        """
        if handshake.method != b"GET" or handshake.version != "1.1":  # The library looks from its version 17 on.
            raise BadHttp("a WebSocket begins with GET and HTTP/1.1")
        headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in handshake.headers)
        response = self.conn.accept(Request(handshake.target.decode("ascii"), headers))
        if self.conn.handshake_exc is not None:
            raise BadHttp(str(self.conn.handshake_exc))
        return response

    def decode(self, data: bytes) -> Iterator[str | None]:
        """Each text; None: a binary message."""
        had_closed = self.has_closed  # By what comes now, the connection may answer a close behind other frames.
        self.conn.receive_data(data)
        for event in self.conn.events_received():
            if isinstance(event, Frame) and not had_closed and not self.is_broken:
                yield from self._message(event)
        self.is_broken = self.is_broken or self.conn.parser_exc is not None

    def data_to_send(self) -> bytes:
        """The bytes to be sent now: pongs, and the close frame where the client broke a rule or closed."""
        return b"".join(self.conn.data_to_send())

    def fail(self, closing: Closing) -> None:
        """Close, and throw away unread what comes."""
        self.is_broken = True
        self.conn.fail(closing.code, closing.reason)

    def _message(self, frame: Frame) -> Iterator[str | None]:
        """The message that this frame completes, if it completes one."""
        if self._frames_left.draw():
            return self.fail(TOO_MANY_FRAMES)
        if frame.opcode is Opcode.PONG:
            self.has_pong = True
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text, self._fragments = frame.opcode is Opcode.TEXT, []
        self._fragments.append(bytes(frame.data))
        if frame.fin:
            data, self._fragments = b"".join(self._fragments), []
            try:
                yield data.decode() if self._is_text else None
            except UnicodeDecodeError:
                self.fail(NOT_UTF8)
