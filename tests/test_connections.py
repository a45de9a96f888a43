"""Open connections: one way out each, kept alive by one clock. Time is virtual: it passes when nothing else can."""

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.errors import TooMany
from chatserver.limits import RateLimiter
from chatserver.transports import connections
from chatserver.transports.admission import LocalAdmissions
from chatserver.transports.connections import FLUSH_SECONDS, SLOTS_LIMIT, Connection, Connections
from chatserver.transports.peer import nobody
from tests.clients import BOTH, SSE, ClosedError, Reading, RefusedError, Transport, documents_of, types_of
from tests.fake_upstream import FakeUpstream, Gate, say
from tests.live import live_server
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

PING, EVENT = b"ping", b"event"
SLACK = 1e-6
"""Of floating-point sums."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under test tells the time as its loop does."""
    monkeypatch.setattr(connections, "monotonic", lambda: asyncio.get_running_loop().time())


class Peer:
    """The far end of a connection; it takes what is sent while its gate is open."""

    def __init__(self, *, takes: bool = True, failure: Exception | None = None) -> None:
        self.messages: list[bytes] = []
        self.times: list[float] = [anyio.current_time()]
        """Of its beginning, and of all that it took."""
        self.dropped_at: float | None = None
        self.failure = failure
        self.is_writable = True
        self.on_writable = self.on_leave = nobody
        self._takes = takes
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self._held.append(data)
        self.is_writable = self._takes
        if self._takes:
            self._take()

    def open(self) -> None:
        """Take what was held, and all that comes."""
        self._takes = self.is_writable = True
        self._take()
        self.on_writable()

    def _take(self) -> None:
        self.messages += self._held
        self.times += [anyio.current_time()] * len(self._held)
        self._held.clear()

    def abort(self) -> None:
        self.dropped_at = self.dropped_at or anyio.current_time()

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.times)]


class Spoken(Connection):
    """A connection that says what the test writes."""

    form = "test"
    drains = expiries = 0

    def writable(self) -> None:
        pass

    def left(self) -> None:
        pass

    def drain(self) -> None:
        self.drains += 1

    def expire(self) -> None:
        self.expiries += 1


def made(heartbeat: float = 15.0, send_timeout: float = 30.0) -> Connections:
    return Connections(heartbeat_seconds=heartbeat, send_timeout_seconds=send_timeout)


@contextmanager
def watched(clock: Connections, peer: Peer, ping: bytes = PING) -> Iterator[Spoken]:
    yield Spoken(peer, clock, None, ping)
    peer.on_leave()


def within(times: Sequence[float], low: float, high: float) -> bool:
    return all(low - SLACK <= each <= high + SLACK for each in times)


TIMES = [(15.0, 30.0), (15.0, 3.0), (1.0, 30.0), (0.05, 1.0), (0.2, 0.1), (60.0, 60.0), (0.001, 0.001)]

# ---- the clock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heartbeat", "send_timeout"), TIMES)
async def test_a_ping_comes_between_three_quarters_and_one_heartbeat_of_idleness(
    heartbeat: float, send_timeout: float
) -> None:
    async with made(heartbeat, send_timeout) as clock, AsyncExitStack() as stack:
        peers: list[Peer] = []
        for _ in range(100):
            peers.append(Peer())
            stack.enter_context(watched(clock, peers[-1]))
            await anyio.sleep(heartbeat / 37)
        await anyio.sleep(5 * heartbeat)
        for peer in peers:
            assert len(peer.messages) >= 5 and peer.messages == [PING] * len(peer.messages)
            assert within(peer.gaps, 0.75 * heartbeat, heartbeat)
            assert peer.dropped_at is None


@pytest.mark.parametrize(("heartbeat", "send_timeout"), TIMES)
async def test_while_events_flow_there_is_no_ping_and_afterwards_there_is(
    heartbeat: float, send_timeout: float
) -> None:
    async with made(heartbeat, send_timeout) as clock:
        peer = Peer()
        with watched(clock, peer) as connection:
            for _ in range(40):
                await anyio.sleep(0.74 * heartbeat)
                connection.write(EVENT)
            assert peer.messages == [EVENT] * 40
            await anyio.sleep(heartbeat + SLACK)
            assert peer.messages[40:] == [PING]
            assert within(peer.gaps[-1:], 0.75 * heartbeat, heartbeat)


