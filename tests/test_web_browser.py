"""The browser client in Chromium, through all that happens to pages: what the page shows is what the server stored."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.chaos import Chaos, cuts
from tests.conftest import Scale
from tests.fake_upstream import Act, Done, FakeUpstream, Gate, Reply, Step, finish, role, token
from tests.live import ServerProcess
from tests.proving import seeded
from tests.web_client import CLIENT, HEARTBEAT_SECONDS, TOOLS, check_answers, get, harmed, long_answer

pytestmark = pytest.mark.proof

SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic"),
    *("--disable-component-update", "--disable-sync", "--disable-background-timer-throttling"),
)
PAGE = "page.html"
BEFORE, AFTER = 12, 30
"""Tokens of an answer before and behind its gate."""

PATIENCE_SECONDS = 40.0
"""How long a test may take before it counts as a hang."""

each_transport = pytest.mark.parametrize("transport", ["sse", "ws"])


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """One browser for all tests here; each has a profile of its own."""
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=binary, args=SWITCHES, ignore_default_args=["--disable-back-forward-cache"]
        )
        yield browser
        await browser.close()


def files(client: Path = CLIENT) -> dict[str, bytes]:
    return {
        PAGE: (TOOLS / PAGE).read_bytes(),
        "chatserver.js": client.read_bytes(),
        "other.html": b"<!doctype html><title>elsewhere</title>",
    }


def halves(gate: asyncio.Event) -> Act:
    """An answer that waits in its middle until the gate opens."""

    def steps(reply: Reply) -> list[Step]:
        words = [token(f"{number} ") for number in range(BEFORE + AFTER)]
        return [role(), *words[:BEFORE], Gate(gate), *words[BEFORE:], finish(), Done()]

    return steps


@asynccontextmanager
async def open_page(
    browser: Browser, chaos: Chaos, patience_seconds: float = PATIENCE_SECONDS, **options: Any
) -> AsyncIterator[Page]:
    """The test page, in a profile of its own."""
    context = await browser.new_context()
    try:
        with anyio.fail_after(patience_seconds):
            yield await new_tab(context, chaos, **options)
    finally:
        with anyio.CancelScope(shield=True):
            await context.close()


async def new_tab(context: BrowserContext, chaos: Chaos, **options: Any) -> Page:
    page = await context.new_page()
    options |= {"heartbeatMs": HEARTBEAT_SECONDS * 1000}
    await page.goto(f"{chaos.url}/web/{PAGE}#{quote(json.dumps(options))}")
    await is_ready(page)
    return page


async def is_ready(page: Page) -> None:
    await page.wait_for_function("window.isReady")


async def shows(page: Page, word: int) -> None:
    """Wait until the page shows a word of the answer."""
    await page.wait_for_function(f"document.getElementById('answer').textContent.includes('{word} ')")


async def ask(page: Page, message: str = "tell me", **request: Any) -> None:
    """Begin an answer, and see that it has come to its gate."""
    await page.evaluate("([message, request]) => void ask(message, request)", [message, request])
    await shows(page, BEFORE - 1)


async def finished(page: Page) -> dict[str, Any]:
    """The answer when it is complete, as it was put together and as the page shows it."""
    answer: dict[str, Any] = await page.evaluate("finished")
    assert await page.text_content("#answer") == answer["text"]
    return answer


async def check_page(page: Page, chaos: Chaos, posts: int = 1) -> dict[str, Any]:
    """The page shows what the server has, and asked for it once."""
    answer = await finished(page)
    assert answer["error"] is None, answer["error"]
    run = await get(chaos.server, f"/chat/runs/{answer['id']}")
    (_, stored) = (await get(chaos.server, f"/chat/sessions/{run['session_id']}"))["messages"]
    assert answer["text"] == stored["content"] == "".join(f"{number} " for number in range(BEFORE + AFTER))
    assert answer["events"] == answer["seq"] == run["last_seq"]
    assert sum(each.startswith("POST /chat/stream") for each in chaos.requests) <= posts, chaos.requests
    return answer


# ---- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("transport", "hops"), [("sse", 0), ("ws", 0), ("sse", 37)])
async def test_the_page_shows_the_answer_through_cuts(
    chromium: Browser, transport: str, hops: int, scale: Scale
) -> None:
    act = long_answer(scale(150, 500))
    async with harmed(act, files()) as chaos, open_page(chromium, chaos, scale(40, 900), transport=transport) as page:
        chaos.faults, read = cuts(seeded()), list[Any]()
        while chaos.cuts.total() < scale(10, 170):
            await page.evaluate("hops => void ask('tell me', {}, {hops, keep: false})", hops)
            read.append(await finished(page))
            await check_answers(chaos.server, read)


# ---- what happens to pages ------------------------------------------------------------------------------------------


@each_transport
async def test_a_device_without_a_network_comes_back(chromium: Browser, transport: str) -> None:
    gate = asyncio.Event()
    async with harmed(halves(gate), files()) as chaos, open_page(chromium, chaos, transport=transport) as page:
        await ask(page)
        await page.context.set_offline(True)
        await page.wait_for_function("chat.state === 'offline'")
        if transport == "sse":
            chaos.reset_all()  # Chromium's emulation lets a stream that is open go on; a WebSocket falls silent.
        gate.set()
        await page.wait_for_function("seen.states.filter(state => state === 'connecting').length > 1")
        await page.context.set_offline(False)
        await check_page(page, chaos)


@each_transport
async def test_a_frozen_tab_goes_on_where_it_was(chromium: Browser, transport: str) -> None:
    gate = asyncio.Event()
    async with harmed(halves(gate), files()) as chaos, open_page(chromium, chaos, transport=transport) as page:
        await ask(page)
        devtools = await page.context.new_cdp_session(page)
        await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
        chaos.reset_all()
        gate.set()
        await devtools.send("Page.setWebLifecycleState", {"state": "active"})
        await check_page(page, chaos)


@each_transport
async def test_a_page_that_is_come_back_to_goes_on_where_it_was(chromium: Browser, transport: str) -> None:
    gate = asyncio.Event()
    async with harmed(halves(gate), files()) as chaos, open_page(chromium, chaos, transport=transport) as page:
        await ask(page)
        await page.goto(f"{chaos.url}/web/other.html")
        gate.set()
        await page.go_back(wait_until="commit")
        await page.wait_for_function("seen.pageshow.includes(true)")
        await check_page(page, chaos)


@each_transport
async def test_a_reload_in_mid_answer_goes_on_where_it_was(chromium: Browser, transport: str) -> None:
    gate = asyncio.Event()
    async with harmed(halves(gate), files()) as chaos, open_page(chromium, chaos, transport=transport) as page:
        await ask(page)
        await page.reload()
        await is_ready(page)
        assert await page.evaluate("seen.restored") == BEFORE + 1
        gate.set()
        await check_page(page, chaos)


async def test_two_tabs_read_one_run(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with harmed(halves(gate), files()) as chaos, open_page(chromium, chaos, transport="ws") as first:
        await ask(first)
        second = await new_tab(first.context, chaos, transport="sse")
        run_id = await first.evaluate("JSON.parse(sessionStorage.run).id")
        await second.evaluate("id => void (window.finished = show(chat.attach(id)))", run_id)
        await shows(second, BEFORE - 1)
        gate.set()
        assert (await check_page(first, chaos))["text"] == (await check_page(second, chaos))["text"]


@each_transport
async def test_a_server_that_was_gone_is_come_back_to(chromium: Browser, transport: str, scale: Scale) -> None:
    gate = asyncio.Event()
    async with harmed(halves(gate), files()) as chaos, open_page(chromium, chaos, 90, transport=transport) as page:
        await ask(page, onDisconnect="continue")
        chaos.go()
        gate.set()
        await page.wait_for_function("seen.states.filter(state => state === 'stalled').length > 1")
        await asyncio.sleep(scale(0, 30))  # So long the lid is shut; nothing is waited for.
        chaos.come_back()
        await check_page(page, chaos)


@each_transport
async def test_a_server_that_is_replaced_is_gone_on_with(chromium: Browser, transport: str, tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with FakeUpstream() as upstream:
        upstream.always(halves(gate))
        async with (
            ServerProcess(upstream.url, tmp_path, heartbeat_seconds=HEARTBEAT_SECONDS, drain_seconds=0.5) as server,
            Chaos(server, files()) as chaos,
            open_page(chromium, chaos, transport=transport) as page,
        ):
            await ask(page)
            server.terminate()
            answer = await finished(page)
            assert answer["end"]["code"] == "interrupted"
            assert await server.wait() == 0
            asked = len(chaos.requests)
            await page.evaluate("void ask('once more')")
            await chaos.until_requested("", asked + 3)
            gate.set()
            await server.start()
            await check_page(page, chaos, posts=1000)


async def test_a_browsers_own_event_source_reads_a_run_to_its_end(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with harmed(halves(gate), files()) as chaos, open_page(chromium, chaos, transport="sse") as page:
        await ask(page)
        await page.evaluate(
            """() => {
                window.texts = [];
                window.source = new EventSource("../chat/runs/" + JSON.parse(sessionStorage.run).id + "/events");
                source.addEventListener("token", ({data}) => texts.push(JSON.parse(data).content));
                window.ended = new Promise((resolve) => source.addEventListener("error", () => {
                    if (source.readyState === EventSource.CLOSED) resolve(texts.join(""));
                }));
            }"""
        )
        await page.wait_for_function(f"texts.length === {BEFORE}")
        chaos.reset_all()
        gate.set()
        answer = await check_page(page, chaos)
        assert await page.evaluate("ended") == answer["text"]
