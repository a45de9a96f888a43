"""Goes through the scenarios: starts servers and load, lets contenders take turns, writes down what was seen."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from benchmarks import nginx, redis
from benchmarks.bench import LATE, Seen
from benchmarks.load import Order
from benchmarks.processes import cores, cpu_ns
from benchmarks.scenario import Scenario
from benchmarks.servers import (
    CONTENDERS,
    IDLE_PING_SECONDS,
    ROOT,
    TITLES,
    WITH_REDIS,
    Contender,
    Server,
    pinned,
    running,
)
from chatserver.bench.observations import Observation

ATTEMPTS = 2
"""How often a measurement that the lab itself spoiled is made; the last one counts, refused or not."""

FULL_SHARE = 0.95
HOPELESS_SHARE = 0.5
"""A server that delivers less than this share is full, even where another program has the load's core."""


class Load:
    """The load's process, at the other end of two pipes."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.model_url = self._line().decode().strip()

    def measure(self, order: Order) -> Seen:
        assert self._process.stdin is not None  # noqa: S101 - for mypy
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=Seen)

    def _line(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the load ended")
        return line


@contextmanager
def loading(core: int) -> Iterator[Load]:
    command = [sys.executable, "-m", "benchmarks.load"]
    process = pinned(core, *command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            yield Load(process)
        finally:
            process.kill()


class Turn(Struct, frozen=True):
    """One measurement that is about to be made."""

    scenario: Scenario
    round: int
    contender: Contender
    step: int


def turns(scenarios: Sequence[Scenario], rounds: int, *, with_before: bool) -> Iterator[Turn]:
    """Round by round every scenario, in it every contender, each round in another order.

    Whoever is first meets a colder machine; and a run that ends early has as many rounds of one as of the other.
    """
    for number in range(1, rounds + 1):
        for scenario in scenarios:
            if number <= scenario.rounds_limit:
                fit = contenders(scenario, with_before=with_before)
                shift = number % len(fit)
                for contender in fit[shift:] + fit[:shift]:
                    for step in scenario.steps:
                        if number == 1 or step not in scenario.once:
                            yield Turn(scenario, number, contender, step)


def contenders(scenario: Scenario, *, with_before: bool) -> list[Contender]:
    """Who takes part in a scenario."""
    names = {*scenario.contenders, *(["before"] if with_before and "chatserver" in scenario.contenders else [])}
    return [each for each in CONTENDERS if each.name in names and each.transport in scenario.transports]


class Conductor:
    """Enter it: the load and the servers that stay live as long as it does."""

    def __init__(self, seed: int, before: Path | None = None) -> None:
        """``before``: where an older commit is checked out, with its .venv."""
        self._seed = seed
        self._before = before
        self._core, self._load_core = cores()
        self._stack = ExitStack()
        self._servers: dict[str, tuple[Server, ExitStack]] = {}
        self._full: set[tuple[str, int, Contender]] = set()
        self._places: dict[str, str] = {}
        self._redis_pid = 0

    def __enter__(self) -> "Conductor":
        self.load = self._stack.enter_context(loading(self._load_core))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def server(self, name: str) -> Server:
        """The server of that name that stays; started when it is first asked for."""
        if name not in self._servers:
            stay = self._stack.enter_context(ExitStack())
            self._servers[name] = stay.enter_context(self._running(name)), stay
        return self._servers[name][0]

    def _running(self, name: str, ping_seconds: int = IDLE_PING_SECONDS) -> AbstractContextManager[Server]:
        checkout = self._before if name == "before" else None
        shared = self._shared() if name in WITH_REDIS else None
        return running(
            name, self.load.model_url, self._core, ping_seconds=ping_seconds, checkout=checkout, shared=shared
        )

    def _shared(self) -> Mapping[str, str]:
        """Where a Redis and a database are that stay; made when first asked for, Redis on the core of the load."""
        if not self._places:
            folder = self._stack.enter_context(TemporaryDirectory(prefix="chatserver-lab-"))
            self._places["CHATSERVER_DATABASE_URL"] = f"sqlite:///{folder}/chat.db"
            url, self._redis_pid = self._stack.enter_context(redis.running(self._load_core))
            self._places["CHATSERVER_REDIS_URL"] = url
        return self._places

    def take(self, turn: Turn) -> Observation | None:
        """Make one measurement; None where an earlier step was already too much for the contender."""
        scenario = turn.scenario
        mark = (scenario.name, turn.round, turn.contender)
        if mark in self._full:
            return None
        seen = self._measured(turn)
        for _ in range(ATTEMPTS - 1):
            if seen.latency_refusal == LATE or seen.refusal:
                seen = self._measured(turn)
        limit = HOPELESS_SHARE if seen.latency_refusal == LATE else FULL_SHARE
        if scenario.stops_when_full and seen.values.get("delivered_share", 0.0) < limit:
            self._full.add(mark)
        return Observation(
            round=turn.round,
            scenario=scenario.name,
            contender=TITLES[turn.contender.name],
            transport=turn.contender.transport,
            step=turn.step,
            **msgspec.structs.asdict(seen),
        )

    def _measured(self, turn: Turn) -> Seen:
        scenario, contender = turn.scenario, turn.contender
        name, params = contender.name, scenario.steps[turn.step]
        if scenario.measure == "followed":
            params = params | {"writer_port": self.server("writer").port}
        with ExitStack() as stack:
            if scenario.is_fresh:
                server = stack.enter_context(self._running(name, scenario.ping_seconds))
            else:
                server = self.server(name)
            port = server.port
            if scenario.through == "nginx":
                port = stack.enter_context(nginx.before(server.port, self._load_core))
            order = Order(scenario.measure, contender.transport, port, server.pid, self._seed + turn.round, params)
            redis_ns = cpu_ns(self._redis_pid) if self._redis_pid else 0
            seen = self.load.measure(order)
            if name in WITH_REDIS and seen.values.get("tokens"):
                spent_ns = cpu_ns(self._redis_pid) - redis_ns
                seen.values["redis_us_per_token"] = spent_ns / 1000 / seen.values["tokens"]
        if seen.values.get("unfinished_runs") and not scenario.is_fresh:
            self._servers.pop(name)[1].close()  # What still goes on there would be in the way of whoever is next.
        return seen


def chosen(scenarios: Sequence[Scenario], only: Sequence[str], *, quick: bool) -> list[Scenario]:
    """The scenarios of a run; those that need nginx or Redis only where it is installed."""
    fit = [each for each in scenarios if not only or each.name in only]
    if quick:
        fit = [replace(each, steps={0: each.quick}) for each in fit if each.quick is not None]
    missing = {name for name, binary in (("nginx", nginx.binary()), ("redis", redis.binary())) if binary is None}
    return [each for each in fit if each.through not in missing]


def record(
    conductor: Conductor,
    plan: Sequence[Turn],
    seconds: float,
    write: Callable[[Observation], None],
    on_turn: Callable[[Turn], None],
) -> int:
    """All turns of a plan for which there is time, each written down as soon as it was taken; how many were left."""
    deadline = time.monotonic() + seconds
    for place, turn in enumerate(plan):
        if time.monotonic() > deadline:
            return len(plan) - place
        on_turn(turn)
        if observation := conductor.take(turn):
            write(observation)
    return 0
