"""Telemetry: what the server does is told to an ``Observer`` as it happens. The observers here hear nothing.

Nothing is told per token. What happens with each read of a model server's socket is counted in a ``Pace`` and told once
a turn.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import sub
from types import MappingProxyType
from typing import Literal, Self, TypeAlias

from chatserver.events import Terminal, Usage

DropReason: TypeAlias = Literal["send_timeout", "no_pong", "lost", "expired"]
"""Why a peer was cut off: it took no bytes; its program or its kernel did not answer; its credential has expired."""

GAP_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Upper bounds of the gaps between two tokens: those of OpenTelemetry's GenAI conventions, and two for fast models."""

TRACE_HEADERS = (b"traceparent", b"tracestate")
NOTHING: Mapping[str, str] = MappingProxyType({})


def carrier_of(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """The trace (W3C Trace Context) that a request belongs to; of most requests nothing."""
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in TRACE_HEADERS} or NOTHING


class Pace:
    """When the parts of a turn came. Times are those of ``time.monotonic``.

    For each read of the model server's socket that has something of the answer, its time is appended to ``moments``;
    past ``MOMENTS`` of them, ``fold`` is called. To sort gaps into buckets one at a time would take twice as long.
    """

    __slots__ = ("first_at", "gaps", "moments")

    MOMENTS = 1024

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.moments: list[float] = []
        self.gaps = [0] * (len(GAP_SECONDS) + 1)
        """How many gaps were at most as long as each of ``GAP_SECONDS``, and longer than the bound before."""

    def fold(self) -> None:
        """Count the gaps between the moments, of which only the last one stays."""
        moments = self.moments
        if self.first_at is None and moments:
            self.first_at = moments[0]
        gaps = sorted(map(sub, moments[1:], moments))
        ends = [bisect_right(gaps, bound) for bound in GAP_SECONDS]
        for index, (begin, end) in enumerate(pairwise((0, *ends, len(gaps)))):
            self.gaps[index] += end - begin
        del moments[:-1]


class ToolObserver:
    """Hears of one call of a tool, from the beginning of its block to the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Without ``returned`` before it, the call was cancelled."""

    def returned(self, *, is_error: bool) -> None:
        """The call has a result."""


class TurnObserver:
    """Hears of one turn of a model, from the beginning of its block to the end."""

    headers: Mapping[str, str] = NOTHING
    """What goes with each request of the turn."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """The turn has failed by this error, or was cancelled by it."""

    def asked(self) -> None:
        """A request goes to the model server."""

    def failed(self, code: str, *, is_retried: bool) -> None:
        """A request has failed; ``code`` is as in the run's `error`."""

    def streamed(self, pace: Pace) -> None:
        """How fast what has come to one request came."""

    def finished(self, reason: str, usage: Usage | None) -> None:
        """The turn has ended as it should."""


class RunObserver:
    """Hears of one run."""

    def began(self) -> None:
        """The run is on disk. Until then, nothing counts: there may be no such run."""

    def moved(self, state: str) -> None:
        """The run has another state."""

    def spoke(self) -> None:
        """The first text of the answer is told."""

    def ended(self, terminal: Terminal, usage: Usage) -> None:
        """The terminal event is told."""

    def lost(self, terminal: Terminal, usage: Usage) -> None:
        """As ``ended``, but another process has the run, or has ended it: that process counts its end."""

    def parked(self) -> None:
        """The run waits on in the database, and is nobody's: who goes on with it begins anew to observe it."""

    def turn(self, model: str, server: str | None) -> TurnObserver:
        """The model is asked at this server."""
        return UNOBSERVED_TURN

    def tool(self, name: str, call_id: str) -> ToolObserver:
        """A tool is called. ``name`` is that of a tool which there is."""
        return UNOBSERVED_TOOL


class Observer:
    """Hears of everything. A name that a client chooses becomes no label of a metric."""

    def run(self, run_id: str, model: str, carrier: Mapping[str, str]) -> RunObserver:
        """A run is about to begin; ``carrier`` as from ``carrier_of``."""
        return UNOBSERVED_RUN

    def left_behind(self, endings: Sequence[Terminal]) -> None:
        """Runs that a dead process had left were ended here, each like this."""

    def connection_opened(self, transport: str, form: str) -> None:
        """A stream, a WebSocket or the body of a response begins."""

    def connection_closed(self, transport: str, form: str) -> None:
        """A connection that was opened is over."""

    def peer_dropped(self, reason: DropReason) -> None:
        """A peer was cut off."""

    def websocket_closed(self, code: int | None) -> None:
        """A WebSocket has ended with this close code; None: with one that the client has made up."""

    def responded(self, status: int) -> None:
        """The head of an HTTP response is sent."""

    def refused(self, code: str) -> None:
        """A request, a handshake or a command is refused; ``code`` as in the problem document."""

    def committed(self, seconds: float) -> None:
        """A transaction was handed to the database so long ago, and is durable now."""

    def journal_confirmed(self, seconds: float) -> None:
        """The shared journal has confirmed a batch that was sent so long ago."""

    def follower_lagged(self, events: int) -> None:
        """So many events of another node's run, which has readers here, have not come here yet."""


UNOBSERVED_TOOL = ToolObserver()
UNOBSERVED_TURN = TurnObserver()
UNOBSERVED_RUN = RunObserver()
UNOBSERVED = Observer()
