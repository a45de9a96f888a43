"""The HTTP transport under the SDK: every framing of a body, every end of a connection, on both event loops."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import httpx2
import pytest

from chatserver.dialogue import UserMessage
from chatserver.events import Token
from chatserver.providers import Delta, ModelRequest
from chatserver.providers.provider import OpenAIProvider
from chatserver.upstream import connection, transport
from chatserver.upstream.connection import RESPONSE_HEAD_BYTES_LIMIT, UNREAD_BYTES_LIMIT, UpstreamConnection
from chatserver.upstream.transport import BODY, HttpClient
from tests.fake_upstream import FakeUpstream, Hang, token
from tests.tcp_server import Serve, tcp_server

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n2;why=not\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: late\r\n\r\n"

ENDED = {
    "length": WHOLE,
    "nothing": OK + b"Content-Length: 0\r\n\r\n",
    "chunked": CHUNKED,
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + WHOLE,
    "no content": b"HTTP/1.1 204 No Content\r\nContent-Type: text/plain\r\n\r\n",
    "old with a length": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
}
CLOSED = {"close": OK + b"\r\nhello", "old": b"HTTP/1.0 200 OK\r\n\r\nhello"}
CUT = {
    "length": OK + b"Content-Length: 6\r\n\r\nhello",
    "chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n6\r\nhello",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "head": OK + b"Content-Le",
    "nothing at all": b"",
    "interim only": b"HTTP/1.1 100 Continue\r\n\r\n",
}
NO_HTTP = {
    "words": b"SSH-2.0-OpenSSH\r\n",
    "both framings": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "no chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nnope\r\n",
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello",
    "head without end": OK + b"X: " + b"x" * RESPONSE_HEAD_BYTES_LIMIT,
}


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, no_certificates: None) -> None:
    """No proxy, and no certificates but those that a test names."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def saying(data: bytes, requests: list[bytes] | None = None, then_close: bool = False) -> Serve:
    """Answer every request with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if requests is not None:
                requests.append(head)
            writer.write(data)
            await writer.drain()
            if then_close:
                return

    return serve


@asynccontextmanager
async def client_for(**options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    async with HttpClient(timeout=options.pop("timeout", 5), **options) as client:
        yield client


class NoSocket(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        self.is_open = False

    def is_closing(self) -> bool:
        return not self.is_open


async def heard(parts: list[bytes], closes: bool) -> tuple[int, bytes]:
    """Status and body of a response that comes in these parts."""
    connection = UpstreamConnection()
    connection.connection_made(NoSocket())
    body = bytearray()
    async with asyncio.TaskGroup() as tasks:
        exchange = tasks.create_task(connection.exchange(b"", None))
        await asyncio.sleep(0)
        for part in parts:
            connection.data_received(part)
        if closes:
            connection.connection_lost(None)
    with suppress(StopAsyncIteration):
        while True:
            body += await connection.read()
    return exchange.result()[0], bytes(body)


@pytest.mark.parametrize("name", [*ENDED, *CLOSED])
async def test_a_response_may_come_in_any_two_pieces(name: str) -> None:
    data = ENDED.get(name) or CLOSED[name]
    whole = await heard([data], name in CLOSED)
    assert whole == (int(data.rpartition(b"HTTP/1.")[2][2:5]), b"hello" if b"hello" in data or b"llo" in data else b"")
    for at in range(1, len(data)):
        assert await heard([data[:at], data[at:]], name in CLOSED) == whole
    assert await heard([data[at : at + 1] for at in range(len(data))], name in CLOSED) == whole


@pytest.mark.parametrize("name", CUT)
async def test_a_response_that_is_cut_off_is_an_error(name: str) -> None:
    async with tcp_server(saying(CUT[name], then_close=True)) as port, client_for() as client:
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            await client.get(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("name", NO_HTTP)
async def test_what_is_no_http_is_an_error(name: str) -> None:
    async with tcp_server(saying(NO_HTTP[name])) as port, client_for() as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(f"http://127.0.0.1:{port}/")


async def test_a_header_cannot_begin_another_one() -> None:
    requests: list[bytes] = []
    async with tcp_server(saying(WHOLE, requests)) as port, client_for() as client:
        with pytest.raises(httpx2.LocalProtocolError):
            await client.get(f"http://127.0.0.1:{port}/", headers=[(b"Authorization", b"key\r\nX-Other: 1")])
    assert requests == []


# ---- keepalive ------------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again() -> None:
    made, requests = 0, list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        await saying(CHUNKED, requests)(reader, writer)

    async with tcp_server(serve) as port, client_for() as client:
        for _ in range(5):
            assert (await client.get(f"http://127.0.0.1:{port}/a%20b?c")).content == b"hello"
    assert made == 1
    assert [head.split(b"\r\n")[0] for head in requests] == [b"GET /a%20b?c HTTP/1.1"] * 5


@pytest.mark.parametrize(
    "reply", [OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", WHOLE + b"HTTP/1.1 200 unasked\r\n"]
)
async def test_a_connection_that_will_not_last_is_not_used_again(reply: bytes) -> None:
    made = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        await saying(reply)(reader, writer)

    async with tcp_server(serve) as port, client_for() as client:
        for _ in range(3):
            assert (await client.get(f"http://127.0.0.1:{port}/")).content == b"hello"
    assert made == 3


async def test_a_connection_that_the_server_has_closed_meanwhile_fails_nobody() -> None:
    gone = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(WHOLE, then_close=True)(reader, writer)
        writer.close()
        await writer.wait_closed()
        gone.release()

    async with tcp_server(serve) as port, client_for() as client:
        for _ in range(20):
            assert (await client.get(f"http://127.0.0.1:{port}/")).content == b"hello"
            await gone.acquire()
            await anyio.wait_all_tasks_blocked()


async def test_a_connection_rests_for_a_while_and_is_then_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEEPALIVE_SECONDS", 0.05)
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await saying(WHOLE)(reader, writer)
        finally:
            left.set()

    async with tcp_server(serve) as port, client_for() as client:
        await client.get(f"http://127.0.0.1:{port}/")
        with anyio.fail_after(5):
            await left.wait()


# ---- a body that is poured out --------------------------------------------------------------------------------------


async def opened(headers: bytes = b"") -> UpstreamConnection:
    """A connection that is at a body, without end if the headers tell none."""
    connection = UpstreamConnection()
    connection.connection_made(NoSocket())
    exchange = asyncio.ensure_future(connection.exchange(b"", 5))
    await asyncio.sleep(0)
    connection.data_received(OK + headers + b"\r\n")
    await exchange
    return connection


def never() -> float:
    return asyncio.get_running_loop().time() + 60


async def test_what_comes_is_poured_out_part_by_part_within_the_callback_of_the_socket() -> None:
    connection, parts = await opened(b"Transfer-Encoding: chunked\r\n"), list[bytes]()

    def sink(part: bytes) -> bool:
        parts.append(part)
        return False

    connection.data_received(b"6\r\nbefore\r\n")
    pouring = asyncio.ensure_future(connection.pour(sink, never))
    await asyncio.sleep(0)
    assert parts == [b"before"]
    connection.data_received(b"3\r\none\r\n3\r\ntwo\r\n")
    assert parts[1:] == [b"onetwo"], "once for all that came together"
    connection.data_received(b"x" * (UNREAD_BYTES_LIMIT + 1) + b"\r\n")
    await asyncio.wait([pouring])
    assert isinstance(pouring.exception(), httpx2.RemoteProtocolError)


@pytest.mark.parametrize("end", [b"0\r\n\r\n", None], ids=["in mid body", "at the end"])
async def test_what_a_sink_raises_closes_the_connection_and_comes_out(end: bytes | None) -> None:
    connection, raised = await opened(b"Content-Length: 2\r\n"), ValueError("no more")

    def sink(_: bytes) -> bool:
        raise raised

    pouring = asyncio.ensure_future(connection.pour(sink, never))
    await asyncio.sleep(0)
    connection.data_received(b"l" if end else b"lo")
    await asyncio.wait([pouring])
    assert pouring.exception() is raised and not connection.is_reusable


async def test_a_long_part_is_poured_out_whole_and_the_peer_may_go_on() -> None:
    connection, size = await opened(), 0

    def sink(part: bytes) -> bool:
        nonlocal size
        size += len(part)
        return False

    connection.data_received(b"x" * (UNREAD_BYTES_LIMIT + 1))
    is_paused = [connection._is_paused]
    pouring = asyncio.ensure_future(connection.pour(sink, never))
    await asyncio.sleep(0)
    is_paused.append(connection._is_paused)
    connection.data_received(b"x" * 2 * UNREAD_BYTES_LIMIT)
    is_paused.append(connection._is_paused)
    assert (size, is_paused) == (3 * UNREAD_BYTES_LIMIT + 1, [True, False, False])
    pouring.cancel()


async def test_a_deadline_that_moves_on_is_waited_for_and_one_that_comes_nearer_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, clock = await opened(), Clock()
    monkeypatch.setattr(connection, "_loop", clock)
    until, is_nearer = clock.now + 5, False

    def deadline() -> float:
        return until

    pouring = asyncio.ensure_future(connection.pour(lambda _: is_nearer, deadline))
    await asyncio.sleep(0)
    for _ in range(5):
        clock.now += 4
        connection.data_received(b"still here")
        until = clock.now + 5
        connection._check_deadline(deadline)
        assert not pouring.done() and clock.due[-1] == until
    until, is_nearer = clock.now + 1, True
    connection.data_received(b"the end is near")
    await asyncio.sleep(0)
    assert clock.due[-1] == until
    clock.now += 1
    connection._check_deadline(deadline)
    with pytest.raises(httpx2.ReadTimeout):
        await pouring


class Clock:
    """A loop whose time a test sets, and whose timers a test calls."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time()
        self.create_future = asyncio.get_running_loop().create_future
        self.due: list[float] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., None], *args: Any) -> asyncio.Handle:
        self.due.append(when)
        return asyncio.Handle(callback, args, asyncio.get_running_loop())


