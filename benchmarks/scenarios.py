"""What is measured, of whom, and what is compared in it. The numbers of a full run take 20 minutes on 2 cores."""

from benchmarks.distant import DISTANT
from benchmarks.scenario import BYTES, CPU, PACED, THROUGHPUT, Scenario
from chatserver.bench.chapters import Chapter, latency
from chatserver.bench.statistics import Metric


def _together(name: str, pace: str, title: str, about: str) -> Scenario:
    params = {"readers": 50, "tokens": 800, "pace": pace}
    chapter = Chapter(name, title, about, (CPU, BYTES))
    contenders = ("chatserver", "floor")
    return Scenario(chapter, "together", {0: params}, contenders, quick=params | {"readers": 5, "tokens": 32})


SCENARIOS = (
    _together(
        "turn",
        "closed",
        "Transport only, one event in each turn of the loop",
        "50 readers of one run, whose next token leaves the model when the last of them has the one before: what it "
        "costs to take an event from the log, to frame and to send it. Model and run are shared by 50.",
    ),
    _together(
        "ready",
        "16closed",
        "Transport only, 16 events ready at once",
        "The same, where 16 tokens leave the model in one write: who joins what is ready?",
    ),
    Scenario(
        Chapter(
            "closed",
            "Whole proxy, every token its own read",
            "10 streams of 400 tokens; the model sends the next one when the client has the last. The dearest way to "
            "stream. What a run costs beside its tokens is in it.",
            (CPU, THROUGHPUT, BYTES),
        ),
        "closed_loop",
        {0: {"streams": 10, "tokens": 400}},
        quick={"streams": 10, "tokens": 10},
    ),
    Scenario(
        Chapter(
            "paced",
            "Whole proxy, paced",
            "100 streams of 20 tokens a second, arriving at random. Delivery counts from when a token was due.",
            (
                *PACED,
                *latency("added_us", "since it left", 50),
                *latency("jitter_us", "jitter of gaps", 50, 99),
                *latency("overhead_us", "whole answer", 50),
                CPU,
                BYTES,
            ),
            curve="delivery_us",
        ),
        "paced",
        {0: {"streams": 100, "rate": 20, "seconds": 1.0, "ramp_seconds": 0.5}},
        quick={"streams": 10, "rate": 20, "seconds": 0.3, "ramp_seconds": 0.2},
    ),
    Scenario(
        Chapter(
            "single",
            "Whole proxy, one stream",
            "20 tokens a second and nothing else: each token wakes a server that sleeps.",
            (CPU, *latency("added_us", "since it left", 50)),
        ),
        "paced",
        {0: {"streams": 1, "rate": 20, "seconds": 3.0, "ramp_seconds": 0.1}},
        contenders=("chatserver", "usual", "floor"),
        quick={"streams": 1, "rate": 20, "seconds": 0.2, "ramp_seconds": 0.1},
    ),
    Scenario(
        Chapter(
            "idle",
            "A server without connections",
            "It has answered once, 5 s before. A wake is the event loop's thread that goes back to sleep, as the "
            "kernel counts it.",
            (
                Metric("wakes_per_s", "wakes a second", "/s"),
                Metric("cpu_us_per_s", "CPU a second", "µs"),
            ),
        ),
        "idle",
        {0: {"seconds": 10.0, "rest_seconds": 5.0}},
        contenders=("chatserver", "usual"),
        transports=("SSE",),
        is_fresh=True,
        quick={"seconds": 0.5, "rest_seconds": 0.0},
    ),
    Scenario(
        Chapter(
            "first",
            "First event, idle server",
            "Runs at random moments, 32 a second. A fresh connection includes making it. The first event may come "
            "before the model answers, the first token cannot.",
            (
                *latency("first_token_warm_us", "first token, used", 50, 99),
                *latency("first_event_cold_us", "first event, fresh", 50, 99),
                *latency("first_event_warm_us", "first event, used", 50, 99),
                *latency("connect_us", "connection", 50),
            ),
            curve="first_token_warm_us",
        ),
        "first_event",
        {0: {"requests": 16, "rate": 32}},
        quick={"requests": 5, "rate": 50},
    ),
    Scenario(
        Chapter(
            "session",
            "First token in a session of 100 messages",
            "The model is sent the whole dialogue. Peers have it in memory, this server in its database.",
            (
                *latency("first_token_us", "first token", 50, 99),
                Metric("cpu_us_per_request", "server CPU a run", "ms", scale=0.001),
            ),
        ),
        "long_session",
        {0: {"messages": 100, "requests": 10}},
        contenders=("chatserver", "usual", "floor"),
        quick={"messages": 4, "requests": 2},
    ),
    Scenario(
        Chapter(
            "growth",
            "From 10 streams to 5,000",
            "20 tokens a second each; the 5,000 have 4, and 1,000 begin 2 s before they count. A step with less than "
            "95 % delivered in time is the last: the knee.",
            (
                *latency("delivery_us", "delivery", 50, 99),
                *latency("added_us", "since it left", 50, 99),
                CPU,
                Metric("delivered_share", "delivered in time", "%", scale=100, lower_is_better=False),
            ),
            steps="streams",
        ),
        "paced",
        {
            count: {
                "streams": count,
                "rate": min(20, 20_000 // count),
                "seconds": 1.0,
                # So many runs begun in less time fill a server by themselves, and tokens wait behind them.
                "ramp_seconds": 6.0 if count == 1000 else max(0.3, count / 400),
                "settle_seconds": 2.0 * (count == 1000),
            }
            for count in (10, 100, 1000, 5000)
        },
        contenders=("chatserver", "usual", "floor"),
        stops_when_full=True,
        once=(5000,),
    ),
    Scenario(
        Chapter(
            "long",
            "Runs of 100 to 100,000 tokens",
            "One run, as fast as the model can, less what a run of one token costs. Flat, or something is quadratic.",
            (CPU,),
            steps="tokens",
        ),
        "long_run",
        {count: {"tokens": count} for count in (100, 1000, 10_000, 100_000)},
        contenders=("chatserver",),
        quick={"tokens": 100},
    ),
    Scenario(
        Chapter(
            "memory",
            "Memory of an open stream",
            "A fresh server each, its memory before and after 100 runs that have begun and wait for their model.",
            (Metric("kib_per_stream", "memory a stream", "KiB"),),
        ),
        "memory",
        {0: {"streams": 100}},
        contenders=("chatserver", "usual", "floor"),
        is_fresh=True,
    ),
    Scenario(
        Chapter(
            "readers",
            "Many readers of one run",
            "CPU of the server with 500 readers less that with one, for each event: no peer but the floor can do this.",
            (
                Metric("cpu_us_per_further_event", "CPU of a further event", "µs"),
                *latency("delivery_us", "delivery", 50, 99),
            ),
        ),
        "many_readers",
        {0: {"readers": 500, "rate": 20, "seconds": 1.0}},
        contenders=("chatserver", "floor"),
        quick={"readers": 5, "rate": 20, "seconds": 0.2},
    ),
    Scenario(
        Chapter(
            "resume",
            "Dropped and back",
            "Readers that are cut off and come back 30 ms later, from there to the first event that is new; every "
            "other one comes back on the other transport. Lost and doubled events: 0 and 0, or it does not count.",
            (
                *latency("resume_us", "back on the same", 50, 99),
                *latency("resume_switched_us", "back on the other", 50, 99),
                Metric("lost_events", "lost", ""),
                Metric("doubled_events", "doubled", ""),
            ),
            series="delivery_us",
        ),
        "resume",
        {0: {"drops": 10}},
        contenders=("chatserver",),
        quick={"drops": 2},
    ),
    Scenario(
        Chapter(
            "keepalive",
            "5,000 idle streams",
            "A ping a second on each. The longest stall is what another request waited for its answer meanwhile.",
            (Metric("cpu_us_per_ping", "server CPU a ping", "µs"), Metric("stall_max_ms", "longest stall", "ms")),
        ),
        "keepalive",
        {0: {"streams": 5000, "seconds": 3.0}},
        contenders=("chatserver",),
        is_fresh=True,
        ping_seconds=1,
        rounds_limit=2,
    ),
    *DISTANT,
)

CHAPTERS = tuple(each.chapter for each in SCENARIOS)

COVER = next(each for each in CHAPTERS if each.scenario == "closed")
"""The chapter whose ratios are drawn for README."""
