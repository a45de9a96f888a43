"""The measurements: each asks one server for one thing and returns what was seen of it. They run in the load's loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from time import monotonic_ns, process_time_ns
from typing import Any

from msgspec import Struct

from benchmarks import counting
from benchmarks.processes import cpu_ns, resident_bytes
from benchmarks.readers import RunReader
from benchmarks.script import Script
from benchmarks.upstream import Upstream
from chatserver.bench.connections import CONNECTIONS, AnyConnection, Target, Transport
from chatserver.bench.schedule import NS, Schedule, poisson

BUSY_LIMIT = 0.95
"""A load that uses more of its core than this is the bottleneck of a throughput, and the throughput is refused."""

LATENESS_P99_LIMIT_US = 5_000
"""A load that is so late says nothing about a server: some other program had its core."""

END_SECONDS = 3.0
SETTLED_SHARE = 0.05
SETTLE_SECONDS = 5.0


class Seen(Struct):
    """What one measurement saw; names end in their unit."""

    values: dict[str, float] = {}
    samples: dict[str, list[int]] = {}
    refusal: str | None = None
    latency_refusal: str | None = None


class Bench(Struct):
    """What a measurement works with: the server, and the half of the world that is the lab's."""

    target: Target
    transport: Transport
    pid: int
    upstream: Upstream
    schedule: Schedule
    seed: int

    async def open(self) -> AnyConnection:
        return await CONNECTIONS[self.transport].open(self.target)

    async def settle(self) -> None:
        """Wait until the server has done what it still has to do from before."""
        for _ in range(int(SETTLE_SECONDS / 0.05)):
            before = cpu_ns(self.pid)
            await asyncio.sleep(0.05)
            if cpu_ns(self.pid) - before < SETTLED_SHARE * 0.05 * NS:
                return

    @asynccontextmanager
    async def metered(self, seen: Seen) -> AsyncIterator[None]:
        """Note the server's CPU time and the load's share of its own core; both from begin to end of the block."""
        server, own, wall = cpu_ns(self.pid), process_time_ns(), monotonic_ns()
        yield
        seconds = (monotonic_ns() - wall) / NS
        seen.values["wall_s"] = seconds
        seen.values["server_cpu_s"] = (cpu_ns(self.pid) - server) / NS
        seen.values["load_busy_share"] = (process_time_ns() - own) / NS / seconds


async def saturated(bench: Bench, *, streams: int, tokens: int, pace: str) -> Seen:
    """All the tokens that go through, counted in raw bytes: server CPU, throughput and bytes of one token."""
    seen = Seen()
    script = Script(tokens, pace)
    await counting.count(bench.target, bench.transport, script, min(streams, 4))
    await bench.settle()
    async with bench.metered(seen):
        counted = await counting.count(bench.target, bench.transport, script, streams)
    seen.values |= _per_token(seen, counted.tokens, counted.bytes_in)
    if seen.values["load_busy_share"] > BUSY_LIMIT:
        seen.refusal = "the load was the bottleneck"
    return seen


async def closed_loop(bench: Bench, *, streams: int, tokens: int) -> Seen:
    """Every token its own read of the upstream: the next one leaves when the reader has the last."""
    seen = Seen()
    await _closed(bench, min(streams, 4), 5)
    await bench.settle()
    async with bench.metered(seen):
        readers, bytes_in = await _closed(bench, streams, tokens)
    seen.values |= _per_token(seen, sum(len(each.indices) for each in readers), bytes_in)
    _check(seen, readers, tokens)
    return seen


async def _closed(bench: Bench, streams: int, tokens: int) -> tuple[list[RunReader], int]:
    readers, connections = [], []
    for key in range(streams):
        reader = RunReader(on_token=lambda key=key: bench.upstream.credit(key))  # type: ignore[misc]
        connection = await bench.open()
        connection.ask({"message": Script(tokens, "closed", key).message}, reader)
        readers.append(reader)
        connections.append(connection)
    await _all_over(readers, END_SECONDS * 10)
    for connection in connections:
        connection.close()
    return readers, sum(each.bytes_in for each in connections)


