"""A node that dies, freezes or is cut off in mid answer: another one ends its runs, with all that was published."""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.abc import TaskGroup

from tests.clients import (
    SSE,
    TRANSPORTS,
    BrokenError,
    ClosedError,
    Reading,
    RefusedError,
    documents_of,
    get_run,
    is_terminal,
    request,
    text_of,
)
from tests.cluster import Cluster, Member, Node, cluster
from tests.conftest import IS_FULL, Scale
from tests.fake_upstream import Pause, Reply, Step, role, say, token
from tests.merging import numbers_of, seq_of
from tests.program import until
from tests.proving import answer_of, seeded, tell
from tests.redis_server import RedisServer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.proof,
    pytest.mark.timeout(1800),
]

Goes: TypeAlias = Callable[[Any], None]
"""What makes a node go."""

GONE_SECONDS = 10.0
"""How soon the runs of a node that is gone are over on all others."""

BUSY_SECONDS = 20.0
"""How much longer that may take on a machine that does much else; `just proofs` has it for itself."""

RUNS = 3
"""Of the node that goes."""

SHORT = "short and sweet"


def endless(reply: Reply) -> Iterable[Step]:
    """Numbers for ever, but for whoever asks for something short."""
    yield role()
    if reply.request.json["messages"][-1]["content"] == SHORT:
        yield from say(SHORT, 3)
        return
    for number in itertools.count():
        yield from (token(f"{number} "), Pause(0.01))


@dataclass
class Ear:
    """One reader, and what it has heard until its stream broke or its run was over."""

    documents: list[bytes] = field(default_factory=list)
    ended_at: float = 0.0

    async def hear(self, reading: Reading) -> None:
        with suppress(BrokenError, ClosedError, ConnectionError):
            async with reading:
                async for document in reading:
                    self.documents.append(document)
                    if is_terminal(document):
                        break
        self.ended_at = monotonic()

    @property
    def is_over(self) -> bool:
        return bool(self.documents) and is_terminal(self.documents[-1])

    def check(self, stored: str) -> None:
        """Nothing is missing, nothing came twice, and what was heard is in the store."""
        told = [each for each in self.documents if json.loads(each)["type"] in ("start", "token")]
        told = told[: next((at for at, each in enumerate(told) if seq_of(each) > SNAPSHOT_SEQ), None)]
        seqs = [seq for each in told for seq in numbers_of(each)]
        assert seqs == list(range(1, len(seqs) + 1)), f"seqs are {seqs}"
        assert stored.startswith(text_of(told)), f"…{text_of(told)[-30:]} was shown, …{stored[-30:]} is stored"
        if self.is_over:
            assert answer_of(self.documents)["content"] == stored, "the end is that of another answer"


SNAPSHOT_SEQ = 1_000_000
"""Below the numbers of what is left of a run whose owner has gone."""


@dataclass
class Lost:
    """A run whose owner goes, with a reader there and one on each other node."""

    run_id: str
    session_id: str
    there: Ear
    elsewhere: list[Ear]

    @classmethod
    async def begin(cls, owner: Member, others: Sequence[Member], tasks: TaskGroup, rng: Random) -> "Lost":
        reading = await rng.choice(TRANSPORTS).start(owner, {"message": "Count"})
        (first,) = await reading.take(1)
        run = cls(reading.run_id, json.loads(first)["session_id"], Ear([first]), [Ear() for _ in others])
        tasks.start_soon(run.there.hear, reading)
        for node, ear in zip(others, run.elsewhere, strict=True):
            tasks.start_soon(ear.hear, await rng.choice(TRANSPORTS).attach(node, run.run_id))
        return run

    def has_heard(self, count: int) -> bool:
        return all(len(ear.documents) >= count for ear in [self.there, *self.elsewhere])

    async def check(self, nodes: Iterable[Member]) -> None:
        """All see one end on every node, and the store has all that anybody has seen."""
        ends = {ear.documents[-1] for ear in [self.there, *self.elsewhere] if ear.is_over}
        for node in nodes:
            run, transport = await get_run(node, self.run_id), TRANSPORTS[len(ends) % 3]
            assert (run["status"], run["error"]["code"]) == ("failed", "interrupted"), run
            rest = await documents_of(await transport.attach(node, self.run_id, run["last_seq"] - 1))
            ends.add(rest[-1])
            message = await answer_in(node, self.session_id, self.run_id)
            assert message["status"] == "partial"
            for ear in [self.there, *self.elsewhere]:
                ear.check(message["content"])
        assert len(ends) == 1, f"ends are {ends}"


