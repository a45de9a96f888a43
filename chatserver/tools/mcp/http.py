"""The way to an MCP server at a URL: streamable HTTP by the SDK, with a client that notices when the server is gone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from http import HTTPStatus
from math import inf
from ssl import SSLContext
from typing import Any, cast

import anyio.to_thread
import httpx2
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client

from chatserver.tools.mcp.configuration import Endpoint
from chatserver.tools.mcp.streams import CALL, MESSAGE_BYTES_LIMIT, Lose

REACH_SECONDS = 10.0
"""How long a server may take until it takes a connection, and each piece of a request."""


@asynccontextmanager
async def endpoint_streams(endpoint: Endpoint, lose: Lose) -> AsyncIterator[tuple[Any, Any]]:
    """The messages from and to the server. Nothing is sent before the first message."""
    # Calls have time limits of their own, and a stream of notifications may be silent for hours.
    timeout = httpx2.Timeout(REACH_SECONDS, read=None, pool=None)
    headers = {"Accept-Encoding": "identity"} | dict(endpoint.headers)
    tls = await anyio.to_thread.run_sync(_tls)
    async with (
        _Client(lose, headers=headers, timeout=timeout, verify=tls) as client,
        streamable_http_client(endpoint.url, http_client=client, max_sse_event_size=MESSAGE_BYTES_LIMIT) as streams,
    ):
        yield streams


@cache
def _tls() -> SSLContext:
    """What all clients use: to read the certificates of the machine takes 50 ms."""
    return httpx2.create_ssl_context()


class _Client(httpx2.AsyncClient):
    """Tells when the server cannot be reached or has forgotten the session, and bounds what comes from it."""

    def __init__(self, lose: Lose, **options: Any) -> None:
        super().__init__(**options)
        self._lose = lose

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """As in ``AsyncClient``, which sends everything by this method."""
        call = CALL.get(None)
        try:
            response = await super().send(request, **options)
        except httpx2.TransportError as error:
            if call is not None and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                call.is_undone = True
            self._lose(f"cannot be reached: {type(error).__name__}")
            raise
        if response.status_code == HTTPStatus.NOT_FOUND and MCP_SESSION_ID in request.headers:
            if call is not None:
                call.is_undone = True
            self._lose("has forgotten the session")
        response.stream = _Bounded(response)
        return response


class _Bounded(httpx2.AsyncByteStream):
    """The body of a response, uncompressed and, where it is no stream of events, within the limit of a message."""

    def __init__(self, response: httpx2.Response) -> None:
        self._stream = cast(httpx2.AsyncByteStream, response.stream)
        is_events = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        self._bytes_left = inf if is_events else MESSAGE_BYTES_LIMIT
        self._is_encoded = response.headers.get("content-encoding", "identity").lower() != "identity"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._is_encoded:
            raise httpx2.StreamError("the response is compressed, though that was not asked for")
        async for piece in self._stream:
            self._bytes_left -= len(piece)
            if self._bytes_left < 0:
                raise httpx2.StreamError(f"the response is over {MESSAGE_BYTES_LIMIT} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
