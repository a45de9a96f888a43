"""`chatserver bench URL`: SSE and WebSocket of any deployed chatserver, side by side, through whatever lies between.

Both transports read the *same* runs, so every event is its own pair: how much later did it come over the one than over
the other? No stamp of the server is needed, and neither the model's moods nor the network's distance can tip the scale.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice, pairwise
from statistics import median
from time import monotonic_ns
from typing import Any

from msgspec import Struct

from chatserver.bench.chapters import Chapter, latency
from chatserver.bench.connections import CONNECTIONS, TRANSPORTS, AnyConnection, Document, Target, Transport
from chatserver.bench.observations import Observation
from chatserver.bench.schedule import NS, Schedule, poisson
from chatserver.bench.statistics import Metric

CHAPTERS = (
    Chapter(
        "same_events",
        "The same events over both",
        "Both transports attached to the same runs. Behind: how long after the other transport had it an event came, "
        "0 where it came first; later: the same with its sign. Jitter: how far the gaps between events differ from "
        "those of the other.",
        (
            *latency("behind_us", "behind the other", 90, 99),
            Metric("later_p50_us", "later than the other p50", "ms", scale=0.001),
            *latency("jitter_us", "jitter of gaps", 50, 99),
            Metric("bytes_per_event", "bytes an event", "B"),
            Metric("lost_events", "lost", ""),
            Metric("doubled_events", "doubled", ""),
        ),
        curve="behind_us",
    ),
    Chapter(
        "first",
        "First event",
        "Runs at random moments, counted from the planned one. Fresh: with making the connection; used: without.",
        (
            *latency("connect_us", "connection", 50, 99),
            *latency("first_event_cold_us", "first event, fresh", 50, 90, 99),
            *latency("first_event_warm_us", "first event, used", 50, 90, 99),
        ),
        curve="first_event_warm_us",
    ),
    Chapter(
        "resume",
        "Dropped and back",
        "Cut off in the middle and back on a new connection: from there to the first event that is new.",
        (
            *latency("resume_us", "back again", 50, 99),
            Metric("lost_events", "lost", ""),
            Metric("doubled_events", "doubled", ""),
        ),
    ),
)

RUN_SECONDS = 120.0
ARRIVALS_PER_SECOND = 4.0


class Failed(Exception):
    """The server does not behave as a chatserver does."""


class Plan(Struct, frozen=True):
    """What to ask of the server, and how often."""

    target: Target
    request: dict[str, Any]
    rounds: int
    runs: int
    seed: int = 7


class _Reader:
    """One run over one transport: the `seq` of each event, and when the event came. Merged events came at one time."""

    def __init__(self, planned_ns: int = 0) -> None:
        self.planned_ns, self.asked_ns = planned_ns, 0
        self.run_id, self.problem = "", ""
        self.events: list[tuple[int, int]] = []
        self.began, self.over = asyncio.Event(), asyncio.Event()

    def document(self, document: Document, at_ns: int) -> None:
        self.run_id = document.run_id or self.run_id
        if document.seq:
            self.events += [(seq, at_ns) for seq in document.seqs]
            self.began.set()
        if document.type == "error":
            self.problem = f"{document.code}: {document.message}"

    def ended(self, problem: str | None) -> None:
        self.problem = self.problem or problem or ""
        self.began.set()
        self.over.set()

    async def begun(self) -> None:
        """Wait for the first event."""
        await self._reached(self.began)

    async def finished(self) -> None:
        """Wait for the end of the run."""
        await self._reached(self.over)

    async def _reached(self, moment: asyncio.Event) -> None:
        async with asyncio.timeout(RUN_SECONDS):
            await moment.wait()
        if self.problem:
            raise Failed(self.problem)


async def measure(plan: Plan, write: Callable[[Observation], None], on_turn: Callable[[str], None]) -> None:
    """All rounds; each observation is written as soon as it was made.

    Raises:
        Failed: the server refuses, or its runs fail.
        ConnectFailed: it cannot be reached.
    """
    for number in range(plan.rounds + 1):  # Round 0 is warm-up.
        order = TRANSPORTS if number % 2 else TRANSPORTS[::-1]
        parts = (_same_events(plan, order), _first(plan, order, number), _resume(plan, order))
        for name, part in zip(("same_events", "first", "resume"), parts, strict=True):
            on_turn(f"{'warm-up' if number == 0 else f'round {number}'}: {name}")
            async for transport, values, samples in part:
                if number:
                    write(Observation(number, name, "chatserver", transport, 0, values, samples))


Seen = AsyncIterator[tuple[Transport, dict[str, float], dict[str, list[int]]]]


async def _read_by_both(
    plan: Plan, order: tuple[Transport, ...]
) -> tuple[dict[Transport, _Reader], dict[Transport, int], int]:
    """One run, read to its end over both transports: the readers, the bytes that each got, when both were attached."""
    starter = await CONNECTIONS[order[0]].open(plan.target)
    starting = _Reader()
    starter.ask(plan.request | {"on_disconnect": "continue"}, starting)
    await starting.begun()
    readers: dict[Transport, _Reader] = {}
    connections: dict[Transport, AnyConnection] = {}
    for transport in order:
        connections[transport] = await CONNECTIONS[transport].open(plan.target)
        readers[transport] = _Reader()
        connections[transport].attach(starting.run_id, 0, readers[transport])
        await readers[transport].begun()
    attached_ns = monotonic_ns()
    for reader in readers.values():
        await reader.finished()
    for connection in (starter, *connections.values()):
        connection.close()
    return readers, {transport: each.bytes_in for transport, each in connections.items()}, attached_ns


async def _same_events(plan: Plan, order: tuple[Transport, ...]) -> Seen:
    samples: dict[Transport, dict[str, list[int]]] = {each: {"behind_us": [], "jitter_us": []} for each in order}
    later: dict[Transport, list[int]] = {each: [] for each in order}
    values = {each: {"lost_events": 0.0, "doubled_events": 0.0} for each in order}
    received, events = dict.fromkeys(order, 0), 0
    for number in range(plan.runs):
        turned = order if number % 2 else order[::-1]  # Whoever attached first is served first.
        readers, bytes_in, attached_ns = await _read_by_both(plan, turned)
        last = max(seq for reader in readers.values() for seq, _ in reader.events)
        events += last
        came = {transport: dict(reversed(reader.events)) for transport, reader in readers.items()}
        for transport, other in (order, order[::-1]):
            mine, theirs = came[transport], came[other]
            live = [seq for seq in mine if seq in theirs and min(mine[seq], theirs[seq]) > attached_ns]
            behind = [(mine[seq] - theirs[seq]) // 1000 for seq in live]
            later[transport] += behind
            samples[transport]["behind_us"] += [max(0, each) for each in behind]
            samples[transport]["jitter_us"] += [abs(b - a) for a, b in pairwise(behind)]
            values[transport]["lost_events"] += last - len(mine)
            values[transport]["doubled_events"] += len(readers[transport].events) - len(mine)
            received[transport] += bytes_in[transport]
    for transport in order:
        values[transport]["later_p50_us"] = float(median(later[transport] or [0]))
        yield (
            transport,
            values[transport] | {"bytes_per_event": received[transport] / max(1, events)},
            samples[transport],
        )


async def _first(plan: Plan, order: tuple[Transport, ...], seed: int) -> Seen:
    schedule = Schedule()
    for transport in order:
        samples: dict[str, list[int]] = {}
        used = await CONNECTIONS[transport].open(plan.target)
        await _cut_short(plan, used, _Reader())
        for kind in ("cold", "warm"):
            readers: list[_Reader] = []
            connects: list[int] = []
            for pause in islice(_pauses(plan.seed + seed), plan.runs):
                # One at a time, since a user may be allowed few runs; a planned moment nevertheless.
                due = asyncio.get_running_loop().create_future()
                schedule.at(monotonic_ns() + int(pause * NS), due.set_result)
                reader = _Reader(await due)
                connection = await CONNECTIONS[transport].open(plan.target) if kind == "cold" else used
                connects.append((monotonic_ns() - reader.planned_ns) // 1000)
                await _cut_short(plan, connection, reader)
                readers.append(reader)
                if kind == "cold":
                    connection.close()
            samples[f"first_event_{kind}_us"] = [(each.events[0][1] - each.planned_ns) // 1000 for each in readers]
            if kind == "cold":
                samples["connect_us"] = connects
        used.close()
        yield transport, {}, samples


def _pauses(seed: int) -> Iterator[float]:
    before = 0.0
    for arrival in poisson(ARRIVALS_PER_SECOND, seed):
        yield arrival - before
        before = arrival


async def _cut_short(plan: Plan, connection: AnyConnection, reader: _Reader) -> None:
    """Start a run, and cancel it at its first event: only the beginning is measured."""
    connection.ask(plan.request, reader)
    await reader.begun()
    canceller = await CONNECTIONS["SSE"].open(plan.target)
    canceller.transport.write(
        plan.target.request("POST", f"/chat/runs/{reader.run_id}/cancel", "Content-Length: 0", "Connection: close")
    )
    await reader.finished()
    canceller.close()


async def _resume(plan: Plan, order: tuple[Transport, ...]) -> Seen:
    for transport in order:
        waits: list[int] = []
        lost = doubled = 0
        for _ in range(max(1, plan.runs // 2)):
            reader = _Reader()
            connection = await CONNECTIONS[transport].open(plan.target)
            connection.ask(plan.request, reader)
            await reader.begun()
            await asyncio.sleep(0.15)
            connection.drop()
            await asyncio.sleep(0.1)
            count, back = len(reader.events), monotonic_ns()
            connection = await CONNECTIONS[transport].open(plan.target)
            connection.attach(reader.run_id, reader.events[-1][0], reader)
            await reader.finished()
            connection.close()
            if len(reader.events) > count:
                waits.append((reader.events[count][1] - back) // 1000)
            distinct = {seq for seq, _ in reader.events}
            lost += max(distinct) - len(distinct)
            doubled += len(reader.events) - len(distinct)
        yield transport, {"lost_events": float(lost), "doubled_events": float(doubled)}, {"resume_us": waits}
