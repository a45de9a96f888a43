"""Users who are cancelled while Redis is asked: nobody is let in as another, and nothing stays counted."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from math import inf
from random import Random
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from chatserver.auth import Identity
from chatserver.errors import TooMany
from chatserver.limits import RateLimiter
from chatserver.nodes.address import Address
from chatserver.nodes.admissions import SharedAdmissions
from chatserver.nodes.days import SharedDays
from chatserver.nodes.keys import NODES, open_key
from chatserver.nodes.link import Link, open_link
from chatserver.nodes.open_counts import OpenCounts
from chatserver.nodes.places import SharedPlaces
from chatserver.nodes.tickets import SharedTickets
from chatserver.runs.places import LocalPlaces, Place
from chatserver.settings import Settings
from chatserver.transports.admission import Admission, LocalAdmissions
from tests.conftest import Scale
from tests.proving import seeded, tell
from tests.redis_process import RedisProcess

pytestmark = [pytest.mark.anyio, pytest.mark.proof, pytest.mark.timeout(900)]

USERS = 20
AT_ONCE = 40
NODE_COUNT = 3
ENOUGH = 800
"""So many operations show each of the faults below."""
SETTINGS = Settings(auth="jwt", jwt_secret="x" * 32, max_runs=20, max_runs_per_user=3, max_tokens_per_day=10**9)


class Node:
    """What one node asks Redis for."""

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.name = f"node{number}"
        self.counts = OpenCounts(link, self.name)
        self.local = LocalAdmissions(RateLimiter(10**6), 4)
        self.admissions = SharedAdmissions(self.counts, self.local)
        self.days = SharedDays(link, SETTINGS.max_tokens_per_day, _nothing)
        self.held = LocalPlaces(SETTINGS, self.days)
        self.places = SharedPlaces(self.counts, self.held)
        self.tickets = SharedTickets(link)


async def _nothing(*_: object) -> int:
    await asyncio.sleep(0)
    return 0


class Crowd:
    """Users on all nodes, who ask for all there is."""

    def __init__(self, nodes: list[Node], rng: Random) -> None:
        self._nodes = nodes
        self._rng = rng
        self.outcomes = Counter[str]()

    async def one(self) -> None:
        node, user = self._rng.choice(self._nodes), f"user {self._rng.randrange(USERS)}"
        verb: Callable[[Node, str], Awaitable[None]] = self._rng.choice([self._open, self._ask, self._run, self._enter])
        try:
            await verb(node, user)
            self.outcomes["answered"] += 1
        except TooMany:
            self.outcomes["refused"] += 1
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
            raise

    async def _open(self, node: Node, user: str) -> None:
        async with await node.admissions.admit(user):
            await self._dwell()

    async def _ask(self, node: Node, user: str) -> None:
        async with await node.admissions.admit_request(user):
            await node.admissions.count(user)

    async def _run(self, node: Node, user: str) -> None:
        place = await node.places.acquire(user)
        try:
            await self._dwell()
        finally:
            await place.release()

    async def _enter(self, node: Node, user: str) -> None:
        with suppress(TooMany):  # A ticket whose user was cancelled counts until it is too old.
            issued = await node.tickets.issue(Identity(user))
            assert (await self._rng.choice(self._nodes).tickets.redeem(issued.ticket)).user == user

    async def _dwell(self) -> None:
        for _ in range(self._rng.randrange(3)):
            await asyncio.sleep(0)


async def nothing_stays_counted(nodes: list[Node], rng: Random, count: int) -> None:
    """Of so many operations a half is cancelled, each at any of its awaits; then nobody has anything any more."""
    crowd = Crowd(nodes, rng)
    for _ in range(count // AT_ONCE):
        tasks = [asyncio.create_task(crowd.one()) for _ in range(AT_ONCE)]
        for task in rng.sample(tasks, AT_ONCE // 2):
            for _ in range(rng.choice([0, 0, 0, 1, 2])):
                await asyncio.sleep(0)
            task.cancel()
        failed = [each for each in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(each, Exception)]
        assert failed == []
    tell(f"{dict(crowd.outcomes)}")
    assert all(crowd.outcomes[each] > count / 50 for each in ("answered", "cancelled"))
    for node in nodes:
        assert (node.local.open, node.held.held, node.days._days) == ({"connections": {}, "requests": {}}, {}, {})
        await anyio.wait_all_tasks_blocked()
        assert await node.link.command("HGETALL", open_key(node.name)) == {}
    for node in nodes:
        await crowd._open(node, "another")


@pytest.fixture
async def nodes(redis_server: RedisProcess) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        links = [await stack.enter_async_context(open_link(Address(redis_server.url))) for _ in range(NODE_COUNT)]
        made = [Node(link, number) for number, link in enumerate(links)]
        await links[0].command("SADD", NODES, *(node.name for node in made))
        yield made


async def test_of_the_cancelled_nothing_stays_counted(nodes: list[Node], scale: Scale) -> None:
    with anyio.fail_after(800):
        await nothing_stays_counted(nodes, seeded(), scale(ENOUGH, 20_000))


# ---- the proof has a way to fail -------------------------------------------------------------------------------------


async def _held_for_good(self: SharedAdmissions, kind: str, user: str) -> Admission:
    admission = self._local.hold(kind, user)
    await self._ask(user, ((kind, user), self._local.limit))
    return admission


async def _with_a_place_for_good(self: SharedPlaces, user: str) -> Place:
    self._local.hold(user)
    await self._counts.admit((("runs", user), inf))
    return await self._local.place(user)


async def _with_its_reply_for_another(self: Link, *words: Any) -> Any:
    try:
        return await _call(self, *words)
    except asyncio.CancelledError:
        if self._wire is not None:
            self._wire._waiting.rotate()
        raise


_call = Link.call
FAULTS: list[Any] = [
    patch.object(SharedAdmissions, "_admit", _held_for_good),
    patch.object(SharedPlaces, "acquire", _with_a_place_for_good),
    patch.object(OpenCounts, "_change", lambda *_: None),
    patch.object(Link, "call", _with_its_reply_for_another),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.attribute)
async def test_a_fault_turns_the_proof_red(nodes: list[Node], fault: AbstractContextManager[Any]) -> None:
    with fault, pytest.raises((AssertionError, TimeoutError)), anyio.fail_after(3):
        await nothing_stays_counted(nodes, seeded(), ENOUGH)
