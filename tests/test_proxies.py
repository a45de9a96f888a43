"""The proxies of `deploy/`: what comes through, how soon, over HTTP/2, and what a reload and a drain do to streams."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from statistics import median
from time import monotonic

import anyio
import pytest

from tests.browser import open_chromium
from tests.clients import (
    SSE,
    TRANSPORTS,
    WS,
    Address,
    BrokenError,
    Reading,
    SseReader,
    Transport,
    documents_of,
    is_terminal,
    request,
)
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import LiveServer, live_server
from tests.merging import unmerged
from tests.proxies import PROXIES, Proxy, running

pytestmark = [pytest.mark.anyio]

WAIT_SECONDS = 60.0
EVENTS = 8
HELD_BACK_SECONDS = 0.2
"""So long the kernel keeps what a program says it will add to."""

STREAMS = 9
"""More than the six connections that a browser opens to one HTTP/1.1 server."""


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[LiveServer]:
    async with FakeUpstream() as upstream, live_server(upstream.url, heartbeat_seconds=5.0) as live:
        live_upstreams[live.port] = upstream
        yield live


live_upstreams: dict[int, FakeUpstream] = {}


@pytest.fixture(scope="module", params=PROXIES)
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
    """The reason for the line in its configuration."""
    async with running("haproxy", server, change=lambda config: config.replace("option http-no-delay", "")) as proxy:
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


async def whole_through(proxy: Proxy, reading: Reading, transport: Transport) -> list[bytes]:
    """All documents of a reading, resumed behind the last one as often as its connection breaks."""
    found = [*reading.documents]
    while not (found and is_terminal(found[-1])):
        try:
            if (document := await reading.next()) is not None:
                found.append(document)
                continue
        except (BrokenError, OSError):
            pass
        reading.cut()
        reading = await transport.attach(proxy, reading.run_id, json.loads(found[-1])["seq"])
    reading.cut()
    return found


@pytest.mark.parametrize("program", PROXIES)
async def test_a_reload_in_mid_stream_loses_nothing(server: LiveServer, program: str) -> None:
    async with running(program, server) as proxy:
        gate = anyio.Event()
        readings = []
        with anyio.fail_after(WAIT_SECONDS):
            for transport in TRANSPORTS:
                live_upstreams[server.port].script(token("One"), Gate(gate), *say(" and two.", 3))
                reading = await transport.start(proxy, {"message": "x"})
                await reading.take(2)
                readings.append((reading, await SSE.attach(server, reading.run_id), transport))
                await readings[-1][1].take(2)
            await proxy.reload()
            assert (await request(proxy, "GET", "/readyz")).status == 200
            gate.set()
            for reading, beside, transport in readings:
                documents = await whole_through(proxy, reading, transport)
                await documents_of(beside)
                assert unmerged(documents, beside.documents) == beside.documents


@pytest.mark.parametrize("program", PROXIES)
async def test_who_is_new_goes_to_the_node_that_does_not_drain(program: str) -> None:
    gate = anyio.Event()
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream())
        upstream.always(token("One"), Gate(gate), *say(" and two.", 3))
        nodes = [
            await stack.enter_async_context(live_server(upstream.url, drain_seconds=WAIT_SECONDS)) for _ in range(2)
        ]
        proxy = await stack.enter_async_context(running(program, *nodes))
        with anyio.fail_after(WAIT_SECONDS):
            readings = [await SSE.start(proxy, {"message": "x"}) for _ in range(4)]
            for reading in readings:
                await reading.take(2)
            assert all(node.runs._lives.lives for node in nodes), "both nodes are used"
            nodes[0].begin_drain()
            in_a_row = 0
            while in_a_row < 20:
                in_a_row = in_a_row + 1 if (await request(proxy, "GET", "/readyz")).status == 200 else 0
            gate.set()
            for reading in readings:
                assert json.loads((await documents_of(reading))[-1])["type"] == "done"


async def test_nginx_takes_no_node_for_dead_that_refuses_a_get() -> None:
    """It would answer 502 for all nodes then, also to what they still serve: when Redis or the database is away."""
    gate = anyio.Event()
    async with (
        FakeUpstream() as upstream,
        live_server(upstream.url, drain_seconds=WAIT_SECONDS) as first,
        live_server(upstream.url, drain_seconds=WAIT_SECONDS) as second,
        running("nginx", first, second) as proxy,
    ):
        upstream.always(token("One"), Gate(gate), *say(" and two.", 3))
        readings = [await SSE.start(node, {"message": "x"}) for node in (first, second)]
        first.begin_drain()
        assert [(await request(proxy, "GET", "/readyz")).status for _ in range(10)] == [200] * 10
        second.begin_drain()
        refused = [await request(proxy, "GET", "/readyz") for _ in range(10)]
        assert {(each.status, each.body) for each in refused} == {(503, (await request(first, "GET", "/readyz")).body)}
        assert [(await request(proxy, "GET", "/livez")).status for _ in range(10)] == [200] * 10
        gate.set()
        for reading in readings:
            await documents_of(reading)


async def test_a_browser_reads_more_than_six_streams_at_a_time_over_http2(server: LiveServer) -> None:
    async with open_chromium() as browser:
        for program in PROXIES:
            gate = anyio.Event()
            upstream = live_upstreams[server.port]
            async with running(program, server, is_tls=True) as proxy:
                for _ in range(STREAMS):
                    upstream.script(token("One"), Gate(gate), *say(" and two.", 3))
                runs = [(await request(server, "POST", "/chat/runs", {"message": "x"})).json for _ in range(STREAMS)]
                context = await browser.new_context(ignore_https_errors=True)
                page = await context.new_page()
                await page.goto(f"https://127.0.0.1:{proxy.port}/readyz")
                assert await page.evaluate(OPEN_ALL, [run["run_id"] for run in runs]) == STREAMS
                assert await page.evaluate(PROTOCOLS) == ["h2"], program
                gate.set()
                assert await page.evaluate(ALL_DONE) == ["done"] * STREAMS
                assert await page.evaluate(SAY_OVER_WEBSOCKET) == "accepted", program
                await context.close()


OPEN_ALL = """async ids => {
    window.last = [];
    const opened = ids.map((id, index) => new Promise(resolve => {
        const events = new EventSource(`/chat/runs/${id}/events`);
        events.addEventListener("start", () => resolve());
        window.last.push(new Promise(end => events.addEventListener("done", () => (events.close(), end("done")))));
    }));
    await Promise.all(opened);
    return opened.length;
}"""
PROTOCOLS = "() => [...new Set(performance.getEntriesByType('navigation').map(each => each.nextHopProtocol))]"
ALL_DONE = "() => Promise.all(window.last)"
SAY_OVER_WEBSOCKET = """() => new Promise((resolve, reject) => {
    const socket = new WebSocket(`wss://${location.host}/chat/ws`);
    socket.onopen = () => socket.send(JSON.stringify({type: "send", ref: "a", message: "x"}));
    socket.onmessage = message => resolve(JSON.parse(message.data).type);
    socket.onclose = event => reject(new Error(`closed ${event.code}`));
})"""
