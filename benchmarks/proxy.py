"""A bad network in a box: a TCP proxy that delays, jitters and stalls what passes, in order and complete."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic_ns
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from chatserver.bench.connections import Target
from chatserver.bench.schedule import NS, Schedule


class Weather(Struct, frozen=True):
    """What happens to bytes on their way, each way; seconds.

    Every ``stall_every_seconds`` of the world's time nothing passes for ``stall_seconds``.
    """

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    stall_seconds: float = 0.0
    stall_every_seconds: float = 1.0
    seed: int = 1


class _Way:
    """One direction of one connection: bytes in, and the same bytes out later, never overtaking each other."""

    def __init__(self, weather: Weather, schedule: Schedule, source: random.Random) -> None:
        self._weather, self._schedule, self._source = weather, schedule, source
        self._last_ns = 0
        self.out: Any = None

    def carry(self, data: bytes | None) -> None:
        """Bytes, or None for the end."""
        weather = self._weather
        due = monotonic_ns() + int((weather.delay_seconds + self._source.uniform(0, weather.jitter_seconds)) * NS)
        if weather.stall_seconds:
            into = due % int(weather.stall_every_seconds * NS)
            due += max(0, int(weather.stall_seconds * NS) - into)
        self._last_ns = due = max(due, self._last_ns + 1)
        self._schedule.at(due, lambda _: self._deliver(data))

    def _deliver(self, data: bytes | None) -> None:
        if data is None:
            self.out.close()
        elif not self.out.is_closing():
            self.out.write(data)


class _End(asyncio.Protocol):
    """One end of a connection through the proxy."""

    def __init__(self, way: _Way) -> None:
        self._way = way

    def data_received(self, data: bytes) -> None:
        self._way.carry(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._way.carry(None)


class _Entry(_End):
    """The client's end: it makes the other one, and keeps what comes until that is there."""

    def __init__(self, target: Target, there: _Way, back: _Way) -> None:
        super().__init__(there)
        self._target, self._back, self._there = target, back, there
        self._early: list[bytes] = []
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._back.out = transport
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._there.out, _ = await loop.create_connection(
            lambda: _End(self._back), self._target.host, self._target.port
        )
        for data in self._early:
            self._there.carry(data)

    def data_received(self, data: bytes) -> None:
        if self._there.out is None:
            self._early.append(data)
        else:
            super().data_received(data)


@asynccontextmanager
async def distant(target: Target, weather: Weather) -> AsyncIterator[Target]:
    """The same server, through that weather."""
    schedule, source = Schedule(), random.Random(weather.seed)  # noqa: S311
    server = await asyncio.get_running_loop().create_server(
        lambda: _Entry(target, _Way(weather, schedule, source), _Way(weather, schedule, source)),
        "127.0.0.1",
        0,
        backlog=2048,
    )
    try:
        yield replace(target, host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
