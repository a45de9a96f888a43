"""Open connections, whatever their transport: one way out each, and one clock that keeps them alive for all."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from math import inf
from time import monotonic, time
from typing import Any, Self, TypeAlias

import anyio
from msgspec import Struct

Message: TypeAlias = dict[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
"""ASGI as its specification has it: with room for extensions."""

TRANSPORT = "chatserver.transport"
"""ASGI extension of our server: the asyncio transport, since ASGI has no way to cut a connection off."""

WriteNow: TypeAlias = Callable[[bytes], bool]

WRITE_NOW = "chatserver.write_now"
"""ASGI extension of our server: a ``WriteNow``, which writes without waiting; False: not now, and nothing is written.

Of a started HTTP response it takes the bytes of a body, of a WebSocket whole frames.
"""

OnLeave: TypeAlias = Callable[[Callable[[], None] | None], None]

ON_LEAVE = "chatserver.on_leave"
"""ASGI extension of our server: an ``OnLeave``, which is told what to call when the peer of a response has left (at
once, if it has), or that nobody wants to know any more. A task that waits for ASGI's message takes 2 KB of a stream."""

CHECKS_PER_INTERVAL = 4
"""How often a connection is looked at in one heartbeat: a ping comes between 3/4 and a whole one."""

SLOTS_LIMIT = 64
SHORTEST_TICK_SECONDS = 0.01
"""The connections are spread over slots, looked at one slot a tick, so that thousands of pings never come at once."""

EXPIRY_TICK_SECONDS = 2.0
"""How long a connection may outlive what its user showed to get in: so often at least it is looked at."""

FLUSH_SECONDS = 1.0
"""How long a connection that is ended may take for its last words."""


class KeepAlive(Struct, frozen=True):
    """What keeps a connection alive, as a message of ASGI and as ``write_now`` takes it."""

    message: Message
    content: bytes


class Connection:
    """One peer's way out: messages in order, never two at a time, watched by the clock.

    ``drop`` is called when the peer has taken nothing for too long, ``drain`` when the server begins to go down,
    ``expire`` at ``expires_at`` (Unix time), when nobody knows any more whose connection it is.
    """

    def __init__(
        self,
        send: Send,
        ping: KeepAlive | None,
        drop: Callable[[], None],
        drain: Callable[[], None],
        write_now: WriteNow | None = None,
        expire: Callable[[], None] | None = None,
        expires_at: float = inf,
    ) -> None:
        self._write_now = write_now
        self.drop = drop
        self.drain = drain
        self.expire = expire or drop
        self.expires_at = expires_at
        self.is_open = True
        self.wrote_at = monotonic()
        self.writing_since: float | None = None
        self._send = send
        self._ping = ping
        self._lock = asyncio.Lock()  # anyio's asks for the current task: 4.8 µs a write, not 1.0.

    async def write(self, message: Message) -> None:
        """Send one message after those before it; waits while the peer takes nothing."""
        async with self._lock:
            self.wrote_at = self.writing_since = monotonic()
            try:
                await self._send(message)
            finally:
                self.writing_since = None

    def write_now(self, content: bytes) -> bool:
        """Write behind all messages without waiting; False: something is in the way, and nothing is written.

        It is for what comes often: ``write`` takes a lock, a coroutine and ASGI's message for it.
        """
        if self._write_now is None or self.writing_since is not None or not self._write_now(content):
            return False
        self.wrote_at = monotonic()
        return True

    def ping_now(self) -> bool:
        """As ``ping``, without waiting; False: that cannot be done now."""
        return self._ping is not None and self.is_open and self.write_now(self._ping.content)

    async def ping(self) -> None:
        """Show the peer, and every proxy between, that the connection lives; not while other bytes show it."""
        if self._ping is not None and self.is_open and self.writing_since is None:
            await self.write(self._ping.message)


