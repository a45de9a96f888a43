"""Every proof of several nodes has a way to fail: with a fault in all nodes, the one that is there for it turns red."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import anyio
import pytest

from chatserver.nodes import follower, membership
from chatserver.sessions import leases
from tests import node_sabotage
from tests.clients import BrokenError
from tests.cluster import Cluster, LiveNode, live_cluster
from tests.node_sabotage import Fault
from tests.redis_server import RedisServer
from tests.test_nodes_deaths import held_up, loses_nothing_with_its_owner
from tests.test_nodes_readers import hops_between_nodes

pytestmark = [pytest.mark.anyio, pytest.mark.proof]

Proof: TypeAlias = Callable[[Cluster[LiveNode], RedisServer], Awaitable[Any]]

HANG = "no end"
HANG_SECONDS = 6.0
"""When a proof that a fault makes wait for ever counts as red."""
LONG_SECONDS = 40.0


async def owner_is_held_up(nodes: Cluster[LiveNode], redis: RedisServer) -> None:
    await loses_nothing_with_its_owner(nodes, Random(1), held_up)


async def reader_hops(nodes: Cluster[LiveNode], redis: RedisServer) -> None:
    await hops_between_nodes(nodes, nodes.stage(), Random(1), unseen=False)


@dataclass(frozen=True)
class Case:
    """A fault, the proof that is there for it, and what the proof says then."""

    fault: Callable[[], Fault]
    proof: Proof
    verdict: str

    def __str__(self) -> str:
        return f"{self.fault.__name__}-{self.proof.__name__}"


CASES = [
    Case(node_sabotage.no_fence, owner_is_held_up, HANG),
    Case(node_sabotage.shown_before_it_is_published, owner_is_held_up, "was shown"),
    Case(node_sabotage.no_lease, owner_is_held_up, HANG),
    Case(node_sabotage.messages_lost_and_never_missed, reader_hops, HANG),
]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is gone is found at once, by Redis alone. All nodes are in one loop: none can be late alone."""
    for name in ("BETWEEN_LOOKS_SECONDS", "LEASE_SECONDS", "MISSED_SECONDS"):
        monkeypatch.setattr(membership, name, vars(membership)[name] / 10)
    monkeypatch.setattr(follower, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with RedisServer() as redis:
        yield redis


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_fault_turns_its_proof_red(case: Case, redis: RedisServer, tmp_path: Path) -> None:
    async with live_cluster(tmp_path, 2, redis) as nodes:
        with case.fault():
            verdict = await _verdict(case, nodes, redis)
    assert verdict is not None, "the proof stays green"
    assert re.search(case.verdict, verdict, re.DOTALL), verdict


async def test_a_follower_finds_what_it_lacks(redis: RedisServer, tmp_path: Path) -> None:
    async with live_cluster(tmp_path, 2, redis) as nodes:
        with anyio.fail_after(LONG_SECONDS), node_sabotage.messages_lost(every=20):
            await reader_hops(nodes, redis)


async def _verdict(case: Case, nodes: Cluster[LiveNode], redis: RedisServer) -> str | None:
    """What a proof says that turns red; None: it is green."""
    try:
        with anyio.move_on_after(HANG_SECONDS if case.verdict == HANG else LONG_SECONDS) as scope:
            await case.proof(nodes, redis)
    except BaseExceptionGroup as group:
        if group.split((AssertionError, BrokenError))[1] is not None:
            raise
        return str(group.exceptions)
    except (AssertionError, BrokenError) as error:
        return str(error)
    return HANG if scope.cancelled_caught else None
