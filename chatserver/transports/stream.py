"""A run as the body of an HTTP response."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Literal, TypeAlias

import anyio

from chatserver.events import Record
from chatserver.run import Subscription
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
    Place,
    Receive,
    Scope,
    Send,
)
from chatserver.transports.sse import FORMATS, Format, PlainText

HEADERS = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)

Outcome: TypeAlias = Literal["complete", "failed", "ended early", "left"]
"""How a stream came out. `failed`: text that shall be cut; `ended early`: ended before its run is; `left`: or stuck."""


class RunStream:
    """An ASGI response that sends a subscription's records until the run is over or the peer has left.

    ``place`` is left at the end: what was taken for the connection before it could begin.
    """

    def __init__(self, subscription: Subscription, form: Format, connections: Connections, place: Place) -> None:
        self._subscription = subscription
        self._form = form
        self._connections = connections
        self._place = place
        self._is_draining = False
        self._outcome: Outcome = "left"
        self._scope = anyio.CancelScope()
        self._connection: Connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place, self._subscription:
            if self._subscription.is_at_end:
                # 204 is the one answer after which a browser's EventSource stays away.
                await send({"type": "http.response.start", "status": 204, "headers": [*HEADERS]})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            # A list for each: whoever passes it on may add to it.
            headers = [(b"content-type", self._form.content_type), *HEADERS]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
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
        async with aclosing(self._subscription.read(self._take)) as batches:
            async for batch in batches:
                await connection.write(_body(self._form.frame(batch)))
                has_failed = batch[-1].type == "error"
        with _emptied(scope):
            await connection.write(_body(b""))
            if has_failed and isinstance(self._form, PlainText):
                self._outcome = "failed"
            else:
                tail = self._form.farewell() if self._is_draining else b""
                await connection.write(_body(tail, more_body=False))
                self._outcome = "complete"

    def _take(self, batch: Sequence[Record]) -> bool:
        return self._connection.write_now(self._form.frame(batch))

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


@contextmanager
def _emptied(scope: Scope) -> Iterator[None]:
    """Meanwhile a write waits for all before it to be taken: whoever stops right before the end is stuck too."""
    transport = scope.get("extensions", {}).get(TRANSPORT)
    if transport is None:
        yield
        return
    transport.set_write_buffer_limits(high=0)
    try:
        yield
    finally:
        transport.set_write_buffer_limits()


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