class Connections:
    """All open connections of the server. Leave it to stop its clock, which only goes while there are any."""

    def __init__(self, *, heartbeat_seconds: float, send_timeout_seconds: float) -> None:
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
        """Of each slot that has a connection."""
        self._pings = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for ping in self._pings:
            ping.cancel()

    def __len__(self) -> int:
        return sum(len(slot) for slot in self._slots)

    def __iter__(self) -> Iterator[Connection]:
        return (connection for slot in list(self._slots) for connection in list(slot))

    def watched(self, connection: Connection) -> "_Watch":
        """Keep a connection alive, and drop it when it is stuck, while it lasts."""
        self._next_slot = (self._next_slot + 1) % len(self._slots)
        return _Watch(connection, self._next_slot, self)

    def drain(self) -> None:
        """The server goes down: tell all connections that there are, and each that comes late."""
        self._is_draining = True
        for connection in self:
            connection.drain()

    def came(self, connection: Connection, slot: int) -> None:
        """One more is watched. Where the server goes down, it is told as soon as it can hear."""
        self._slots[slot].add(connection)
        if slot not in self._timers:
            self._look_later(slot)
        if self._is_draining:
            asyncio.get_running_loop().call_soon(lambda: connection.is_open and connection.drain())

    def went(self, connection: Connection, slot: int) -> None:
        """One is no longer watched."""
        self._slots[slot].discard(connection)
        self._one_less.set()

    async def end_all(self) -> None:
        """The server goes down and all runs have ended: let every reader take what is left, then drop it."""
        with anyio.move_on_after(FLUSH_SECONDS):
            while len(self):
                self._one_less = anyio.Event()
                await self._one_less.wait()
        for connection in self:
            connection.drop()

    def _look_later(self, slot: int) -> None:
        """Look at a slot once in each interval, at a moment of its own: the slots take turns, whenever they filled."""
        loop, tick_seconds = asyncio.get_running_loop(), self._interval / len(self._slots)
        early = tick_seconds / 2  # A timer may be so early, and is not to come twice.
        wait_seconds = early + (slot * tick_seconds - loop.time() - early) % self._interval
        # A timer's callback: a task that sleeps costs several times as much a tick.
        self._timers[slot] = loop.call_later(wait_seconds, self._look, slot)

    def _look(self, slot: int) -> None:
        if not self._slots[slot]:
            del self._timers[slot]  # Without a connection the clock stands still.
            return
        self._look_later(slot)
        now, moment = monotonic(), time()
        for connection in list(self._slots[slot]):
            if moment >= connection.expires_at:
                connection.expire()
            elif connection.writing_since is None:
                if now - connection.wrote_at >= self._idle_seconds:
                    self._keep_alive(connection)
            elif now - connection.writing_since >= self._send_timeout_seconds:
                connection.drop()

    def _keep_alive(self, connection: Connection) -> None:
        """Ping it now; a task of its own waits for one that cannot be written to."""
        try:
            if connection.ping_now():
                return
        except (OSError, RuntimeError):
            return connection.drop()
        ping = asyncio.create_task(self._ping(connection))
        self._pings.add(ping)
        ping.add_done_callback(self._pings.discard)

    async def _ping(self, connection: Connection) -> None:
        try:
            await connection.ping()
        except (OSError, RuntimeError):
            connection.drop()  # It has gone or is closing; its own task may not have noticed yet.


# Classes, since a generator as a context manager takes half a KB of each stream.


class _Watch:
    """A connection in its slot."""

    __slots__ = ("_connection", "_connections", "_slot")

    def __init__(self, connection: Connection, slot: int, connections: Connections) -> None:
        self._connection = connection
        self._slot = slot
        self._connections = connections

    def __enter__(self) -> None:
        self._connections.came(self._connection, self._slot)

    def __exit__(self, *_: object) -> None:
        self._connection.is_open = False
        self._connections.went(self._connection, self._slot)


@contextmanager
def emptied(transport: asyncio.Transport) -> Iterator[None]:
    """Meanwhile a write waits for all before it to be taken: whoever stops right before the end is stuck too."""
    transport.set_write_buffer_limits(high=0)
    try:
        yield
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()
