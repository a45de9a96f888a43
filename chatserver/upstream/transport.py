"""HTTP/1.1 for httpx2's client, with nothing between the socket and the body but one parser in C.

With the client's own transport, a token that comes alone takes the server twice the time (measured: 113 and 54 µs, the
whole way from socket to socket). This one does what model servers need and no more: POST and GET, keepalive, TLS, every
way a body can be framed. Where the environment names a proxy, the client's own transport is used as ever.
"""

import ssl
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeAlias

import anyio
import httpx2

from chatserver.upstream.connection import Deadline, Sink, UpstreamConnection, connected

KEEPALIVE_SECONDS = 4.0
"""Less than the 5 s after which Node and uvicorn close: a request must not meet a connection that is being closed."""

KEEPALIVE_LIMIT = 100
BODY = "chatserver.body"
"""Extension of our responses: the ``Body``, which gives the connection's own bytes, undecoded."""

Origin: TypeAlias = tuple[str, str, int]


class HttpClient(httpx2.AsyncClient):
    """httpx2's client on this transport. As an argument, the transport would replace proxies of the environment too."""

    def __init__(self, *, has_tls: bool = True, **options: Any) -> None:
        """Without ``has_tls``, it asks ``http:`` alone. To read the certificates of the machine takes 30 ms."""
        self._has_tls = has_tls
        super().__init__(**options)

    def _init_transport(
        self, *_: Any, transport: httpx2.AsyncBaseTransport | None = None, **__: Any
    ) -> httpx2.AsyncBaseTransport:
        return transport or HttpTransport(httpx2.create_ssl_context() if self._has_tls else None)


class HttpTransport(httpx2.AsyncBaseTransport):
    """Connections to any number of servers, one request at a time on each, kept for the next one."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        """Without ``tls``, what is asked over `https:` is refused."""
        if tls is not None:
            tls.set_alpn_protocols(["http/1.1"])
        self._tls = tls
        self._idle: dict[Origin, list[UpstreamConnection]] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url, timeouts = request.url, request.extensions.get("timeout", {})
        if url.scheme != "http" and (url.scheme != "https" or self._tls is None):
            raise httpx2.UnsupportedProtocol(f"no transport for {url.scheme}")
        origin = (url.scheme, url.raw_host.decode(), url.port or (443 if url.scheme == "https" else 80))
        message = _message(request, await request.aread())
        is_fresh = request.headers.get("connection", "").lower() == "close"
        kept = None if is_fresh else self._take_idle(origin)
        connection = kept or await self._connect(origin, timeouts.get("connect"))
        try:
            status, headers = await connection.exchange(message, timeouts.get("read"))
        except BaseException:
            connection.close()
            raise
        body = Body(self, origin, connection)
        return httpx2.Response(status, headers=headers, stream=body, extensions={BODY: body})

    async def aclose(self) -> None:
        for kept in self._idle.values():
            for connection in kept:
                connection.close()

    async def _connect(self, origin: Origin, seconds: float | None) -> UpstreamConnection:
        scheme, host, port = origin
        try:
            with anyio.fail_after(seconds):
                return await connected(host, port, self._tls if scheme == "https" else None)
        except TimeoutError:
            raise httpx2.ConnectTimeout("no connection in time") from None
        except (OSError, UnicodeError) as error:
            raise httpx2.ConnectError("no connection") from error

    def _take_idle(self, origin: Origin) -> UpstreamConnection | None:
        """The connection that was used last, if one is left: so the others can expire."""
        while kept := self._idle.get(origin):
            connection = kept.pop()
            if connection.is_reusable:
                connection.keep_idle(None)
                return connection
        return None

    def return_idle(self, origin: Origin, connection: UpstreamConnection) -> None:
        """The response has ended, or nobody wants the rest of it."""
        kept = self._idle.setdefault(origin, [])
        kept[:] = [each for each in kept if each.is_reusable]
        if connection.is_reusable and len(kept) < KEEPALIVE_LIMIT:
            kept.append(connection)
            connection.keep_idle(KEEPALIVE_SECONDS)
        else:
            connection.close()


class Body(httpx2.AsyncByteStream):
    """A response's body. Closing it gives the connection back, or closes the connection when bytes are left to come."""

    __slots__ = "_connection", "_origin", "_transport"

    def __init__(self, transport: HttpTransport, origin: Origin, connection: UpstreamConnection) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: UpstreamConnection | None = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        return self._open().read()

    def pour(self, sink: Sink, deadline: Deadline) -> Awaitable[None]:
        """Push the body to ``sink`` in place of reading it, see ``UpstreamConnection.pour``."""
        return self._open().pour(sink, deadline)

    def _open(self) -> UpstreamConnection:
        if self._connection is None:
            raise httpx2.StreamClosed
        return self._connection

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.return_idle(self._origin, connection)


def _message(request: httpx2.Request, body: bytes) -> bytes:
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%b: %b\r\n" % header for header in request.headers.raw]
    head = b"".join(lines)
    if not head.count(b"\n") == head.count(b"\r") == len(lines):
        raise httpx2.LocalProtocolError("a line end in a header")  # A line end would begin another header.
    return b"%b\r\n%b" % (head, body)
