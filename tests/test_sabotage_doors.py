"""The proofs of the doors have a way to fail too: a fault in the product turns the one that is there for it red."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Any, TypeAlias
from unittest.mock import patch

import anyio
import pytest

from chatserver.auth import Gate, Identity
from chatserver.auth.origins import Origins
from chatserver.auth.tickets import LocalTickets
from chatserver.limits import RateLimiter, TokenBucket
from chatserver.meter import Meter
from chatserver.runs.life import Life
from chatserver.runs.reach import Reach
from chatserver.serving import http_protocol
from chatserver.transports.connections import Connection
from tests import test_isolation, test_limits, test_slow_requests, test_tickets, test_tokens
from tests.clients import SSE, Wire
from tests.conftest import Scale
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.users import guarded_server

pytestmark = [pytest.mark.anyio, pytest.mark.proof]

HANG_SECONDS = 2.5
"""When a proof that a fault makes wait for ever counts as red."""

RED = (AssertionError, TimeoutError, LookupError, ValueError)
"""How a proof says so; the last two where an answer is not even of the form that a refusal has."""

Proof: TypeAlias = Callable[[Scale], Awaitable[None]]


@pytest.fixture(autouse=True)
async def nobody_is_left() -> AsyncIterator[None]:
    """A proof that is broken off leaves its clients as they are."""
    wires, original = list[Wire](), Wire.open

    async def opened(*args: Any, **kwargs: Any) -> Wire:
        wires.append(await original(*args, **kwargs))
        return wires[-1]

    with patch.object(Wire, "open", opened):
        yield
    for wire in wires:
        wire.cut()
        with suppress(OSError):
            await wire.writer.wait_closed()


@asynccontextmanager
async def place() -> AsyncIterator[test_isolation.Place]:
    async for made in test_isolation.place.__wrapped__("asyncio"):  # type: ignore[attr-defined]
        yield made


@asynccontextmanager
async def server() -> AsyncIterator[LiveServer]:
    async with FakeUpstream() as upstream, guarded_server(upstream.url, max_requests_per_minute=100_000) as live:
        upstream.always(*say("An answer."))
        yield live


# ---- proofs ---------------------------------------------------------------------------------------------------------


async def everybody_is_refused(_: Scale) -> None:
    async with place() as at:
        await test_isolation.test_no_route_answers_without_a_good_credential(at, "GET", "/chat/sessions", "garbage")


async def foreign_is_not_found(_: Scale) -> None:
    async with place() as at:
        await test_isolation.test_what_is_somebody_elses_is_not_found_as_if_there_were_none(at, "GET", EVENTS)


async def foreign_is_not_found_by_command(_: Scale) -> None:
    async with place() as at:
        await test_isolation.test_no_command_reaches_what_is_somebody_elses(at, "attach")


EVENTS = "/chat/runs/{run_id}/events"


async def one_use(scale: Scale) -> None:
    async with server() as live:
        await test_tickets.test_of_a_thousand_uses_at_once_one_is_accepted(live, scale)


async def streams_end(_: Scale) -> None:
    await test_tokens.test_a_stream_ends_with_its_token_and_a_new_one_takes_it_up_without_loss(SSE)


async def cookies_need_an_origin(_: Scale) -> None:
    async with server() as live:
        await test_tokens.test_a_cookie_beside_a_foreign_origin_is_worth_nothing(live, "https://evil.example")


async def requests_are_counted(_: Scale) -> None:
    await test_limits.test_too_many_requests_are_refused_on_both_transports_until_the_time_to_wait_is_over()


async def floods_are_shut_off(_: Scale) -> None:
    await test_limits.test_a_flood_of_frames_of_whatever_kind_is_shut_off("pings")


async def runs_end_when_spent(_: Scale) -> None:
    await test_limits.test_a_run_that_has_spent_its_tokens_ends_with_length(SSE)


async def slow_requests_end(_: Scale) -> None:
    async with live_server(None) as live:
        with patch.object(http_protocol, "PATIENCE_SECONDS", 0.3):
            await test_slow_requests.test_a_request_that_does_not_come_is_told_so(live, None, (b"GET", b" "))


# ---- faults ---------------------------------------------------------------------------------------------------------


async def _ann(*_: Any, **__: Any) -> Identity:
    return Identity("ann")


async def _found(self: Reach, user: str, run_id: str) -> Life | None:
    return self._lives.lives.get(run_id)


def _uncounted(*_: object) -> None:
    """Nobody counts."""


async def _redeemed_again(self: LocalTickets, ticket: str) -> Identity:
    return self._tickets[ticket].identity


def _never_expires(self: Connection, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs | {"expires_at": inf})


_init = Connection.__init__


@dataclass(frozen=True)
class Case:
    fault: Callable[[], AbstractContextManager[Any]]
    proof: Proof
    hang_seconds: float = HANG_SECONDS

    def __str__(self) -> str:
        return self.proof.__name__


CASES = [
    Case(lambda: patch.object(Gate, "identify", _ann), everybody_is_refused),
    Case(lambda: patch.object(Reach, "find", _found), foreign_is_not_found),
    Case(lambda: patch.object(Reach, "find", _found), foreign_is_not_found_by_command),
    Case(lambda: patch.object(LocalTickets, "redeem", _redeemed_again), one_use),
    Case(lambda: patch.object(Connection, "__init__", _never_expires), streams_end, 5.0),
    Case(lambda: patch.object(Origins, "check", lambda *_: None), cookies_need_an_origin),
    Case(lambda: patch.object(RateLimiter, "count", _uncounted), requests_are_counted),
    Case(lambda: patch.object(TokenBucket, "draw", lambda _: 0.0), floods_are_shut_off),
    Case(lambda: patch.object(Meter, "is_spent", lambda _: False), runs_end_when_spent),
    Case(lambda: patch.object(http_protocol.HttpProtocol, "_on_timeout", lambda _: None), slow_requests_end),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_fault_turns_its_proof_red(case: Case, scale: Scale) -> None:
    red = False
    with case.fault(), anyio.move_on_after(case.hang_seconds) as patience:
        try:
            await case.proof(scale)
        except BaseExceptionGroup as group:
            red = group.split(RED)[1] is None
        except RED:
            red = True
    assert red or patience.cancelled_caught, "the proof stays green"
