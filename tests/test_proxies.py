"""The proxies of README, real ones with the configuration that stands there: what comes through, and how soon."""

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic

import anyio
import pytest

from tests.clients import SSE, TRANSPORTS, WS, Address, HttpReader, SseReader, Transport, documents_of, request
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import ROOT, LiveServer, live_server
from tests.merging import unmerged

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("proxies")]

WAIT_SECONDS = 30.0
EVENTS = 8
HELD_BACK_SECONDS = 0.2
"""So long the kernel keeps what a program says it will add to."""

NGINX_MAIN = """
daemon off;
pid {folder}/pid;
error_log {folder}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {config}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A proxy that listens on this address."""

    host: str
    port: int


def configured(program: str, server: LiveServer, port: int) -> str:
    """What README says, in front of this server, without TLS."""
    config: str
    (config,) = re.findall(rf"^```{program}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    for written, here in {
        "127.0.0.1:8000": f"{server.host}:{server.port}",
        "bind :443 ssl crt /etc/haproxy/chat.example.org.pem": f"bind 127.0.0.1:{port}",
        "listen 443 ssl": f"listen 127.0.0.1:{port}",
        "server_name chat.example.org;": "",
    }.items():
        config = config.replace(written, here)
    assert f"127.0.0.1:{port}" in config and f":{server.port}" in config
    return config


@asynccontextmanager
async def running(program: str, server: LiveServer, without: str = "") -> AsyncIterator[Proxy]:
    """A proxy until the end of the block; ``without`` a line of its configuration."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        proxy = Proxy("127.0.0.1", free.getsockname()[1])
    config = configured(program, server, proxy.port)
    assert without in config
    config = config.replace(without, "")
    with tempfile.TemporaryDirectory(prefix="chatserver-proxy-") as folder:
        path = Path(folder, "config")
        if program == "nginx":
            config = NGINX_MAIN.format(folder=folder, config=config)
            config = f"user root;{config}" if os.getuid() == 0 else config
        path.write_text(config)  # noqa: ASYNC240 - a kilobyte
        command = [found, "-db", "-f", str(path)] if program == "haproxy" else [found, "-p", folder, "-c", str(path)]
        async with await anyio.open_process(command, stdin=None, stdout=None, stderr=None) as process:
            try:
                await _answers(proxy)
                yield proxy
            finally:
                process.terminate()


async def _answers(proxy: Proxy) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        while True:
            try:
                if (await request(proxy, "GET", "/livez")).status == 200:
                    return
            except OSError:
                pass
            await anyio.sleep(0.02)


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[LiveServer]:
    async with FakeUpstream() as upstream, live_server(upstream.url, heartbeat_seconds=5.0) as live:
        live_upstreams[live.port] = upstream
        yield live


live_upstreams: dict[int, FakeUpstream] = {}


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
async def proxy(server: LiveServer, request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    async with running(request.param, server) as found:
        yield found


async def gap(server: LiveServer, through: Address) -> float:
    """How long an event takes, in the middle, that is said when the one before it has come."""
    gates = [anyio.Event() for _ in range(EVENTS)]
    steps = [step for number, gate in enumerate(gates) for step in (Gate(gate), token(f"{number} "))]
    live_upstreams[server.port].script(token("a "), *steps, *say("."))
    taken = list[float]()
    with anyio.fail_after(WAIT_SECONDS):
        async with await SseReader.post(through, "/chat/stream", {"message": "x"}) as reader:
            for wanted in ('"start"', '"a "'):
                event = await reader.next_event()
                assert event is not None and wanted in event.data.decode()
            for number, gate in enumerate(gates):
                began = monotonic()
                gate.set()
                event = await reader.next_event()
                taken.append(monotonic() - began)
                assert event is not None and json.loads(event.data)["content"] == f"{number} "
            while await reader.next_event():
                pass
            assert reader.events[-1].event == "done"
    return median(taken)


async def test_each_event_comes_as_soon_as_without_the_proxy(server: LiveServer, proxy: Proxy) -> None:
    direct = await gap(server, server)
    assert await gap(server, proxy) < 5 * direct + HELD_BACK_SECONDS / 2


async def test_haproxy_holds_events_back_unless_it_is_told_not_to(server: LiveServer) -> None:
    """The reason for the line in README."""
    async with running("haproxy", server, without="option http-no-delay") as proxy:
        assert await gap(server, proxy) > HELD_BACK_SECONDS * 0.8


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
async def test_a_run_is_read_on_through_the_proxy_and_beside_it(
    server: LiveServer, proxy: Proxy, transport: Transport
) -> None:
    gate = anyio.Event()
    live_upstreams[server.port].script(token("One"), Gate(gate), *say(" and two.", 3))
    with anyio.fail_after(WAIT_SECONDS):
        begun = await transport.start(proxy, {"message": "x"})
        documents = await begun.take(2)
        begun.cut()
        again = await WS.attach(proxy, begun.run_id, 1)
        beside = await SSE.attach(server, begun.run_id)
        documents += (await again.take(1))[1:]
        gate.set()
        whole = await documents_of(beside)
        rest = await documents_of(await transport.attach(proxy, begun.run_id, 2))
        assert documents + unmerged(rest, whole) == whole
        assert await documents_of(again) == whole[2:]
        late = await transport.attach(proxy, begun.run_id, len(whole) - 1)
        assert await documents_of(late) == whole[-1:]


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "text/plain"])
async def test_nginx_compresses_the_page_and_no_stream(server: LiveServer, accept: str) -> None:
    """What is compressed waits for more: no event would come before the answer's end."""
    gate, offer = anyio.Event(), {"Accept-Encoding": "gzip"}
    live_upstreams[server.port].script(token("One"), Gate(gate), *say(" and two."))
    async with running("nginx", server) as proxy:
        with anyio.fail_after(WAIT_SECONDS):
            for path in ("/", "/web/chatserver.js"):
                page = await request(proxy, "GET", path, headers=offer)
                assert (page.status, page.headers.get("content-encoding")) == (200, "gzip")
            wants = offer | {"Accept": accept}
            async with await HttpReader.post(proxy, "/chat/stream", {"message": "x"}, headers=wants) as run:
                assert run.headers["content-type"].startswith(accept) and "content-encoding" not in run.headers
                while b"One" not in run.raw:
                    await run.more()
                gate.set()
                assert b" and two." in await run.read_all()


