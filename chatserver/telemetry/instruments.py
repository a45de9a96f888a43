"""Every metric: its name, what it says, its labels, the bounds of its buckets.

Names and units follow the conventions of Prometheus; the buckets of first tokens and gaps are those of OpenTelemetry's
GenAI conventions.
"""

from functools import cache
from typing import Any, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chatserver.events import ErrorCode, FinishReason
from chatserver.telemetry import GAP_SECONDS, DropReason

NAMESPACE = "chatserver"
SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of what takes milliseconds: a commit, a round trip."""

LAG_EVENTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
FIRST_TOKEN_SECONDS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
TOOL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ANSWER_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)

LIVING_STATES = ("running", "waiting", "ending", "over", "kept")

M = TypeVar("M", Counter, Gauge, Histogram)


def _remembering(metric: M) -> M:
    """The metric, which checks and formats its labels once: a run looks ten of them up, each in 1.7 µs otherwise."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


class Instruments:
    """Every metric. Without a ``registry`` they are in the files of several workers."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        known: dict[str, Any] = {"namespace": NAMESPACE, "registry": registry}

        def count(name: str, about: str, *labels: str) -> Counter:
            return _remembering(Counter(name, about, labels, **known))

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return _remembering(Gauge(name, about, labels, **known, multiprocess_mode="livesum"))

        def spread(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return _remembering(Histogram(name, about, labels, **known, buckets=buckets))

        self.connections = gauge("connections", "Open streams, WebSockets and bodies.", "transport", "format")
        self.drops = count("peers_dropped_total", "Peers that were cut off.", "reason")
        self.closes = count("websocket_closes_total", "WebSockets that have ended, by close code.", "code")
        self.responses = count("http_responses_total", "HTTP responses, by status.", "status")
        self.refusals = count("refusals_total", "Refused requests, handshakes and commands, by code.", "code")
        self.runs = gauge("runs", "Runs in memory, by state.", "state")
        self.runs_ended = count("runs_ended_total", "Ended runs, by finish_reason or error code.", "reason")
        self.run_seconds = spread("run_seconds", "From a run's request to its end.", ANSWER_SECONDS)
        self.first_token = spread(
            "run_first_token_seconds", "From a run's request to the first text for its readers.", FIRST_TOKEN_SECONDS
        )
        self.requests = count("upstream_requests_total", "Requests to the model server.", "model")
        self.failures = count(
            "upstream_failures_total", "Requests that the model server failed or refused.", "model", "code"
        )
        self.retries = count("upstream_retries_total", "Failed requests that were sent again.", "model", "code")
        self.turn_seconds = spread("turn_seconds", "From a turn's first request to its end.", ANSWER_SECONDS, "model")
        self.turn_first_token = spread(
            "turn_first_token_seconds", "From a turn's first request to its first token.", FIRST_TOKEN_SECONDS, "model"
        )
        self.gaps = spread("token_gap_seconds", "Between two reads that had tokens.", GAP_SECONDS, "model")
        self.tokens = count("model_tokens_total", "Tokens of ended turns, as the model server told.", "model", "type")
        self.tool_calls = count("tool_calls_total", "Calls of tools.", "tool", "outcome")
        self.tool_seconds = spread("tool_call_seconds", "How long calls of tools take.", TOOL_SECONDS, "tool")
        self.commit = spread("sql_commit_seconds", "From a transaction to its commit.", SHORT_SECONDS)
        self.journal = spread(
            "journal_round_trip_seconds", "From a batch of events to its confirmation by Redis.", SHORT_SECONDS
        )
        self.lag = spread("follower_lag_events", "Events of a followed run that have not come yet.", LAG_EVENTS)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """A count that is not there before its first event hides that event from `rate`."""
        for reason in (*get_args(FinishReason), *get_args(ErrorCode)):
            self.runs_ended.labels(reason)
        for reason in get_args(DropReason):
            self.drops.labels(reason)
        for state in LIVING_STATES:
            self.runs.labels(state)
