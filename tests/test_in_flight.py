"""Requests on their way: each takes a place of its user until its answer is taken, and none holds the server up."""

import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from chatserver.auth import Gate
from chatserver.errors import TooSlow
from chatserver.runs.runs import Runs
from chatserver.serving import lost_peers
from chatserver.serving.http_bytes import refusal_response
from tests import users
from tests.clients import HttpReader, SseReader, Wire, WsReader, request
from tests.fake_upstream import FakeUpstream, say
from tests.fake_upstream import Gate as Held
from tests.live import LiveServer, live_server
from tests.proving import Hold, held
from tests.test_slow_requests import said, statuses

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
LIMIT = 3
AS_DATA = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
PRIVATE = AS_DATA | {"cache-control": "no-store"}


def upload(user: str, size: int, path: str = "/chat/runs") -> bytes:
    """A request whose body is still coming."""
    token = users.of(user)["Authorization"]
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAuthorization: {token}\r\n"
    return f"{head}Content-Length: {size}\r\n\r\n".encode()


async def status_of(server: LiveServer, user: str, path: str = "/chat/sessions") -> int:
    return (await request(server, "GET", path, headers=users.of(user))).status


async def until(server: LiveServer, user: str, status: int) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        while await status_of(server, user) != status:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.01)


# ---- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/chat/runs", "/chat/stream"])
async def test_a_user_sends_so_many_bodies_at_a_time(path: str) -> None:
    async with users.guarded_server(None, max_connections_per_user=LIMIT) as server:
        slow = [await Wire.open(server) for _ in range(LIMIT)]
        for wire in slow:
            wire.write(upload("ann", 100, path) + b"{")
        last = await Wire.open(server)
        with anyio.fail_after(WAIT_SECONDS):
            while len(server.server.server_state.tasks) < LIMIT:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.01)
            last.write(upload("ann", 100, path) + b"{")
            assert statuses(await last.read()) == [429]
            assert await status_of(server, "ben") == 200
            slow.pop().reset()
            while len(server.server.server_state.tasks) >= LIMIT:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.01)
        answers = await said(server, upload("ann", 2, path) + b"{}GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert statuses(answers) == [400, 200]
        for wire in [*slow, last]:
            wire.reset()


async def test_bodies_of_a_user_hold_so_many_bytes_together() -> None:
    """16 of the largest: what comes beyond is refused at once, and counts no more."""
    size, held_bytes = 10_000, 9_000
    async with users.guarded_server(None, max_body_bytes=size) as server:
        wires = [await Wire.open(server) for _ in range(40)]
        answered = list[Wire]()

        async def send(wire: Wire) -> None:
            wire.write(upload("ann", size) + b" " * held_bytes)
            with anyio.move_on_after(1.0):
                assert statuses(await wire.read()) == [429]
                answered.append(wire)

        async with anyio.create_task_group() as tasks:
            for wire in wires:
                tasks.start_soon(send, wire)
        assert len(wires) - len(answered) == 16 * size // held_bytes
        for wire in wires:
            if wire not in answered:  # These are read to their end.
                wire.write(b" " * (size - held_bytes))
                assert statuses(await wire.read()) == [400]
        assert statuses(await said(server, upload("ann", 2) + b"{}" + b"GET / HTTP/1.0\r\n\r\n")) == [400, 403]
        for wire in wires:
            wire.reset()


# ---- answers that nobody reads --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Large:
    """A server with a session whose page is larger than the sockets here take."""

    server: LiveServer
    path: str

    async def unread(self) -> Wire:
        """A connection that has asked for the page and reads nothing of it."""
        wire = await Wire.open(self.server, receive_bytes=4096)
        wire.stop()
        with anyio.fail_after(WAIT_SECONDS):
            while not self.server.connections:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.001)
        for protocol in self.server.server.server_state.connections:
            protocol.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        token = users.of("ann")["Authorization"]
        wire.write(f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {token}\r\n\r\n".encode())
        return wire


@pytest.fixture(params=[30_000, 300_000], ids=["in one write", "in many"])
async def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Large]:
    monkeypatch.setattr(lost_peers, "watch", lambda *_: None)  # The kernel would cut it off too, a little later.
    settings = {"max_message_bytes": 400_000, "send_timeout_seconds": 0.5, "max_connections_per_user": 1}
    async with FakeUpstream() as upstream, users.guarded_server(upstream.url, **settings) as server:
        upstream.always(*say("x"))
        reader = await SseReader.post(
            server, "/chat/stream", {"message": "y" * request.param, "session_id": "large"}, users.of("ann")
        )
        await reader.read_all()
        reader.cut()
        with anyio.fail_after(WAIT_SECONDS):
            while server.connections:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.001)
        yield Large(server, "/chat/sessions/large")


