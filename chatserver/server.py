"""The uvicorn process: what ASGI has no words for. Signals that drain, connections that can be cut, joined frames."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from chatserver import peers
from chatserver.app import create_app, drain
from chatserver.errors import ChatError, SettingsError
from chatserver.settings import Settings
from chatserver.strict_http import StrictHttp
from chatserver.strict_websocket import WebSocketProtocol
from chatserver.transports.connections import ON_LEAVE, TRANSPORT, WRITE_NOW, Message, Receive, Scope, Send
from chatserver.transports.frames import framed_once

BACKLOG = 2048
WS_PING_SECONDS = 45.0
WS_PONG_SECONDS = 15.0
TICKS_PER_LOOK = 50
"""uvicorn ticks ten times a second: every 5 s it is looked who is still there."""

LAST_TASKS_SECONDS = 2
"""After the drain nothing of ours is left; what still hangs is cancelled."""


_quiet = logging.getLogger("chatserver.http")
_quiet.setLevel(logging.ERROR)  # uvicorn warns of each broken request: a hostile client could fill the log.


class HttpProtocol(StrictHttp):
    """One HTTP connection, with the transport in reach of the application."""

    _leave: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.logger = _quiet

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {TRANSPORT: self.transport}

    def on_headers_complete(self) -> None:
        cycle_before = self.cycle
        super().on_headers_complete()
        if self.cycle is not cycle_before and self.scope["method"] != "HEAD":
            extensions = cast(dict[str, Any], self.scope)["extensions"]
            extensions[WRITE_NOW] = partial(_write_now, self.cycle)
            extensions[ON_LEAVE] = self._on_leave

    def _on_leave(self, call: Callable[[], None] | None) -> None:
        self._leave = call
        if call is not None:
            self.flow.resume_reading()  # A large body may have paused it, and then nobody would see the peer leave.
            self._tell_of_leaving()

    def refuse(self, error: ChatError) -> None:
        super().refuse(error)
        self._tell_of_leaving()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._tell_of_leaving()

    def _tell_of_leaving(self) -> None:
        if self._leave is not None and self.cycle.disconnected:
            self._leave()


def _write_now(cycle: RequestResponseCycle, body: bytes) -> bool:
    """A part of a response as uvicorn's cycle sends it, where that would neither wait nor do anything else.

    uvicorn's way is a coroutine, a message and a list for it: with waking the reader's task, a third of an event's CPU.
    """
    if not cycle.chunked_encoding or cycle.response_complete or cycle.disconnected or cycle.flow.write_paused:
        return False
    if body:
        cycle.transport.write(_chunk(body))
    return True


@framed_once
def _chunk(body: bytes) -> bytes:
    """A part of a body as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class Server(uvicorn.Server):
    """A server of one process. The first SIGTERM or SIGINT drains it, a second one ends it at once."""

    def __init__(self, settings: Settings, on_ready: Callable[[], None] | None = None) -> None:
        self.app = create_app(settings)
        super().__init__(config(settings, _as_served(self.app)))
        self._on_ready = on_ready
        self._is_told = False
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()
        if self.started and self._is_told:
            self._drain_soon()

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_LOOK == 0:
            await peers.drop_lost(self.server_state.connections)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Never recorded as captured: uvicorn would raise the signal again at the end, and die of it.
        if self._is_told or self._loop is None:
            os._exit(128 + sig)
        self._is_told = True
        if self.started:  # Otherwise it drains as soon as there is something to drain.
            self._drain_soon()

    def _drain_soon(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.begin_drain)

    def begin_drain(self) -> None:
        """Stop taking runs, let those that go on end, then stop."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await drain(self.app)
        finally:
            self.should_exit = True


def _as_served(app: Any) -> Any:
    """The app, except that a setting which turns out wrong at start is told without a traceback."""

    def asgi(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        async def tell(message: Message) -> None:
            lines = message.get("message", "").rstrip().splitlines()
            if wrong := [line.partition(_WRONG)[2] for line in lines if _WRONG in line]:
                message = message | {"message": wrong[-1]}
            await send(message)

        served: Awaitable[None] = app(scope, receive, tell if scope["type"] == "lifespan" else send)
        return served

    return asgi


_WRONG = f"{SettingsError.__module__}.{SettingsError.__qualname__}: "


def config(settings: Settings, app: object) -> uvicorn.Config:
    """uvicorn as it is set up here; every difference from its defaults has a reason in the research."""
    return uvicorn.Config(
        cast(Any, app),
        interface="asgi3",
        host=settings.host,
        port=settings.port,
        root_path=settings.root_path,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=settings.max_frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=WS_PING_SECONDS,
        ws_ping_timeout=WS_PONG_SECONDS,
        timeout_keep_alive=75,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=LAST_TASKS_SECONDS,
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
    )


def bind(settings: Settings) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named as TCP, or asyncio would not switch Nagle's algorithm off: 40 ms for the second frame of an answer.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        peers.watch(sock, settings.send_timeout_seconds)
        sock.bind((settings.host, settings.port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
