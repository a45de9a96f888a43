"""One connection to a server, over either transport: far cheaper than the server at its other end.

A connection notes the time once for each read of the socket, and tells its ``reader`` of every document in it.
"""

import asyncio
import base64
import os
import ssl
import zlib
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Literal, Protocol, Self, TypeAlias, cast
from urllib.parse import urlsplit

import httptools
import msgspec
from msgspec import Struct

from chatserver.syntax import server_url

Transport: TypeAlias = Literal["SSE", "WebSocket"]
TRANSPORTS: tuple[Transport, Transport] = ("SSE", "WebSocket")

CONNECT_SECONDS = 10.0


class ConnectFailed(Exception):
    """There is no server, or none that speaks this."""


class Document(Struct):
    """What is read of an event or of an answer to a command."""

    type: str
    seq: int = 0
    first_seq: int = 0
    run_id: str = ""
    session_id: str = ""
    content: str = ""
    code: str = ""
    message: str = ""

    @property
    def seqs(self) -> range:
        """The numbers that an event stands for: several where texts were merged, none of what is no event."""
        return range(self.first_seq or self.seq, self.seq + 1) if self.seq else range(0)


class Reader(Protocol):
    """Who is told what came."""

    def document(self, document: Document, at_ns: int) -> None: ...

    def ended(self, problem: str | None) -> None:
        """Nothing more will come; ``problem`` says why not all did."""
        ...


class Target(Struct, frozen=True):
    """Where a server is, and what every request to it carries."""

    host: str
    port: int
    is_secure: bool = False
    path: str = ""
    headers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, url: str, headers: tuple[str, ...] = ()) -> Self:
        """The target that a URL names.

        Raises:
            ValueError: it is no URL of a server.
        """
        parts = urlsplit(server_url(url))
        is_secure = parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
        return cls(str(parts.hostname), port, is_secure, parts.path, headers)

    def request(self, method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
        """A whole HTTP/1.1 request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: {host}:{self.port}", *self.headers, *headers]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


_decode = msgspec.json.Decoder(Document).decode


class _Connection(asyncio.Protocol):
    """What both transports share: bytes in, bytes out, an end."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.reader: Reader | None = None
        self.bytes_in = 0
        self.pings = 0
        self.transport: asyncio.Transport
        self._is_open = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, target: Target) -> Self:
        """A connection that is ready to be asked.

        Raises:
            ConnectFailed: it cannot be had.
        """
        context = ssl.create_default_context() if target.is_secure else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(lambda: cls(target), target.host, target.port, ssl=context)
                await connection._is_open
        except TimeoutError:
            raise ConnectFailed("no answer in time") from None
        except OSError as error:
            raise ConnectFailed(error.strerror or str(error)) from None
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_open.done():
            self._is_open.set_exception(ConnectFailed("the server closed the connection"))
        self._end(f"cut: {exc}" if exc else "cut")

    def close(self) -> None:
        self.reader = None
        self.transport.close()

    def drop(self) -> None:
        """As a network drops it: without a word."""
        self.reader = None
        self.transport.abort()

    def _end(self, problem: str | None) -> None:
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.ended(problem)


class SseConnection(_Connection):
    """One request at a time; the connection is kept alive between them."""

    name: Transport = "SSE"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._is_open.set_result(None)

    def ask(self, request: dict[str, Any], reader: Reader) -> None:
        """Start a run and read it."""
        self._send(self.target.request("POST", "/chat/stream", body=msgspec.json.encode(request)), reader)

    def attach(self, run_id: str, after: int, reader: Reader) -> None:
        """Read a run from a cursor."""
        self._send(self.target.request("GET", f"/chat/runs/{run_id}/events?after={after}"), reader)

    def _send(self, request: bytes, reader: Reader) -> None:
        self.reader = reader
        self._rest = b""
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._now = monotonic_ns()
        self.bytes_in += len(data)
        if self.reader is not None:
            self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        lines = (self._rest + body).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:") and self.reader is not None:
                self.reader.document(_decode(line[5:]), self._now)
            elif line.startswith(b":"):
                self.pings += 1

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._end(None if status in (200, 204) else f"HTTP {status}: {self._rest[:200].decode(errors='replace')}")


class WebSocketConnection(_Connection):
    """Any number of runs one after the other. Compression is offered, as browsers do."""

    name: Transport = "WebSocket"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._rest = b""
        self._inflate: Callable[[bytes], bytes] | None = None
        self.transport.write(handshake(self.target))

    def ask(self, request: dict[str, Any], reader: Reader) -> None:
        """Start a run and read it."""
        self._send({"type": "send"} | request, reader)

    def attach(self, run_id: str, after: int, reader: Reader) -> None:
        """Read a run from a cursor."""
        self._send({"type": "attach", "run_id": run_id, "after": after}, reader)

    def _send(self, command: dict[str, Any], reader: Reader) -> None:
        self.reader = reader
        self.transport.write(text_frame(msgspec.json.encode(command)))

    def data_received(self, data: bytes) -> None:
        now = monotonic_ns()
        self.bytes_in += len(data)
        if not self._is_open.done():
            self._rest += data
            head, end, self._rest = self._rest.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                self._is_open.set_exception(ConnectFailed(head.split(b"\r\n", 1)[0].decode()))
                return
            if b"permessage-deflate" in head:
                self._inflate = inflater()
            self._is_open.set_result(None)
            data = b""
        self._rest = frames(self._rest + data if self._rest else data, lambda *frame: self._frame(now, *frame))

    def _frame(self, now: int, opcode: int, is_deflated: bool, payload: bytes) -> None:
        if opcode == 0x1:
            if is_deflated and self._inflate is not None:
                payload = self._inflate(payload)
            document = _decode(payload)
            if document.type == "ping":
                self.pings += 1
            elif self.reader is not None:
                self.reader.document(document, now)
                if document.type in ("done", "error"):
                    self._end(None)
                elif document.type == "rejected":
                    self._end(f"{document.code}: {document.message}")
        elif opcode == 0x9:
            self.transport.write(_frame(0x8A, payload))


CONNECTIONS: dict[Transport, type[SseConnection] | type[WebSocketConnection]] = {
    "SSE": SseConnection,
    "WebSocket": WebSocketConnection,
}
AnyConnection: TypeAlias = SseConnection | WebSocketConnection


def handshake(target: Target) -> bytes:
    """The request that opens a WebSocket, as a browser writes it."""
    return target.request(
        "GET",
        "/chat/ws",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Protocol: chatserver.v1",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    )


def frames(data: bytes, take: Callable[[int, bool, bytes], None]) -> bytes:
    """Call ``take(opcode, is_deflated, payload)`` for each whole frame of a server; what is left of ``data``."""
    start, end = 0, len(data)
    while end - start >= 2:
        head, length = data[start], data[start + 1] & 0x7F
        at = start + 2
        if length >= 126:
            at += 2 if length == 126 else 8
            length = int.from_bytes(data[start + 2 : at])
        if at + length > end:
            break
        take(head & 0x0F, bool(head & 0x40), data[at : at + length])
        start = at + length
    return data[start:]


def inflater() -> Callable[[bytes], bytes]:
    """Undoes permessage-deflate for the messages of one connection."""
    state = zlib.decompressobj(-15)
    return lambda payload: state.decompress(payload + b"\0\0\xff\xff")


def text_frame(payload: bytes) -> bytes:
    return _frame(0x81, payload)


def _frame(head: int, payload: bytes) -> bytes:
    """A frame of a client, masked with zeros: the mask is there, and costs nobody anything."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([head]) + length + b"\0\0\0\0" + payload
