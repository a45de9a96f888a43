"""What this server shall reach, as ratios within one recording: the median of the rounds, with its 95 % interval."""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from rich.table import Table

from benchmarks.scenario import CPU
from benchmarks.servers import TITLES
from chatserver.bench.observations import Recording
from chatserver.bench.report import numbers
from chatserver.bench.statistics import ROUNDS_FOR_A_VERDICT, Comparison, Metric, by_round, ratio, spread
from chatserver.bench.tables import number


class Goal(Struct, frozen=True):
    """``metric`` of this server in ``scenario`` is at most ``limit`` times a peer's, or ``limit`` units without one.

    ``other_step``: where in the scenario the peer's number is, if not at the same step. ``ours``: this server, or this
    server as a node.
    """

    title: str
    scenario: str
    transport: str
    metric: Metric
    limit: float
    peer: str = ""
    step: int = 0
    other_step: int | None = None
    ours: str = "chatserver"


def _latency(name: str, percent: float) -> Metric:
    return Metric(name, name, "ms", percent, 0.001)


def _goals() -> Iterator[Goal]:
    further = Metric("cpu_us_per_further_event", "", "µs")
    for transport, closed_limit, kib_limit in (("SSE", 1.2, 20), ("WebSocket", 1.25, 22)):
        yield Goal("CPU of a token, each its own read", "closed", transport, CPU, closed_limit, "floor")
        yield Goal("CPU of a token, each its own read", "closed", transport, CPU, 1 / 11, "usual")
        yield Goal("CPU of a token, paced", "paced", transport, CPU, 1.25, "floor")
        yield Goal("CPU of a token, paced", "paced", transport, CPU, 1 / 7, "usual")
        yield Goal("CPU of a token, one stream", "single", transport, CPU, 1.8, "floor")
        yield Goal("transport only, one event a turn", "turn", transport, CPU, 1.15, "floor")
        yield Goal("transport only, 16 ready at once", "ready", transport, CPU, 1.25, "floor")
        yield Goal("CPU of a further reader’s event", "readers", transport, further, 1.15, "floor")
        yield Goal("memory of a stream", "memory", transport, Metric("kib_per_stream", "", "KiB"), kib_limit)
        yield Goal("first token, idle", "first", transport, _latency("first_token_warm_us", 50), 0.8, "usual")
        yield Goal("first event, idle", "first", transport, _latency("first_event_warm_us", 50), 0.75, "before")
        yield Goal("first token, 100 messages", "session", transport, _latency("first_token_us", 50), 0.13, "usual")
        yield Goal("1,000 streams × 20/s, added p99", "growth", transport, _latency("added_us", 99), 1.3, "floor", 1000)
        yield Goal("CPU of a token, 1,000 streams × 20/s", "growth", transport, CPU, 1.4, "floor", 1000)
        yield Goal("CPU of a ping", "keepalive", transport, Metric("cpu_us_per_ping", "", "µs"), 15)
        yield Goal("longest stall while pinging", "keepalive", transport, Metric("stall_max_ms", "", "ms"), 5)
        yield Goal("CPU of a token, 100,000 to 1,000", "long", transport, CPU, 1.25, "chatserver", 100_000, 1000)
        yield Goal("CPU of a token, 1,000 streams to 100", "growth", transport, CPU, 1.25, "chatserver", 1000, 100)
    for streams in (100, 1000):
        yield Goal(
            f"CPU of a token through Redis, {streams:,} streams",
            "nodes",
            "SSE",
            CPU,
            1.5,
            "chatserver",
            streams,
            ours="node",
        )
    yield Goal("a node’s token, p99", "nodes", "SSE", _latency("added_us", 99), 4, step=100, ours="node")
    yield Goal("another node’s token, p99", "followed", "SSE", _latency("added_us", 99), 6, ours="node")
    yield Goal("wakes a second without connections", "idle", "SSE", Metric("wakes_per_s", "", "/s"), 1)


GOALS = tuple(_goals())


def measured(goal: Goal, recording: Recording, name: str = "") -> Comparison | None:
    """A server's ratio to the goal's peer, or its number where there is none; None where a recording has it not."""
    ours = _rounds(recording, goal.scenario, name or goal.ours, goal.transport, goal.step, goal.metric)
    if not goal.peer:
        values = spread(list(ours.values()))
        return Comparison(values.middle, values.low, values.high, values.rounds, goal.limit) if values else None
    step = goal.step if goal.other_step is None else goal.other_step
    return ratio(ours, _rounds(recording, goal.scenario, goal.peer, goal.transport, step, goal.metric))


def _rounds(
    recording: Recording, scenario: str, name: str, transport: str, step: int, metric: Metric
) -> dict[int, float]:
    key = (TITLES[name], transport, step)
    return by_round([each for each in recording.of(scenario) if each.key == key], metric)


class Verdict(Struct, frozen=True):
    """What came out for a goal, what came out of the floor (no Python does better), and whether the goal is met."""

    goal: Goal
    seen: Comparison
    floor: Comparison | None

    @property
    def word(self) -> str:
        """By the whole interval, not by its middle."""
        limit = self.goal.limit
        met = "met" if self.seen.high <= limit else "missed" if self.seen.low > limit else "open"
        return met + ", few rounds" * (self.seen.rounds < ROUNDS_FOR_A_VERDICT)


def verdicts(recording: Recording) -> list[Verdict]:
    """Of each goal that the recording has numbers for."""
    found = []
    for goal in GOALS:
        if seen := measured(goal, recording):
            floor = measured(goal, recording, "floor") if goal.peer in ("", "usual") else None
            found.append(Verdict(goal, seen, floor))
    return found


def table(recording: Recording) -> Table:
    found = verdicts(recording)
    made = Table("quantity", "", "goal", "measured", "floor’s", "rounds", "", title="Goals", title_justify="left")
    if missing := len(GOALS) - len(found):
        made.caption, made.caption_justify = f"{missing} of {len(GOALS)} were not measured.", "left"
    for verdict in found:
        goal, seen, floor = verdict.goal, verdict.seen, verdict.floor
        unit = "×" if goal.peer else f" {goal.metric.unit}"
        of = f" {TITLES[goal.peer]}" if goal.peer not in ("", "chatserver") else ""
        interval = f"{number(seen.middle)}{unit} [{number(seen.low)}, {number(seen.high)}]"
        bare = f"{number(floor.middle)}{unit}" if floor else "–"
        wanted = f"≤ {number(goal.limit)}{unit}{of}"
        made.add_row(goal.title, goal.transport, wanted, interval, bare, str(seen.rounds), verdict.word)
    return made


def document(recording: Recording) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "quantity": each.goal.title,
            "transport": each.goal.transport,
            "unit": "×" if each.goal.peer else each.goal.metric.unit,
            "of": each.goal.peer,
            "limit": each.goal.limit,
            "measured": numbers(each.seen),
            "verdict": each.word,
        }
        for each in verdicts(recording)
    ]
