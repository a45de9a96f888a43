"""The tokens of a user's day over all nodes: no token asks Redis, and all nodes know of each within a second."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import anyio
import pytest

from chatserver.errors import TooMany, Unavailable
from chatserver.meter import Day, Meter
from chatserver.nodes import days
from chatserver.nodes.address import Address
from chatserver.nodes.days import SharedDays
from chatserver.nodes.keys import day_key
from chatserver.nodes.link import Link, open_link
from chatserver.runs.places import LocalPlaces, Place, date_of
from chatserver.settings import Settings
from tests.redis_process import RedisProcess

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
DAY_TOKENS = 1000
NODE_COUNT = 3
SETTINGS = Settings(auth="jwt", jwt_secret="x" * 32, max_runs_per_user=10, max_tokens_per_day=DAY_TOKENS)


class Stored:
    """What the database says of finished runs."""

    def __init__(self) -> None:
        self.spent = 0

    async def on(self, user: str, _: str) -> int:
        return self.spent if user == "ann" else 0


class Node:
    """A node with its runs."""

    def __init__(self, link: Link, stored: Stored) -> None:
        self.link = link
        self.days = SharedDays(link, DAY_TOKENS, stored.on)
        self.places = LocalPlaces(SETTINGS, self.days)

    async def run(self, user: str = "ann") -> "Spending":
        place = await self.places.acquire(user)
        return Spending(place)

    async def report(self) -> None:
        """What the clock does once a second, and its effect."""
        self.days._report(self.days._days.values())
        await self.link.command("PING")
        await asyncio.sleep(0)


class Spending:
    """A run that spends."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.meter = Meter(day=place.day)

    @property
    def day(self) -> Day:
        assert self.meter.day is not None
        return self.meter.day

    def say(self, tokens: int) -> None:
        self.meter._asked_tokens = self.meter._asked_tokens or 0
        self.meter.add_arguments("x" * 4 * tokens)


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
async def nodes(redis_server: RedisProcess, stored: Stored) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        links = [await stack.enter_async_context(open_link(Address(redis_server.url))) for _ in range(NODE_COUNT)]
        yield [Node(link, stored) for link in links]


async def total(nodes: list[Node], user: str = "ann") -> int:
    return int(await nodes[0].link.command("GET", day_key(date_of(datetime.now(UTC)), user)))


async def test_each_node_knows_what_the_others_have_spent_when_it_has_reported(nodes: list[Node]) -> None:
    runs = [await node.run() for node in nodes]
    for number, run in enumerate(runs):
        run.say(100 * (number + 1))
    for node in nodes:
        await node.report()
    assert [run.day.spent for run in runs] == [100, 300, 600]
    runs[0].say(1)
    runs[1].say(1)
    await nodes[0].report()
    await nodes[1].report()
    assert [run.day.spent for run in runs] == [601, 602, 600]
    assert await total(nodes) == 602


async def test_a_run_ends_when_runs_elsewhere_have_spent_the_day(nodes: list[Node]) -> None:
    here, there = [await node.run() for node in nodes[:2]]
    here.say(10)
    there.say(DAY_TOKENS)
    assert not here.meter.is_spent() and there.meter.is_spent()
    await nodes[1].report()
    await nodes[0].report()
    assert here.meter.is_spent()
    with pytest.raises(TooMany, match="at most 1000 tokens in a day"):
        await nodes[2].run()
    await nodes[2].run("ben")


