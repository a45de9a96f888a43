"""What nodes will share is exact when many ask at once, and given back by whoever is cancelled, at whatever await."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from chatserver.auth import Identity
from chatserver.auth.tickets import LocalTickets
from chatserver.commands import ChatRequest
from chatserver.errors import TooMany
from chatserver.limits import EVERYBODY, RateLimiter
from chatserver.log.logs import MemoryLogs
from chatserver.meter import Day, Meter
from chatserver.runs.lives import Lives
from chatserver.runs.places import LocalDays, LocalPlaces, Place
from chatserver.sessions import Sessions
from chatserver.settings import Settings
from chatserver.transports.admission import OPEN_CONNECTIONS, OPEN_REQUESTS, Admission, LocalAdmissions
from tests.clients import SSE, BrokenError, RefusedError, WsReader, documents_of, request
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.steps import Pause, cancelled_at_each, result_of

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


@pytest.fixture(scope="module")
async def live(anyio_backend: str) -> AsyncIterator[LiveServer]:
    async with FakeUpstream() as upstream, live_server(upstream.url) as live:
        upstream.always(*say("Yes"))
        yield live


@contextmanager
def cancelled_in(owner: type, name: str, *, done: bool) -> Iterator[None]:
    """Cancel the task that calls this method first: before the method has begun, or when it has done all."""
    original, calls = getattr(owner, name), itertools.count()

    async def cancelling(*args: Any, **kwargs: Any) -> Any:
        if next(calls):
            return await original(*args, **kwargs)
        if done:
            await original(*args, **kwargs)
        task = asyncio.current_task()
        assert task is not None and task.cancel()
        await asyncio.sleep(0)

    with patch.object(owner, name, cancelling):
        yield
    assert next(calls) > 0, "it was called"


async def nothing_taken(live: LiveServer) -> None:
    """Wait until the server holds nothing of any user."""
    parts = live.app.state.components
    while (  # noqa: ASYNC110 - there is nothing to wait for when all goes well
        any(parts.admissions.open.values()) or parts.admissions._bytes or parts.runs._places.held
    ):
        await anyio.sleep(0.005)


# ---- runs ------------------------------------------------------------------------------------------------------------


def places(spendings: Spendings | None = None) -> LocalPlaces:
    return LocalPlaces(Settings(**LIMITS), LocalDays(DAY_TOKENS, (spendings or Spendings()).on))


def days_of(store: LocalPlaces) -> dict[str, Day]:
    assert isinstance(store._days, LocalDays)
    return store._days._days


def acquired(store: LocalPlaces, *users: str) -> Iterator[Place | None]:
    """A place for each, all asked for before anybody has one; None: refused."""
    waiting = [store.acquire(user) for user in users]
    refused = []
    for each in waiting:
        try:
            each.send(None)
        except TooMany:
            refused.append(each)
    for each in waiting:
        yield None if each in refused else result_of(each)


def test_as_many_have_a_place_as_may_when_all_ask_at_once() -> None:
    store = places()
    assert [place is not None for place in acquired(store, *"aaaabbbb")] == [True] * 3 + [False] + [True] * 2 + [
        False
    ] * 2


def test_a_place_is_given_back_once() -> None:
    store = places()
    first, *_ = taken = [place for place in acquired(store, "a", "a", "b") if place is not None]
    for _ in range(3):
        result_of(first.release())
    assert store.held == {"a": 1, "b": 1, EVERYBODY: 2}
    for place in taken:
        result_of(place.release())
    assert (store.held, days_of(store)) == ({}, {})


@pytest.mark.parametrize("name", ["acquire", "retake"])
def test_who_is_cancelled_while_asking_has_no_place(name: str) -> None:
    store = places()
    asking = partial(getattr(store, name), "a")
    assert list(cancelled_at_each(asking, asyncio.CancelledError())) == [0], "the day's tokens are asked for"
    result_of(asking())
    assert store.held == {"a": 2, EVERYBODY: 2}, "the one that came to its end, and this one"


def test_runs_that_begin_at_once_count_on_one_day() -> None:
    first, second = acquired(places(), "a", "a")
    assert first is not None and second is not None
    meter, another = Meter(day=first.day), Meter(day=second.day)
    assert not meter.is_spent()
    meter.add_arguments("x" * 4 * DAY_TOKENS * 2)
    meter.end_turn(None)
    assert meter.day is another.day is not None


def test_whose_day_is_spent_has_no_place() -> None:
    spendings = Spendings()
    spendings.spent = DAY_TOKENS
    store = places(spendings)
    with pytest.raises(TooMany):
        result_of(store.acquire("a"))
    assert (store.held, days_of(store)) == ({}, {})


@pytest.mark.parametrize(
    ("owner", "name", "done"),
    [
        (LocalPlaces, "acquire", False),
        (Sessions, "begin", False),
        (Sessions, "begin", True),
        (Lives, "begin", False),
        (MemoryLogs, "create", False),
        (MemoryLogs, "create", True),
    ],
)
async def test_the_place_of_a_start_that_is_cancelled_is_given_back(
    live: LiveServer, owner: type, name: str, done: bool
) -> None:
    with anyio.fail_after(20):
        with cancelled_in(owner, name, done=done), pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(live.runs.start("local", ChatRequest(message="Hi")))
        await nothing_taken(live)
        await documents_of(await SSE.start(live, {"message": "Hi again"}))
        await nothing_taken(live)


# ---- requests, connections, tickets ---------------------------------------------------------------------------------


def admissions(limit: int = 5, bytes_limit: float = inf) -> LocalAdmissions:
    return LocalAdmissions(RateLimiter(5), limit, bytes_limit)


async def released(limits: LocalAdmissions) -> None:
    await (await limits.admit("a")).release()


async def redeemed(tickets: LocalTickets) -> None:
    await tickets.redeem((await tickets.issue(Identity("a"))).ticket)


@pytest.mark.parametrize(
    "verb",
    [
        partial(admissions().count, "a"),
        partial(admissions().admit_request, "a"),
        partial(released, admissions()),
        partial(redeemed, LocalTickets()),
    ],
    ids=["count", "admit", "release", "tickets"],
)
def test_nothing_comes_between_the_question_and_its_answer(verb: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Here nothing waits, so whatever many ask at once is exact, and no cancellation meets a verb half done."""
    assert list(cancelled_at_each(verb, asyncio.CancelledError())) == []


