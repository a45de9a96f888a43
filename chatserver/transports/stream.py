"""A run as the body of an HTTP response."""

from contextlib import aclosing

import anyio

from chatserver.run import Subscription
from chatserver.transports.connections import TRANSPORT, Connection, Connections, Receive, Scope, Send
from chatserver.transports.sse import Format, PlainText

HEADERS = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)


class RunStream:
    """An ASGI response that sends a subscription's records until the run is over or the peer has left."""

    def __init__(self, subscription: Subscription, form: Format, connections: Connections, user: str) -> None:
        self._subscription = subscription
        self._form = form
        self._connections = connections
        self._user = user
        self._is_draining = False
        self._has_failed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._subscription:
            headers = [(b"content-type", self._form.content_type), *HEADERS]
            if self._subscription.is_at_end:
                # 204 is the one answer after which a browser's EventSource stays away.
                await send({"type": "http.response.start", "status": 204, "headers": [*HEADERS]})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            ended = await self._stream(receive, send)
        if ended and not (self._has_failed and isinstance(self._form, PlainText)):
            tail = self._form.farewell() if self._is_draining else b""
            with anyio.move_on_after(1):
                await send({"type": "http.response.body", "body": tail, "more_body": False})
                return
        await self._break_off(scope, receive, at_once=not ended)

    async def _stream(self, receive: Receive, send: Send) -> bool:
        """Whether the stream came to its end; False: the peer left or took nothing."""
        ended = False
        async with anyio.create_task_group() as tasks:
            scope = tasks.cancel_scope

            def drain() -> None:
                nonlocal ended
                self._is_draining = True
                if self._subscription.is_over:
                    ended = True
                    scope.cancel()

            ping = _body(self._form.ping) if self._form.ping else None
            connection = Connection(send, ping, drop=scope.cancel, drain=drain)
            with self._connections.watched(connection, self._user):
                tasks.start_soon(_until_disconnect, receive, scope)
                await connection.write(_body(self._form.opening()))
                async with aclosing(self._subscription.read()) as batches:
                    async for batch in batches:
                        await connection.write(_body(self._form.frame(batch)))
                        self._has_failed = batch[-1].type == "error"
                ended = True
                scope.cancel()
        return ended

    async def _break_off(self, scope: Scope, receive: Receive, *, at_once: bool) -> None:
        """Leave the body unfinished, so that the peer sees a cut. A stuck one is reset: it would hold its socket."""
        if transport := scope.get("extensions", {}).get(TRANSPORT):
            (transport.abort if at_once else transport.close)()
            with anyio.move_on_after(1):
                await _until_disconnect(receive, None)


def _body(content: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": content, "more_body": True}


async def _until_disconnect(receive: Receive, scope: anyio.CancelScope | None) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if scope is not None:
        scope.cancel()
