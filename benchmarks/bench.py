"""What every measurement has: the server, the lab's half of the world, and ways to see what happened."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic_ns, process_time_ns

from msgspec import Struct

from benchmarks.processes import cpu_ns
from benchmarks.readers import RunReader
from benchmarks.script import Script
from benchmarks.upstream import Upstream
from chatserver.bench.connections import CONNECTIONS, AnyConnection, Target, Transport
from chatserver.bench.schedule import NS, Schedule

LATENESS_P99_LIMIT_US = 5_000
"""A load that is so late says nothing about a server: some other program had its core."""

LATE = "the load was late"

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


async def one_run(connection: AnyConnection, script: Script, **request: str) -> RunReader:
    reader = RunReader(monotonic_ns())
    connection.ask({"message": script.message} | request, reader)
    await asyncio.wait_for(reader.over.wait(), 30)
    return reader


def per_token(seen: Seen, tokens: int, bytes_in: int) -> dict[str, float]:
    if not tokens:
        return {"tokens": 0}
    return {
        "tokens": tokens,
        "cpu_us_per_token": seen.values["server_cpu_s"] * 1e6 / tokens,
        "tokens_per_s": tokens / seen.values["wall_s"],
        "bytes_per_token": bytes_in / tokens,
    }


def check(seen: Seen, readers: list[RunReader], tokens: int | list[int]) -> None:
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


def lateness(seen: Seen, schedule: Schedule) -> None:
    late = sorted(schedule.lateness_ns)
    if late:
        seen.values["load_late_p50_us"] = late[len(late) // 2] / 1000
        seen.values["load_late_p99_us"] = late[len(late) * 99 // 100] / 1000
        if seen.values["load_late_p99_us"] > LATENESS_P99_LIMIT_US:
            seen.latency_refusal = LATE


async def all_over(readers: list[RunReader], patience_seconds: float) -> None:
    async with asyncio.timeout(patience_seconds):
        for reader in readers:
            await reader.over.wait()