async def paced(bench: Bench, *, streams: int, rate: float, seconds: float, ramp_seconds: float) -> Seen:
    """Open loop: runs arrive at random over the ramp, their tokens are due on a schedule, and the clock runs from then.

    What is due before the ramp is over is warm-up and does not count.
    """
    seen = Seen()
    await bench.settle()
    bench.schedule.lateness_ns.clear()
    begin = monotonic_ns() + NS // 20
    arrivals = list(islice(poisson(1.0, bench.seed), streams))
    readers: list[RunReader] = []
    scale = ramp_seconds / arrivals[-1]
    opening: list[asyncio.Task[None]] = []
    opened: list[AnyConnection] = []

    async def one(reader: RunReader, tokens: int) -> None:
        try:
            connection = await bench.open()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is a failed run
            reader.ended(f"no connection: {error}")
            return
        opened.append(connection)
        reader.asked_ns = monotonic_ns()
        connection.ask({"message": Script(tokens, f"{rate:g}").message}, reader)

    wanted: list[int] = []
    for arrival in arrivals:
        due = begin + int(arrival * scale * NS)
        reader, tokens = RunReader(due), max(2, int((ramp_seconds + seconds - arrival * scale) * rate))
        readers.append(reader)
        wanted.append(tokens)
        bench.schedule.at(
            due, lambda _, reader=reader, tokens=tokens: opening.append(asyncio.ensure_future(one(reader, tokens)))  # type: ignore[misc]
        )
    await asyncio.sleep(0.05 + ramp_seconds)
    bytes_before = sum(each.bytes_in for each in opened)
    tokens_before = sum(len(each.indices) for each in readers)
    async with bench.metered(seen):
        await asyncio.sleep(seconds)
    tokens_in = sum(len(each.indices) for each in readers) - tokens_before
    bytes_in = sum(each.bytes_in for each in opened) - bytes_before
    with suppress(TimeoutError):
        await _all_over(readers, END_SECONDS)
    late = sum(1 for each in readers if not each.over.is_set())
    for connection in opened:
        connection.drop()
    seen.values |= _per_token(seen, tokens_in, bytes_in)
    seen.values["delivered_share"] = tokens_in / max(1.0, streams * rate * seconds)
    seen.values["unfinished_runs"] = late
    if not late:
        _check(seen, readers, wanted)
    _latencies(seen, readers, begin + int(ramp_seconds * NS), rate)
    _lateness(seen, bench.schedule)
    return seen


