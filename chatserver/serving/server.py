"""The uvicorn process: a listening socket, signals that drain, peers that are looked after."""

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from chatserver.plugin import Application, apps_in, drain
from chatserver.serving.connection import ServedProtocol
from chatserver.serving.http_protocol import HttpProtocol
from chatserver.serving.lost_peers import Peers
from chatserver.serving.notify import STOPPING, notify
from chatserver.serving.websocket_protocol import WebSocketProtocol
from chatserver.settings import Settings
from chatserver.telemetry import Observer

UVICORN_NAMES = {
    "Config": (
        "asgi_version",
        "limit_concurrency",
        "loaded_app",
        "root_path",
        "timeout_keep_alive",
        "ws_max_size",
        "ws_protocol_class",
    ),
    "Server": ("handle_exit", "main_loop", "server_state", "servers", "should_exit", "shutdown", "started", "startup"),
    "ServerState": ("connections", "tasks", "total_requests"),
}
"""What this room uses of uvicorn that its documentation does not promise. uvicorn is pinned to the minor version in
which these were read; a test names what another version lacks."""

LAST_TASKS_SECONDS = 2
"""How long tasks may go on after the drain, before uvicorn cancels them."""

LAST_REQUESTS_SECONDS = 1.0
"""How long a server that another one replaces takes requests on its open connections, before it drains: on those that
it has just accepted, and on those that a proxy keeps for its next request."""


ACCEPTED_SECONDS = 0.2
"""How long a server that ends waits for the first request of a connection that it has just accepted: had this server
ended a moment earlier, another process that has the socket would have accepted the connection."""

ACCEPTED_LOOK_SECONDS = 0.01
"""How often that is looked for. Several turns of the loop pass: a connection is made known a turn after it is accepted.
"""


class Server(uvicorn.Server):
    """A server of one process. The first SIGTERM or SIGINT drains it, a second one ends it at once."""

    def __init__(self, settings: Settings, app: Application, on_ready: Callable[[], None] | None = None) -> None:
        """``app`` is the server's application, or one with a ``ChatPlugin``."""
        self.app = app
        super().__init__(config(settings, app, apps_in(app)[0].state.metrics))
        self.server_state.connections = Peers()
        self._has_stopped = asyncio.Event()
        self._on_ready = on_ready
        self._is_told = False
        self._draining: asyncio.Task[None] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()
        if self.started and self._is_told:
            self._drain_soon()

    async def main_loop(self) -> None:
        """Wait to be stopped. uvicorn's own loop would wake ten times a second."""
        await self._has_stopped.wait()

    def stop(self) -> None:
        """Stop without a drain."""
        self.should_exit = True
        self._has_stopped.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not recorded as captured: uvicorn would raise the signal again at the end and die of it.
        if self._is_told or self._loop is None:
            os._exit(128 + sig)
        self._is_told = True
        if self.started:  # Otherwise the server drains as soon as it has started.
            self._drain_soon()

    def retire(self) -> None:
        """Another server accepts on the same socket: answer what is still asked here, then drain."""
        if self._retiring is None and self._draining is None:
            self._retiring = asyncio.get_running_loop().create_task(self._retire())

    async def _retire(self) -> None:
        self._accept_no_more()
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        for connection in self._connections():
            connection.close_if_idle()
        self.begin_drain()

    def _connections(self) -> list[ServedProtocol]:
        return [cast(ServedProtocol, each) for each in self.server_state.connections]

    def _accept_no_more(self) -> None:
        for listening in self.servers:
            listening.close()
        for connection in self._connections():
            connection.ask_no_more()

    def _drain_soon(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.begin_drain)

    @property
    def is_draining(self) -> bool:
        return self._draining is not None

    def begin_drain(self) -> None:
        """Take no more runs, let running runs end, then stop."""
        if self._draining is None:
            notify(STOPPING)
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await drain(self.app)
            self._accept_no_more()
            await self._answer_accepted()
        finally:
            self.stop()

    async def _answer_accepted(self) -> None:
        for _ in range(round(ACCEPTED_SECONDS / ACCEPTED_LOOK_SECONDS)):
            await asyncio.sleep(ACCEPTED_LOOK_SECONDS)
            if not any(connection.is_awaited for connection in self._connections()):
                return


def config(settings: Settings, app: object, observer: Observer) -> uvicorn.Config:
    """uvicorn's configuration."""
    about: dict[str, Any] = {"has_access_log": settings.access_log, "observer": observer}
    return uvicorn.Config(
        cast(Any, app),
        host=settings.host,
        port=settings.port,
        root_path=settings.root_path,
        http=cast(Any, partial(HttpProtocol, **about)),
        ws=cast(Any, partial(WebSocketProtocol, **about)),
        ws_max_size=settings.max_frame_bytes,
        timeout_keep_alive=75,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=LAST_TASKS_SECONDS,
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
    )
