"""Clients that share no code with the server: raw sockets, nothing read ahead of the test that can be told from it.

A reader hands out one document at a time and counts the bytes it has taken, so that a test can cut a stream after any
event or any byte. ``TRANSPORTS`` puts all of them behind one interface:

    reading = await transport.start(server, {"message": "Hi"})
    documents = await documents_of(reading)
"""

import asyncio
import json
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypeVar

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode
from websockets.http11 import Response as Handshake
from websockets.protocol import State
from websockets.typing import Origin, Subprotocol
from websockets.uri import parse_uri

WAIT_SECONDS = 30.0
"""How long a client waits for the next byte before the test is lost; above the heartbeat of any test."""

AGAIN_SECONDS = 0.05
"""Before a client that was refused comes back."""

SUBPROTOCOL = "chatserver.v1"
TERMINAL = frozenset({"done", "error"})
_READ_BYTES = 65536

Headers: TypeAlias = Mapping[str, str | None] | Sequence[tuple[str, str]]
Body: TypeAlias = bytes | str | Mapping[str, Any] | list[Any] | None
T = TypeVar("T")


class Address(Protocol):
    """Where a server listens."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


def below(server: Address, path: str) -> str:
    """A path of the server, which may have a ``prefix`` that all its paths are below."""
    return getattr(server, "prefix", "") + path


class BrokenError(Exception):
    """The stream ended before the framing or the run said so."""


class RefusedError(Exception):
    """The server refused, on either transport: ``status`` (None: closed), ``code``, and what it said."""

    def __init__(self, status: int | None, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = dict(problem)
        self.code: str = str(problem.get("code"))


# ---- one socket -----------------------------------------------------------------------------------------------------


class Wire:
    """A TCP connection that reads only when asked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, server: Address, receive_bytes: int | None = None) -> Self:
        """Connect; ``receive_bytes`` makes the kernel take little, for a reader that will stop."""
        sock = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (server.host, server.port))
        except BaseException:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=_READ_BYTES)
        return cls(reader, writer)

    async def read(self) -> bytes:
        """What has come; b"" at the peer's FIN."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.reader.read(_READ_BYTES)

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def stop(self) -> None:
        """Take nothing more from the socket, as a client that hangs."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()

    def go_on(self) -> None:
        """Read again after a ``stop``."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.resume_reading()

    def cut(self) -> None:
        """Close without a word (FIN)."""
        self.writer.close()

    def reset(self) -> None:
        """Close with RST, as a client whose machine lost the connection."""
        transport = self.writer.transport
        sock = transport.get_extra_info("socket")
        if sock is not None and not transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


# ---- HTTP -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """An ordinary answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class HttpReader:
    """One HTTP/1.1 exchange on its own connection; the body is taken out of its framing as it comes."""

    accept: ClassVar[str | None] = None

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.status = 0
        self.headers: dict[str, str] = {}
        self.header_lines: list[tuple[str, str]] = []
        self.raw = bytearray()
        """All of the body so far, parsed or not."""
        self.consumed = 0
        """How much of it was handed out."""
        self.has_ended = False
        """The body ended as its framing says."""
        self._wire_rest = bytearray()
        self._framing = ""
        self._left = 0

    @classmethod
    async def open(
        cls,
        server: Address,
        method: str,
        path: str,
        body: Body = None,
        headers: Headers = (),
        *,
        receive_bytes: int | None = None,
        half_close: bool = False,
    ) -> Self:
        """Send a request and read the head of its answer. Headers given win; a header of None is left out."""
        reader = cls(await Wire.open(server, receive_bytes))
        try:
            reader.wire.write(_request_bytes(server, method, below(server, path), body, headers, accept=cls.accept))
            if half_close:
                reader.wire.writer.write_eof()
            await reader._read_head(method)
        except BaseException:
            reader.reset()
            raise
        return reader

    @classmethod
    async def post(cls, server: Address, path: str, body: Body, headers: Headers = (), **options: Any) -> Self:
        return await cls.open(server, "POST", path, body, headers, **options)

    @classmethod
    async def get(cls, server: Address, path: str, headers: Headers = (), **options: Any) -> Self:
        return await cls.open(server, "GET", path, None, headers, **options)

    async def more(self) -> bytes:
        """More of the body; b"" once it has ended as it should, and then the connection is closed.

        Raises:
            BrokenError: it was cut.
        """
        while True:
            data = b"" if self._framing == "none" else self._unframe()
            self.raw += data
            if data:
                return data
            if self.has_ended:
                self.cut()
                return b""
            arrived = await self._arrived()
            if not arrived:
                if self._framing != "close":
                    self.cut()
                    raise BrokenError("the body was cut")
                self.has_ended = True
            self._wire_rest += arrived

    async def _arrived(self) -> bytes:
        try:
            return await self.wire.read()
        except ConnectionError:
            raise BrokenError("the connection was reset") from None

    async def read_all(self) -> bytes:
        """The whole body."""
        while await self.more():
            pass
        self.consumed = len(self.raw)
        return bytes(self.raw)

    async def at_least(self, size: int) -> None:
        """Read until ``size`` bytes of the body are there."""
        while len(self.raw) < size and await self.more():
            pass

    def stop(self) -> None:
        """Read no more, stay connected."""
        self.wire.stop()

    def cut(self) -> None:
        self.wire.cut()

    def reset(self) -> None:
        self.wire.reset()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    async def _read_head(self, method: str) -> None:
        while b"\r\n\r\n" not in self._wire_rest:
            if not (arrived := await self._arrived()):
                raise BrokenError("closed without an answer")
            self._wire_rest += arrived
        head, _, rest = bytes(self._wire_rest).partition(b"\r\n\r\n")
        self._wire_rest = bytearray(rest)
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ", 2)[1])
        self.header_lines = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        self.headers = {name.lower(): value for name, value in self.header_lines}
        if method == "HEAD" or self.status in (204, 304) or self.status < 200:
            self._framing, self.has_ended = "none", True
        elif self.headers.get("transfer-encoding", "").lower() == "chunked":
            self._framing = "chunked"
        elif "content-length" in self.headers:
            self._framing, self._left = "length", int(self.headers["content-length"])
            self.has_ended = self._left == 0
        else:
            self._framing = "close"

    def _unframe(self) -> bytes:
        if self._framing == "chunked":
            return b"".join(self._chunks())
        taken = bytes(self._wire_rest if self._framing == "close" else self._wire_rest[: self._left])
        del self._wire_rest[: len(taken)]
        if self._framing == "length":
            self._left -= len(taken)
            self.has_ended = self._left == 0
        return taken

    def _chunks(self) -> list[bytes]:
        rest, found, start = self._wire_rest, list[bytes](), 0
        while (line_end := rest.find(b"\r\n", start)) >= 0:
            size = int(bytes(rest[start:line_end]).partition(b";")[0], 16)
            end = line_end + 2 + size
            if len(rest) < end + 2:
                break
            if bytes(rest[end : end + 2]) != b"\r\n":
                raise BrokenError("a chunk without its end")
            start = end + 2
            if size == 0:
                self.has_ended = True
                break
            found.append(bytes(rest[line_end + 2 : end]))
        del rest[:start]
        return found


