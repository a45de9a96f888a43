"""Measurements of many streams and of coming back: readers of one run, idle streams, resumes, a bad network."""

import asyncio
import random
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from benchmarks.bench import Bench, Seen, all_over, check, per_token
from benchmarks.proxy import Weather, distant
from benchmarks.readers import RunReader
from benchmarks.script import Script
from benchmarks.times import paced
from chatserver.bench.connections import CONNECTIONS, TRANSPORTS, AnyConnection, Target
from chatserver.bench.schedule import NS

OPENING = 100
"""How many connections are made at a time."""

PROBE_SECONDS = 0.01
AWAY_SECONDS = 0.03
RESUME_RATE = 100


async def together(bench: Bench, *, readers: int, tokens: int, pace: str) -> Seen:
    """What an event costs in the transport alone: many readers of one run share what is before it.

    What leaves the model next leaves when the reader who is served last has what came before.
    """
    seen, script, first = Seen(), Script(tokens, pace), RunReader()
    connections = [await bench.open()]
    connections[0].ask({"message": script.message}, first)
    await asyncio.wait_for(first.began.wait(), 30)
    everybody = [first, *[RunReader() for _ in range(readers - 1)]]
    connections += await _begun(bench, everybody[1:], lambda each, reader: each.attach(first.run_id, 0, reader))
    everybody[-1].on_token = lambda: bench.upstream.credit(script.key)
    await bench.settle()
    bytes_before = sum(each.bytes_in for each in connections)
    async with bench.metered(seen):
        for _ in range(script.burst):
            bench.upstream.credit(script.key)
        await all_over(everybody, 30)
    bytes_in = sum(each.bytes_in for each in connections) - bytes_before
    seen.values |= per_token(seen, (tokens - script.burst) * readers, bytes_in)
    check(seen, everybody, tokens)
    for connection in connections:
        connection.close()
    return seen


async def many_readers(bench: Bench, *, readers: int, rate: float, seconds: float) -> Seen:
    """What each further reader of a run costs: server CPU with many of them less that with one, per event."""
    seen, alone = Seen(), Seen()
    one = await _read_together(bench, alone, 1, rate, seconds)
    many = await _read_together(bench, seen, readers, rate, seconds)
    extra = seen.values["server_cpu_s"] - alone.values["server_cpu_s"]
    seen.values["cpu_us_per_further_event"] = extra * 1e6 / max(1, many - one)
    seen.values["tokens"] = many
    return seen