@pytest.mark.parametrize("says", ["event", "ping"])
@pytest.mark.parametrize(("heartbeat", "send_timeout"), TIMES)
async def test_a_peer_that_takes_nothing_is_dropped_after_the_timeout_and_no_other(
    heartbeat: float, send_timeout: float, says: str
) -> None:
    interval = min(heartbeat, send_timeout) / 4
    async with made(heartbeat, send_timeout) as clock:
        stuck, slow, healthy = Peer(takes=False), Peer(takes=False), Peer()
        with (
            watched(clock, stuck) as to_stuck,
            watched(clock, slow) as to_slow,
            watched(clock, healthy),
        ):
            began = anyio.current_time()
            if says == "event":
                to_stuck.write(EVENT)
                to_slow.write(EVENT)
            await anyio.sleep(0.99 * send_timeout + (0 if says == "event" else 0.75 * heartbeat))
            assert (stuck.dropped_at, slow.dropped_at) == (None, None)
            slow.open()
            await anyio.sleep(heartbeat + 2 * send_timeout)
            assert stuck.dropped_at is not None
            late = 0 if says == "event" else heartbeat
            assert within([stuck.dropped_at - began], send_timeout, send_timeout + interval + late)
            assert (slow.dropped_at, healthy.dropped_at) == (None, None)
            assert within(healthy.gaps, 0.75 * heartbeat, heartbeat)


async def test_a_peer_that_took_long_is_not_pinged_for_what_it_missed() -> None:
    async with made() as clock:
        peer = Peer(takes=False)
        with watched(clock, peer) as connection:
            for _ in range(3):
                connection.write(EVENT)
            await anyio.sleep(29)
            peer.open()
            await anyio.sleep(11)
            assert peer.messages == [EVENT] * 3


@pytest.mark.parametrize("count", [1, 64, 5000])
async def test_pings_of_thousands_are_spread_over_time(count: int) -> None:
    """They may all have come in the same moment, as after a restart."""
    async with made() as clock, AsyncExitStack() as stack:
        peers = [Peer() for _ in range(count)]
        for peer in peers:
            stack.enter_context(watched(clock, peer))
        await anyio.sleep(15 + SLACK)
        assert all(peer.messages == [PING] for peer in peers)
        at_once = Counter(peer.times[-1] for peer in peers)
        assert max(at_once.values()) <= math.ceil(count / SLOTS_LIMIT)


@pytest.mark.parametrize("failure", [ConnectionResetError(), OSError(), RuntimeError("already completed")], ids=repr)
async def test_a_peer_that_cannot_be_pinged_is_dropped_and_the_clock_goes_on(failure: Exception) -> None:
    async with made() as clock:
        gone, there = Peer(failure=failure), Peer()
        with watched(clock, gone), watched(clock, there):
            await anyio.sleep(50)
            assert gone.dropped_at is not None
            assert within([gone.dropped_at - gone.times[0]], 0.75 * 15, 15)
            assert len(there.messages) >= 3 and within(there.gaps, 0.75 * 15, 15)


async def test_a_connection_without_a_ping_is_watched_all_the_same() -> None:
    """Plain text has no room for one."""
    async with made() as clock:
        peer = Peer(takes=False)
        with watched(clock, peer, ping=b"") as connection:
            await anyio.sleep(100)
            assert (peer.messages, peer.dropped_at) == ([], None)
            connection.write(EVENT)
            await anyio.sleep(35)
            assert peer.dropped_at is not None


async def test_one_that_has_left_is_neither_pinged_nor_dropped() -> None:
    async with made() as clock:
        idle, stuck = Peer(), Peer(takes=False)
        with watched(clock, idle), watched(clock, stuck) as connection:
            connection.write(EVENT)
            await anyio.sleep(1)
        await anyio.sleep(100)
        assert (idle.messages, idle.dropped_at, stuck.dropped_at) == ([], None, None)