async def test_an_answer_that_nobody_reads_takes_a_place_and_is_cut_off(large: Large) -> None:
    wire = await large.unread()
    await until(large.server, "ann", 429)
    assert await status_of(large.server, "ben") == 200
    with anyio.fail_after(WAIT_SECONDS):
        while large.server.connections:  # noqa: ASYNC110 - as above
            await anyio.sleep(0.01)
    assert await status_of(large.server, "ann") == 200
    wire.reset()


async def test_an_answer_that_is_read_slowly_comes_whole(large: Large) -> None:
    """Each piece has the whole time, and the connection is used again."""
    wire, whole = await large.unread(), b""
    await until(large.server, "ann", 429)
    wire.go_on()
    with anyio.fail_after(WAIT_SECONDS):
        while not whole.endswith(b"}"):
            whole += await wire.read()
            await anyio.sleep(0.002)
        document = json.loads(whole.partition(b"\r\n\r\n")[2])
        assert [each["role"] for each in document["messages"]] == ["user", "assistant"]
        wire.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert statuses(await wire.read()) == [200]
    wire.cut()


# ---- what is said of answers ----------------------------------------------------------------------------------------


async def test_no_answer_of_a_user_is_kept_by_anybody() -> None:
    async with FakeUpstream() as upstream, users.guarded_server(upstream.url) as server:
        upstream.always(*say("x"))
        run = (await request(server, "POST", "/chat/runs", {"message": "x"}, users.of("ann"))).json
        for accept in ("text/event-stream", "application/x-ndjson", "text/plain"):
            path = f"/chat/runs/{run['run_id']}/events"
            found = (await request(server, "GET", path, headers=users.of("ann") | {"Accept": accept})).headers
            assert found["content-type"].startswith(accept)
            assert {name: found.get(name) for name in AS_DATA} == AS_DATA, accept
        for method, path in (
            ("POST", "/chat/runs"),
            ("GET", f"/chat/runs/{run['run_id']}"),
            ("HEAD", f"/chat/runs/{run['run_id']}"),
            ("GET", f"/chat/runs/{run['run_id']}/events?after=99"),
            ("POST", f"/chat/runs/{run['run_id']}/cancel"),
            ("GET", "/chat/sessions"),
            ("GET", f"/chat/sessions/{run['session_id']}"),
            ("PATCH", f"/chat/sessions/{run['session_id']}"),
            ("DELETE", f"/chat/sessions/{run['session_id']}"),
            ("POST", "/chat/tickets"),
            ("GET", "/nowhere"),
            ("GET", "/readyz"),
            ("GET", "/schema"),
        ):
            for headers in (users.of("ann"), {}, {"Host": "evil.example"}):
                found = (await request(server, method, path, headers=headers)).headers
                assert {name: found.get(name) for name in PRIVATE} == PRIVATE, (method, path, headers)
    head = refusal_response(TooSlow()).partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    assert {f"{name}: {value}" for name, value in PRIVATE.items()} <= set(head)


# ---- late for a drain -----------------------------------------------------------------------------------------------


async def drained_while(server: LiveServer, hold: Hold, come: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Begin the drain while the server holds whoever comes, and only then let them in."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(come)
        await hold.come.wait()
        server.begin_drain()
        while not server.runs.is_draining:
            await anyio.lowlevel.checkpoint()
        hold.let.set()


async def test_a_stream_that_comes_while_the_server_drains_is_told_too() -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, drain_seconds=10.0) as server:
        upstream.script(Held(gate), *say("x"))
        first = await SseReader.post(server, "/chat/stream", {"message": "x"})
        start = await first.next_event()
        assert start is not None
        with anyio.fail_after(WAIT_SECONDS):
            with held(Runs, "subscribe", done=True) as hold:
                path = f"/chat/runs/{json.loads(start.data)['run_id']}/events"
                late = list[HttpReader]()

                async def attach() -> None:
                    late.append(await SseReader.get(server, path))

                await drained_while(server, hold, attach)
            gate.set()
            for reader in (first, late[0]):
                await reader.read_all()
                assert bytes(reader.raw).splitlines()[-1].startswith(b"retry: ")
                assert b'"type":"done"' in reader.raw


async def test_a_websocket_in_mid_handshake_while_the_server_drains_is_told_too() -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, drain_seconds=10.0) as server:
        upstream.script(Held(gate), *say("x"))
        first = await SseReader.post(server, "/chat/stream", {"message": "x"})
        await first.next_event()
        with anyio.fail_after(WAIT_SECONDS), held(Gate, "identify", done=True) as hold:

            async def shake_hands() -> None:
                assert (await (await WsReader.connect(server)).closing()).code == 1012

            await drained_while(server, hold, shake_hands)
        gate.set()
        await first.read_all()