# ---- silence, leaving, haste ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", OK, OK + b"Content-Length: 9\r\n\r\nhello"])
async def test_silence_is_a_read_timeout(said: bytes) -> None:
    began = monotonic()
    async with tcp_server(saying(said)) as port, client_for(timeout=0.2) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(f"http://127.0.0.1:{port}/")
    assert 0.2 <= monotonic() - began < 2


async def test_the_time_that_the_reader_takes_is_no_silence() -> None:
    async with (
        tcp_server(saying(WHOLE)) as port,
        client_for(timeout=0.1) as client,
        client.stream("GET", f"http://127.0.0.1:{port}/") as response,
    ):
        await anyio.sleep(0.3)
        assert await response.aread() == b"hello"


async def test_leaving_closes_the_socket_at_once() -> None:
    """200 turns left in mid answer, each seen by the upstream within a second, however it was left."""
    request = ModelRequest(model="m", messages=[UserMessage("Hi")])
    async with FakeUpstream() as upstream:
        upstream.always(token("Hi"), Hang())
        async with OpenAIProvider(api_key="k", base_url=upstream.url, idle_seconds=60) as provider:
            for turn in range(200):
                found: list[Delta] = []
                with anyio.CancelScope() as scope:

                    def on_delta(delta: Delta) -> None:
                        found.append(delta)  # noqa: B023 - called before the loop goes on
                        if turn % 2:  # noqa: B023
                            raise LookupError
                        scope.cancel()

                    with suppress(LookupError):
                        await provider.stream(request, on_delta)
                assert found == [Token(content="Hi")]
                left_at = monotonic()
                replies = await upstream.closed(turn + 1)
                closed_at = replies[turn].closed_at
                assert closed_at is not None
                assert closed_at - left_at < 1


