"""The scenarios in which something lies between server and client: a proxy, a Redis, a bad network."""

from benchmarks.scenario import CPU, PACED, Scenario
from chatserver.bench.chapters import Chapter, latency
from chatserver.bench.statistics import Metric

DISTANT = (
    Scenario(
        Chapter(
            "nginx",
            "Behind nginx",
            "20 streams of 20 tokens a second through nginx as README sets it up, to be read beside the direct ones.",
            (*PACED, *latency("first_event_us", "first event", 50)),
            curve="delivery_us",
        ),
        "paced",
        {0: {"streams": 20, "rate": 20, "seconds": 1.0, "ramp_seconds": 0.3}},
        contenders=("chatserver",),
        through="nginx",
        quick={"streams": 4, "rate": 20, "seconds": 0.2, "ramp_seconds": 0.1},
    ),
    Scenario(
        Chapter(
            "nodes",
            "Several nodes: a token through Redis",
            "20 tokens a second each, of 1,000 streams 5. This server alone, and as a node that shows a token when "
            "Redis has it; beside it a server that writes each token into a Redis list and a channel of its run.",
            (
                CPU,
                Metric("redis_us_per_token", "Redis' CPU a token", "µs"),
                *latency("delivery_us", "delivery", 50, 99),
                *latency("added_us", "since it left", 50, 99),
            ),
            steps="streams",
        ),
        "paced",
        {
            100: {"streams": 100, "rate": 20, "seconds": 2.0, "ramp_seconds": 0.5},
            1000: {"streams": 1000, "rate": 5, "seconds": 2.0, "ramp_seconds": 6.0, "settle_seconds": 2.0},
        },
        contenders=("chatserver", "node", "list"),
        transports=("SSE",),
        through="redis",
        stops_when_full=True,
        quick={"streams": 4, "rate": 20, "seconds": 0.2, "ramp_seconds": 0.1},
    ),
    Scenario(
        Chapter(
            "followed",
            "Several nodes: runs that another node writes",
            "50 streams of 20 tokens a second, asked for at one node and read at another one, whose CPU counts.",
            (*latency("delivery_us", "delivery", 50, 99), *latency("added_us", "since it left", 50, 99), CPU),
        ),
        "followed",
        {0: {"streams": 50, "rate": 20, "seconds": 2.0}},
        contenders=("node",),
        through="redis",
        quick={"streams": 2, "rate": 20, "seconds": 0.2},
    ),
    Scenario(
        Chapter(
            "far",
            "Through a bad network",
            "20 ms each way and up to 5 ms more, and once a second nothing passes for 200 ms.",
            (*PACED, *latency("jitter_us", "jitter of gaps", 50, 99)),
            curve="delivery_us",
            series="delivery_us",
        ),
        "far_away",
        {
            0: {"streams": 20, "rate": 20, "seconds": 2.0, "ramp_seconds": 0.3}
            | {"delay_ms": 20, "jitter_ms": 5, "stall_ms": 200}
        },
        contenders=("chatserver",),
        quick={"streams": 4, "rate": 20, "seconds": 0.2, "ramp_seconds": 0.1}
        | {"delay_ms": 5, "jitter_ms": 1, "stall_ms": 20},
    ),
)
