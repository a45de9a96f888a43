"""What things cost a server: CPU and bytes of a token, memory of a stream. Times are not looked at here."""

import asyncio
from collections.abc import Callable
from typing import Any

from benchmarks import counting
from benchmarks.bench import BOTTLENECK, END_SECONDS, Bench, Seen, all_over, check, one_run, per_token
from benchmarks.processes import resident_bytes
from benchmarks.readers import RunReader
from benchmarks.script import Script

BUSY_LIMIT = 0.95
"""A load that uses more of its core than this is the bottleneck of a throughput, and the throughput is refused."""


async def saturated(bench: Bench, *, streams: int, tokens: int, pace: str) -> Seen:
    """All the tokens that go through, counted in raw bytes: server CPU, throughput and bytes of one token."""
    seen = Seen()
    script = Script(tokens, pace)
    await counting.count(bench.target, bench.transport, script, min(streams, 4))
    await bench.settle()
    async with bench.metered(seen):
        counted = await counting.count(bench.target, bench.transport, script, streams)
    seen.values |= per_token(seen, counted.tokens, counted.bytes_in)
    if seen.values["load_busy_share"] > BUSY_LIMIT:
        seen.refusal = BOTTLENECK
    return seen


async def closed_loop(bench: Bench, *, streams: int, tokens: int) -> Seen:
    """Every token its own read of the upstream: the next one leaves when the reader has the last."""
    seen = Seen()
    await _closed(bench, min(streams, 4), 5)
    await bench.settle()
    async with bench.metered(seen):
        readers, bytes_in = await _closed(bench, streams, tokens)
    seen.values |= per_token(seen, sum(len(each.indices) for each in readers), bytes_in)
    check(seen, readers, tokens)
    return seen


async def _closed(bench: Bench, streams: int, tokens: int) -> tuple[list[RunReader], int]:
    readers, connections = [], []
    for key in range(streams):
        reader = RunReader(on_token=lambda key=key: bench.upstream.credit(key))  # type: ignore[misc]
        connection = await bench.open()
        connection.ask({"message": Script(tokens, "closed", key).message}, reader)
        readers.append(reader)
        connections.append(connection)
    await all_over(readers, END_SECONDS * 10)
    for connection in connections:
        connection.close()
    return readers, sum(each.bytes_in for each in connections)


async def memory(bench: Bench, *, streams: int) -> Seen:
    """What an open stream costs in RAM: a run of one token whose model then thinks."""
    seen = Seen()
    connection = await bench.open()
    for _ in range(20):
        await one_run(connection, Script(1))
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
    seen.values |= per_token(seen, tokens * runs, bytes_in)
    return seen


MEASURES: dict[str, Callable[..., Any]] = {each.__name__: each for each in (saturated, closed_loop, memory, long_run)}
