"""Tickets over all nodes: issued on one, good on any, once, for as long as in one process; Redis cannot redeem them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from math import inf
from time import time

import pytest

from chatserver.auth import Identity
from chatserver.auth.tickets import TICKET_SECONDS, TICKETS_LIMIT
from chatserver.errors import TooMany, Unauthenticated, Unavailable
from chatserver.nodes.address import Address
from chatserver.nodes.link import Link, open_link
from chatserver.nodes.tickets import SharedTickets
from tests.redis_process import RedisProcess

pytestmark = pytest.mark.anyio

ANN = Identity("ann")


@pytest.fixture
async def links(redis_server: RedisProcess) -> AsyncIterator[list[Link]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_link(Address(redis_server.url))) for _ in range(3)]


@pytest.fixture
def nodes(links: list[Link]) -> list[SharedTickets]:
    return [SharedTickets(link) for link in links]


@pytest.mark.parametrize(
    "identity", [ANN, Identity("ann b: ö\u2003*"), Identity("x" * 255, time() + 1000.123456789), Identity("0", 1e18)]
)
async def test_any_node_knows_who_asked_for_a_ticket(nodes: list[SharedTickets], identity: Identity) -> None:
    issued = await nodes[0].issue(identity)
    assert issued.expires_in == TICKET_SECONDS
    assert await nodes[1].redeem(issued.ticket) == identity


async def test_of_many_uses_at_once_on_all_nodes_one_is_accepted(nodes: list[SharedTickets]) -> None:
    issued = await nodes[0].issue(ANN)
    uses = [node.redeem(issued.ticket) for _ in range(100) for node in nodes]
    outcomes = Counter(map(type, await asyncio.gather(*uses, return_exceptions=True)))
    assert outcomes == {Identity: 1, Unauthenticated: 299}


@pytest.mark.parametrize("ticket", ["", "x", "ä\0", "x" * 10_000])
async def test_what_was_never_issued_is_refused(nodes: list[SharedTickets], ticket: str) -> None:
    with pytest.raises(Unauthenticated):
        await nodes[0].redeem(ticket)


async def test_a_ticket_lasts_as_long_as_it_says_and_no_longer_than_its_credential(
    nodes: list[SharedTickets], links: list[Link]
) -> None:
    issued = await nodes[0].issue(ANN)
    (key,) = await links[0].command("KEYS", "chatserver:ticket:*")
    assert TICKET_SECONDS * 1000 - 5000 < await links[0].command("PTTL", key) <= TICKET_SECONDS * 1000
    await links[0].command("PEXPIRE", key, 0)
    late = await nodes[0].issue(Identity("ann", time() - 1))
    assert late.expires_in == 0
    for ticket in (issued.ticket, late.ticket):
        with pytest.raises(Unauthenticated):
            await nodes[1].redeem(ticket)


async def test_a_user_has_so_many_over_all_nodes_and_room_again_when_one_is_used_or_too_old(
    nodes: list[SharedTickets], links: list[Link]
) -> None:
    asked = [node.issue(ANN) for _ in range(TICKETS_LIMIT) for node in nodes]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert Counter(isinstance(each, TooMany) for each in outcomes) == {False: TICKETS_LIMIT, True: 2 * TICKETS_LIMIT}
    await nodes[0].issue(Identity("ben"))
    issued = next(each for each in outcomes if not isinstance(each, BaseException))
    await nodes[1].redeem(issued.ticket)
    await nodes[2].issue(ANN)
    with pytest.raises(TooMany):
        await nodes[0].issue(ANN)
    oldest = (await links[0].command("ZRANGE", "chatserver:tickets:ann", 0, 0))[0]
    await links[0].command("ZADD", "chatserver:tickets:ann", 1, oldest)  # It is from long ago.
    await nodes[0].issue(ANN)
    assert await links[0].command("PTTL", "chatserver:tickets:ann") > 0


async def test_nothing_in_redis_can_be_redeemed(nodes: list[SharedTickets], links: list[Link]) -> None:
    issued = await nodes[0].issue(ANN)
    keys = await links[0].command("KEYS", "*")
    held = b"\n".join([*keys, *[await links[0].command("DUMP", key) for key in keys]])
    assert issued.ticket.encode() not in held and b"ann" in held
    for word in {part for key in keys for part in key.decode().split(":")}:
        with pytest.raises(Unauthenticated):
            await nodes[0].redeem(word)


async def test_without_redis_there_are_no_tickets(
    nodes: list[SharedTickets], links: list[Link], redis_server: RedisProcess
) -> None:
    issued = await nodes[0].issue(Identity("ann", inf))
    redis_server.stop()
    try:
        with pytest.raises(Unavailable):
            await nodes[0].issue(ANN)
        with pytest.raises(Unavailable):
            await nodes[0].redeem(issued.ticket)
    finally:
        redis_server.start()
