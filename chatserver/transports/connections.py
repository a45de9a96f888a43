"""Open connections of all transports: one way to write to each, and one clock that keeps all of them alive."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import inf
from time import monotonic, time
from typing import Self

import anyio

from chatserver.telemetry import UNOBSERVED, Observer
from chatserver.transports.admission import Admission
from chatserver.transports.peer import Peer, nobody

logger = logging.getLogger(__name__)

CHECKS_PER_INTERVAL = 4
"""How often the clock looks at a connection in one heartbeat: a ping comes after 3/4 of a heartbeat to a whole one."""

SLOTS_LIMIT = 64
SHORTEST_TICK_SECONDS = 0.01
"""The connections are spread over slots. Each tick looks at one slot, so that thousands of pings never come at once."""

EXPIRY_TICK_SECONDS = 2.0
"""How long a connection may outlive its user's credential: the clock looks at a connection at least so often."""

FLUSH_SECONDS = 1.0
"""How long a connection that is being ended may take to receive its last bytes."""


class Connection(ABC):
    """One peer, from its first byte to its last, watched by the clock. Whoever speaks to the peer extends it.

    ``transport`` and ``form`` say for metrics how it is spoken to.
    ``ping`` are the bytes of a keepalive, for the peer and every proxy between; empty: the format has none.
    At ``expires_at`` (Unix time) the user's credential expires.
    """

    __slots__ = (
        "_admission", "_connections", "_ping", "_slot", "expires_at", "is_open", "peer", "stuck_since", "wrote_at",
    )  # fmt: skip

    transport = "http"
    form: str

    def __init__(
        self,
        peer: Peer,
        connections: "Connections",
        admission: Admission | None,
        ping: bytes = b"",
        expires_at: float = inf,
    ) -> None:
        self.peer = peer
        self._admission = admission
        self.is_open = True
        """Whether more may be written; if not, the peer has only to take what was written."""
        self.wrote_at = monotonic()
        self.stuck_since: float | None = None
        self.expires_at = expires_at
        self._ping = ping
        self._connections = connections
        self._slot = connections.watch(self)
        peer.on_writable, peer.on_leave = self._writable, self._left

    def write(self, data: bytes) -> None:
        self.wrote_at = monotonic()
        peer = self.peer
        peer.write(data)
        if not peer.is_writable:
            self._look_at_peer()

    def ping(self) -> None:
        """Write a keepalive; the clock calls this where nothing else was written for a heartbeat."""
        if self._ping and self.is_open:
            self.write(self._ping)

    def drop(self) -> None:
        """The peer has taken nothing for too long, or the server stops."""
        self.peer.abort()

    def _look_at_peer(self) -> None:
        if self.stuck_since is None and not self.peer.is_writable:
            self.stuck_since = monotonic()

    def _writable(self) -> None:
        self.stuck_since = None
        self.wrote_at = monotonic()  # Bytes have reached the peer.
        self.writable()

    def _left(self) -> None:
        self.is_open = False
        self.peer.on_writable = self.peer.on_leave = nobody  # They refer to this object: a cycle.
        self._connections.forget(self, self._slot)
        if self._admission is not None:
            self._connections.release(self._admission)
        self.left()

    @abstractmethod
    def writable(self) -> None:
        """The peer takes bytes again."""

    @abstractmethod
    def left(self) -> None:
        """The connection is over: release what it holds."""

    @abstractmethod
    def drain(self) -> None:
        """The server begins to go down."""

    @abstractmethod
    def expire(self) -> None:
        """The user's credential has expired."""


class Connections:
    """All open connections of the server. Leaving stops the clock, which stands still while no connection is open."""

    def __init__(
        self, *, heartbeat_seconds: float, send_timeout_seconds: float, observer: Observer = UNOBSERVED
    ) -> None:
        self.observer = observer
        interval = min(min(heartbeat_seconds, send_timeout_seconds) / CHECKS_PER_INTERVAL, EXPIRY_TICK_SECONDS)
        count = max(1, min(SLOTS_LIMIT, int(interval / SHORTEST_TICK_SECONDS)))
        self._interval = interval
        self._slots: list[set[Connection]] = [set() for _ in range(count)]
        self._idle_seconds = heartbeat_seconds - interval
        self._send_timeout_seconds = send_timeout_seconds
        self._is_draining = False
        self._next_slot = 0
        self._one_less = anyio.Event()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        """The timer of each slot that has a connection."""
        self._releasing = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for timer in self._timers.values():
            timer.cancel()
        await asyncio.gather(*self._releasing, return_exceptions=True)

    def __len__(self) -> int:
        return sum(len(slot) for slot in self._slots)

    def __iter__(self) -> Iterator[Connection]:
        return (connection for slot in list(self._slots) for connection in list(slot))

    def watch(self, connection: Connection) -> int:
        """Keep a connection alive, and drop it when it is stuck, until it is forgotten; the slot of the connection."""
        index = self._next_slot = (self._next_slot + 1) % len(self._slots)
        self._slots[index].add(connection)
        self.observer.connection_opened(connection.transport, connection.form)
        if index not in self._timers:
            self._check_later(index)
        if self._is_draining:  # Behind this call, when the connection is complete.
            asyncio.get_running_loop().call_soon(lambda: connection.is_open and connection.drain())
        return index

    def forget(self, connection: Connection, index: int) -> None:
        """The connection is over."""
        self._slots[index].discard(connection)
        self.observer.connection_closed(connection.transport, connection.form)
        self._one_less.set()

    def release(self, admission: Admission) -> None:
        """Release a user's admission, in a task, since nodes may share admissions."""
        task = asyncio.get_running_loop().create_task(admission.release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    def drain(self) -> None:
        """The server goes down: tell all connections, and each connection that comes later."""
        self._is_draining = True
        for connection in self:
            connection.drain()

    async def end_all(self) -> None:
        """The server goes down and all runs have ended: let every reader take what is left, then drop it."""
        with anyio.move_on_after(FLUSH_SECONDS):
            while len(self):
                self._one_less = anyio.Event()
                await self._one_less.wait()
        for connection in self:
            connection.drop()

    def _check_later(self, slot: int) -> None:
        """Look at a slot once in each interval, at the slot's own moment, so that the slots take turns."""
        loop, tick_seconds = asyncio.get_running_loop(), self._interval / len(self._slots)
        early = tick_seconds / 2  # A timer may go off early, and must not do so twice.
        wait_seconds = early + (slot * tick_seconds - loop.time() - early) % self._interval
        # A timer: a sleeping task would cost several times as much a tick.
        self._timers[slot] = loop.call_later(wait_seconds, self._check_slot, slot)

    def _check_slot(self, slot: int) -> None:
        if not self._slots[slot]:
            del self._timers[slot]  # Without a connection the clock stands still.
            return
        self._check_later(slot)
        now, moment = monotonic(), time()
        for connection in list(self._slots[slot]):
            try:
                self._check(connection, now, moment)
            except Exception:  # The other connections of the slot must be looked at too.
                logger.exception("a connection could not be looked after")
                connection.drop()

    def _check(self, connection: Connection, now: float, moment: float) -> None:
        if connection.is_open and moment >= connection.expires_at:
            self.observer.peer_dropped("expired")
            connection.expire()
        elif connection.stuck_since is None:
            if now - connection.wrote_at >= self._idle_seconds:
                connection.ping()
        elif now - connection.stuck_since >= self._send_timeout_seconds:
            self.observer.peer_dropped("send_timeout")
            connection.drop()