def _request_bytes(
    server: Address, method: str, path: str, body: Body, headers: Headers, *, accept: str | None
) -> bytes:
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    names = {name.lower() for name, _ in given}
    content = _content(body)
    defaults = {"Host": f"{server.host}:{server.port}"}
    if accept:
        defaults["Accept"] = accept
    if content is not None:
        defaults |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
    lines = [f"{name}: {value}" for name, value in defaults.items() if name.lower() not in names]
    lines += [f"{name}: {value}" for name, value in given if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + (content or b"")


def _content(body: Body) -> bytes | None:
    match body:
        case None | bytes():
            return body
        case str():
            return body.encode()
        case _:
            return json.dumps(body, ensure_ascii=False).encode()


async def request(
    server: Address, method: str, path: str, body: Body = None, headers: Headers = (), *, half_close: bool = False
) -> Response:
    """An ordinary call. Any bytes as a body, any headers, also a Content-Length that lies."""
    async with await HttpReader.open(server, method, path, body, headers, half_close=half_close) as reader:
        return Response(reader.status, reader.headers, await reader.read_all())


# ---- streams over HTTP ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One event of an SSE stream, and its bytes as they came."""

    id: str | None
    event: str | None
    data: bytes
    raw: bytes


class SseReader(HttpReader):
    """An SSE stream, parsed as WHATWG says, one line at a time."""

    accept = "text/event-stream"

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.events: list[Event] = []
        self.documents: list[bytes] = []
        """The event documents handed out so far."""
        self.comments: list[bytes] = []
        self.retries: list[int] = []
        self._start = 0
        self._fields: dict[str, str] = {}
        self._data: list[bytes] = []

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._each()

    async def _each(self) -> AsyncIterator[Event]:
        while (event := await self.next_event()) is not None:
            yield event

    async def next_event(self) -> Event | None:
        """The next event; None once the stream has ended as it should.

        Raises:
            BrokenError: it was cut.
        """
        while (event := self._parse(len(self.raw))) is None:
            if not await self.more():
                return self._parse(len(self.raw))
        return event

    async def read_bytes(self, size: int) -> None:
        """Take just ``size`` bytes of the body, counted from its start, and no event that ends behind them."""
        await self.at_least(size)
        while self._parse(size) is not None:
            pass

    def _parse(self, limit: int) -> Event | None:
        """The event that ends at or before ``limit``, if the bytes there hold one."""
        while (line := self._line(limit)) is not None:
            if line:
                self._field(line)
                continue
            start, self._start = self._start, self.consumed
            fields, data = self._fields, self._data
            self._fields, self._data = {}, []
            if data:
                raw = bytes(self.raw[start : self.consumed])
                event = Event(fields.get("id"), fields.get("event"), b"\n".join(data), raw)
                self.events.append(event)
                self.documents.append(event.data)
                return event
        return None

    def _line(self, limit: int) -> bytes | None:
        ends = [end for mark in (b"\n", b"\r") if (end := self.raw.find(mark, self.consumed, limit)) >= 0]
        if not ends:
            return None
        end = min(ends)
        after = end + 1
        if self.raw[end : end + 1] == b"\r":
            if end + 1 >= limit and not self.has_ended:
                return None
            after += self.raw[end + 1 : end + 2] == b"\n"
        line = bytes(self.raw[self.consumed : end])
        self.consumed = after
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"":
                self.comments.append(value)
            case b"data":
                self._data.append(value)
            case b"retry":
                self.retries.append(int(value))
            case b"id" | b"event":
                self._fields[name.decode()] = value.decode()


class NdjsonReader(HttpReader):
    """A stream of one JSON document a line."""

    accept = "application/x-ndjson"

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.lines: list[bytes] = []
        self.documents: list[bytes] = []

    async def next_line(self) -> bytes | None:
        """The next line without its end; None once the stream has ended as it should."""
        while True:
            if (line := self._parse(len(self.raw))) is not None:
                return line
            if not await self.more():
                return None

    async def read_bytes(self, size: int) -> None:
        """Take just ``size`` bytes of the body, counted from its start."""
        await self.at_least(size)
        while self._parse(size) is not None:
            pass

    def _parse(self, limit: int) -> bytes | None:
        end = self.raw.find(b"\n", self.consumed, limit)
        if end < 0:
            return None
        line = bytes(self.raw[self.consumed : end])
        self.consumed = end + 1
        self.lines.append(line)
        if is_event(line):
            self.documents.append(line)
        return line


def is_event(document: bytes) -> bool:
    """Events carry a `seq`; pings and answers to commands do not."""
    return bool(document.strip()) and "seq" in json.loads(document)


# ---- WebSocket ------------------------------------------------------------------------------------------------------


class HandshakeRefusedError(RefusedError):
    """The server answered the handshake with an HTTP error; ``headers`` and ``body`` as they came."""

    def __init__(self, response: Handshake) -> None:
        self.headers = {name.lower(): value for name, value in response.headers.raw_items()}
        self.body = bytes(response.body or b"")
        try:
            problem = json.loads(self.body)
        except ValueError:
            problem = {}
        super().__init__(response.status_code, problem if isinstance(problem, dict) else {})


class ClosedError(Exception):
    """The server closed the WebSocket: ``code`` (1006: without a close frame) and ``reason``."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Frame:
    """A text frame: its bytes as they came, and what they say."""

    raw: bytes
    message: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.message["type"])

    @property
    def is_event(self) -> bool:
        return "seq" in self.message

    @property
    def is_answer(self) -> bool:
        return self.type in ("accepted", "rejected")


@dataclass
class WsReader:
    """A WebSocket on the bytes themselves (the `websockets` library without its I/O): frame by frame as asked."""

    wire: Wire
    protocol: ClientProtocol
    frames: list[Frame] = field(default_factory=list)
    """All text frames taken so far."""
    consumed: int = 0
    """Bytes taken since the handshake."""
    documents: list[bytes] = field(default_factory=list)
    """The event documents taken so far, of all runs."""
    _of_run: dict[str, list[bytes]] = field(default_factory=dict)
    _rest: bytearray = field(default_factory=bytearray)
    _pending: deque[Frame] = field(default_factory=deque)
    _fragments: list[bytes] = field(default_factory=list)

    @classmethod
    async def connect(
        cls,
        server: Address,
        path: str = "/chat/ws",
        *,
        subprotocols: Sequence[str] = (SUBPROTOCOL,),
        headers: Headers = (),
        origin: str | None = None,
        receive_bytes: int | None = None,
    ) -> Self:
        """Open the connection.

        Raises:
            HandshakeRefusedError: the server answered with an HTTP error.
        """
        host = f"[{server.host}]" if ":" in server.host else server.host
        protocol = ClientProtocol(
            parse_uri(f"ws://{host}:{server.port}{below(server, path)}"),
            origin=None if origin is None else Origin(origin),
            subprotocols=[Subprotocol(each) for each in subprotocols] or None,
            max_size=None,
        )
        reader = cls(await Wire.open(server, receive_bytes), protocol)
        opening = protocol.connect()
        for name, value in headers.items() if isinstance(headers, Mapping) else headers:
            if name in opening.headers:
                del opening.headers[name]
            if value is not None:
                opening.headers[name] = value
        protocol.send_request(opening)
        reader._flush()
        try:
            await reader._shake_hands()
        except BaseException:
            reader.reset()
            raise
        return reader

    @property
    def subprotocol(self) -> str | None:
        return self.protocol.subprotocol

    def documents_of(self, run_id: str) -> list[bytes]:
        """The event documents of one run taken so far."""
        return self._of_run.setdefault(run_id, [])

    # saying

    def send(self, command: Mapping[str, Any]) -> None:
        """Send a command, wait for nothing."""
        self.send_text(json.dumps(command, ensure_ascii=False))

    def send_text(self, text: str | bytes) -> None:
        self.protocol.send_text(text.encode() if isinstance(text, str) else text)
        self._flush()

    def send_binary(self, data: bytes) -> None:
        self.protocol.send_binary(data)
        self._flush()

    def send_wire(self, data: bytes) -> None:
        """Bytes below the framing: broken frames."""
        self.wire.write(data)

    async def command(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its `accepted` or `rejected`; what comes before it stays to be read."""
        self.send(command)
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """The next `accepted` or `rejected`."""
        return (await self._take(lambda frame: frame.is_answer)).message

    async def until(self, type: str) -> dict[str, Any]:
        """The next frame of this type; what comes before it stays to be read."""
        return (await self._take(lambda frame: frame.type == type)).message

    async def _take(self, wanted: Any) -> Frame:
        for frame in self._pending:
            if wanted(frame):
                self._pending.remove(frame)
                return frame
        while not wanted(frame := await self._read_frame()):
            self._pending.append(frame)
        return frame

    async def run(self, body: Mapping[str, Any]) -> str:
        """Start a run and attach to it; its id.

        Raises:
            RefusedError: the server did not accept.
        """
        return str(self._accepted(await self.command(type="send", **body))["run_id"])

    async def attach(self, run_id: str, after: Any = 0) -> dict[str, Any]:
        return self._accepted(await self.command(type="attach", run_id=run_id, after=after))

    async def detach(self, run_id: str) -> dict[str, Any]:
        return self._accepted(await self.command(type="detach", run_id=run_id))

    async def cancel(self, run_id: str) -> dict[str, Any]:
        return self._accepted(await self.command(type="cancel", run_id=run_id))

    @staticmethod
    def _accepted(answer: dict[str, Any]) -> dict[str, Any]:
        if answer["type"] != "accepted":
            raise RefusedError(answer["status"], answer)
        return answer

    # reading

    async def frame(self) -> Frame:
        """The next text frame.

        Raises:
            ClosedError: the server closed the connection.
        """
        return self._pending.popleft() if self._pending else await self._read_frame()

    def pass_over(self) -> None:
        """Count as read what came before an answer that was waited for; ``documents`` has it."""
        self._pending.clear()

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self._each()

    async def _each(self) -> AsyncIterator[Frame]:
        while True:
            try:
                yield await self.frame()
            except ClosedError:
                return

    async def closing(self) -> ClosedError:
        """Read until the server closes; how it did."""
        try:
            while True:
                await self._read_frame()
        except ClosedError as closed:
            return closed

    async def read_bytes(self, size: int) -> None:
        """Take just ``size`` bytes after the handshake, and no frame that ends behind them."""
        while True:
            while (length := _frame_length(self._rest)) is not None and self.consumed + length <= size:
                self._feed(length)
            if self.consumed + len(self._rest) >= size:
                return
            await self._fill()

    async def _read_frame(self) -> Frame:
        while True:
            while (length := _frame_length(self._rest)) is None:
                await self._fill()
            if (frame := self._feed(length)) is not None:
                return frame

    async def _fill(self) -> None:
        try:
            data = await self.wire.read()
        except ConnectionError:
            data = b""
        if not data:
            raise self._closed()
        self._rest += data

    def _feed(self, length: int) -> Frame | None:
        """Give the library one frame."""
        self.protocol.receive_data(bytes(self._rest[:length]))
        del self._rest[:length]
        self.consumed += length
        self._flush()
        for event in self.protocol.events_received():
            assert isinstance(event, WireFrame)
            if event.opcode in (Opcode.TEXT, Opcode.CONT, Opcode.BINARY):
                self._fragments.append(bytes(event.data))
                if event.fin:
                    raw, self._fragments = b"".join(self._fragments), []
                    frame = Frame(raw, json.loads(raw))
                    self._keep(frame)
                    return frame
        if self.protocol.state is not State.OPEN:
            raise self._closed()
        return None

    def _closed(self) -> ClosedError:
        self.wire.cut()
        close = self.protocol.close_rcvd
        return ClosedError(1006, "") if close is None else ClosedError(close.code, close.reason)

    def _keep(self, frame: Frame) -> None:
        self.frames.append(frame)
        if frame.is_event:
            self.documents.append(frame.raw)
            self.documents_of(frame.message["run_id"]).append(frame.raw)

    async def _shake_hands(self) -> None:
        head = bytearray()
        while b"\r\n\r\n" not in head:
            try:
                data = await self.wire.read()
            except ConnectionError:
                data = b""
            if not data:
                raise ClosedError(1006, "closed without an answer")
            head += data
        end = head.index(b"\r\n\r\n") + 4
        if not head.startswith(b"HTTP/1.1 101"):
            await self._refusal(bytes(head))
        self.protocol.receive_data(bytes(head[:end]))
        self.protocol.events_received()
        if self.protocol.handshake_exc is not None:
            raise self.protocol.handshake_exc
        self._rest += head[end:]

    async def _refusal(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        while not (events := self.protocol.events_received()):
            more = await self.wire.read()
            if more:
                self.protocol.receive_data(more)
            else:
                self.protocol.receive_eof()
        response = events[0]
        assert isinstance(response, Handshake)
        raise HandshakeRefusedError(response)

    def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data and not self.wire.writer.is_closing():
                self.wire.write(data)

    # leaving

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Leave with a close frame."""
        if self.protocol.state is State.OPEN:
            self.protocol.send_close(code, reason)
            self._flush()
        self.wire.cut()

    def stop(self) -> None:
        """Read no more, stay connected."""
        self.wire.stop()

    def cut(self) -> None:
        self.wire.cut()

    def reset(self) -> None:
        self.wire.reset()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _frame_length(rest: bytearray) -> int | None:
    """How long the frame at the start is, when all of it is there."""
    if len(rest) < 2:
        return None
    size, header = rest[1] & 0x7F, 2
    if size >= 126:
        header += 2 if size == 126 else 8
        if len(rest) < header:
            return None
        size = int.from_bytes(rest[2:header], "big")
    return header + size if len(rest) >= header + size else None


# ---- all transports behind one interface ----------------------------------------------------------------------------


class Reading(ABC):
    """A client that reads one run: its event documents, and nothing else that the transport says."""

    def __init__(self, run_id: str | None) -> None:
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        """Known once the server has said it."""
        assert self._run_id is not None, "the server has not named the run yet"
        return self._run_id

    @property
    @abstractmethod
    def documents(self) -> list[bytes]:
        """All documents this client has, those that a cut at a byte left it included."""

    @property
    def after(self) -> int:
        """The cursor that this client would come back with."""
        return int(json.loads(self.documents[-1])["seq"]) if self.documents else 0

    @property
    @abstractmethod
    def consumed(self) -> int:
        """Bytes taken from the stream so far."""

    @abstractmethod
    async def next(self) -> bytes | None:
        """The next document; None once the server has ended the stream as it should.

        Raises:
            BrokenError: it was cut.
        """

    @abstractmethod
    async def read_bytes(self, size: int) -> None:
        """Take just ``size`` bytes of the stream, counted from its start."""

    @abstractmethod
    async def leave(self) -> None:
        """Go, as politely as the transport allows."""

    @abstractmethod
    def cut(self) -> None:
        """Close the connection without a word (FIN)."""

    @abstractmethod
    def reset(self) -> None:
        """Close the connection with RST."""

    @abstractmethod
    def stop(self) -> None:
        """Read no more, stay connected."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._each()

    async def _each(self) -> AsyncIterator[bytes]:
        while (document := await self.next()) is not None:
            yield document

    async def take(self, count: int) -> list[bytes]:
        """The next ``count`` documents."""
        taken: list[bytes] = []
        for _ in range(count):
            document = await self.next()
            if document is None:
                behind = self.documents[-1:]
                raise BrokenError(f"the stream ended after {len(taken)} of {count} documents, behind {behind}")
            taken.append(document)
        return taken

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    def _learn(self, document: bytes) -> bytes:
        if self._run_id is None:
            self._run_id = str(json.loads(document)["run_id"])
        return document


class _HttpReading(Reading):
    def __init__(self, reader: SseReader | NdjsonReader, run_id: str | None) -> None:
        super().__init__(run_id)
        self.reader = reader
        self._given = 0

    @property
    def documents(self) -> list[bytes]:
        return self.reader.documents

    @property
    def consumed(self) -> int:
        return self.reader.consumed

    async def next(self) -> bytes | None:
        while len(documents := self.reader.documents) <= self._given:
            reader = self.reader
            ended = (await reader.next_event() if isinstance(reader, SseReader) else await reader.next_line()) is None
            if ended:
                return None
        self._given += 1
        return self._learn(documents[self._given - 1])

    async def read_bytes(self, size: int) -> None:
        await self.reader.read_bytes(size)
        self._given = len(self.documents)

    async def leave(self) -> None:
        self.reader.cut()

    def cut(self) -> None:
        self.reader.cut()

    def reset(self) -> None:
        self.reader.reset()

    def stop(self) -> None:
        self.reader.stop()


class _WsReading(Reading):
    def __init__(self, reader: WsReader, run_id: str, has_ended: bool) -> None:
        super().__init__(run_id)
        self.reader = reader
        self._has_ended = has_ended
        self._given = 0

    @property
    def documents(self) -> list[bytes]:
        return self.reader.documents_of(self.run_id)

    @property
    def consumed(self) -> int:
        return self.reader.consumed

    async def next(self) -> bytes | None:
        while len(documents := self.documents) <= self._given:
            if self._has_ended and await self._is_silent():
                self.reader.close()
                return None
            try:
                await self.reader.frame()
            except ClosedError as closed:
                raise BrokenError(f"closed with {closed.code} {closed.reason}") from None
        self._given += 1
        document = documents[self._given - 1]
        self._has_ended = is_terminal(document)
        return document

    async def _is_silent(self) -> bool:
        """Whether nothing follows what must be the last: what the server has sent comes before its pong."""
        try:
            self.reader.send({"type": "ping"})
            await self.reader.until("pong")
        except (ClosedError, InvalidState):
            pass
        return len(self.documents) <= self._given

    async def read_bytes(self, size: int) -> None:
        await self.reader.read_bytes(size)
        self._given = len(self.documents)

    async def leave(self) -> None:
        self.reader.send({"type": "detach", "run_id": self.run_id})
        self.reader.close()

    def cut(self) -> None:
        self.reader.cut()

    def reset(self) -> None:
        self.reader.reset()

    def stop(self) -> None:
        self.reader.stop()


class Transport(ABC):
    """A way to read runs."""

    name: ClassVar[str]

    @abstractmethod
    async def start(self, server: Address, body: Mapping[str, Any], **options: Any) -> Reading:
        """Start a run and read it from its start; the run's id is known when this returns.

        Raises:
            RefusedError: the server did not start it.
        """

    @abstractmethod
    async def attach(self, server: Address, run_id: str, after: Any = 0, **options: Any) -> Reading:
        """Read a run from a cursor. At the end of a finished run: a reading without documents.

        Raises:
            RefusedError: the server did not allow it.
        """

    def __repr__(self) -> str:
        return self.name


class _HttpTransport(Transport):
    reader: ClassVar[type[SseReader] | type[NdjsonReader]]

    async def start(self, server: Address, body: Mapping[str, Any], **options: Any) -> Reading:
        reading = await self._reading(await self.reader.post(server, "/chat/stream", body, **options), None)
        first = await reading.next()
        if first is None:
            raise BrokenError("a stream without events")
        reading._given = 0
        return reading

    async def attach(self, server: Address, run_id: str, after: Any = 0, **options: Any) -> Reading:
        path = f"/chat/runs/{run_id}/events?after={after}"
        return await self._reading(await self.reader.get(server, path, **options), run_id)

    async def _reading(self, reader: SseReader | NdjsonReader, run_id: str | None) -> _HttpReading:
        if reader.status not in (200, 204):
            body = await reader.read_all()
            reader.cut()
            is_problem = reader.headers.get("content-type", "").startswith("application/problem+json")
            raise RefusedError(reader.status, json.loads(body) if is_problem else {})
        return _HttpReading(reader, run_id)


class Sse(_HttpTransport):
    name = "sse"
    reader = SseReader


class Ndjson(_HttpTransport):
    name = "ndjson"
    reader = NdjsonReader


class Ws(Transport):
    name = "ws"

    async def start(self, server: Address, body: Mapping[str, Any], **options: Any) -> Reading:
        reader = await WsReader.connect(server, **options)
        try:
            return _WsReading(reader, await reader.run(body), False)
        except BaseException:
            reader.cut()
            raise

    async def attach(self, server: Address, run_id: str, after: Any = 0, **options: Any) -> Reading:
        reader = await WsReader.connect(server, **options)
        try:
            accepted = await reader.attach(run_id, after)
        except BaseException:
            reader.cut()
            raise
        return _WsReading(reader, run_id, bool(accepted.get("ended")))


SSE, WS, NDJSON = Sse(), Ws(), Ndjson()
BOTH: tuple[Transport, ...] = (SSE, WS)
TRANSPORTS: tuple[Transport, ...] = (SSE, WS, NDJSON)


def is_terminal(document: bytes) -> bool:
    """Whether a document ends its run."""
    return json.loads(document)["type"] in TERMINAL


async def documents_of(reading: Reading) -> list[bytes]:
    """All documents from here to the terminal one; the stream must then end by itself, with nothing behind it.

    Raises:
        BrokenError: it ended before, or went on behind.
    """
    documents: list[bytes] = []
    async with reading:
        async for document in reading:
            documents.append(document)
            if is_terminal(document):
                break
        else:
            raise BrokenError(f"the stream ended after {len(documents)} documents without a terminal one")
        if (extra := await reading.next()) is not None:
            raise BrokenError(f"a document behind the terminal one: {extra!r}")
    return documents


def text_of(documents: Sequence[bytes]) -> str:
    """The answer's text as a client puts it together."""
    text = ""
    for message in map(json.loads, documents):
        if message["type"] == "token":
            text += message["content"]
        elif message["type"] == "snapshot":
            text = "".join(part["text"] for part in message["parts"] if part["type"] == "text")
    return text


def types_of(documents: Sequence[bytes]) -> list[str]:
    """The types of the events, in order."""
    return [json.loads(each)["type"] for each in documents]


async def when_available(verb: Callable[[], Awaitable[T]]) -> T:
    """What a verb comes to when the server is no longer ``unavailable``: a client comes back until then.

    Between a fault of Redis or of the database and its healing, that is the right answer to whatever needs them.
    """
    while True:
        try:
            return await verb()
        except RefusedError as refused:
            if refused.code != "unavailable":
                raise
        await asyncio.sleep(AGAIN_SECONDS)


async def cancel(server: Address, run_id: str) -> Response:
    """End a run over HTTP."""
    return await request(server, "POST", f"/chat/runs/{run_id}/cancel")


async def get_run(server: Address, run_id: str) -> dict[str, Any]:
    """The Run, over HTTP."""
    response = await request(server, "GET", f"/chat/runs/{run_id}")
    if response.status != 200:
        raise RefusedError(response.status, response.json)
    return dict(response.json)
