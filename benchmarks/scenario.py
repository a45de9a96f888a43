"""What a scenario is, and the figures that most scenarios have."""

from typing import Any

from msgspec import Struct

from chatserver.bench.chapters import Chapter, latency
from chatserver.bench.connections import Transport
from chatserver.bench.statistics import Metric

CPU = Metric("cpu_us_per_token", "server CPU a token", "µs")
BYTES = Metric("bytes_per_token", "bytes a token", "B")
THROUGHPUT = Metric("tokens_per_s", "tokens a second", "/s", lower_is_better=False)
PACED = latency("delivery_us", "delivery", 50, 99, 99.9)

EVERYBODY = ("chatserver", "usual", "native", "litestar", "floor")
"""Where this server takes part, its older commit does too, if a run has one."""

BOTH: tuple[Transport, ...] = ("SSE", "WebSocket")


class Scenario(Struct, frozen=True):
    """One measurement, in every round of every contender, step by step.

    ``is_fresh``: each has a server of its own. ``through``: what lies between. ``stops_when_full``: no further step
    when a server no longer keeps up. ``rounds_limit``: fewer rounds where one takes long; too few for a verdict, as the
    report says. ``once``: steps for the first round only.
    """

    chapter: Chapter
    measure: str
    steps: dict[int, dict[str, Any]]
    contenders: tuple[str, ...] = EVERYBODY
    transports: tuple[Transport, ...] = BOTH
    is_fresh: bool = False
    through: str = ""
    ping_seconds: int = 15
    stops_when_full: bool = False
    rounds_limit: int = 1000
    once: tuple[int, ...] = ()
    quick: dict[str, Any] | None = None
    """Parameters of a quick run; None: it has no part in it."""

    @property
    def name(self) -> str:
        return self.chapter.scenario