async def test_leaving_before_the_head_closes_the_socket_too() -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client has gone
        left.set()

    async with tcp_server(serve) as port, client_for() as client:
        with anyio.move_on_after(0.1):
            await client.get(f"http://127.0.0.1:{port}/")
        with anyio.fail_after(1):
            await left.wait()


async def test_a_slow_reader_makes_the_server_wait() -> None:
    total, piece, sent = 64 * 1024 * 1024, b"x" * 65536, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % total)
        for _ in range(total // len(piece)):
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    read, largest = 0, 0
    async with (
        tcp_server(serve) as port,
        client_for() as client,
        client.stream("GET", f"http://127.0.0.1:{port}/") as response,
    ):
        await anyio.sleep(0.5)
        assert sent < total / 2  # What the kernel's two socket buffers hold, and 1 MiB of ours at most.
        async for data in response.extensions[BODY]:
            read, largest = read + len(data), max(largest, len(data))
    assert read == total
    assert largest <= 1024 * 1024


# ---- the way to the server ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost", "-days", "2"),
            *("-out", paths[0], "-keyout", paths[1]),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return paths


@asynccontextmanager
async def serving_tls(certificate: tuple[Path, Path], data: bytes = CHUNKED) -> AsyncIterator[int]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    async with tcp_server(saying(data), tls) as port:
        yield port


async def test_tls_with_a_certificate_that_the_environment_trusts(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with serving_tls(certificate) as port, client_for() as client:
        for _ in range(2):
            assert (await client.get(f"https://localhost:{port}/")).content == b"hello"
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"https://127.0.0.1:{port}/")  # Not the name in the certificate.


async def test_tls_with_a_certificate_that_nobody_trusts(certificate: tuple[Path, Path]) -> None:
    async with serving_tls(certificate) as port, client_for() as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"https://localhost:{port}/")


