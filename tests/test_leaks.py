"""Whoever connects and leaves, however and whenever: nothing of it stays behind."""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import psutil
import pytest

from chatserver.log.memory import MemoryLog
from chatserver.runs.run import Run
from chatserver.runs.subscription import Subscription
from chatserver.serving.http_exchange import Exchange
from chatserver.serving.http_protocol import HttpProtocol
from chatserver.serving.websocket_protocol import WebSocketProtocol
from chatserver.transports.admission import OPEN_CONNECTIONS
from chatserver.transports.connections import Connection
from chatserver.upstream import connection
from tests.clients import (
    SSE,
    TRANSPORTS,
    WS,
    BrokenError,
    ClosedError,
    Reading,
    Transport,
    Wire,
    WsReader,
    cancel,
    documents_of,
    is_terminal,
)
from tests.conftest import Scale
from tests.fake_upstream import Done, FakeUpstream, Hang, Reply, Status, Step, finish, say, token
from tests.live import LiveServer, live_server
from tests.proving import leave, seeded

pytestmark = pytest.mark.proof

AT_ONCE = 40
EVENT_BYTES = 60
"""What an event takes at least on any transport."""

UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)
WORDS = 60

OBJECTS_LIMIT = 1_500
"""Caches, timers and what coroutines hold for a while come and go. A connection that is kept is tens of objects."""

GROWTH_LIMIT_BYTES = 16 * 1024 * 1024


def answers(reply: Reply) -> list[Step]:
    """An answer that is whole and then closes its connection, or one that goes on for ever."""
    words: list[Step] = [token(f"word {number} ") for number in range(WORDS)]
    if reply.request.json["messages"][-1]["content"] == "whole":
        return [Status(close=True), *words, finish(), Done()]
    return [*words, Hang()]


@dataclass
class World:
    """A server, a run in it that is over and one that never is."""

    server: LiveServer
    rng: random.Random
    over: Reading
    endless: Reading

    async def cycle(self) -> None:
        """Connect in one way, leave in another."""
        with suppress(BrokenError, ClosedError, ConnectionError):
            await self.rng.choice(WAYS)(self)

    async def cycles(self, count: int) -> None:
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                await self.cycle()

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(some)

    async def alone(self) -> None:
        """Wait until the server remembers the endless run only."""
        while self.server.app.state.components.runs._lives.lives.keys() != {self.endless.run_id}:  # noqa: ASYNC110 - as below
            await anyio.sleep(0.01)

    def go(self, wire: Wire) -> None:
        """With FIN or with RST."""
        self.rng.choice((wire.cut, wire.reset))()


Way: TypeAlias = Callable[[World], Awaitable[None]]


async def silently(world: World) -> None:
    """Connect and say nothing."""
    world.go(await Wire.open(world.server))