def _latencies(seen: Seen, readers: list[RunReader], from_ns: int, rate: float) -> None:
    delivery, added, jitter, at_ms, first, overhead = [], [], [], [], [], []
    for reader in readers:
        before = None
        for at_ns, latency, late in reader.arrivals:
            if at_ns - latency * 1000 >= from_ns:
                delivery.append(latency)
                added.append(max(0, latency - late))
                at_ms.append((at_ns - from_ns) // 1_000_000)
                if before is not None:
                    jitter.append(abs(latency - before))  # Both were due on a schedule, so this is gap minus gap.
            before = latency
        if reader.first_event_ns:
            first.append((reader.first_event_ns - reader.planned_ns) // 1000)
        if reader.over.is_set() and not reader.problem:
            planned = int((len(reader.indices) - 1) / rate * NS)
            overhead.append((reader.arrivals[-1][0] - reader.planned_ns - planned) // 1000)
    seen.samples |= {"delivery_us": delivery, "added_us": added, "jitter_us": jitter}
    seen.samples |= {"first_event_us": first, "overhead_us": overhead, "at_ms": at_ms}


async def first_event(bench: Bench, *, requests: int, rate: float) -> Seen:
    """The first event and the first token of an idle server, on fresh connections and on ones that were used before.

    Counted from the planned moment; with a fresh connection that includes making it.
    """
    seen = Seen()
    pool = [await bench.open() for _ in range(4)]
    await asyncio.gather(*[_one_run(connection, Script(1)) for connection in pool])
    await bench.settle()
    bench.schedule.lateness_ns.clear()
    for kind in ("cold", "warm"):
        readers = [RunReader() for _ in range(requests)]
        begin = monotonic_ns() + NS // 50
        running: list[asyncio.Task[None]] = []
        connections = pool if kind == "warm" else None
        for reader, arrival in zip(readers, poisson(rate, bench.seed), strict=False):
            reader.planned_ns = begin + int(arrival * NS)
            bench.schedule.at(
                reader.planned_ns,
                lambda _, reader=reader, connections=connections: running.append(  # type: ignore[misc]
                    asyncio.ensure_future(_ask(bench, reader, connections))
                ),
            )
        await _all_over(readers, requests / rate + END_SECONDS)
        _check(seen, readers, 1)
        seen.samples[f"first_event_{kind}_us"] = [(r.first_event_ns - r.planned_ns) // 1000 for r in readers]
        seen.samples[f"first_token_{kind}_us"] = [(r.first_token_ns - r.planned_ns) // 1000 for r in readers]
        if kind == "cold":
            seen.samples["connect_us"] = [(r.asked_ns - r.planned_ns) // 1000 for r in readers]
    for connection in pool:
        connection.close()
    _lateness(seen, bench.schedule)
    return seen


async def _ask(bench: Bench, reader: RunReader, pool: list[AnyConnection] | None) -> None:
    """Ask on a connection of the pool, which takes it back afterwards; without a pool, on a fresh one."""
    connection = pool.pop() if pool else await bench.open()
    reader.asked_ns = monotonic_ns()
    connection.ask({"message": Script(1).message}, reader)
    await reader.over.wait()
    if pool is None:
        connection.close()
    else:
        pool.append(connection)


async def _one_run(connection: AnyConnection, script: Script, **request: Any) -> RunReader:
    reader = RunReader(monotonic_ns())
    connection.ask({"message": script.message} | request, reader)
    await asyncio.wait_for(reader.over.wait(), 30)
    return reader


async def long_session(bench: Bench, *, messages: int, requests: int) -> Seen:
    """The first token in a session that has many messages. One request after the other: a session has one run."""
    seen = Seen()
    connection = await bench.open()
    session = f"lab-{bench.transport}-{monotonic_ns()}"
    for _ in range(messages // 2):
        await _one_run(connection, Script(1), session_id=session)
    await bench.settle()
    readers = []
    async with bench.metered(seen):
        for _ in range(requests):
            readers.append(await _one_run(connection, Script(1), session_id=session))
            await asyncio.sleep(0.005)
    connection.close()
    _check(seen, readers, 1)
    seen.samples["first_token_us"] = [(r.first_token_ns - r.planned_ns) // 1000 for r in readers]
    seen.values["cpu_us_per_request"] = seen.values["server_cpu_s"] * 1e6 / requests
    return seen


async def memory(bench: Bench, *, streams: int) -> Seen:
    """What an open stream costs in RAM: a run of one token whose model then thinks."""
    seen = Seen()
    connection = await bench.open()
    for _ in range(20):
        await _one_run(connection, Script(1))
    await bench.settle()
    before = resident_bytes(bench.pid)
    connections, readers = [], []
    for _ in range(streams):
        reader = RunReader()
        connections.append(await bench.open())
        connections[-1].ask({"message": Script(1, "1000", 0, 30.0).message}, reader)
        readers.append(reader)
    for reader in readers:
        await asyncio.wait_for(reader.began.wait(), 30)
    await bench.settle()
    seen.values["kib_per_stream"] = (resident_bytes(bench.pid) - before) / 1024 / streams
    for each in [connection, *connections]:
        each.drop()
    if any(not each.indices for each in readers):
        seen.refusal = "not all streams began"
    return seen


async def long_run(bench: Bench, *, tokens: int) -> Seen:
    """What a token costs in a run of so many: CPU of the server, less what a run of one token costs."""
    seen, alone = Seen(), Seen()
    runs = max(1, 2000 // tokens)
    await counting.count(bench.target, bench.transport, Script(1), 1)
    await bench.settle()
    async with bench.metered(alone):
        for _ in range(10):
            await counting.count(bench.target, bench.transport, Script(1), 1)
    await bench.settle()
    bytes_in = 0
    async with bench.metered(seen):
        for _ in range(runs):
            bytes_in += (await counting.count(bench.target, bench.transport, Script(tokens), 1)).bytes_in
        await asyncio.sleep(0.02)
    per_run = alone.values["server_cpu_s"] / 10
    seen.values["server_cpu_s"] = max(0.0, seen.values["server_cpu_s"] - per_run * runs)
    seen.values |= _per_token(seen, tokens * runs, bytes_in)
    return seen


def _per_token(seen: Seen, tokens: int, bytes_in: int) -> dict[str, float]:
    if not tokens:
        return {"tokens": 0}
    return {
        "tokens": tokens,
        "cpu_us_per_token": seen.values["server_cpu_s"] * 1e6 / tokens,
        "tokens_per_s": tokens / seen.values["wall_s"],
        "tokens_per_core_s": tokens / max(1e-9, seen.values["server_cpu_s"]),
        "bytes_per_token": bytes_in / tokens,
    }


def _check(seen: Seen, readers: list[RunReader], tokens: int | list[int]) -> None:
    wanted = tokens if isinstance(tokens, list) else [tokens] * len(readers)
    results = [reader.lost_and_doubled(count) for reader, count in zip(readers, wanted, strict=True)]
    seen.values["lost_events"] = sum(lost for lost, _ in results)
    seen.values["doubled_events"] = sum(doubled for _, doubled in results)
    problems = [each.problem for each in readers if each.problem]
    seen.values["failed_runs"] = len(problems)
    if problems:
        seen.refusal = f"{len(problems)} of {len(readers)} runs failed: {problems[0]}"
    elif seen.values["lost_events"] or seen.values["doubled_events"]:
        seen.refusal = "events were lost or came twice"


def _lateness(seen: Seen, schedule: Schedule) -> None:
    late = sorted(schedule.lateness_ns)
    if late:
        seen.values["load_late_p50_us"] = late[len(late) // 2] / 1000
        seen.values["load_late_p99_us"] = late[len(late) * 99 // 100] / 1000
        if seen.values["load_late_p99_us"] > LATENESS_P99_LIMIT_US:
            seen.latency_refusal = "the load was late"


async def _all_over(readers: list[RunReader], patience_seconds: float) -> None:
    async with asyncio.timeout(patience_seconds):
        for reader in readers:
            await reader.over.wait()


MEASURES: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (saturated, closed_loop, paced, first_event, long_session, memory, long_run)
}
