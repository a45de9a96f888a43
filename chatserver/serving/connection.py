"""What both protocols have of uvicorn: its settings, its counts of connections and tasks, and what it calls."""

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from chatserver.serving.lost_peers import error_of, reason_of
from chatserver.telemetry import UNOBSERVED, Observer


class ServedProtocol(asyncio.Protocol):
    """One connection of the server, as uvicorn makes it."""

    transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        has_access_log: bool = False,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._config = config
        self._server = server_state
        self._connections: set[Any] = server_state.connections  # uvicorn names its own classes.
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._has_access_log = has_access_log
        self._observer = observer
        self._timer: asyncio.TimerHandle | None = None
        self._is_aborted = False
        self.is_write_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if not self._is_aborted:
            self._count(exc)

    def lose(self) -> None:
        """Cut off a peer that is lost, or that has left while nothing was read."""
        self._count(error_of(self.transport))
        self.abort()

    def _count(self, error: Exception | None) -> None:
        reason = reason_of(self.transport, error)
        if reason is not None:
            self._observer.peer_dropped(reason)

    def abort(self) -> None:
        """Cut the connection off. Whoever calls this counts why: the kernel may end the connection at the same time."""
        self._is_aborted = True
        self.transport.abort()

    def pause_writing(self) -> None:
        self.is_write_paused = True

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._loop.call_soon(self._resume)  # Later: asyncio's transports must not be closed within this call.

    def _resume(self) -> None:
        if not self.is_write_paused:  # The buffer may have been filled again.
            self._drained()

    @abstractmethod
    def _drained(self) -> None:
        """The peer takes bytes again."""

    @abstractmethod
    def shutdown(self) -> None:
        """The server goes down."""

    def ask_no_more(self) -> None:
        """Another process serves from now on: the next answer is the last one on this connection."""

    @property
    def is_awaited(self) -> bool:
        """Whether a request has begun to come, or the first one of the connection is to come."""
        return False

    def close_if_idle(self) -> None:
        """Close, unless a request is being answered or has begun to come."""

    def check_peer(self) -> None:
        """Called every few seconds: find out whether a program is behind the peer's kernel, where that can be done."""

    def _start(self, call: Coroutine[Any, Any, None]) -> None:
        """Start a call of the application."""
        task = self._loop.create_task(call)
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)
