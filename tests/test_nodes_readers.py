"""A run is read on every node: whoever leaves one comes back on another, on any transport, and sees the same bytes."""

from collections.abc import AsyncIterator
from random import Random
from typing import Any

import anyio
import pytest

from tests.audience import answers_again
from tests.clients import SSE, TRANSPORTS, WS
from tests.cluster import Cluster, Node, cluster
from tests.conftest import Scale
from tests.proving import PATIENCE_SECONDS, Stage, Told, check_same, check_whole, leave, seeded, tell
from tests.redis_server import RedisServer
from tests.test_readers import cancel_closes_the_upstream, readers_agree
from tests.test_resume import resumes_at_random_bytes

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.proof,
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
async def nodes(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster[Node]]:
    async with RedisServer() as redis, cluster(tmp_path_factory.mktemp("nodes"), 3, redis) as nodes:
        await answers_again(nodes)
        yield nodes
        assert "Traceback" not in "".join(each.output for each in nodes)


@pytest.fixture
def stage(nodes: Cluster[Node]) -> Stage:
    return nodes.stage()


async def hops_between_nodes(nodes: Cluster[Any], stage: Stage, rng: Random, *, unseen: bool) -> int:
    """One reader leaves after every event and comes back on another node and another transport; how often it did.

    Another reader, of the node that has the run, never leaves. ``unseen``: the next event happens while the first one
    is away.
    """
    story, taken, whole, node, transport = stage.story(), list[bytes](), list[bytes](), nodes[0], rng.choice(TRANSPORTS)
    with anyio.fail_after(PATIENCE_SECONDS):
        reading = await transport.start(node, story.body)
        async with await SSE.attach(node, reading.run_id) as witness:
            for seq in range(1, story.last):
                async with reading:
                    story.tell(seq)
                    taken += await reading.take(1)
                    await leave(reading, rng.randrange(3))
                whole += await witness.take(1)
                if unseen:
                    story.tell(seq + 1)
                node = rng.choice(nodes.others(node))
                transport = rng.choice([each for each in TRANSPORTS if each is not transport])
                reading = await transport.attach(node, reading.run_id, seq)
            story.tell(story.last)
            async with reading:
                taken += await reading.take(1)
            whole += await witness.take(1)
    check_whole(whole, story)
    check_same(taken, whole)
    check_same(await stage.rest(rng.choice(TRANSPORTS), Told(reading.run_id, whole), 0), whole)
    return story.last - 1


async def test_a_reader_hops_between_nodes_and_transports_at_every_event(
    nodes: Cluster[Node], stage: Stage, scale: Scale
) -> None:
    rng, cuts, wanted = seeded(), 0, scale(118, 2000)
    while cuts < wanted:
        cuts += await hops_between_nodes(nodes, stage, rng, unseen=rng.random() < 0.5)
    tell(f"{cuts} cuts")


async def test_a_run_is_cut_at_any_byte_and_resumed_on_the_next_node(stage: Stage, scale: Scale) -> None:
    await resumes_at_random_bytes(stage, SSE, WS, scale(6, 250), seeded())


async def test_200_readers_on_three_nodes_see_the_same(stage: Stage, scale: Scale) -> None:
    rng = seeded()
    for _ in range(scale(1, 10)):
        await readers_agree(stage, rng, cancels=False, count=scale(60, 200))


async def test_a_cancel_on_any_node_closes_the_upstream_at_once(stage: Stage) -> None:
    for transport in TRANSPORTS:
        await cancel_closes_the_upstream(stage, transport)