async def _read_together(bench: Bench, seen: Seen, count: int, rate: float, seconds: float) -> int:
    """Events that came to all readers of one run in the measured seconds."""
    first = RunReader()
    connections = [await bench.open()]
    tokens = int((seconds + 1.0 + count / 500) * rate)
    connections[0].ask({"message": Script(tokens, f"{rate:g}").message, "on_disconnect": "cancel"}, first)
    await first.began.wait()
    readers = [first, *[RunReader() for _ in range(count - 1)]]
    connections += await _begun(bench, readers[1:], lambda each, reader: each.attach(first.run_id, 0, reader))
    before = sum(len(each.indices) for each in readers)
    async with bench.metered(seen):
        await asyncio.sleep(seconds)
    events = sum(len(each.indices) for each in readers) - before
    delivery = [arrival[1] for each in readers for arrival in each.arrivals[-int(seconds * rate) :]]
    seen.samples["delivery_us"] = delivery[:: max(1, len(delivery) // 20_000)]
    async with asyncio.timeout(30):
        for reader in readers:
            await reader.over.wait()
    check(seen, readers, tokens)
    for connection in connections:
        connection.close()
    await bench.settle()
    return events


async def _begun(
    bench: Bench, readers: list[RunReader], begin: Callable[[AnyConnection, RunReader], None]
) -> list[AnyConnection]:
    """A connection for each reader on which it has heard its first event; opened a few at a time."""
    connections: list[AnyConnection] = []
    for start in range(0, len(readers), OPENING):
        some = readers[start : start + OPENING]
        fresh = await asyncio.gather(*[bench.open() for _ in some])
        for connection, reader in zip(fresh, some, strict=True):
            begin(connection, reader)
        for reader in some:
            await asyncio.wait_for(reader.began.wait(), 30)
        connections += fresh
    return connections


async def keepalive(bench: Bench, *, streams: int, seconds: float) -> Seen:
    """Idle streams that are pinged every second: server CPU of a ping, and the longest wait for another answer.

    They are readers of one run whose model is silent. What the server uses before there are any streams, looked at in
    the same way, is no part of a ping.
    """
    seen, idle = Seen(), Seen()
    await bench.settle()
    async with bench.metered(idle):
        await _probed(bench.target, seconds)
    first = RunReader()
    connections = [await bench.open()]
    connections[0].ask({"message": Script(1, "1000", 0, seconds + 30 + streams / 100).message}, first)
    await asyncio.wait_for(first.began.wait(), 30)
    readers = [RunReader() for _ in range(streams - 1)]
    connections += await _begun(bench, readers, lambda each, reader: each.attach(first.run_id, 0, reader))
    await asyncio.sleep(1.0)
    before = sum(each.pings for each in connections)
    async with bench.metered(seen):
        waits = await _probed(bench.target, seconds)
    pings = sum(each.pings for each in connections) - before
    for connection in connections:
        connection.drop()
    seen.values["pings"] = pings
    if pings < streams * seconds * 0.5:
        seen.refusal = f"only {pings} pings came to {streams} streams"
    pinging_s = max(0.0, seen.values["server_cpu_s"] - idle.values["server_cpu_s"])
    seen.values["cpu_us_per_ping"] = pinging_s * 1e6 / max(1, pings)
    seen.values["stall_max_ms"] = max(waits, default=0) / 1000
    seen.samples["probe_us"] = waits
    await bench.settle()
    return seen


async def _probed(target: Target, seconds: float) -> list[int]:
    """How long `/livez` takes on an open connection, again and again, in µs: what stalls the loop delays it."""
    waits: list[int] = []
    reader, writer = await asyncio.open_connection(target.host, target.port)
    request = target.request("GET", "/livez")
    end = monotonic_ns() + int(seconds * NS)
    try:
        async with asyncio.timeout(seconds + 30):
            while (began := monotonic_ns()) < end:
                writer.write(request)
                await reader.read(4096)
                waits.append((monotonic_ns() - began) // 1000)
                await asyncio.sleep(PROBE_SECONDS)
    finally:
        writer.close()
    return waits


async def resume(bench: Bench, *, drops: int) -> Seen:
    """Dropped in the middle of a run, a reader comes back 30 ms later on a new connection: how soon it reads on.

    Every other one comes back on the other transport.
    """
    seen = Seen()
    tokens, source = 40, random.Random(bench.seed)  # noqa: S311
    waits: dict[str, list[int]] = {"resume_us": [], "resume_switched_us": []}
    seen.samples = {"delivery_us": [], "at_ms": [], "drop_at_ms": []}
    readers = []
    begin = monotonic_ns()
    for number in range(drops):
        reader = RunReader(monotonic_ns())
        readers.append(reader)
        connection = await bench.open()
        connection.ask({"message": Script(tokens, str(RESUME_RATE)).message}, reader)
        await reader.began.wait()
        await asyncio.sleep(source.uniform(0.05, 0.25))
        connection.drop()
        seen.samples["drop_at_ms"].append((monotonic_ns() - begin) // 1_000_000)
        await asyncio.sleep(AWAY_SECONDS)
        count, back = len(reader.indices), monotonic_ns()
        other = TRANSPORTS[1 - TRANSPORTS.index(bench.transport)]
        connection = await CONNECTIONS[other if number % 2 else bench.transport].open(bench.target)
        connection.attach(reader.run_id, reader.last_seq, reader)
        await asyncio.wait_for(reader.over.wait(), 10)
        if len(reader.arrivals) > count:
            waits["resume_switched_us" if number % 2 else "resume_us"].append(
                (reader.arrivals[count][0] - back) // 1000
            )
        connection.close()
    for reader in readers:
        seen.samples["delivery_us"] += [arrival[1] for arrival in reader.arrivals]
        seen.samples["at_ms"] += [(arrival[0] - begin) // 1_000_000 for arrival in reader.arrivals]
    seen.samples |= waits
    check(seen, readers, tokens)
    return seen


async def far_away(bench: Bench, *, delay_ms: float, jitter_ms: float, stall_ms: float, **params: Any) -> Seen:
    """The paced measurement through the lab's own bad network."""
    weather = Weather(delay_ms / 1000, jitter_ms / 1000, stall_seconds=stall_ms / 1000, seed=bench.seed)
    async with distant(bench.target, weather) as target:
        there = Bench(target, bench.transport, bench.pid, bench.upstream, bench.schedule, bench.seed)
        return await paced(there, **params)


async def followed(bench: Bench, *, writer_port: int, streams: int, rate: float, seconds: float) -> Seen:
    """Runs that one node writes, each read at another one as it grows: the delivery of their tokens there."""
    seen, readers, connections = Seen(), list[RunReader](), list[AnyConnection]()
    tokens = int((seconds + 2.0 + streams / 20) * rate)
    for _ in range(streams):
        first, reader = RunReader(), RunReader()
        asking = await CONNECTIONS[bench.transport].open(Target("127.0.0.1", writer_port))
        asking.ask({"message": Script(tokens, f"{rate:g}").message, "on_disconnect": "continue"}, first)
        await asyncio.wait_for(first.began.wait(), 30)
        connections.append(await bench.open())
        connections[-1].attach(first.run_id, 0, reader)
        await asyncio.wait_for(reader.began.wait(), 30)
        readers.append(reader)
        asking.drop()
    bytes_before = sum(each.bytes_in for each in connections)
    counts = [len(each.arrivals) for each in readers]
    async with bench.metered(seen):
        await asyncio.sleep(seconds)
    arrivals = [each for reader, count in zip(readers, counts, strict=True) for each in reader.arrivals[count:]]
    seen.values |= per_token(seen, len(arrivals), sum(each.bytes_in for each in connections) - bytes_before)
    seen.samples["delivery_us"] = [latency for _, latency, _ in arrivals]
    seen.samples["added_us"] = [max(0, latency - late) for _, latency, late in arrivals]
    await all_over(readers, 30)
    check(seen, readers, tokens)
    return seen


MEASURES: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (together, many_readers, keepalive, resume, far_away, followed)
}