async def test_refusals_and_pages_come_through(server: LiveServer, proxy: Proxy) -> None:
    for method, path, status in (
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/readyz", 200),
        ("GET", "/chat/runs/x", 404),
        ("POST", "/chat/stream", 400),
    ):
        assert (await request(proxy, method, path, {} if method == "POST" else None)).status == status
    own = {"Origin": f"https://127.0.0.1:{proxy.port}", "Host": f"127.0.0.1:{proxy.port}"}
    assert (await request(proxy, "GET", "/chat/sessions", headers=own)).status in (200, 403)
    foreign = {"Origin": "https://evil.example"}
    assert (await request(proxy, "GET", "/chat/sessions", headers=foreign)).status == 403


async def test_a_reader_that_leaves_the_proxy_has_left_the_server(server: LiveServer, proxy: Proxy) -> None:
    gate = anyio.Event()
    live_upstreams[server.port].script(token("One"), Gate(gate), *say(" and two.", 3))
    with anyio.fail_after(WAIT_SECONDS):
        reading = await SSE.start(proxy, {"message": "x"})
        await reading.take(2)
        run = server.runs._lives.lives[reading.run_id].run
        assert run.subscribers == 1
        reading.cut()
        while run.subscribers:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.02)
        gate.set()


async def test_haproxy_sends_nobody_to_a_server_that_drains() -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, drain_seconds=30.0) as server:
        upstream.script(token("One"), Gate(gate), *say(" and two.", 3))
        async with running("haproxy", server) as proxy:
            with anyio.fail_after(WAIT_SECONDS):
                reading = await SSE.start(proxy, {"message": "x"})
                await reading.take(2)
                server.begin_drain()
                # HAProxy's own 503: it has no server.
                while (await request(proxy, "GET", "/livez")).status != 503:  # noqa: ASYNC110 - it tells nobody
                    await anyio.sleep(0.1)
                assert (await request(server, "GET", "/livez")).status == 200
                gate.set()
                assert json.loads((await documents_of(reading))[-1])["type"] == "done"