def test_an_admission_is_released_once() -> None:
    limits = admissions(2, 10)
    first, second = (result_of(limits.admit("a")) for _ in range(2))
    with pytest.raises(TooMany):
        result_of(limits.admit("a"))
    first.hold_bytes(10)
    with pytest.raises(TooMany):
        second.hold_bytes(1)
    for _ in range(3):
        result_of(first.release())
    assert (limits.open[OPEN_CONNECTIONS], limits._bytes) == ({"a": 1}, {})
    result_of(second.release())
    assert limits.open == {OPEN_CONNECTIONS: {}, OPEN_REQUESTS: {}}


AWAITS = [
    (LocalAdmissions, "admit", False),
    (Admission, "release", True),
    (LocalPlaces, "acquire", False),
    (Sessions, "begin", True),
    (MemoryLogs, "create", True),
]


@pytest.mark.parametrize(("owner", "name", "done"), AWAITS)
async def test_a_request_that_is_cancelled_takes_nothing_for_good(
    live: LiveServer, owner: type, name: str, done: bool
) -> None:
    with anyio.fail_after(20):
        with cancelled_in(owner, name, done=done), suppress(RefusedError, BrokenError):
            await documents_of(await SSE.start(live, {"message": "Hi"}))
        await documents_of(await SSE.start(live, {"message": "Hi again"}))
        await nothing_taken(live)


async def test_a_plain_request_that_is_cancelled_takes_nothing_for_good(live: LiveServer) -> None:
    with anyio.fail_after(20):
        with cancelled_in(LocalAdmissions, "admit_request", done=False), suppress(BrokenError):
            await request(live, "GET", "/chat/sessions")
        assert (await request(live, "GET", "/chat/sessions")).status == 200
        await nothing_taken(live)


async def test_a_websocket_that_is_cancelled_takes_nothing_for_good(live: LiveServer) -> None:
    with anyio.fail_after(20):
        with cancelled_in(LocalAdmissions, "admit", done=False):
            async with await WsReader.connect(live) as reader:
                await reader.closing()
        async with await WsReader.connect(live) as reader:
            reader.send({"type": "ping"})
            await reader.until("pong")
        await nothing_taken(live)