# ---- one connection -------------------------------------------------------------------------------------------------


async def test_whoever_knows_that_its_user_may_not_stay_is_told_until_it_ends() -> None:
    async with made() as clock:
        peer = Peer()
        staying = Spoken(peer, clock, None, expires_at=0.0)
        await anyio.sleep(10)
        assert staying.expiries >= 4
        staying.is_open = False
        expiries = staying.expiries
        await anyio.sleep(100)
        assert staying.expiries == expiries and peer.messages == []


async def test_what_was_a_users_place_is_free_when_the_connection_is_over() -> None:
    admissions = LocalAdmissions(RateLimiter(None), 1)
    async with made() as clock:
        peer = Peer()
        Spoken(peer, clock, await admissions.admit("ann"))
        with pytest.raises(TooMany):
            await admissions.admit("ann")
        peer.on_leave()
        peer.on_leave()
        await anyio.wait_all_tasks_blocked()
        await admissions.admit("ann")


async def test_when_the_server_goes_down_those_who_come_late_are_told_too() -> None:
    async with made() as clock:
        early = Spoken(Peer(), clock, None)
        clock.drain()
        late = Spoken(Peer(), clock, None)
        assert (early.drains, late.drains) == (1, 0)
        await anyio.wait_all_tasks_blocked()
        assert (early.drains, late.drains) == (1, 1)


# ---- all of them ----------------------------------------------------------------------------------------------------


async def test_connections_are_counted_while_they_last() -> None:
    async with made() as clock:
        peers = [Peer() for _ in range(200)]
        with ExitStack() as stack:
            made_of = {stack.enter_context(watched(clock, peer)) for peer in peers}
            assert len(clock) == 200 and set(clock) == made_of
            for peer in peers:
                peer.on_leave()
        assert (len(clock), list(clock)) == (0, [])


async def test_at_the_end_each_may_take_its_last_words_and_the_rest_is_dropped() -> None:
    async with made() as clock, anyio.create_task_group() as tasks:
        leaving, staying = Peer(), Peer()

        async def leave_in_time() -> None:
            with watched(clock, leaving):
                await anyio.sleep(FLUSH_SECONDS / 2)

        tasks.start_soon(leave_in_time)
        with watched(clock, staying):
            await checkpoint()
            began = anyio.current_time()
            await clock.end_all()
            assert (leaving.dropped_at, staying.dropped_at) == (None, anyio.current_time())
            assert within([anyio.current_time() - began], FLUSH_SECONDS, FLUSH_SECONDS)
        began = anyio.current_time()
        await clock.end_all()
        assert anyio.current_time() == began


# ---- in a real server, in real time ---------------------------------------------------------------------------------

WAIT_SECONDS = 20.0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_a_user_has_no_more_than_the_limit_even_if_they_come_at_once(
    tmp_path: Path, transport: Transport
) -> None:
    gate, found = anyio.Event(), list[Reading | int | None]()
    with anyio.fail_after(WAIT_SECONDS):
        async with (
            FakeUpstream() as upstream,
            live_server(upstream.url, directory=tmp_path, max_connections_per_user=5) as server,
        ):
            upstream.always(Gate(gate), *say("Hello"))

            async def start() -> Reading | int | None:
                try:
                    return await transport.start(server, {"message": "Hi"})
                except RefusedError as refusal:
                    return refusal.status
                except ClosedError as closed:
                    return closed.code

            async def come() -> None:
                found.append(await start())

            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(come)
            readings = [each for each in found if isinstance(each, Reading)]
            refusals = [each for each in found if not isinstance(each, Reading)]
            assert (len(readings), set(refusals)) == (5, {429 if transport is SSE else 4429})
            readings.pop().cut()
            while not isinstance(another := await start(), Reading):
                pass
            gate.set()
            for reading in [*readings, another]:
                assert types_of(await documents_of(reading))[-1] == "done"
