"""Open connections: one way out each, kept alive by one clock. Time is virtual: it passes when nothing else can."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.transports import connections
from chatserver.transports.connections import FLUSH_SECONDS, SLOTS_LIMIT, Connection, Connections, KeepAlive, Message
from tests.clients import BOTH, SSE, ClosedError, Reading, RefusedError, Transport, documents_of, types_of
from tests.fake_upstream import FakeUpstream, Gate, say
from tests.live import live_server
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

PING = {"type": "ping"}
EVENT = {"type": "event"}
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

    def __init__(self, *, takes: bool = True, failure: Exception | None = None, ping: Message | None = PING) -> None:
        self.messages: list[Message] = []
        self.times: list[float] = [anyio.current_time()]
        """Of its beginning, and of all that it took."""
        self.dropped_at: float | None = None
        self.drains = 0
        self.failure = failure
        self.gate = anyio.Event()
        self._sending = 0
        keep_alive = KeepAlive(ping, b"") if ping is not None else None
        self.connection = Connection(self._send, keep_alive, drop=self._drop, drain=self._drain)
        if takes:
            self.gate.set()

    async def _send(self, message: Message) -> None:
        self._sending += 1
        assert self._sending == 1, "two messages at a time"
        try:
            if self.failure is not None:
                raise self.failure
            await self.gate.wait()
        finally:
            self._sending -= 1
        self.messages.append(message)
        self.times.append(anyio.current_time())

    def _drop(self) -> None:
        self.dropped_at = self.dropped_at or anyio.current_time()

    def _drain(self) -> None:
        self.drains += 1

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.times)]


def made(heartbeat: float = 15.0, send_timeout: float = 30.0) -> Connections:
    return Connections(heartbeat_seconds=heartbeat, send_timeout_seconds=send_timeout)


def watched(clock: Connections, peer: Peer) -> AbstractContextManager[None]:
    return clock.watched(peer.connection)


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
        with watched(clock, peer):
            for _ in range(40):
                await anyio.sleep(0.74 * heartbeat)
                await peer.connection.write(EVENT)
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
    async with made(heartbeat, send_timeout) as clock, anyio.create_task_group() as tasks:
        stuck, slow, healthy = Peer(takes=False), Peer(takes=False), Peer()
        with (
            watched(clock, stuck),
            watched(clock, slow),
            watched(clock, healthy),
        ):
            began = anyio.current_time()
            if says == "event":
                tasks.start_soon(stuck.connection.write, EVENT)
                tasks.start_soon(slow.connection.write, EVENT)
            await anyio.sleep(0.99 * send_timeout + (0 if says == "event" else 0.75 * heartbeat))
            assert (stuck.dropped_at, slow.dropped_at) == (None, None)
            slow.gate.set()
            await anyio.sleep(heartbeat + 2 * send_timeout)
            assert stuck.dropped_at is not None
            late = 0 if says == "event" else heartbeat
            assert within([stuck.dropped_at - began], send_timeout, send_timeout + interval + late)
            assert (slow.dropped_at, healthy.dropped_at) == (None, None)
            assert within(healthy.gaps, 0.75 * heartbeat, heartbeat)
        tasks.cancel_scope.cancel()


async def test_a_peer_that_took_long_is_not_pinged_for_what_it_missed() -> None:
    async with made() as clock, anyio.create_task_group() as tasks:
        peer = Peer(takes=False)
        with watched(clock, peer):
            for _ in range(3):
                tasks.start_soon(peer.connection.write, EVENT)
            await anyio.sleep(29)
            peer.gate.set()
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
    async with made() as clock, anyio.create_task_group() as tasks:
        peer = Peer(takes=False, ping=None)
        with watched(clock, peer):
            await anyio.sleep(100)
            assert (peer.messages, peer.dropped_at) == ([], None)
            tasks.start_soon(peer.connection.write, EVENT)
            await anyio.sleep(35)
            assert peer.dropped_at is not None
        tasks.cancel_scope.cancel()


async def test_one_that_has_left_is_neither_pinged_nor_dropped() -> None:
    async with made() as clock, anyio.create_task_group() as tasks:
        idle, stuck = Peer(), Peer(takes=False)
        with watched(clock, idle), watched(clock, stuck):
            tasks.start_soon(stuck.connection.write, EVENT)
            await anyio.sleep(1)
        await anyio.sleep(100)
        assert (idle.messages, idle.dropped_at, stuck.dropped_at) == ([], None, None)
        tasks.cancel_scope.cancel()


# ---- one connection -------------------------------------------------------------------------------------------------


async def test_messages_go_out_in_the_order_of_their_writes() -> None:
    peer = Peer(takes=False)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(peer.connection.write, {"number": number})
            await checkpoint()
        assert peer.messages == []
        peer.gate.set()
    assert [each["number"] for each in peer.messages] == list(range(20))


@pytest.mark.parametrize("cancelled", [0, 1, 2], ids=["the one being sent", "the next", "the last"])
async def test_a_cancelled_write_is_not_sent_and_those_behind_it_are(cancelled: int) -> None:
    peer = Peer(takes=False)
    scopes = [anyio.CancelScope() for _ in range(3)]

    async def write(number: int) -> None:
        with scopes[number]:
            await peer.connection.write({"number": number})

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(write, number)
        await anyio.wait_all_tasks_blocked()
        scopes[cancelled].cancel()
        await anyio.wait_all_tasks_blocked()
        assert peer.connection.writing_since is not None
        peer.gate.set()
    assert [each["number"] for each in peer.messages] == [each for each in range(3) if each != cancelled]
    assert peer.connection.writing_since is None


async def test_a_failed_write_raises_and_leaves_the_way_free() -> None:
    peer = Peer(failure=ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await peer.connection.write(EVENT)
    assert peer.connection.writing_since is None
    peer.failure = None
    await peer.connection.write(EVENT)
    assert peer.messages == [EVENT]


# ---- all of them ----------------------------------------------------------------------------------------------------


async def test_connections_are_counted_while_they_last() -> None:
    async with made() as clock:
        peers = [Peer() for _ in range(200)]
        with suppress(ZeroDivisionError), ExitStack() as stack:
            for peer in peers:
                stack.enter_context(watched(clock, peer))
            assert len(clock) == 200
            assert set(clock) == {peer.connection for peer in peers}
            raise ZeroDivisionError
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