async def test_without_tls_nothing_is_sent_to_an_https_server(certificate: tuple[Path, Path]) -> None:
    async with serving_tls(certificate) as port, client_for(has_tls=False) as client:
        with pytest.raises(httpx2.UnsupportedProtocol):
            await client.get(f"https://localhost:{port}/")


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    async with tcp_server(saying(WHOLE, asked)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy}")
        async with client_for() as client:
            assert (await client.get("http://model.invalid/v1")).content == b"hello"
    assert [head.split(b"\r\n")[0] for head in asked] == [b"GET http://model.invalid/v1 HTTP/1.1"]


async def test_no_proxy_means_the_lean_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with tcp_server(saying(WHOLE)) as port, client_for() as client:
        response = await client.get(f"http://127.0.0.1:{port}/")
        assert response.content == b"hello"
        assert BODY in response.extensions


async def test_a_refused_connection_is_a_connect_error() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with client_for() as client:
            with pytest.raises(httpx2.ConnectError):
                await client.get(f"http://127.0.0.1:{bound.getsockname()[1]}/")


async def test_a_name_without_address_is_a_connect_error() -> None:
    async with client_for() as client:
        for host in ("model.invalid", "x" * 70 + ".invalid"):
            with pytest.raises(httpx2.ConnectError):
                await client.get(f"http://{host}/")


async def test_an_address_that_is_dead_does_not_hide_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 refuses, 127.0.0.3 never answers, since its backlog is full; 127.0.0.1 is the server."""

    async def addresses(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.3", "127.0.0.1"]

    monkeypatch.setattr(connection, "addresses", addresses)
    async with tcp_server(saying(WHOLE)) as port, client_for() as client:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.3", port))
            deaf.listen(0)
            callers = [socket.socket() for _ in range(3)]
            for caller in callers:
                caller.setblocking(False)
                caller.connect_ex(("127.0.0.3", port))
            began = monotonic()
            assert (await client.get(f"http://model.test:{port}/")).content == b"hello"
            assert monotonic() - began < 2
            for caller in callers:
                caller.close()


async def test_a_host_that_never_answers_is_a_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def addresses(host: str, port: int) -> list[str]:
        await anyio.sleep_forever()
        return []

    monkeypatch.setattr(connection, "addresses", addresses)
    async with client_for(timeout=httpx2.Timeout(5, connect=0.1)) as client:
        with pytest.raises(httpx2.ConnectTimeout):
            await client.get("http://model.test/")
