"""What things cost a server: CPU and bytes of a token, memory of a stream. Times are not looked at here."""

import asyncio
from collections.abc import Callable
from typing import Any

from benchmarks.bench import END_SECONDS, Bench, Seen, all_over, check, one_run, per_token
from benchmarks.processes import resident_bytes, wakes
from benchmarks.readers import RunReader
from benchmarks.script import Script


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
    connection = await bench.open()
    await one_run(connection, Script(1))
    await bench.settle()
    async with bench.metered(alone):
        for _ in range(10):
            await one_run(connection, Script(1))
    await bench.settle()
    before = connection.bytes_in
    async with bench.metered(seen):
        readers = [await one_run(connection, Script(tokens)) for _ in range(runs)]
        await asyncio.sleep(0.02)
    connection.close()
    check(seen, readers, tokens)
    per_run = alone.values["server_cpu_s"] / 10
    seen.values["server_cpu_s"] = max(0.0, seen.values["server_cpu_s"] - per_run * runs)
    seen.values |= per_token(seen, tokens * runs, connection.bytes_in - before)
    return seen


async def idle(bench: Bench, *, seconds: float, rest_seconds: float) -> Seen:
    """How often a server wakes that has answered once and has no connection any more.

    It closes its connection to the model within ``rest_seconds``.
    """
    seen = Seen()
    connection = await bench.open()
    readers = [await one_run(connection, Script(1))]
    connection.close()
    check(seen, readers, 1)
    await bench.settle()
    await asyncio.sleep(rest_seconds)
    before = wakes(bench.pid)
    async with bench.metered(seen):
        await asyncio.sleep(seconds)
    seen.values["wakes_per_s"] = (wakes(bench.pid) - before) / seconds
    seen.values["cpu_us_per_s"] = seen.values["server_cpu_s"] * 1e6 / seconds
    return seen


MEASURES: dict[str, Callable[..., Any]] = {each.__name__: each for each in (closed_loop, memory, long_run, idle)}