async def answer_in(node: Member, session_id: str, run_id: str) -> dict[str, Any]:
    session = (await request(node, "GET", f"/chat/sessions/{session_id}")).json
    return next(each for each in session["messages"] if each["run_id"] == run_id)


def cut_off(node: Member) -> None:
    """Nothing passes between the node and Redis any more, and nobody is told."""
    node.redis.lose()


def held_up(node: Member) -> None:
    """What the node and Redis say to each other arrives when all is over."""
    node.redis.stall()


async def loses_nothing_with_its_owner(nodes: Cluster[Any], rng: Random, goes: Goes) -> float:
    """The owner of some runs goes in mid answer; after how many seconds they were over elsewhere."""
    nodes.upstream.always(endless)
    owner = rng.choice(nodes.nodes)
    others = nodes.others(owner)
    async with anyio.create_task_group() as tasks:
        runs = [await Lost.begin(owner, others, tasks, rng) for _ in range(RUNS)]
        moment = rng.randrange(2, 60)

        async def have_heard() -> bool:
            return all(run.has_heard(moment) for run in runs)

        async def are_over() -> bool:
            return all(ear.is_over for run in runs for ear in run.elsewhere)

        await until(have_heard)
        goes(owner)
        gone_at = monotonic()
        await until(are_over, GONE_SECONDS + BUSY_SECONDS * (not IS_FULL))
        seconds = max(ear.ended_at for run in runs for ear in run.elsewhere) - gone_at
        for run, node in zip(runs, itertools.cycle(others), strict=False):
            again = {"message": SHORT, "session_id": run.session_id}
            assert text_of(await documents_of(await SSE.start(node, again))) == SHORT
        if goes is cut_off:
            await serves_what_is_stored(owner, runs[0])
        await nodes.heal()
    await nodes.upstream.idle()
    for run in runs:
        await run.check(nodes)
    await answers_again(owner)
    return seconds


async def serves_what_is_stored(node: Member, run: Lost) -> None:
    """Without Redis, a node refuses new runs in words, and shows sessions."""
    with pytest.raises(RefusedError) as refused:
        await SSE.start(node, {"message": SHORT})
    assert (refused.value.status, refused.value.code) == (503, "unavailable")
    assert (await request(node, "GET", f"/chat/sessions/{run.session_id}")).status == 200


async def answers_again(node: Member) -> None:
    """Wait until a node takes new runs."""

    async def answers() -> bool:
        try:
            return text_of(await documents_of(await SSE.start(node, {"message": SHORT}))) == SHORT
        except RefusedError as refused:
            if refused.code != "unavailable":
                raise
            return False

    await until(answers)


@pytest.fixture(scope="module")
async def nodes(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster[Node]]:
    start = ("-m", "chatserver") if IS_FULL else ("-m", "tests.odd_node", "hurry")
    async with RedisServer() as redis, cluster(tmp_path_factory.mktemp("nodes"), 3, redis, start=start) as nodes:
        nodes.upstream.always(endless)
        for node in nodes:  # The first answer imports much: in a hurry, others may take the node for gone meanwhile.
            await answers_again(node)
        yield nodes
        assert "Traceback" not in "".join(each.output for each in nodes)


async def test_a_killed_owner_has_lost_nothing_that_was_published(nodes: Cluster[Node], scale: Scale) -> None:
    rng = seeded()
    found = [await loses_nothing_with_its_owner(nodes, rng, Node.kill) for _ in range(scale(2, 50))]
    tell(f"over elsewhere after {min(found):.1f} to {max(found):.1f} s")


async def test_a_frozen_owner_that_thaws_appends_nothing_and_leaves_its_upstream(
    nodes: Cluster[Node], scale: Scale
) -> None:
    rng = seeded()
    found = [await loses_nothing_with_its_owner(nodes, rng, Node.freeze) for _ in range(scale(1, 10))]
    tell(f"over elsewhere after {min(found):.1f} to {max(found):.1f} s")


async def test_an_owner_that_is_cut_off_from_redis_loses_its_runs_and_nothing_else(
    nodes: Cluster[Node], scale: Scale
) -> None:
    rng = seeded()
    found = [await loses_nothing_with_its_owner(nodes, rng, cut_off) for _ in range(scale(1, 10))]
    tell(f"over elsewhere after {min(found):.1f} to {max(found):.1f} s")
