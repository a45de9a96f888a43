"""A run as the body of an HTTP response."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from typing import Literal, TypeAlias

import anyio

from chatserver.runs.subscription import Subscription
from chatserver.transports.connections import (
    FLUSH_SECONDS,
    ON_LEAVE,
    TRANSPORT,
    WRITE_NOW,
    Connection,
    Connections,
    KeepAlive,
    Message,
    OnLeave,
    Receive,
    Scope,
    Send,
    emptied,
)
from chatserver.transports.sse import FORMATS, Format, PlainText

STREAM_HEADERS = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)

Outcome: TypeAlias = Literal["complete", "failed", "ended early", "left"]
"""How a stream came out. `failed`: text that shall be cut; `ended early`: ended before its run is; `left`: or stuck."""


class StreamHead:
    """An ASGI response that is the head of a stream and nothing else; of None, that there is nothing to read."""

    def __init__(self, form: Format | None) -> None:
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(_start(self._form))
        await send(_body(b"", more_body=False))


class RunStream(StreamHead):
    """An ASGI response that sends a subscription's records until the run is over or the peer has left."""

    def __init__(self, subscription: Subscription, form: Format, connections: Connections) -> None:
        super().__init__(form)
        self._subscription = subscription
        self._form: Format = form
        self._connections = connections
        self._is_draining = False
        self._outcome: Outcome = "left"
        self._scope = anyio.CancelScope()
        self._connection: Connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._subscription:
            if self._subscription.is_at_end:
                return await StreamHead(None)(scope, receive, send)
            await send(_start(self._form))
            scope["headers"].clear()  # They have been looked at; a browser's are 2 KB.
            self._connection = self._made(scope, send)
            on_leave: OnLeave = scope.get("extensions", {}).get(ON_LEAVE) or _LeavingTask(receive)
            on_leave(self._scope.cancel)
            try:
                with self._scope, self._connections.watched(self._connection):
                    await self._send_all(scope)
            finally:
                on_leave(None)
                del self._connection  # It calls us: a cycle, for the collector.
        if self._outcome == "ended early":
            with anyio.move_on_after(FLUSH_SECONDS):
                return await send(_body(self._form.farewell(), more_body=False))
            self._outcome = "left"  # It takes nothing.
        if self._outcome != "complete":
            await self._break_off(scope, receive)

    def _made(self, scope: Scope, send: Send) -> Connection:
        return Connection(
            send,
            _KEEP_ALIVE[self._form],
            self._scope.cancel,
            self._drain,
            scope.get("extensions", {}).get(WRITE_NOW),
            expire=self._expire,
            expires_at=scope["auth"].expires_at,
        )

    async def _send_all(self, scope: Scope) -> None:
        connection, has_failed = self._connection, False
        await connection.write(_body(self._form.opening()))
        async with aclosing(self._subscription.read()) as batches:
            async for batch in batches:
                await connection.write(_body(self._form.frame(batch)))
                has_failed = batch[-1].type == "error"
        transport = scope.get("extensions", {}).get(TRANSPORT)
        with nullcontext() if transport is None else emptied(transport):
            await connection.write(_body(b""))
            if has_failed and isinstance(self._form, PlainText):
                self._outcome = "failed"
            else:
                tail = self._form.farewell() if self._is_draining else b""
                await connection.write(_body(tail, more_body=False))
                self._outcome = "complete"

    def _drain(self) -> None:
        self._is_draining = True
        if self._subscription.is_over:
            self._outcome = "ended early"
            self._scope.cancel()

    def _expire(self) -> None:
        self._outcome = "failed" if isinstance(self._form, PlainText) else "ended early"
        self._scope.cancel()

    async def _break_off(self, scope: Scope, receive: Receive) -> None:
        """Leave the body unfinished, so that the peer sees a cut. A stuck one is reset: it would hold its socket."""
        if transport := scope.get("extensions", {}).get(TRANSPORT):
            (transport.close if self._outcome == "failed" else transport.abort)()
            with anyio.move_on_after(FLUSH_SECONDS):
                await _disconnected(receive)


def _body(content: bytes, more_body: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more_body}


def _start(form: Format | None) -> Message:
    """The head of a stream; None: there is nothing to read, and no need to come back."""
    # A list for each: whoever passes it on may add to it.
    headers = [*STREAM_HEADERS] if form is None else [(b"content-type", form.content_type), *STREAM_HEADERS]
    # 204 is the one answer after which a browser's EventSource stays away.
    return {"type": "http.response.start", "status": 204 if form is None else 200, "headers": headers}


class _LeavingTask:
    """An ``OnLeave`` where the server has none: a task that waits for ASGI's message."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    def __call__(self, call: Callable[[], None] | None) -> None:
        if self._task is not None:
            self._task.cancel()
        if call is not None:
            self._task = asyncio.create_task(_disconnected(self._receive))
            self._task.add_done_callback(lambda task: None if task.cancelled() else call())


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# Made once, not for each stream.
_KEEP_ALIVE = {form: KeepAlive(_body(form.ping), form.ping) if form.ping else None for form in FORMATS}
