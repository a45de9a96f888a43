"""A reader that stops slows only itself: it takes no memory, disturbs nobody, is cut in the end, and can come back."""

import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from time import monotonic
from typing import Any, cast

import anyio
import psutil
import pytest

from tests.clients import NDJSON, SSE, TRANSPORTS, WS, Address, Reading, Transport, documents_of, text_of
from tests.conftest import Scale
from tests.fake_upstream import Done, FakeUpstream, Gate, finish, role, token
from tests.live import LiveServer, ServerProcess, live_server

pytestmark = pytest.mark.proof

KERNEL_BYTES = 4096
"""What the kernel is asked to hold for a connection; it holds a few times as much, which the runs here exceed."""


class Telling:
    """A long answer of the upstream: its first event, all but its end, and its end, as the test lets them go."""

    def __init__(self, upstream: FakeUpstream, events: int, text: str) -> None:
        self.middle, self.end = anyio.Event(), anyio.Event()
        tokens = [token(f"{number} {text}") for number in range(events)]
        upstream.script(role(), tokens[0], Gate(self.middle), *tokens[1:], Gate(self.end), finish(), Done())
        self.text = "".join(f"{number} {text}" for number in range(events))
        self.documents = events + 2


async def attach_and_stop(
    server: Address, run_id: str, cursors: Sequence[int], transports: Sequence[Transport], **options: Any
) -> list[Reading]:
    """Readers that take one event from their cursors, over the transports in turn, and then nothing more."""
    readings: list[Reading] = []
    for after, transport in zip(cursors, cycle(transports), strict=False):
        reading = await transport.attach(server, run_id, after, receive_bytes=KERNEL_BYTES, **options)
        await reading.take(1)
        reading.stop()
        readings.append(reading)
    return readings


async def read_up_to(count: int, *readings: Reading) -> None:
    """Read with all of them at once until each has so many documents."""

    async def read(reading: Reading) -> None:
        while len(reading.documents) < count:
            await reading.take(1)

    async with anyio.create_task_group() as tasks:
        for reading in readings:
            tasks.start_soon(read, reading)


# ---- memory ---------------------------------------------------------------------------------------------------------

GROWTH_LIMIT_BYTES = 64 * 1024 * 1024
HEALTHY = 10
EVENTS, TEXT = 250, "€" * 8_000
"""With 24 KB an event, a run is 6 MB: more than a kernel takes by itself for a peer that reads nothing."""