async def in_mid_request(world: World) -> None:
    wire = await Wire.open(world.server)
    head = (
        b"POST /chat/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    wire.write(head[: world.rng.randrange(1, len(head))])
    await asyncio.sleep(0)
    world.go(wire)


async def before_the_first_byte(world: World) -> None:
    wire = await Wire.open(world.server)
    path = world.rng.choice((f"/chat/runs/{world.endless.run_id}/events", "/chat/ws", "/chat/sessions"))
    wire.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{UPGRADE if path == '/chat/ws' else ''}\r\n".encode())
    for _ in range(world.rng.randrange(6)):
        await asyncio.sleep(0)
    world.go(wire)


async def in_mid_stream(world: World) -> None:
    after = world.rng.randrange(WORDS)
    reading = await world.rng.choice(TRANSPORTS).attach(world.server, world.endless.run_id, after)
    await reading.read_bytes(world.rng.randrange(EVENT_BYTES * (WORDS - after)))
    await leave(reading, world.rng.randrange(3))


async def behind_the_end(world: World) -> None:
    transport, after = world.rng.choice(TRANSPORTS), world.rng.randrange(WORDS + 2)
    reading = await transport.attach(world.server, world.over.run_id, after)
    async for document in reading:
        if is_terminal(document):
            break
    await leave(reading, world.rng.randrange(3))


async def from_a_run_of_ones_own(world: World) -> None:
    reading = await world.rng.choice(TRANSPORTS).start(world.server, {"message": "endless"})
    await reading.take(world.rng.randrange(WORDS))
    await leave(reading, world.rng.randrange(3))


async def with_many_runs_on_one_websocket(world: World) -> None:
    reader = await WsReader.connect(world.server)
    for run_id in (world.endless.run_id, world.over.run_id, world.endless.run_id):
        reader.send({"type": "attach", "run_id": run_id, "after": world.rng.randrange(WORDS)})
        if world.rng.randrange(2):
            await reader.frame()
    reader.send({"type": "detach", "run_id": world.endless.run_id})
    if world.rng.randrange(2):
        await reader.frame()
    world.rng.choice((reader.close, reader.cut, reader.reset))()


async def in_the_breath_of_an_attach(world: World) -> None:
    reader = await WsReader.connect(world.server)
    for _ in range(world.rng.randrange(1, 4)):
        reader.send({"type": "attach", "run_id": world.endless.run_id, "after": world.rng.randrange(WORDS)})
    world.rng.choice((reader.close, reader.cut))()


async def without_reading(world: World) -> None:
    reader = await WsReader.connect(world.server)
    for _ in range(world.rng.randrange(300)):
        reader.send({"type": "ping"})
    world.go(reader.wire)


WAYS: tuple[Way, ...] = (
    silently,
    in_mid_request,
    before_the_first_byte,
    in_mid_stream,
    in_mid_stream,
    behind_the_end,
    from_a_run_of_ones_own,
    with_many_runs_on_one_websocket,
    in_the_breath_of_an_attach,
    without_reading,
)


def held(server: LiveServer, directory: Path) -> dict[str, object]:
    """All that a connection or a run could leave behind, except in memory."""
    parts = server.app.state.components
    runs = parts.runs._lives.lives
    return {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": descriptors(directory),
        "connections": (server.connections, len(parts.connections), +parts.admissions.open[OPEN_CONNECTIONS]),
        "runs": (len(runs), len(parts.runs._logs._logs), +parts.runs._places.held),
        "subscribers": sum(life.run.subscribers for life in runs.values()),
    }


def descriptors(directory: Path) -> Counter[str]:
    """What this process has open, by kind. Without the database, whose pool has a limit of its own."""
    kinds: Counter[str] = Counter()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(each.readlink())
            if not target.startswith(str(directory)):
                kinds[target.partition(":")[0]] += 1
    return kinds


async def until_held(server: LiveServer, directory: Path, wanted: dict[str, object]) -> None:
    """Wait until the very same is held as before."""
    with anyio.move_on_after(20):
        while held(server, directory) != wanted:  # noqa: ASYNC110 - it has no event for all of this
            await anyio.sleep(0.02)
    assert held(server, directory) == wanted


KINDS = (HttpProtocol, WebSocketProtocol, Connection, Subscription)
OF_A_RUN = (Run, MemoryLog, connection.UpstreamConnection, Exchange)


def objects(upstream: FakeUpstream) -> tuple[Counter[str], int]:
    """What is in memory without the test's own records: of each kind that a connection is made of, and in all."""
    for record in (upstream.requests, upstream.replies, upstream.cuts):
        record.clear()
    gc.collect()
    found = gc.get_objects()
    return Counter(type(each).__name__ for each in found if type(each) in KINDS), len(found)


async def until_gone(upstream: FakeUpstream, kinds: Counter[str]) -> int:
    """Wait until no more objects of any kind are in memory than there were; how many there are in all.

    A timer or a transport may still hold what has just been closed. There may be less: an older test's, gone at last.
    """
    with anyio.move_on_after(20):
        while not objects(upstream)[0] <= kinds:  # noqa: ASYNC110 - as above
            await anyio.sleep(0.1)
    now, total = objects(upstream)
    assert now <= kinds, now - kinds
    return total


@pytest.mark.timeout(1800)
async def test_nothing_of_those_who_connect_and_leave_stays_behind(tmp_path: Path, scale: Scale) -> None:
    first, then = scale(150, 5_000), scale(300, 15_000)
    short = dict.fromkeys(("grace_seconds", "retention_seconds"), 0.05)
    settings: dict[str, Any] = short | {"heartbeat_seconds": 0.2, "upstream_idle_seconds": 3600.0}
    process = psutil.Process()
    async with FakeUpstream() as upstream, live_server(upstream.url, directory=tmp_path, **settings) as server:
        upstream.always(answers)
        over = await SSE.start(server, {"message": "whole"})
        await documents_of(over)
        async with await WS.start(server, {"message": "endless"}) as endless:
            await endless.take(WORDS + 1)
            world = World(server, seeded(), over, endless)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(endless.next)  # There is nothing more to read, but WebSocket pings to answer.
                await world.alone()
                before, (kinds, _) = held(server, tmp_path), objects(upstream)
                await world.cycles(first)
                await until_held(server, tmp_path, before)
                total, bytes_before = await until_gone(upstream, kinds), process.memory_info().rss
                await world.cycles(then)
                await until_held(server, tmp_path, before)
                assert await until_gone(upstream, kinds) - total < OBJECTS_LIMIT
                assert process.memory_info().rss - bytes_before < GROWTH_LIMIT_BYTES
                tasks.cancel_scope.cancel()
        assert (await cancel(server, endless.run_id)).status == 202


def alive() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in (*KINDS, *OF_A_RUN))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
@pytest.mark.parametrize("message", ["whole", "endless"])
async def test_a_stream_that_has_ended_leaves_the_collector_nothing_to_do(transport: Transport, message: str) -> None:
    """It comes seldom to a server, since it stops all streams: a cycle would keep a run's whole log for hours."""
    async with FakeUpstream() as upstream, live_server(upstream.url, grace_seconds=0, retention_seconds=0) as server:
        upstream.always(answers)

        async def stream() -> None:
            reading = await transport.start(server, {"message": message})
            await reading.take(WORDS + 2 if message == "whole" else WORDS)
            reading.cut()

        await stream()
        objects(upstream)
        gc.disable()
        before = alive()  # Of other tests too, and what one stream may leave to the next one.
        try:
            for _ in range(3):
                await stream()
            with anyio.move_on_after(20):
                while alive() - before:  # noqa: ASYNC110 - as above
                    await anyio.sleep(0.05)
            assert not alive() - before
        finally:
            gc.enable()


async def test_a_server_that_has_stopped_holds_no_connection_to_the_model() -> None:
    with anyio.fail_after(50):
        async with FakeUpstream() as upstream:
            upstream.always(*say("At once"))
            for transport in (*TRANSPORTS, *TRANSPORTS):
                async with live_server(upstream.url) as server:
                    await documents_of(await transport.start(server, {"message": "Now, before anything is warm"}))
                await upstream.until(lambda: upstream.connections == 0)
