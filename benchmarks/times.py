"""How long things take, counted from the moment they were planned for."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from time import monotonic_ns
from typing import Any

from benchmarks.bench import END_SECONDS, Bench, Seen, all_over, check, lateness, one_run, per_token
from benchmarks.readers import RunReader
from benchmarks.script import Script
from chatserver.bench.connections import AnyConnection
from chatserver.bench.schedule import NS, poisson

EXTRA_TOKENS = 2
"""What a run has beyond the measured seconds: no stream may end within them."""


class _Arrivals:
    """Runs that arrive at random over a ramp, each with the tokens that last until the measured seconds are over."""

    def __init__(self, bench: Bench, rate: float, begin_ns: int) -> None:
        self.readers: list[RunReader] = []
        self.wanted: list[int] = []
        """How many tokens each run has."""
        self._bench, self._rate, self._begin_ns = bench, rate, begin_ns
        self._opening: list[asyncio.Task[None]] = []
        self._opened: list[AnyConnection] = []

    def plan(self, streams: int, ramp_seconds: float, open_seconds: float) -> None:
        """Plan all runs. The last tokens are due soon after ``open_seconds``, counted from the begin of the ramp."""
        arrivals = list(islice(poisson(1.0, self._bench.seed), streams))
        scale = ramp_seconds / arrivals[-1]
        for arrival in arrivals:
            due_ns = self._begin_ns + int(arrival * scale * NS)
            reader = RunReader(due_ns)
            tokens = EXTRA_TOKENS + int((open_seconds - arrival * scale) * self._rate)
            self.readers.append(reader)
            self.wanted.append(tokens)
            self._bench.schedule.at(due_ns, partial(self._arrive, reader, tokens))

    def _arrive(self, reader: RunReader, tokens: int, _: int) -> None:
        self._opening.append(asyncio.ensure_future(self._open(reader, tokens)))

    async def _open(self, reader: RunReader, tokens: int) -> None:
        try:
            connection = await self._bench.open()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is a failed run
            reader.ended(f"no connection: {error}")
            return
        self._opened.append(connection)
        reader.asked_ns = monotonic_ns()
        connection.ask({"message": Script(tokens, f"{self._rate:g}").message}, reader)

    def taken(self) -> tuple[int, int]:
        """How many tokens and bytes have come so far."""
        return sum(len(each.indices) for each in self.readers), sum(each.bytes_in for each in self._opened)

    async def unfinished(self, patience_seconds: float) -> int:
        """Wait for the ends of all runs; how many have not ended by then. All connections are closed."""
        with suppress(TimeoutError):
            await all_over(self.readers, patience_seconds)
        late = sum(1 for each in self.readers if not each.over.is_set())
        for connection in self._opened:
            connection.drop()
        return late


async def paced(
    bench: Bench, *, streams: int, rate: float, seconds: float, ramp_seconds: float, settle_seconds: float = 0.0
) -> Seen:
    """Open loop: runs arrive at random over the ramp, their tokens are due on a schedule, and the clock runs from then.

    What is due in the ramp, and in the seconds in which its beginnings settle, is warm-up; what is due after the
    measured seconds is in the way of runs that all end at once. Neither counts.
    """
    seen = Seen()
    await bench.settle()
    bench.schedule.lateness_ns.clear()
    begin_ns = monotonic_ns() + NS // 20
    warm_seconds = ramp_seconds + settle_seconds
    runs = _Arrivals(bench, rate, begin_ns)
    runs.plan(streams, ramp_seconds, warm_seconds + seconds)
    await asyncio.sleep(0.05 + warm_seconds)
    tokens_before, bytes_before = runs.taken()
    async with bench.metered(seen):
        await asyncio.sleep(seconds)
    tokens, bytes_in = runs.taken()
    late = await runs.unfinished(END_SECONDS + ramp_seconds)  # They all end at once, and that takes a server time too.
    seen.values |= per_token(seen, tokens - tokens_before, bytes_in - bytes_before)
    seen.values["delivered_share"] = min(1.0, (tokens - tokens_before + streams**0.5) / (streams * rate * seconds))
    seen.values["unfinished_runs"] = late
    if late:  # The events that never came are the latest of all: without them the times would flatter.
        seen.latency_refusal = f"{late} of {streams} runs did not end in time: the server was full"
    else:
        check(seen, runs.readers, runs.wanted)
    from_ns = begin_ns + int(warm_seconds * NS)
    _latencies(seen, runs.readers, from_ns, from_ns + int(seconds * NS), rate)
    lateness(seen, bench.schedule)
    return seen


def _latencies(seen: Seen, readers: list[RunReader], from_ns: int, until_ns: int, rate: float) -> None:
    delivery, added, jitter, at_ms, first, overhead = [], [], [], [], [], []
    for reader in readers:
        before = None
        for at_ns, latency, late in reader.arrivals:
            if from_ns <= at_ns - latency * 1000 < until_ns:
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
    await asyncio.gather(*[one_run(connection, Script(1)) for connection in pool])
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
                lambda _, reader=reader, connections=connections, running=running: running.append(  # type: ignore[misc]
                    asyncio.ensure_future(_ask(bench, reader, connections))
                ),
            )
        await all_over(readers, requests / rate + END_SECONDS)
        check(seen, readers, 1)
        seen.samples[f"first_event_{kind}_us"] = [(r.first_event_ns - r.planned_ns) // 1000 for r in readers]
        seen.samples[f"first_token_{kind}_us"] = [(r.first_token_ns - r.planned_ns) // 1000 for r in readers]
        if kind == "cold":
            seen.samples["connect_us"] = [(r.asked_ns - r.planned_ns) // 1000 for r in readers]
    for connection in pool:
        connection.close()
    lateness(seen, bench.schedule)
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


async def long_session(bench: Bench, *, messages: int, requests: int) -> Seen:
    """The first token in a session that has many messages. One request after the other: a session has one run."""
    seen = Seen()
    connection = await bench.open()
    session = f"lab-{bench.transport}-{monotonic_ns()}"
    for _ in range(messages // 2):
        await one_run(connection, Script(1), session_id=session)
    await bench.settle()
    readers = []
    async with bench.metered(seen):
        for _ in range(requests):
            readers.append(await one_run(connection, Script(1), session_id=session))
            await asyncio.sleep(0.005)
    connection.close()
    check(seen, readers, 1)
    seen.samples["first_token_us"] = [(r.first_token_ns - r.planned_ns) // 1000 for r in readers]
    seen.values["cpu_us_per_request"] = seen.values["server_cpu_s"] * 1e6 / requests
    return seen


MEASURES: dict[str, Callable[..., Any]] = {each.__name__: each for each in (paced, first_event, long_session)}
