"""A run as the body of an HTTP response."""

import asyncio

from chatserver.events import Record
from chatserver.runs.subscription import Subscription
from chatserver.transports.admission import ADMISSION, Admission
from chatserver.transports.asgi import AsgiMessage, AsgiReceive, AsgiScope, AsgiSend
from chatserver.transports.connections import FLUSH_SECONDS, Connection, Connections
from chatserver.transports.formats import Format
from chatserver.transports.peer import BodyPeer, with_body
from chatserver.transports.pump import Pump
from chatserver.transports.response import AS_DATA

STREAM_HEADERS = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    *AS_DATA,
)


class StreamHead:
    """An ASGI response with the head of a stream and no body; without a format, a 204: there is nothing to read."""

    def __init__(self, form: Format | None) -> None:
        self._form = form

    async def __call__(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        await send(_start(self._form))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class RunStream(StreamHead):
    """An ASGI response that sends a subscription's records until the run is over or the peer has left."""

    def __init__(self, subscription: Subscription, form: Format, connections: Connections) -> None:
        super().__init__(form)
        self._form: Format = form
        self._subscription = subscription
        self._connections = connections

    async def __call__(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        try:
            if self._subscription.is_at_end:
                self._subscription.close()
                return await StreamHead(None)(scope, receive, send)
            await send(_start(self._form))
        except BaseException:
            self._subscription.close()
            raise

        def begin(peer: BodyPeer) -> None:
            admission = scope["extensions"].pop(ADMISSION)  # The stream releases it from here on.
            _Stream(peer, self._subscription, self._form, self._connections, admission, scope["auth"].expires_at)

        await with_body(scope, receive, send, begin)


class _Stream(Connection):
    """A subscription that is being sent to a peer."""

    __slots__ = "_body", "_form", "_is_draining", "_pump", "form"

    def __init__(
        self,
        peer: BodyPeer,
        subscription: Subscription,
        form: Format,
        connections: Connections,
        admission: Admission,
        expires_at: float,
    ) -> None:
        self._body = peer
        self._form, self.form = form, form.name
        self._is_draining = False
        self._pump = Pump(subscription, self, form.frame, self._run_is_over)
        super().__init__(peer, connections, admission, form.ping, expires_at)
        self.write(form.opening())
        self._pump.run()

    def writable(self) -> None:
        self._pump.run()

    def left(self) -> None:
        self._pump.close()
        del self._pump  # It calls us: a cycle, for the collector.

    def drain(self) -> None:
        self._is_draining = True
        if self._pump.subscription.is_over:
            self._end_early()

    def expire(self) -> None:
        self._end_early(is_cut=not self._form.shows_failure)

    def _run_is_over(self, _: Pump, last: Record | None) -> None:
        if last is None:  # The run waits on without this process, or is lost.
            return self._end_early(is_cut=not self._form.shows_failure) if self._is_draining else self.drop()
        self._end(is_cut=last.type == "error" and not self._form.shows_failure, is_early=self._is_draining)

    def _end_early(self, is_cut: bool = False) -> None:
        """End the stream before its run, so that the reader comes back. Its last bytes get less time than events."""
        if self.is_open:
            self._end(is_cut, is_early=True)
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.drop)

    def _end(self, is_cut: bool, is_early: bool) -> None:
        self.is_open = False
        self._pump.is_sending = False
        if is_cut:
            self._body.cut()
        else:
            self._body.end(self._form.farewell() if is_early else b"")
        self._look_at_peer()


def _start(form: Format | None) -> AsgiMessage:
    """The head of a stream; without a format, a 204: there is nothing to read, and no need to come back."""
    # A new list each time: whoever passes the list on may add to it.
    headers = [*STREAM_HEADERS] if form is None else [(b"content-type", form.content_type), *STREAM_HEADERS]
    # 204 is the one status after which a browser's EventSource does not come back.
    return {"type": "http.response.start", "status": 204 if form is None else 200, "headers": headers}
