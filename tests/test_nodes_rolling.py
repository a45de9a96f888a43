"""Nodes are replaced one after the other while clients ask and read: no answer is lost, torn or told twice."""

import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from random import Random

import anyio
import pytest

from tests.audience import answers_again
from tests.clients import (
    TRANSPORTS,
    Address,
    BrokenError,
    ClosedError,
    Reading,
    RefusedError,
    Transport,
    is_terminal,
    text_of,
)
from tests.cluster import Cluster, Node, cluster
from tests.conftest import Scale
from tests.fake_upstream import Done, Pause, Reply, Step, finish, role, token
from tests.proving import check_once, seeded, tell
from tests.redis_server import RedisServer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.proof,
    pytest.mark.timeout(1800),
]

CLIENTS = 12
LEAVES = 0.03
"""How probably a client leaves after an event, to go on at the next node: most answers are read on several."""

WORDS = 40
PAUSE_SECONDS = 0.02
AGAIN_SECONDS = 0.05
"""Before a client that was refused comes back: the balancer sends it to the next node."""


def paced(reply: Reply) -> Iterable[Step]:
    """A numbered answer of its own for each question, which takes about a second."""
    yield role()
    for piece in pieces(reply.request.json["messages"][-1]["content"]):
        yield from (token(piece), Pause(PAUSE_SECONDS))
    yield from (finish(), Done())


def pieces(question: str) -> list[str]:
    return [f"{question}.{number} " for number in range(WORDS)]


class Client:
    """A client by the contract: refused or cut off, it comes back through the balancer, on any transport."""

    def __init__(self, balancer: Address, rng: Random) -> None:
        self._balancer = balancer
        self._rng = rng
        self.answers = 0
        self.returns = 0
        """How often it came back to an answer that went on."""

    async def ask(self, question: str) -> None:
        """Ask, and read the answer to its end, whatever happens to the nodes."""
        body = {"message": question, "session_id": f"s-{question}", "idempotency_key": f"k-{question}"}
        documents: list[bytes] = []
        reading = await self._insist(lambda transport: transport.start(self._balancer, body))
        while not await self._heard(reading, documents):
            after = json.loads(documents[-1])["seq"] if documents else 0
            reading = await self._insist(partial(self._attach, reading.run_id, after))
            self.returns += 1
        check_once(documents)
        assert json.loads(documents[-1])["type"] == "done", documents[-1]
        assert text_of(documents) == "".join(pieces(question))
        self.answers += 1

    async def _attach(self, run_id: str, after: int, transport: Transport) -> Reading:
        return await transport.attach(self._balancer, run_id, after)

    async def _insist(self, connect: Callable[[Transport], Awaitable[Reading]]) -> Reading:
        """Connect by any transport, again and again while nodes are going or gone."""
        while True:
            try:
                return await connect(self._rng.choice(TRANSPORTS))
            except RefusedError as refused:
                if refused.status not in (None, 503):
                    raise
            except (BrokenError, ClosedError, ConnectionError):
                pass
            await anyio.sleep(AGAIN_SECONDS)

    async def _heard(self, reading: Reading, documents: list[bytes]) -> bool:
        """Read until the end of the answer (true), or until the stream ends or the client has enough of this node."""
        with suppress(BrokenError, ClosedError, ConnectionError):
            async with reading:
                async for document in reading:
                    documents.append(document)
                    if is_terminal(document):
                        return True
                    if self._rng.random() < LEAVES:
                        return False
        return False


async def replaces_nodes_under_load(nodes: Cluster[Node], rng: Random, count: int) -> None:
    """So many nodes go and come one after the other; everybody who asks gets the whole answer."""
    nodes.upstream.always(paced)
    clients = [Client(nodes.balancer, rng) for _ in range(CLIENTS)]
    is_over = anyio.Event()

    async def keep_asking(client: Client, number: int) -> None:
        for question in itertools.count():
            if is_over.is_set():
                return
            await client.ask(f"{number}-{question}")

    async with anyio.create_task_group() as tasks:
        for number, client in enumerate(clients):
            tasks.start_soon(keep_asking, client, number)
        for node in itertools.islice(itertools.cycle(nodes), count):
            node.terminate()
            assert await node.wait() == 0, node.output
            await node.start()
        is_over.set()
    answers, returns = sum(each.answers for each in clients), sum(each.returns for each in clients)
    assert returns > answers / 5
    tell(f"{count} replacements, {answers} answers, {returns} returns")


@pytest.fixture(scope="module")
async def nodes(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster[Node]]:
    async with RedisServer() as redis, cluster(tmp_path_factory.mktemp("nodes"), 2, redis) as nodes:
        await answers_again(nodes)
        yield nodes
        assert "Traceback" not in "".join(each.output for each in nodes)


async def test_nodes_are_replaced_under_load_and_every_answer_is_whole(nodes: Cluster[Node], scale: Scale) -> None:
    await replaces_nodes_under_load(nodes, seeded(), scale(2, 20))