class Process:
    """A server's process seen from outside."""

    def __init__(self, server: ServerProcess) -> None:
        self._process = psutil.Process(server.pid)
        self._port = server.port
        self.peak_bytes = 0

    @property
    def memory_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    @property
    def connections(self) -> int:
        """To clients, those that only the server has not closed yet included."""
        return sum(each.laddr.port == self._port and bool(each.raddr) for each in self._process.net_connections("tcp"))

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Keep the peak of its memory while the block lasts."""

        async def watch() -> None:
            while True:
                self.peak_bytes = max(self.peak_bytes, self.memory_bytes)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield
            tasks.cancel_scope.cancel()


async def test_readers_that_stop_take_no_memory_and_disturb_nobody(tmp_path: Path, scale: Scale) -> None:
    limits: dict[str, Any] = {"max_answer_bytes": 2**23, "max_tokens_per_run": 10**7}
    async with FakeUpstream() as upstream, ServerProcess(upstream.url, tmp_path, **limits) as server:
        process = Process(server)
        async with process.watched():
            with anyio.fail_after(50):
                await tell_healthy_ones_beside(0, upstream, server, process)
                before = process.peak_bytes
                await tell_healthy_ones_beside(scale(30, 100), upstream, server, process)
        grown = process.peak_bytes - before
        assert grown < GROWTH_LIMIT_BYTES, f"{grown / 2**20:.0f} MiB more"


async def tell_healthy_ones_beside(count: int, upstream: FakeUpstream, server: ServerProcess, process: Process) -> None:
    """A run read by those who read all, and by so many who stop: half of them in its midst, half before its end."""
    telling = Telling(upstream, EVENTS, TEXT)
    first = await SSE.start(server, {"message": "Tell"})
    others = [await WS.attach(server, first.run_id) for _ in range(HEALTHY // 2)]
    others += [await SSE.attach(server, first.run_id) for _ in range(HEALTHY // 2 - 1)]
    healthy = [first, *others]
    await read_up_to(2, *healthy)
    early = await attach_and_stop(server, first.run_id, [0] * (count // 2), (SSE, WS))
    telling.middle.set()
    await read_up_to(telling.documents - 1, *healthy)
    late = await attach_and_stop(server, first.run_id, [0] * (count - len(early)), (SSE, WS))
    telling.end.set()
    await read_up_to(telling.documents, *healthy)
    assert process.connections >= count, "nobody was cut so far: this is how it is beside stopped readers"
    again = await documents_of(await WS.attach(server, first.run_id))
    for reading in (*early, *late, *healthy):
        reading.reset()
    assert [json.loads(each)["seq"] for each in first.documents] == list(range(1, telling.documents + 1))
    assert text_of(first.documents) == telling.text == text_of(again)
    assert all(each.documents == first.documents for each in healthy)


# ---- cut and come back ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def told(**settings: Any) -> AsyncIterator[tuple[LiveServer, Telling, Reading]]:
    """A server whose kernel holds little for its peers, and a reader of the first two events of a run."""
    async with FakeUpstream() as upstream, live_server(upstream.url, **settings) as server:
        for listener in server.server.servers[0].sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)  # what it accepts inherits it
        telling = Telling(upstream, events=40, text="€" * 5_000)  # So long that no two are merged.
        async with await WS.start(server, {"message": "Tell"}) as reading:
            await read_up_to(2, reading)
            yield server, telling, reading


async def only_left(server: LiveServer, count: int) -> None:
    """Wait until the server holds no more connections than this."""
    while server.connections > count:  # noqa: ASYNC110 - uvicorn tells nobody
        await anyio.sleep(0.01)


async def stop_everywhere(
    server: LiveServer, run: Reading, telling: Telling, transports: Sequence[Transport], **options: Any
) -> list[Reading]:
    """Let the run end, and stop readers of it at every distance from the end: for some, only the end finds no room."""
    telling.middle.set()
    telling.end.set()
    await read_up_to(telling.documents, run)
    return await attach_and_stop(server, run.run_id, range(telling.documents - 1), transports, **options)


@pytest.mark.parametrize("moment", ["while the run goes on", "when the run is over"])
async def test_a_reader_that_stops_is_cut_after_the_send_timeout_and_resumes_losslessly(
    moment: str, scale: Scale
) -> None:
    timeout_seconds = 0.5
    with anyio.fail_after(50):
        async with told(send_timeout_seconds=timeout_seconds, heartbeat_seconds=0.2) as (server, telling, healthy):
            if moment == "when the run is over":
                telling.middle.set()
                telling.end.set()
                await read_up_to(telling.documents, healthy)
            began = monotonic()
            stopped = await attach_and_stop(server, healthy.run_id, [0] * scale(30, 100), TRANSPORTS)
            telling.middle.set()
            await read_up_to(telling.documents - 1, healthy)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read_up_to, telling.documents, healthy)  # It goes on answering pings.
                await only_left(server, len(stopped))
                assert monotonic() - began >= timeout_seconds
                await only_left(server, 1)
                telling.end.set()
            for reading, transport in zip(stopped, cycle(reversed(TRANSPORTS)), strict=False):
                rest = await documents_of(await transport.attach(server, reading.run_id, reading.after))
                assert [*reading.documents, *rest] == healthy.documents
                reading.reset()


async def test_a_reader_that_stops_right_before_the_end_is_cut_too() -> None:
    with anyio.fail_after(30):
        async with told(send_timeout_seconds=0.5) as (server, telling, run):
            # "close": the server lets go of those whose last byte it could pass on.
            options = {"headers": {"Connection": "close"}}
            stopped = await stop_everywhere(server, run, telling, (SSE, NDJSON), **options)
            run.cut()
            await only_left(server, 0)
            for reading in stopped:
                reading.reset()


async def test_a_websocket_that_takes_nothing_can_still_be_closed() -> None:
    with anyio.fail_after(30):
        async with told(send_timeout_seconds=2.0) as (server, telling, run):
            telling.middle.set()
            await read_up_to(telling.documents - 1, run)
            stopped = await attach_and_stop(server, run.run_id, range(8), [WS])
            run.cut()
            for reading in stopped:
                cast(Any, reading).reader.send_binary(b"no command")
            await only_left(server, 0)
            for reading in stopped:
                reading.reset()


async def test_a_reader_that_only_pauses_is_not_cut_and_comes_to_a_clean_end() -> None:
    with anyio.fail_after(30):
        async with told(send_timeout_seconds=30.0) as (server, telling, run):
            paused = await stop_everywhere(server, run, telling, TRANSPORTS)
            await anyio.sleep(1.5)  # The pause: longer than any goodbye takes, far shorter than the send timeout.
            for reading in paused:
                cast(Any, reading).reader.wire.writer.transport.resume_reading()
                await documents_of(reading)
                assert reading.documents == run.documents[-len(reading.documents) :]
