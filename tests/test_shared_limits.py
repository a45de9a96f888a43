"""What nodes will share is exact when many ask at once, and given back by whoever is cancelled, at whatever await."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from chatserver.commands import ChatRequest
from chatserver.errors import TooMany
from chatserver.limits import Place, Places
from chatserver.log.memory import MemoryLogs
from chatserver.runs.life import Lives
from chatserver.sessions import Sessions
from chatserver.settings import Settings
from tests.fake_upstream import FakeUpstream, say
from tests.live import live_server
from tests.proving import held
from tests.steps import Pause, cancelled_at_each, run

pytestmark = pytest.mark.anyio

DAY_TOKENS = 100
LIMITS: dict[str, Any] = {
    "auth": "jwt",
    "jwt_secret": "x" * 32,
    "max_tokens_per_day": DAY_TOKENS,
    "max_runs": 5,
    "max_runs_per_user": 3,
}


class Spendings:
    """The tokens of runs that are over, as a store tells them: after a while."""

    spent = 0

    async def on(self, user: str, day: str) -> int:
        await Pause()
        return self.spent


def places(spendings: Spendings | None = None) -> Places:
    return Places(Settings(**LIMITS), (spendings or Spendings()).on)


def acquired(store: Places, *users: str) -> Iterator[Place | None]:
    """A place for each, all asked for before anybody has one; None: refused."""
    waiting = [store.acquire(user) for user in users]
    refused = []
    for each in waiting:
        try:
            each.send(None)
        except TooMany:
            refused.append(each)
    for each in waiting:
        yield None if each in refused else run(each)


def test_as_many_have_a_place_as_may_when_all_ask_at_once() -> None:
    store = places()
    assert [place is not None for place in acquired(store, *"aaaabbbb")] == [True] * 3 + [False] + [True] * 2 + [
        False
    ] * 2


def test_a_place_is_given_back_once() -> None:
    store = places()
    first, *_ = taken = [place for place in acquired(store, "a", "a", "b") if place is not None]
    for _ in range(3):
        run(first.release())
    assert (store._acquired, store._acquired_in_all) == ({"a": 1, "b": 1}, 2)
    for place in taken:
        run(place.release())
    assert (store._acquired, store._acquired_in_all, store._days._days) == ({}, 0, {})


def test_who_is_cancelled_while_asking_has_no_place() -> None:
    store = places()
    pauses = list(cancelled_at_each(partial(store.acquire, "a"), asyncio.CancelledError()))
    assert pauses == [0], "the day's tokens are asked for"
    run(store.acquire("a"))
    assert (store._acquired, store._acquired_in_all) == ({"a": 2}, 2), "the one that came to its end, and this one"


def test_runs_that_begin_at_once_count_on_one_day() -> None:
    first, second = acquired(places(), "a", "a")
    assert first is not None and second is not None
    assert not first.meter.is_spent()
    first.meter.call("x" * 4 * DAY_TOKENS * 2)
    first.meter.told(None)
    assert first.meter._day is second.meter._day is not None


def test_whose_day_is_spent_has_no_place() -> None:
    spendings = Spendings()
    spendings.spent = DAY_TOKENS
    store = places(spendings)
    with pytest.raises(TooMany):
        run(store.acquire("a"))
    assert (store._acquired, store._acquired_in_all, store._days._days) == ({}, 0, {})


@pytest.mark.parametrize(
    ("owner", "name", "done"),
    [
        (Places, "acquire", False),
        (Sessions, "begin", False),
        (Sessions, "begin", True),
        (Lives, "begin", False),
        (MemoryLogs, "create", False),
        (MemoryLogs, "create", True),
    ],
)
async def test_the_place_of_a_start_that_is_cancelled_is_given_back(owner: type, name: str, done: bool) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as live:
        upstream.always(*say("Yes"))
        start = partial(live.runs.start, "local", ChatRequest(message="Hi"))
        with held(owner, name, done=done) as hold:
            task = asyncio.create_task(start())
            await hold.come.wait()
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        assert (live.runs._places._acquired, live.runs._places._acquired_in_all) == ({}, 0)
        with await start() as subscription:
            run_over = live.runs._runs[subscription.run_id].over
        await run_over.wait()
        assert (live.runs._places._acquired, live.runs._places._acquired_in_all) == ({}, 0)


@pytest.mark.parametrize("name", ["answer", "finish"])
async def test_the_place_of_a_run_that_dies_is_given_back(name: str) -> None:
    from chatserver.runs.run import Run

    async def die(*_: Any) -> None:
        raise RuntimeError("dead")

    async with FakeUpstream() as upstream, live_server(upstream.url) as live:
        upstream.always(*say("Yes"))
        with patch.object(Run, name, die):
            with await live.runs.start("local", ChatRequest(message="Hi")):
                pass
            with anyio.fail_after(5):
                while live.runs._lives._lives:
                    await asyncio.gather(*live.runs._lives._lives, return_exceptions=True)
        assert live.runs._places._acquired_in_all == 0
