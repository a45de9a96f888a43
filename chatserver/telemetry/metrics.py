"""Metrics by prometheus-client: the ``Observer`` that counts, and the scrape that tells.

Where the parent of several workers has set PROMETHEUS_MULTIPROC_DIR, the counts are in files there, and a scrape of any
worker answers for all.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from time import monotonic

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from chatserver import __version__
from chatserver.events import Done, Terminal, Usage
from chatserver.telemetry import DropReason, Observer, Pace, RunObserver, ToolObserver, TurnObserver
from chatserver.telemetry.dead_workers import files_at_rest, merge_dead
from chatserver.telemetry.instruments import LIVING_STATES, NAMESPACE, Instruments
from chatserver.telemetry.workers import WORKERS_VARIABLE, worker_pids

PROMETHEUS_NAMES = ("_buckets", "_sum")
"""What is used of prometheus-client's ``Histogram`` that it does not promise. prometheus-client is pinned to the minor
version in which these were read; a test names what another version lacks."""

OTHER = "other"
"""The label in place of a name that a client has chosen."""


class Metrics(Observer):
    """Counts what it hears. ``models`` are those that the operator has named; the others share one label."""

    def __init__(self, models: tuple[str, ...]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._models = frozenset(models)
        self._registry = CollectorRegistry()
        folder = os.environ.get(WORKERS_VARIABLE)
        if folder is not None:
            merge_dead(folder)
        self._files_at_rest: Callable[[], AbstractContextManager[None]] = (
            nullcontext if folder is None else partial(files_at_rest, folder)
        )
        self.instruments = Instruments(self._registry if folder is None else None)
        if folder is not None:
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        self._registry.register(_About(folder))

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """All metrics of this machine's workers in the format that `Accept` prefers, and its media type."""
        encode, media_type = choose_encoder(accept)
        with self._files_at_rest():
            return encode(self._registry), media_type

    async def close(self) -> None:
        """Nothing to do: a scrape that did not come is not missed."""

    def label(self, model: str) -> str:
        """A model as a label."""
        return model if model in self._models else OTHER

    def run(self, run_id: str, model: str, carrier: Mapping[str, str]) -> "RunMetrics":
        return RunMetrics(self)

    def left_behind(self, endings: Sequence[Terminal]) -> None:
        for each in endings:
            self.instruments.runs_ended.labels(_reason(each)).inc()

    def connection_opened(self, transport: str, form: str) -> None:
        self.instruments.connections.labels(transport, form).inc()

    def connection_closed(self, transport: str, form: str) -> None:
        self.instruments.connections.labels(transport, form).dec()

    def peer_dropped(self, reason: DropReason) -> None:
        self.instruments.drops.labels(reason).inc()

    def websocket_closed(self, code: int | None) -> None:
        self.instruments.closes.labels(OTHER if code is None else str(code)).inc()

    def responded(self, status: int) -> None:
        self.instruments.responses.labels(str(status)).inc()

    def refused(self, code: str) -> None:
        self.instruments.refusals.labels(code).inc()

    def committed(self, seconds: float) -> None:
        self.instruments.commit.observe(seconds)

    def journal_confirmed(self, seconds: float) -> None:
        self.instruments.journal.observe(seconds)

    def follower_lagged(self, events: int) -> None:
        self.instruments.lag.observe(events)


def _reason(terminal: Terminal) -> str:
    return terminal.finish_reason if isinstance(terminal, Done) else terminal.code


class RunMetrics(RunObserver):
    """Counts one run, once it is on disk. A state that is not among the living ones is not counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._asked_at = monotonic()
        self._state = LIVING_STATES[0]
        self._is_counted = False
        self._has_spoken = False

    def began(self) -> None:
        self._is_counted = True
        self._count(1)
        self._tell_first_text()

    def moved(self, state: str) -> None:
        self._count(-1)
        self._state = state
        self._count(1)

    def _count(self, runs: int) -> None:
        if self._is_counted and self._state in LIVING_STATES:
            self._metrics.instruments.runs.labels(self._state).inc(runs)

    def spoke(self) -> None:
        self._has_spoken = True
        self._tell_first_text()

    def _tell_first_text(self) -> None:
        """Nobody is shown a text before the run is on disk."""
        if self._is_counted and self._has_spoken:
            self._metrics.instruments.first_token.observe(monotonic() - self._asked_at)

    def ended(self, terminal: Terminal, usage: Usage) -> None:
        self._metrics.instruments.runs_ended.labels(_reason(terminal)).inc()
        self._metrics.instruments.run_seconds.observe(monotonic() - self._asked_at)

    def turn(self, model: str, server: str | None) -> "TurnMetrics":
        return TurnMetrics(self._metrics.instruments, self._metrics.label(model))

    def tool(self, name: str, call_id: str) -> "ToolMetrics":
        return ToolMetrics(self._metrics.instruments, name)


class TurnMetrics(TurnObserver):
    """Counts one turn."""

    def __init__(self, instruments: Instruments, label: str) -> None:
        self._instruments = instruments
        self._label = label
        self._asked_at = monotonic()

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._instruments.turn_seconds.labels(self._label).observe(monotonic() - self._asked_at)

    def asked(self) -> None:
        self._instruments.requests.labels(self._label).inc()

    def failed(self, code: str, *, is_retried: bool) -> None:
        self._instruments.failures.labels(self._label, code).inc()
        if is_retried:
            self._instruments.retries.labels(self._label, code).inc()

    def streamed(self, pace: Pace) -> None:
        pace.fold()
        if pace.first_at is not None:
            self._instruments.turn_first_token.labels(self._label).observe(pace.first_at - self._asked_at)
            observe_all(self._instruments.gaps.labels(self._label), pace.gaps, pace.moments[-1] - pace.first_at)

    def finished(self, reason: str, usage: Usage | None) -> None:
        if usage is not None:
            self._instruments.tokens.labels(self._label, "input").inc(usage.input_tokens)
            self._instruments.tokens.labels(self._label, "output").inc(usage.output_tokens)


class ToolMetrics(ToolObserver):
    """Counts one call of a tool."""

    def __init__(self, instruments: Instruments, name: str) -> None:
        self._instruments = instruments
        self._name = name
        self._asked_at = monotonic()
        self._outcome = "cancelled"

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._instruments.tool_calls.labels(self._name, self._outcome).inc()
        self._instruments.tool_seconds.labels(self._name).observe(monotonic() - self._asked_at)

    def returned(self, *, is_error: bool) -> None:
        self._outcome = "error" if is_error else "ok"


def observe_all(histogram: Histogram, counts: list[int], total: float) -> None:
    """Add observations that are counted already, in the histogram's own buckets. The library observes one at a time."""
    histogram._sum.inc(total)
    for bucket, count in zip(histogram._buckets, counts, strict=True):
        if count:
            bucket.inc(count)


class _About(Collector):
    """What is asked when a scrape comes: the version, and the kernel about each process."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(f"{NAMESPACE}_build", "The version that runs.", value={"version": __version__})
        if self._folder is None:
            yield from ProcessCollector(registry=None).collect()
        else:
            yield from _of_processes(worker_pids(self._folder))


def _of_processes(pids: Iterable[str]) -> Iterable[Metric]:
    """What the kernel knows of several processes, told apart by the label `pid`."""
    families: dict[str, Metric] = {}
    for pid in pids:
        for found in ProcessCollector(pid=partial(str, pid), registry=None).collect():
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {"pid": pid}, sample.value)
    return families.values()
