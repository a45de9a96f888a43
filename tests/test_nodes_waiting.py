"""Runs that wait on nodes of one Redis: answered at another node, and taken over by one when their own has gone."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.dialogue import INTERRUPTED_CALL
from tests.approved_tools import LEDGER, REFERENCE
from tests.audience import answers_again
from tests.clients import BOTH, SSE, WS, Reading, Transport, documents_of, get_run, types_of, when_available
from tests.cluster import Cluster, Node, cluster
from tests.merging import seq_of
from tests.program import until
from tests.proving import check_once
from tests.redis_server import RedisServer
from tests.test_waiting import answered, calling, done_by, has_begun, waiting

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

WHOLE = ["start", "tool_call", "tool_result", "token", "done"]


@pytest.fixture(scope="module")
async def redis(anyio_backend: str) -> AsyncIterator[RedisServer]:
    async with RedisServer() as redis:
        yield redis


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
async def all_nodes(redis: RedisServer, folder: Path) -> AsyncIterator[Cluster[Node]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LEDGER, str(folder / "ledger"))
        async with cluster(folder, 2, redis, tools=REFERENCE) as nodes:
            yield nodes
            assert "Traceback" not in "".join(each.output for each in nodes)


@pytest.fixture
async def nodes(all_nodes: Cluster[Node]) -> Cluster[Node]:
    """Both nodes live, whatever an earlier test has done."""
    await all_nodes.heal()
    await answers_again(all_nodes)
    all_nodes.upstream.always(calling(("book", {"table": 4})))
    return all_nodes


@pytest.fixture
def ledger(folder: Path) -> Path:
    path = folder / "ledger"
    path.write_text("")
    return path


async def asked(nodes: Cluster[Node]) -> tuple[str, Reading, Reading]:
    """A run of the first node that waits, with a reader on each node."""
    there = await SSE.start(nodes[0], {"message": "Book"})
    run_id = await waiting(there)
    assert (await get_run(nodes[1], run_id))["status"] == "waiting", "it was stored before it was published"
    elsewhere = await WS.attach(nodes[1], run_id, 0)
    await elsewhere.take(2)
    return run_id, there, elsewhere


async def is_parked(folder: Path, run_id: str) -> bool:
    """Whether the database says that the run waits, and is nobody's."""
    with closing(sqlite3.connect(folder / "chat.db", timeout=30)) as database:
        query = "SELECT owner, status FROM runs WHERE run_id = ?"
        return bool(database.execute(query, (run_id,)).fetchone() == (None, "waiting"))


async def heard(reading: Reading) -> list[bytes]:
    """All that a reader has heard from the first event to the last."""
    await documents_of(reading)
    documents = list(reading.documents)
    check_once(documents)
    assert types_of(documents) == WHOLE
    return documents


async def test_of_answers_at_both_nodes_one_counts_and_readers_of_both_hear_the_same(
    nodes: Cluster[Node], ledger: Path
) -> None:
    run_id, there, elsewhere = await asked(nodes)
    outcomes: list[Any] = []

    async def answer(node: Node, transport: Transport) -> None:
        outcomes.append(await answered(node, run_id, "c0", transport, approve=True))

    async with anyio.create_task_group() as devices:
        for node in nodes:
            for transport in BOTH:
                devices.start_soon(answer, node, transport)
    assert sorted(map(str, outcomes)) == ["(409, 'already_answered')"] * 3 + ["202"]
    assert await heard(there) == await heard(elsewhere)
    assert done_by(ledger) == ["book 4"]


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_an_answer_at_another_node_reaches_the_run(
    transport: Transport, nodes: Cluster[Node], ledger: Path
) -> None:
    """One that does not fit is refused there."""
    run_id, there, elsewhere = await asked(nodes)
    unfit = {"approve": True, "args": {"table": "by the window"}}
    assert await answered(nodes[1], run_id, "c0", transport, **unfit) == (400, "bad_request")
    assert await answered(nodes[1], run_id, "c0", transport, approve=True) == 202
    assert await heard(there) == await heard(elsewhere)
    assert done_by(ledger) == ["book 4"]


async def test_when_the_node_of_a_run_that_waits_is_killed_another_one_goes_on_with_it(
    nodes: Cluster[Node], redis: RedisServer, folder: Path, ledger: Path
) -> None:
    """Also where Redis has lost all that it had of the run."""
    run_id, there, elsewhere = await asked(nodes)
    nodes[0].kill()
    there.cut()
    await nodes[0].wait()
    await until(lambda: is_parked(folder, run_id))
    await redis.call("FLUSHALL")
    late = await when_available(partial(SSE.attach, nodes[1], run_id, 0))  # Its lease is lost, too.
    assert await late.take(2) == elsewhere.documents[:2]
    await nodes[0].start()
    back = await SSE.attach(nodes[0], run_id, 0)
    assert await back.take(2) == elsewhere.documents[:2]
    assert await answered(nodes[1], run_id, "c0", approve=True) == 202
    assert await heard(elsewhere) == await heard(late) == await heard(back)
    assert done_by(ledger) == ["book 4"]


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_an_answer_that_a_killed_node_has_not_taken_is_taken_by_another(
    transport: Transport, nodes: Cluster[Node], ledger: Path
) -> None:
    run_id, there, elsewhere = await asked(nodes)
    nodes[0].kill()
    there.cut()
    assert await answered(nodes[1], run_id, "c0", transport, approve=True) == 202
    documents = await heard(elsewhere)
    assert done_by(ledger) == ["book 4"]
    run = await get_run(nodes[1], run_id)
    assert (run["status"], run["last_seq"]) == ("completed", seq_of(documents[-1]))


async def test_a_node_that_drains_leaves_a_run_that_waits_to_others_even_if_it_cannot_tell_redis(
    nodes: Cluster[Node], folder: Path, ledger: Path
) -> None:
    run_id, there, elsewhere = await asked(nodes)
    nodes[0].redis.cut()
    nodes[0].terminate()
    assert await there.next() is None
    await until(lambda: is_parked(folder, run_id))
    back = await SSE.attach(nodes[1], run_id, 1)
    assert await back.take(1) == elsewhere.documents[1:2]
    assert await answered(nodes[1], run_id, "c0", WS, approve=True) == 202
    documents = await heard(elsewhere)
    await documents_of(back)
    assert back.documents == documents[1:]
    assert done_by(ledger) == ["book 4"]
    assert await nodes[0].wait() == 0, nodes[0].output


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_when_a_node_is_killed_a_call_waits_on_beside_one_that_went_on(
    transport: Transport, nodes: Cluster[Node], ledger: Path
) -> None:
    """Readers of the other node are told at once that nobody knows what became of the one that went on."""
    nodes.upstream.always(calling(("knead", {"seconds": 60}), ("book", {"table": 4})))
    there = await transport.start(nodes[0], {"message": "Bake"})
    run_id = await waiting(there, 2)
    elsewhere = await transport.attach(nodes[1], run_id, 0)
    await elsewhere.take(3)
    await until(lambda: has_begun(ledger))
    nodes[0].kill()
    there.cut()
    with anyio.fail_after(10):
        await elsewhere.take(1)
    assert (await get_run(nodes[1], run_id))["status"] == "waiting"
    assert await answered(nodes[1], run_id, "c1", transport, approve=True) == 202
    await documents_of(elsewhere)
    documents = elsewhere.documents
    check_once(documents)
    assert types_of(documents) == ["start", *["tool_call"] * 2, *["tool_result"] * 2, "token", "done"]
    assert INTERRUPTED_CALL.encode() in documents[3]
    assert done_by(ledger) == ["knead", "book 4"]
