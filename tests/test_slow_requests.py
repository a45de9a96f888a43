"""Requests that come slowly or never end, and HTTP of another age: refused or answered, while others notice nothing."""

import json
import re
import struct
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.serving import http_protocol, lost_peers
from chatserver.serving.lost_peers import is_lost
from tests.clients import SseReader, Wire, WsReader, request
from tests.conftest import Scale
from tests.fake_upstream import FakeUpstream, Gate, say
from tests.live import LiveServer, live_server

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
LATE_SECONDS = 2.0
HEALTHY_SECONDS = 0.25
"""What the contract says: slow ones are closed within the one, healthy ones answered within the other."""

HEAD = b"POST /chat/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = b'{"message": "What is 17 * 23?"}'


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[LiveServer]:
    async with FakeUpstream() as upstream, live_server(upstream.url) as live:
        upstream.always(*say("An answer.", 3))
        yield live


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "PATIENCE_SECONDS", 0.3)


async def said(server: LiveServer, *pieces: bytes, pause: float = 0.0) -> bytes:
    """All that the server says to bytes that come with a pause before each but the first, until it closes."""
    answer = b""
    with anyio.fail_after(WAIT_SECONDS):
        wire = await Wire.open(server)

        async def speak() -> None:
            for piece in pieces:
                if wire.writer.is_closing():
                    return
                wire.write(piece)
                await anyio.sleep(pause)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speak)
            try:
                while data := await wire.read():
                    answer += data
            except ConnectionError:
                pass
            tasks.cancel_scope.cancel()
        wire.cut()
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.proof
async def test_slow_clients_are_closed_and_healthy_ones_are_not_slowed(
    server: LiveServer, scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, latencies, is_over = scale(60, 1000), list[float](), False
    patience = scale(2, int(http_protocol.PATIENCE_SECONDS))
    monkeypatch.setattr(http_protocol, "PATIENCE_SECONDS", patience)

    async def slow(*pieces: bytes) -> None:
        began = monotonic()
        await said(server, *pieces, pause=patience / 9)
        assert monotonic() - began <= patience + LATE_SECONDS

    async def healthy() -> None:
        while not is_over:
            began = monotonic()
            assert (await request(server, "GET", "/livez")).status == 200
            latencies.append(monotonic() - began)
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(healthy)
        async with anyio.create_task_group() as slow_ones:
            for _ in range(count // 3):
                slow_ones.start_soon(slow, HEAD, *[b"X-A: a\r\n"] * 30)
                slow_ones.start_soon(slow, HEAD + b"Content-Length: 1000\r\n\r\n", *[b" "] * 30)
                slow_ones.start_soon(slow, b"")
        is_over = True
    latencies.sort()
    assert latencies[int(len(latencies) * 0.9)] <= HEALTHY_SECONDS, latencies[-5:]


@pytest.mark.parametrize(
    "pieces",
    [
        (b"GET",),
        (b"GET /livez HTTP/1.1\r\nHo", b"st", b": 127"),
        (HEAD + b"Content-Length: 100\r\n\r\n", b"{", b'"'),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n", b"1\r\n"),
        (HEAD + b"Content-Length: 3000\r\nExpect: 100-continue\r\n\r\n",),
    ],
    ids=["a word", "a head", "a body", "chunks", "nothing behind 100"],
)
async def test_a_request_that_does_not_come_is_told_so(
    server: LiveServer, impatient: None, pieces: tuple[bytes, ...]
) -> None:
    answer = await said(server, *pieces, pause=0.05)
    assert statuses(answer)[-1] == 408
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["code"] == "too_slow"


async def test_who_asks_for_nothing_is_told_nothing(server: LiveServer, impatient: None) -> None:
    assert await said(server) == b""


async def test_a_slow_but_steady_body_is_taken(server: LiveServer, impatient: None) -> None:
    body = BODY + b" " * (http_protocol.PATIENCE_BYTES * 5)
    size = http_protocol.PATIENCE_BYTES // 2
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = await said(server, head, *pieces, pause=0.1)
    assert statuses(answer) == [202]


async def test_an_answer_may_take_long_and_the_next_request_too(server: LiveServer, impatient: None) -> None:
    """Patience is for requests: a stream, and whoever waits behind one on the same connection, has time."""
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url) as live:
        upstream.script(Gate(gate), *say("x"))
        with anyio.fail_after(WAIT_SECONDS):
            async with await SseReader.post(live, "/chat/stream", {"message": "x"}) as reader:
                assert await reader.next_event()
                reader.wire.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                await anyio.sleep(1.0)
                gate.set()
                while await reader.next_event():
                    pass
                assert reader.events[-1].event == "done"


async def test_a_refused_body_that_goes_on_and_on_is_cut_off_without_a_second_answer(
    server: LiveServer, impatient: None
) -> None:
    head = b"POST /chat/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 90\r\n\r\n"
    answer = await said(server, head, *[b"x"] * 30, pause=0.05)
    assert statuses(answer) == [415]


@pytest.mark.parametrize("method", [b"POST /chat/runs", b"GET /livez"])
async def test_a_body_behind_its_response_is_read_for_a_while_however_fast_it_comes(
    server: LiveServer, impatient: None, method: bytes
) -> None:
    pieces = [b"x" * http_protocol.PATIENCE_BYTES] * 40
    size = len(pieces) * http_protocol.PATIENCE_BYTES
    head = method + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % size
    close = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert len(statuses(await said(server, head, *pieces, close, pause=0.1))) == 1
    short = head.replace(b": %d" % size, b": %d" % len(pieces[0]))
    assert len(statuses(await said(server, short, pieces[0], close, pause=0.05))) == 2


async def test_a_body_behind_the_head_of_a_stream_is_read_for_a_while(impatient: None) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as live:
        upstream.script(Gate(anyio.Event()))
        run = (await request(live, "POST", "/chat/runs", {"message": "x"})).json
        head = (
            f"GET /chat/runs/{run['run_id']}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        piece = b"%x\r\n%b\r\n" % (http_protocol.PATIENCE_BYTES, b"x" * http_protocol.PATIENCE_BYTES)
        assert statuses(await said(live, head.encode(), *[piece] * 200, pause=0.1)) == [200]


async def test_a_kept_connection_may_rest_between_requests(server: LiveServer, impatient: None) -> None:
    ask = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    answer = await said(server, ask + b"\r\n", ask + b"Connection: close\r\n\r\n", pause=0.8)
    assert statuses(answer) == [200, 200]


async def test_a_websocket_may_say_nothing(server: LiveServer, impatient: None) -> None:
    async with await WsReader.connect(server) as reader:
        await anyio.sleep(0.8)
        reader.send({"type": "ping"})
        await reader.until("pong")


# ---- clients of another age -----------------------------------------------------------------------------------------


async def test_http_1_0_gets_a_stream_that_ends_with_the_connection(server: LiveServer) -> None:
    head = (
        b"POST /chat/stream HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    head, _, body = (await said(server, head % len(BODY) + BODY)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower() and b"connection: close" in head.lower()
    assert body.startswith(b"retry: 1000\nevent: start\ndata: {") and b"\nevent: done\n" in body
    assert re.search(rb"}\nid: [0-9]+\n\n$", body)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_http_1_0_gets_other_answers_by_their_length(server: LiveServer, method: bytes) -> None:
    head, _, body = (await said(server, method + b" /livez HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")).partition(b"\r\n\r\n")
    assert statuses(head) == [200] and b"content-length: " in head.lower()
    assert body == (b'{"status":"ok"}' if method == b"GET" else b"")


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("cut", [0, 1, 60, 200, -40, -5])
async def test_an_offer_of_http_2_is_ignored_and_the_body_read(server: LiveServer, cut: int) -> None:
    whole = HEAD + OFFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    close = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    pieces = [piece for piece in (whole[:cut], whole[cut:] + close) if piece]
    answer = await said(server, *pieces, pause=0.02)
    assert statuses(answer) == [202, 200]


async def test_an_offer_of_anything_is_ignored_on_every_kind_of_request(server: LiveServer) -> None:
    chunked = HEAD + b"Connection: upgrade\r\nUpgrade: foo/2\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    get = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n" + OFFER + b"\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close, Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert statuses(await said(server, chunked + get + get + last)) == [202, 200, 200, 200]
    assert statuses(await said(server, b"CONNECT a.example:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n" + OFFER + b"\r\n")) == [
        400
    ]


@pytest.mark.parametrize("behind", [b"GET /livez HTTP/1.1\r\n\r\n", b"\x81\x80\0\0\0\0", b"x" * 60_000])
async def test_nothing_may_come_behind_a_handshake_before_its_answer(server: LiveServer, behind: bytes) -> None:
    """It would be lost, and reading might pause for ever."""
    handshake = b"GET /chat/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    handshake += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert statuses(await said(server, handshake + behind)) == [400]


async def test_http_1_0_is_not_told_to_continue(server: LiveServer) -> None:
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Expect: 100-continue\r\n"
    assert statuses(await said(server, head + b"Content-Length: %d\r\n\r\n" % len(BODY), BODY)) == [202]


# ---- peers that are gone ---------------------------------------------------------------------------------------------


async def test_every_connection_asks_whether_its_peer_is_there(server: LiveServer) -> None:
    import socket

    async with await WsReader.connect(server):
        for protocol in list(server.server.server_state.connections):
            sock = protocol.transport.get_extra_info("socket")
            asked = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            asked += [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names]
            assert asked == [1, 10, 5, 3, 30_000]
            assert not is_lost(protocol.transport)


class Silent:
    """A transport whose kernel has sent something several times and heard nothing for a while, though it has data."""

    def __init__(self, retransmits: int, seconds: float) -> None:
        # linux/tcp.h: tcpi_state, then bytes up to tcpi_rto, the first of 13 numbers; the last is tcpi_last_ack_recv.
        self.info = struct.pack("=BxB5x13I", 1, retransmits, *[0] * 12, int(seconds * 1000))
        self.is_aborted = False
        self.transport = self

    def get_extra_info(self, name: str) -> "Silent":
        return self

    def getsockopt(self, *_: int) -> bytes:
        return self.info

    def lose(self) -> None:
        self.is_aborted = True

    def check_peer(self) -> None:
        pass


async def test_who_acknowledges_nothing_is_cut_off_and_who_only_reads_slowly_is_not() -> None:
    lost, busy, slow = Silent(3, 15), Silent(3, 14), Silent(0, 1000)
    peers = lost_peers.Peers()
    for peer in (lost, busy, slow):
        peers.add(peer)
    peers.check()
    assert [each.is_aborted for each in (lost, busy, slow)] == [True, False, False]


@pytest.mark.parametrize(
    ("error", "retransmits", "progress", "reason"),
    [
        (TimeoutError(), 0, (10, 20), "send_timeout"),
        (TimeoutError(), 2, (10, 20), "lost"),
        (TimeoutError(), 0, (20, 20), "lost"),
        (ConnectionResetError(), 0, (10, 20), None),
        (None, 0, (10, 20), None),
    ],
    ids=["takes nothing", "acknowledges nothing", "answers no keepalive", "has left", "was closed by us"],
)
async def test_a_peer_that_the_kernel_gives_up_is_told_from_one_that_leaves(
    error: Exception | None,
    retransmits: int,
    progress: tuple[int, int],
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lost_peers, "progress", lambda _: progress)
    transport: Any = Silent(retransmits, 1)
    assert lost_peers.reason_of(transport, error) == reason


async def test_of_thousands_of_peers_some_are_looked_at_in_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_peers, "AT_A_TIME", 2)
    peers, lost = lost_peers.Peers(), [Silent(3, 15) for _ in range(5)]
    for peer in lost:
        peers.add(peer)
    peers.check()
    seen = []
    for _ in range(3):
        seen.append(sum(each.is_aborted for each in lost))
        await checkpoint()
    assert seen == [2, 4, 5]
