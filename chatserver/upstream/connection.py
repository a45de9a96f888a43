"""One HTTP/1.1 connection as a client has it: an asyncio protocol around the parser, and the way to a host."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from sys import getsizeof
from typing import Any, TypeAlias, cast

import anyio
import httptools
import httpx2
from anyio.lowlevel import checkpoint_if_cancelled

RESPONSE_HEAD_BYTES_LIMIT = 100 * 1024
UNREAD_BYTES_LIMIT = 256 * 1024
"""How much memory the bytes take that wait for a reader, before the socket is left unread and the peer has to wait."""

Sink: TypeAlias = Callable[[bytes], bool]
"""Takes a part of a body. True: the deadline is nearer now and must be read again. An exception ends the exchange."""

Deadline: TypeAlias = Callable[[], float]
"""When waiting ends in vain, in the event loop's time. Signs of life move the deadline during the wait."""

ADDRESS_SECONDS = 0.25
"""How long one address of a host is tried before the next is tried too (RFC 8305, "Happy Eyeballs")."""


class UpstreamConnection(asyncio.Protocol):
    """A connection, and the response that comes over it now."""

    __slots__ = (
        "_error", "_head_bytes", "_headers", "_is_complete", "_is_framed", "_is_lost", "_is_paused", "_lasts", "_loop",
        "_parser", "_read_seconds", "_sink", "_status", "_timer", "_transport", "_unread", "_waiter", "on_body",
    )  # fmt: skip

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._read_seconds: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_lost = False

    async def exchange(self, message: bytes, read_seconds: float | None) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Send a request and wait for the head of its response: its status and headers.

        Raises:
            httpx2.TransportError: no response will come.
        """
        self._unread: list[bytes] = []
        self.on_body = self._unread.append  # The parser calls it: a part of a body takes no call in Python.
        self._parser = httptools.HttpResponseParser(self)
        self._read_seconds = read_seconds
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._status = 0
        self._is_framed = self._is_complete = self._lasts = self._is_paused = False
        self._error: Exception | None = None
        if self._is_lost or self._transport.is_closing():
            raise httpx2.ReadError("the connection was closed before the request")
        self._transport.write(message)
        deadline = self._silence()
        while not self._status:
            await self._news(deadline)
        headers, self._headers = self._headers, []  # Let go of them: they take 0.5 KB of an open stream.
        return self._status, headers

    async def pour(self, sink: Sink, deadline: Deadline) -> None:
        """Hand each part of the body to ``sink`` as it comes, by a plain call; return at the end of the body.

        To wake a task for each token would add 6 µs of CPU to the 28 of a token's whole way.

        Raises:
            httpx2.ReadTimeout: ``deadline`` has passed.
            httpx2.TransportError: the body was cut off.
            Exception: what ``sink`` raised.
        """
        self._sink = sink
        try:
            self._hand_over()
            while not self._is_complete:
                await self._news(deadline)
            self._check()
        finally:
            self._sink = None

    async def read(self) -> bytes:
        """All that has come of the body since the last read.

        Raises:
            StopAsyncIteration: the body has ended.
            httpx2.TransportError: the body was cut off, or the peer is silent.
        """
        deadline = self._silence()  # Set once: bytes that are no body, such as trailers, count as silence.
        while not self._unread:
            if self._is_complete:
                raise StopAsyncIteration
            await self._news(deadline)
            await checkpoint_if_cancelled()  # anyio cancels only a task that waits, and with a fast peer it never does.
        return self._taken()

    def _taken(self) -> bytes:
        data = b"".join(self._unread)
        self._unread.clear()
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    @property
    def is_reusable(self) -> bool:
        is_free = self._is_complete and self._lasts and not self._is_paused
        return is_free and not self._is_lost and not self._transport.is_closing()

    def keep_idle(self, seconds: float | None) -> None:
        """Close the connection if no request comes for so long; None: a request has come."""
        self._stop_timer()
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self.close)

    def close(self) -> None:
        """Close the socket at once, whatever is under way."""
        self._stop_timer()
        self._transport.abort()

    def _silence(self) -> Deadline | None:
        """The deadline of one wait for the peer."""
        if self._read_seconds is None:
            return None
        until = self._loop.time() + self._read_seconds
        return lambda: until

    async def _news(self, deadline: Deadline | None) -> None:
        """Wait until something has happened that concerns the waiting call."""
        self._check()
        self._waiter = self._loop.create_future()
        if deadline is not None:
            self._timer = self._loop.call_at(deadline(), self._check_deadline, deadline)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._stop_timer()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _check_deadline(self, deadline: Deadline) -> None:
        """The timer has gone off. The deadline may have moved meanwhile; only now the timer is set anew."""
        if (until := deadline()) > self._loop.time():
            self._timer = self._loop.call_at(until, self._check_deadline, deadline)
        else:
            self._fail(httpx2.ReadTimeout("the peer is silent"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._transport.abort()
        self._wake()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._is_complete:
            return self._transport.abort()  # No request is open.
        error = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lasts = False
            if not self._is_complete:
                error = httpx2.RemoteProtocolError("the peer does not speak HTTP")
        if not self._status:
            self._head_bytes += len(data)
            if self._head_bytes > RESPONSE_HEAD_BYTES_LIMIT:
                error = httpx2.RemoteProtocolError("the head has no end")
        else:
            self._hand_over()
        if error is not None:
            self._fail(error)

    def _hand_over(self) -> None:
        """Give what has come of the body to the sink. Without a sink the bytes wait, and past a limit the peer does."""
        if self._sink is None:
            if not self._is_paused and sum(map(getsizeof, self._unread)) > UNREAD_BYTES_LIMIT:
                self._is_paused = True
                self._transport.pause_reading()
            return self._wake()
        try:
            if (self._unread and self._sink(self._taken())) or self._is_complete:
                self._wake()
        except Exception as error:  # noqa: BLE001 - `pour` raises it
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        is_asked, self._parser = self._parser is not None, None  # The parser refers to this object: a cycle.
        if not is_asked or self._is_complete or self._error is not None:
            return
        if self._status and not self._is_framed and error is None:
            self._is_complete = True
            self._wake()
        elif error is None:
            self._fail(httpx2.RemoteProtocolError("the connection was closed in mid response"))
        else:
            self._fail(httpx2.ReadError("the connection was lost"))

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._is_complete:
            raise ValueError("a response to no request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # A trailer.
        self._headers.append((name, value.strip(b" \t")))
        self._is_framed = self._is_framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
        else:
            self._headers.clear()  # 100 Continue and its like: the response is still to come.

    def on_message_complete(self) -> None:
        if self._status:
            self._is_complete = True
            self._lasts = bool(self._parser.should_keep_alive())


async def addresses(host: str, port: int) -> list[str]:
    """A host's addresses, in the order in which the system wants them tried.

    Raises:
        OSError: the host has no address.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


async def connected(host: str, port: int, tls: ssl.SSLContext | None) -> UpstreamConnection:
    """A connection to the first address of a host that answers, with its TLS handshake done.

    Raises:
        OSError: no address answers.
    """
    loop, found = asyncio.get_running_loop(), await addresses(host, port)
    first: UpstreamConnection | None = None
    failures: list[OSError] = []

    async def attempt(address: str, failed: anyio.Event) -> None:
        nonlocal first
        name = host if tls else None
        try:
            _, made = await loop.create_connection(UpstreamConnection, address, port, ssl=tls, server_hostname=name)
        except OSError as error:
            failures.append(error)
            failed.set()
            return
        if first is not None:
            return made.close()
        first = made
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for address in found:
                failed = anyio.Event()
                tasks.start_soon(attempt, address, failed)
                with anyio.move_on_after(ADDRESS_SECONDS):
                    await failed.wait()
    except BaseException:
        if first is not None:
            first.close()
        raise
    if first is None:
        raise failures[-1]
    return first
