"""What one socket can make the server hold: trailers, requests behind requests, answers that nobody takes."""

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import httptools
import psutil
import pytest

from chatserver.serving import http_bytes, http_protocol
from chatserver.serving.http_bytes import Unread
from chatserver.serving.http_protocol import WAITING_BYTES_LIMIT, HttpProtocol
from tests import users
from tests.clients import Wire, request
from tests.live import LiveServer, ServerProcess, live_server
from tests.test_slow_requests import said, statuses

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
READ_BYTES = 256 * 1024
"""At most so much comes in one read of asyncio's or uvloop's."""

GET = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LARGE = b"GET /schema/openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LAST = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
CHUNKED = (
    b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n%bTransfer-Encoding: chunked\r\n\r\n"
)
BODY = b"2\r\n{}\r\n0\r\n"
STRANGE = b"\r\n\r\n\r\n0\r\n\r\n\r"
"""A body that looks like the ends of heads and of bodies."""

MIXED = (
    GET,
    b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(STRANGE) + STRANGE,
    b"\r\n\r\nPUT /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(STRANGE) + STRANGE + b"\r\n0\r\n\r\n",
    b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n00\r\nTrailer: yes\r\nOther: too\r\n\r\n",
    b"POST /d HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
)


class Parsing:
    """A parser that is fed as the protocol feeds it, and knows how many messages ended within a piece."""

    def __init__(self) -> None:
        self.unread = Unread()
        self.parser = httptools.HttpRequestParser(self)
        self.left = 0
        self.ended = 0
        self.is_between = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"Content-Length":
            self.left = int(value)

    def on_message_begin(self) -> None:
        self.is_between = False

    def on_message_complete(self) -> None:
        self.ended += 1
        self.is_between = True

    def feed(self, data: bytes) -> None:
        self.unread.add(data)
        while piece := self.unread.next_piece(self.left):
            self.left -= min(self.left, len(piece))
            before = self.ended
            self.parser.feed_data(piece)
            assert self.ended <= before + 1, f"more than one message ended within {piece!r}"
            assert self.ended == before or self.is_between, f"something stands behind a message in {piece!r}"


@pytest.mark.parametrize("size", range(1, 60))
def test_no_piece_goes_beyond_the_end_of_a_message(size: int) -> None:
    parsing, wanted = Parsing(), random.Random(size)
    messages = wanted.choices(MIXED, k=40)
    data = b"".join(messages)
    for at in range(0, len(data), size):
        parsing.feed(data[at : at + size])
    assert parsing.ended == len(messages) and len(parsing.unread) == 0


# ---- trailers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[LiveServer]:
    async with users.guarded_server(None) as live:
        yield live


LONG = {
    "a line": b"A: " + b"a" * 40_000 + b"\r\n\r\n",
    "a name": b"A" * 40_000 + b": a\r\n\r\n",
    "a line without end": b"A: " + b"a" * 2_000_000,
    "lines": b"A: a\r\n" * 101 + b"\r\n",
    "lines without end": b"A: a\r\n" * 300_000,
}


def upload(path: bytes = b"/chat/runs", user: str | None = "ann") -> bytes:
    return CHUNKED % (path, f"Authorization: {users.of(user)['Authorization']}\r\n".encode() if user else b"") + BODY


@pytest.mark.parametrize("trailers", LONG.values(), ids=list(LONG))
async def test_trailers_past_the_limits_of_a_head_are_refused(server: LiveServer, trailers: bytes) -> None:
    assert statuses(await said(server, upload() + trailers)) == [431]


@pytest.mark.parametrize("trailers", LONG.values(), ids=list(LONG))
async def test_behind_a_request_that_has_its_answer_they_end_the_connection(
    server: LiveServer, trailers: bytes
) -> None:
    assert statuses(await said(server, upload(user=None), trailers, pause=0.1)) == [401]


async def test_as_many_trailers_as_headers_are_taken(server: LiveServer) -> None:
    trailers = b"A: %b\r\n" % (b"a" * 250) * http_bytes.HEADERS_LIMIT + b"\r\n"
    assert statuses(await said(server, upload() + trailers + upload() + trailers + LAST)) == [400, 400, 200]