async def test_the_clock_reports_while_somebody_runs(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(days, "REPORT_SECONDS", 0.01)
    run = await nodes[0].run()
    with anyio.fail_after(WAIT_SECONDS):
        for spent in (10, 20):
            run.say(10)
            while await total(nodes) < spent:  # noqa: ASYNC110 - Redis tells nobody
                await anyio.sleep(0.01)
        await run.place.release()
        while nodes[0].days._timer is not None:  # noqa: ASYNC110 - nor does a timer
            await anyio.sleep(0.01)


async def test_who_says_nothing_reports_nothing(nodes: list[Node]) -> None:
    run = await nodes[0].run()
    run.say(5)
    await nodes[0].report()
    sent: list[object] = []
    nodes[0].link.post = lambda *words: sent.append(words)  # type: ignore[method-assign]
    await nodes[0].report()
    assert sent == []


async def test_what_a_run_spent_at_last_is_reported_when_it_is_over(nodes: list[Node]) -> None:
    run, another = await nodes[0].run(), await nodes[0].run()
    run.say(30)
    another.say(3)
    await run.place.release()
    assert await total(nodes) == 0, "another goes on"
    await another.place.release()
    await nodes[0].link.command("PING")
    assert (await total(nodes), nodes[0].days._days) == (33, {})


async def test_runs_of_one_user_on_one_node_share_a_day(nodes: list[Node]) -> None:
    first, second = await nodes[0].run(), await nodes[0].run()
    first.say(7)
    assert first.day is second.day and second.day.spent == 7
    third = await nodes[0].run()
    assert third.day is first.day and third.day.spent == 7


async def test_an_estimate_that_is_told_to_be_less_is_taken_back(nodes: list[Node]) -> None:
    here, there = [await node.run() for node in nodes[:2]]
    here.say(500)
    await nodes[0].report()
    there.say(1)
    await nodes[1].report()
    here.meter.void()
    await nodes[0].report()
    there.say(1)
    await nodes[1].report()
    assert (here.day.spent, there.day.spent, await total(nodes)) == (1, 2, 2)


async def test_the_database_knows_what_redis_does_not(nodes: list[Node], stored: Stored) -> None:
    stored.spent = 400
    first = await nodes[0].run()
    assert first.day.spent == 400
    first.say(50)
    await nodes[0].report()
    stored.spent = 440
    assert (await nodes[1].run()).day.spent == 450, "the sum has all of it"
    stored.spent = 900
    assert (await nodes[1].run()).day.spent == 900, "Redis was away meanwhile"


async def test_what_redis_has_lost_is_known_by_whoever_reports(nodes: list[Node]) -> None:
    runs = [await node.run() for node in nodes[:2]]
    for _ in range(2):
        for node, run in zip(nodes, runs, strict=False):
            run.say(50)
            await node.report()
    await nodes[0].link.command("FLUSHALL")
    for node, run in zip(nodes, runs, strict=False):
        run.say(1)
        await node.report()
    assert 152 <= await total(nodes) <= 202, "less what the others reported since this node did last"
    await nodes[0].link.command("FLUSHALL")
    runs[1].say(1)
    await nodes[1].report()
    assert await total(nodes) >= 153


async def test_what_was_spent_while_redis_was_away_is_reported_when_it_is_back(
    nodes: list[Node], redis_server: RedisProcess
) -> None:
    run = await nodes[0].run()
    run.say(10)
    redis_server.stop()
    try:
        for _ in range(3):
            run.say(10)
            nodes[0].days._report_all()
        with pytest.raises(Unavailable):
            await nodes[0].run()
        assert run.day.spent == 40, "and is counted here"
    finally:
        redis_server.start()
    with anyio.fail_after(WAIT_SECONDS):
        while not nodes[0].link.is_up:  # noqa: ASYNC110 - its task is the link's own
            await anyio.sleep(0.01)
    await nodes[0].report()
    assert (await total([nodes[0]]), run.day.spent) == (40, 40)


async def test_a_new_day_begins_with_nothing(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    old = await nodes[0].run()
    old.say(DAY_TOKENS)
    await nodes[0].report()
    monkeypatch.setattr(days, "date_of", lambda _: "2999-01-01")
    new = await nodes[0].run()
    new.say(3)
    await nodes[0].report()
    assert (old.meter.is_spent(), new.day.spent) == (True, 3)
    assert await nodes[0].link.command("GET", day_key("2999-01-01", "ann")) == b"3"
