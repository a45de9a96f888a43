"""A network for tests: a TCP proxy that stalls, loses, delays and cuts what passes, and spreads what connects.

Before Redis it makes partitions; before several nodes it is the load balancer without sticky sessions.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Literal, Self, TypeAlias

from tests.clients import Address
from tests.tcp_proxy import TcpProxy, reset_connection

Way: TypeAlias = Literal["requests", "replies"]
"""What a client sends, and what comes back."""

WAYS: tuple[Way, ...] = ("requests", "replies")
_READ_BYTES = 65536


class Gateway(TcpProxy):
    """The proxy. Each new connection goes to the next of ``targets`` that takes it; they may be changed at any time."""

    def __init__(self, *targets: Address) -> None:
        super().__init__()
        self.targets: Sequence[Address] = targets
        self.delay_seconds = 0.0
        """How much later everything arrives, in each way."""
        self._turn: Iterator[int] = itertools.count()
        self._is_cut = False
        self._lost: set[Way] = set()
        self._open = {way: asyncio.Event() for way in WAYS}
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    async def __aenter__(self) -> Self:
        self.heal()
        return await super().__aenter__()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._pairs)

    def cut(self) -> None:
        """Reset all connections, and each new one, until it is healed."""
        self._is_cut = True
        self.reset()

    def stall(self, *ways: Way) -> None:
        """Let nothing pass, in these ways or in both; it waits here until this is healed, and passes then."""
        for way in ways or WAYS:
            self._open[way].clear()

    def lose(self, *ways: Way) -> None:
        """Lose what comes, in these ways or in both. Nobody is told; healing resets the connections."""
        self._lost |= set(ways or WAYS)

    def heal(self) -> None:
        """Let everything pass again. What was lost is lost, so its connections end."""
        self._is_cut = False
        for each in self._open.values():
            each.set()
        if self._lost:
            self._lost.clear()
            self.reset()

    def reset(self) -> None:
        """Reset all connections that are open."""
        for writer in itertools.chain(*self._pairs):
            reset_connection(writer)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self.targets:
            target = self.targets[next(self._turn) % len(self.targets)]
            with suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(target.host, target.port)
                break
        else:
            return reset_connection(writer)
        self._pairs.add(pair := (writer, far_writer))
        if self._is_cut:
            self.reset()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump("requests", reader, far_writer))
                tasks.create_task(self._pump("replies", far_reader, writer))
        except asyncio.CancelledError:
            far_writer.transport.abort()  # Closed, it would still wait until the far end takes what is left.
            raise
        finally:
            self._pairs.discard(pair)
            for each in pair:
                each.close()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on until the end, which passes too; a reset at one end is one at the other."""
        with suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                await self._open[way].wait()
                if way not in self._lost:
                    writer.write(data)
                    await writer.drain()
            await self._open[way].wait()
            if way not in self._lost:
                writer.write_eof()
            return
        reset_connection(writer)