@pytest.mark.parametrize(
    "trailer",
    [f"Authorization: {users.of('ann')['Authorization']}".encode(), b"Host: evil.example", b"Origin: http://evil"],
    ids=["authorization", "host", "origin"],
)
async def test_a_trailer_is_no_header(server: LiveServer, trailer: bytes) -> None:
    """Also where the application looks at the headers after the body has come."""
    async with anyio.create_task_group() as tasks:
        for user, status in ((None, 401), ("ann", 400)):
            whole = upload(user=user) + trailer + b"\r\n\r\n"

            async def check(data: bytes = whole, expected: int = status) -> None:
                assert statuses(await said(server, data + LAST)) == [expected, 200]

            tasks.start_soon(check)


async def test_trailers_that_trickle_are_too_slow(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "PATIENCE_SECONDS", 0.3)
    assert statuses(await said(server, upload(), *[b"A: a\r\n"] * 90, pause=0.05)) == [408]


# ---- pipelining -----------------------------------------------------------------------------------------------------


def held(server: LiveServer) -> list[HttpProtocol]:
    connections: set[Any] = server.server.server_state.connections
    return [each for each in connections if isinstance(each, HttpProtocol)]


async def until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        while not is_so():  # noqa: ASYNC110  # the transport tells nobody
            await anyio.sleep(0.001)


async def stuck(server: LiveServer) -> HttpProtocol:
    """The one connection, when the server neither reads from it nor can write to it."""
    await until(lambda: len(held(server)) == 1)
    protocol = held(server)[0]
    await until(lambda: protocol.is_read_paused and protocol.is_write_paused)
    assert not protocol.transport.is_reading()
    return protocol


async def test_who_asks_and_does_not_read_is_not_read_either() -> None:
    """One answer more than the kernel takes, one read of requests: that is all that is held; all are answered."""
    count, padded = 300, LARGE.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 200 + b"\r\n\r\n")
    async with live_server(None) as live:
        size = len((await request(live, "GET", "/schema/openapi.json")).body)
        wire = await Wire.open(live, receive_bytes=65536)
        wire.stop()
        before = live.server.server_state.total_requests
        wire.write(padded * (count - 1) + LAST)
        protocol = await stuck(live)
        begun = live.server.server_state.total_requests - before
        assert begun * size < 8 * 1024 * 1024, f"{begun} answers of {size} bytes"
        assert protocol.transport.get_write_buffer_size() < size + 2 * 65536
        assert len(protocol._decoder.unread) <= WAITING_BYTES_LIMIT + READ_BYTES
        wire.go_on()
        answers = b""
        with anyio.fail_after(WAIT_SECONDS):
            while data := await wire.read():
                answers += data
        assert answers.count(b"HTTP/1.1 200 OK") == count
        wire.cut()


async def test_requests_behind_each_other_are_answered_one_at_a_time_and_in_order() -> None:
    """Nothing of the next one is parsed before: at most one request of a connection is in flight."""
    in_flight = most = 0
    async with live_server(None) as live:
        app = live.server.config.loaded_app

        async def counting(scope: object, receive: object, send: object) -> None:
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            await app(scope, receive, send)
            in_flight -= 1

        live.server.config.loaded_app = counting
        paths = [b"/livez", b"/nowhere", b"/readyz"] * 200
        asked = [GET.replace(b"/livez", path) for path in paths]
        answer = await said(live, b"".join(asked) + LAST)
    assert statuses(answer) == [200, 404, 200] * 200 + [200] and most == 1


async def test_the_memory_of_a_process_does_not_follow_one_socket(tmp_path: Path) -> None:
    async with ServerProcess(None, tmp_path) as server:
        process = psutil.Process(server.pid)
        assert (await request(server, "GET", "/schema/openapi.json")).status == 200
        before = process.memory_info().rss

        async def pour(data: bytes, times: int) -> None:
            wire = await Wire.open(server, receive_bytes=4096)
            wire.stop()
            with anyio.move_on_after(3.0):
                for _ in range(times):
                    wire.write(data)
                    await wire.writer.drain()
            wire.reset()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pour, CHUNKED % (b"/x", b"") + b"0\r\n" + b"A: a\r\n" * 200_000, 1)
            tasks.start_soon(pour, CHUNKED % (b"/x", b"") + b"0\r\nA: " + b"a" * 16_000_000, 1)
            for _ in range(20):
                tasks.start_soon(pour, LARGE * 5_000, 20)
            tasks.start_soon(pour, GET * 5_000, 80)
            await anyio.sleep(2.5)
            grown = process.memory_info().rss - before
            assert (await request(server, "GET", "/livez")).status == 200
        assert grown < 48 * 1024 * 1024, f"{grown / 2**20:.0f} MiB more"
