"""A scripted OpenAI-compatible server that is exact to the byte: what it says, when, and how it ends is the test's.

    async with FakeUpstream() as upstream:
        gate = anyio.Event()
        upstream.script(token("Hel"), Gate(gate), token("lo"), finish("stop"), Done())

A script is a list of steps for one request. Steps that write are sent together until a step that waits. Bodies are
chunked, one step being one HTTP chunk, so that an end and a cut can be told apart; ``Status(close=True)`` makes a
body that ends with its connection. A script that runs out ends the body and keeps the connection.
"""

import asyncio
import inspect
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, cast

WAIT_SECONDS = 10.0
"""How long a test waits for something that a client should do at once, on a busy machine."""

EVENT_STREAM = (("Content-Type", "text/event-stream"),)
JSON_BODY = (("Content-Type", "application/json"),)


# ---- steps ----------------------------------------------------------------------------------------------------------


class Waitable(Protocol):
    """``asyncio.Event`` and ``anyio.Event``."""

    async def wait(self) -> Any: ...


class Settable(Protocol):
    def set(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Status:
    """The status line and the headers. A script without it gets 200 ``text/event-stream`` at its first byte.

    ``close``: no chunks, the body ends with the connection. ``length``: a Content-Length, not chunked; it may lie.
    """

    code: int = 200
    headers: tuple[tuple[str, str], ...] = EVENT_STREAM
    close: bool = False
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes of the body, just these."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pieces:
    """Bytes of the body, each piece an HTTP chunk and a TCP segment of its own."""

    pieces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes of the connection: no status line, no framing."""

    data: bytes


class Chunk:
    """One ``data: {json}`` of the stream."""

    __slots__ = ("data", "document")

    def __init__(self, document: Any) -> None:
        self.document = document
        self.data = b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    def __repr__(self) -> str:
        return f"Chunk({self.document!r})"


@dataclass(frozen=True, slots=True)
class Done:
    """``data: [DONE]``"""

    data: bytes = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Gate:
    """Wait until somebody opens it."""

    event: Waitable


@dataclass(frozen=True, slots=True)
class Reached:
    """Tell the test that all before this step has been written."""

    event: Settable


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for a time that is part of the script."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Say nothing more; the reply ends when the client leaves."""


@dataclass(frozen=True, slots=True)
class Fin:
    """End the body as it should be and close the connection."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection with FIN in the middle of the body."""


@dataclass(frozen=True, slots=True)
class Rst:
    """Reset the connection in the middle of the body."""


Step: TypeAlias = "Status | Raw | Pieces | Wire | Chunk | Done | Gate | Reached | Pause | Hang | Fin | Cut | Rst | Act"
Act: TypeAlias = Callable[["Reply"], "Iterable[Step] | Awaitable[None] | None"]
"""A step that the test makes up when its turn comes: it may look at the request, act, or give more steps."""


# ---- what models say ------------------------------------------------------------------------------------------------


def chunk(
    delta: Mapping[str, Any] | None,
    finish_reason: str | None = None,
    *,
    index: int = 0,
    **fields: Any,
) -> Chunk:
    """A `chat.completion.chunk` with one choice."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return Chunk(_ENVELOPE | {"choices": [choice]} | fields)


_ENVELOPE = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1700000000, "model": "fake"}


def role() -> Chunk:
    """The chunk that most servers begin with."""
    return chunk({"role": "assistant", "content": ""})


def token(text: str | None) -> Chunk:
    """A piece of the answer."""
    return chunk({"content": text})


def reasoning(text: str, field: str = "reasoning_content") -> Chunk:
    """A piece of reasoning, under one of the names that servers use."""
    return chunk({field: text})


def tool_fragment(
    index: int | None = 0,
    id: str | int | None = None,
    name: str | None = None,
    arguments: Any = None,
) -> Chunk:
    """A fragment of a tool call, with just the fields given."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    call: dict[str, Any] = {"index": index, "id": id, "type": "function" if id else None, "function": function}
    return chunk({"tool_calls": [{key: value for key, value in call.items() if value is not None}]})


def tool_call(name: str, arguments: Any, *, id: str = "call_1", index: int = 0, pieces: int = 1) -> list[Chunk]:
    """A whole tool call, its arguments in so many fragments."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return [
        tool_fragment(index, id, name, ""),
        *(tool_fragment(index, arguments=piece) for piece in cut_in(text, pieces)),
    ]


def finish(reason: str | None = "stop", usage: Mapping[str, Any] | None = None) -> Chunk:
    """The last chunk of a choice."""
    return chunk({}, reason) if usage is None else chunk({}, reason, usage=usage)


def counted(input_tokens: Any, output_tokens: Any) -> dict[str, Any]:
    """A usage object."""
    total = input_tokens + output_tokens
    return {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": total}


def usage(input_tokens: int, output_tokens: int) -> Chunk:
    """The usage in a chunk without choices, as `include_usage` asks for it."""
    return Chunk(_ENVELOPE | {"choices": [], "usage": counted(input_tokens, output_tokens)})


def say(text: str, pieces: int = 1, reason: str = "stop") -> list[Step]:
    """A whole normal answer."""
    return [role(), *(token(piece) for piece in cut_in(text, pieces)), finish(reason), usage(7, pieces), Done()]


def call(name: str, arguments: Any, *, id: str = "call_1") -> list[Step]:
    """A whole normal turn that ends in one tool call."""
    return [role(), *tool_call(name, arguments, id=id), finish("tool_calls"), usage(7, 5), Done()]


def refuse(status: int, error: Any = None, headers: Mapping[str, str] | None = None) -> list[Step]:
    """A whole reply that is an error, in OpenAI's form unless ``error`` is a ready body."""
    body = error if isinstance(error, bytes) else json.dumps({"error": error or {"message": "refused"}}).encode()
    return [Status(status, JSON_BODY + tuple((headers or {}).items()), length=len(body)), Raw(body)]


def cut_in(text: str, pieces: int) -> list[str]:
    """The text in just so many pieces of about the same length; fewer only when it has fewer characters."""
    count = min(pieces, len(text))
    return [text[len(text) * at // count : len(text) * (at + 1) // count] for at in range(count)]


def body_of(steps: Iterable[Step]) -> bytes:
    """The bytes that steps which only write put into the body."""
    return b"".join(step.data for step in steps if isinstance(step, Raw | Chunk | Done))


# ---- the server -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """What the client asked for; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(eq=False)
class Reply:
    """One request being answered: how far it came, and how it ended."""

    request: Request
    state: str = "active"
    """``active``, ``ended`` (by its script) or ``cut`` (by the client)."""
    steps: int = 0
    """Steps that have begun."""
    bytes_written: int = 0
    """Of the body."""
    started_at: float = field(default_factory=time.monotonic)
    closed_at: float | None = None

    def close(self, state: str) -> None:
        self.state, self.closed_at = state, time.monotonic()


class FakeUpstream:
    """The server. Leaving it closes all connections, and raises what went wrong inside."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.replies: list[Reply] = []
        self.cuts: list[Reply] = []
        """Replies that the client cut, in the order it did."""
        self.connections_made = 0
        self.pause: Callable[[float], Awaitable[None]] = asyncio.sleep
        """What a ``Pause`` is."""
        self.port = 0
        self._scripts: deque[tuple[Step, ...]] = deque()
        self._default: tuple[Step, ...] = tuple(refuse(418, {"message": "no script for this request"}))
        self._connections: set[_Connection] = set()
        self._changed = asyncio.Event()
        self._next_request = 0
        self._failure: BaseException | None = None
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The base URL for the SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def active(self) -> int:
        """Connections in the middle of a reply."""
        return sum(1 for each in self._connections if each.reply is not None)

    @property
    def connections(self) -> int:
        """Open connections, idle ones too."""
        return len(self._connections)

    @property
    def closed_at(self) -> list[float]:
        """When the client cut replies, in monotonic time."""
        return [each.closed_at for each in self.cuts if each.closed_at is not None]

    def script(self, *steps: Step) -> None:
        """Queue what the next request that has no script yet is answered with."""
        self._scripts.append(steps)

    def forget_scripts(self) -> None:
        """No request has a script any more."""
        self._scripts.clear()

    def always(self, *steps: Step) -> None:
        """What a request is answered with when the queue is empty."""
        self._default = steps

    async def next_request(self) -> Request:
        """The next request that was not given out here yet."""
        await self.until(lambda: len(self.requests) > self._next_request)
        self._next_request += 1
        return self.requests[self._next_request - 1]

    async def closed(self, count: int = 1) -> list[Reply]:
        """The replies that the client cut, as soon as there are so many."""
        await self.until(lambda: len(self.cuts) >= count)
        return self.cuts

    async def idle(self) -> None:
        """Wait until no reply is active."""
        await self.until(lambda: self.active == 0)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something about requests, replies and connections is true."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not true():
                await self._changed.wait()

    def changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def take_script(self) -> tuple[Step, ...]:
        return self._scripts.popleft() if self._scripts else self._default

    def add(self, connection: "_Connection") -> None:
        self._connections.add(connection)
        self.connections_made += 1
        self.changed()

    def remove(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        self.changed()

    def failed(self, error: BaseException) -> None:
        self._failure = self._failure or error

    async def refuse_connections(self) -> None:
        """Stop listening, so that the port refuses; what is connected stays."""
        if self._server is not None:
            self._server.close()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=4096, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse_connections()
        tasks = [each.task for each in self._connections]
        for each in list(self._connections):
            each.reset()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening_socket_is_closed()
        if self._failure is not None and error is None:
            raise self._failure


async def listening_socket_is_closed() -> None:
    """Give uvloop the rounds of its loop in which it closes a listening socket."""
    for _ in range(2):
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One connection: requests in, scripts out, and a client's leaving seen at once."""

    def __init__(self, upstream: FakeUpstream) -> None:
        self.upstream = upstream
        self.reply: Reply | None = None
        self._inbox = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._pending: list[bytes] = []
        self._framing = ""

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.task = asyncio.get_running_loop().create_task(self._serve())
        self.upstream.add(self)

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        self._arrived.set()

    def eof_received(self) -> None:
        self._left()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _left(self) -> None:
        if self.reply is not None and self.reply.state == "active":
            self.reply.close("cut")
            self.upstream.cuts.append(self.reply)
        self.reply = None
        self.task.cancel()
        self.upstream.remove(self)

    # the life of a connection

    async def _serve(self) -> None:
        try:
            while not self.transport.is_closing():
                request = await self._read_request()
                self.reply = Reply(request)
                self.upstream.requests.append(request)
                self.upstream.replies.append(self.reply)
                self.upstream.changed()
                await self._answer(self.reply, self.upstream.take_script())
                self.reply.close("ended")
                self.reply = None
                self.upstream.changed()
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - raised in the test when it leaves the upstream
            self.upstream.failed(error)
        finally:
            self.transport.close()

    async def _read_request(self) -> Request:
        head = await self._take(lambda inbox: inbox.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in inbox else 0)
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        body = await self._take(lambda inbox: length if len(inbox) >= length else 0) if length else b""
        return Request(method, path, headers, body)

    async def _take(self, ready: Callable[[bytearray], int]) -> bytes:
        while not (size := ready(self._inbox)):
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._inbox[:size])
        del self._inbox[:size]
        return data

    async def _answer(self, reply: Reply, script: Iterable[Step]) -> None:
        self._framing = ""
        for step in _flat(reply, script):
            if isinstance(step, Awaitable):
                await self._flush()
                await step
                continue
            reply.steps += 1
            await self._do(reply, step)
            if self.transport.is_closing():
                return
        self._end_body(reply)
        await self._flush()

    async def _do(self, reply: Reply, step: "_Plain") -> None:
        match step:
            case Status():
                self._write_head(step)
            case Raw() | Chunk() | Done():
                self._write(reply, step.data)
                if len(self._pending) > _TOGETHER_LIMIT or len(step.data) > _TOGETHER_LIMIT:
                    await self._flush()
            case Pieces():
                for piece in step.pieces:
                    self._write(reply, piece)
                    await self._flush()
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            case Wire():
                self._framing = self._framing or "wire"
                self._pending.append(step.data)
            case Fin():
                self._end_body(reply)
                await self._flush()
                self.transport.close()
            case _:
                await self._flush()
                await self._stay(step)

    async def _stay(self, step: "Gate | Reached | Pause | Hang | Cut | Rst") -> None:
        """Write nothing: wait, or end the connection in the middle."""
        match step:
            case Gate():
                await step.event.wait()
            case Reached():
                step.event.set()
            case Pause():
                await self.upstream.pause(step.seconds)
            case Hang():
                await asyncio.get_running_loop().create_future()
            case Cut():
                self.transport.close()
            case Rst():
                self.reset()

    def _write_head(self, status: Status) -> None:
        phrase = HTTPStatus(status.code).phrase if status.code in _STATUSES else "Unknown"
        lines = [f"HTTP/1.1 {status.code} {phrase}", *(f"{name}: {value}" for name, value in status.headers)]
        if status.close:
            self._framing, line = "close", "Connection: close"
        elif status.length is not None:
            self._framing, line = "length", f"Content-Length: {status.length}"
        else:
            self._framing, line = "chunked", "Transfer-Encoding: chunked"
        self._pending.append("\r\n".join([*lines, line, "", ""]).encode("latin-1"))

    def _write(self, reply: Reply, data: bytes) -> None:
        if not self._framing:
            self._write_head(Status())
        reply.bytes_written += len(data)
        if self._framing == "chunked":
            if data:
                self._pending += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._pending.append(data)

    def _end_body(self, reply: Reply) -> None:
        if not self._framing:
            self._write(reply, b"")
        if self._framing == "chunked":
            self._pending.append(b"0\r\n\r\n")
        elif self._framing in ("close", "wire"):
            self.transport.write(b"".join(self._pending))
            self._pending.clear()
            self.transport.close()

    async def _flush(self) -> None:
        if self._pending:
            self.transport.write(b"".join(self._pending))
            self._pending.clear()
        await self._writable.wait()

    def reset(self) -> None:
        """Close with RST."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.reply is not None:
            self.reply.close("ended")
        self.transport.abort()


_Plain: TypeAlias = Status | Raw | Pieces | Wire | Chunk | Done | Gate | Reached | Pause | Hang | Fin | Cut | Rst
_TOGETHER_LIMIT = 4096
"""Writes that may wait for each other; bytes of one that may not wait."""
_STATUSES = frozenset(HTTPStatus)


def _flat(reply: Reply, script: Iterable[Step]) -> Iterator[_Plain | Awaitable[None]]:
    for step in script:
        if not callable(step):
            yield step
            continue
        made = step(reply)
        if inspect.isawaitable(made):
            yield made
        elif made is not None:
            yield from _flat(reply, made)
