"""The browser client in Chromium, through all that happens to pages: what the page shows is what the server stored."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from playwright.async_api import Browser, BrowserContext, Page

from tests.browser import WHOLE, open_chromium
from tests.chaos import Chaos, cuts
from tests.conftest import IS_FULL, Scale
from tests.fake_upstream import Act, Done, FakeUpstream, Gate, Reply, Step, finish, role, token
from tests.live import ServerProcess
from tests.proving import seeded
from tests.web_client import (
    CLIENT,
    HEARTBEAT_SECONDS,
    PACE,
    TOOLS,
    check_answers,
    get,
    harmed,
    long_answer,
    patience_seconds,
    reach,
    wrong,
)

pytestmark = [pytest.mark.proof]

PAGE = "page.html"
BEFORE, AFTER = 12, 30
"""Tokens of an answer before and behind its gate."""

PATIENCE_SECONDS = 40.0
"""How long a test may take before it counts as a hang, on a busy machine."""

NEVER_MS = 10**8

CONNECT_MS = 7000
"""More than the 5 s for which Chromium holds WebSockets back where a dozen handshakes have failed for each that went
well, or a busy machine an answer. A few cuts are far from that: a test of few cuts takes less, since each handshake
that freezes costs it."""

each_transport = pytest.mark.parametrize("transport", ["sse", "ws"])


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """One browser for all tests here; each has a profile of its own."""
    kept = {"ignore_default_args": ["--disable-back-forward-cache"]}
    async with open_chromium("--disable-background-timer-throttling", programs=WHOLE, **kept) as browser:
        yield browser


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


@dataclass
class Scene:
    """A page in mid answer: it has come to the answer's gate."""

    page: Page
    chaos: Chaos
    gate: asyncio.Event
    transport: str


@asynccontextmanager
async def scene(
    browser: Browser, transport: str, client: Path = CLIENT, patience_seconds: float = PATIENCE_SECONDS, **options: Any
) -> AsyncIterator[Scene]:
    gate = asyncio.Event()
    options |= {"patience_seconds": patience_seconds, "transport": transport}
    async with harmed(halves(gate), files(client)) as chaos, open_page(browser, chaos, **options) as page:
        await ask(page, onDisconnect="continue")
        yield Scene(page, chaos, gate, transport)


@asynccontextmanager
async def open_page(
    browser: Browser, chaos: Chaos, patience_seconds: float = PATIENCE_SECONDS, **options: Any
) -> AsyncIterator[Page]:
    """The test page, in a profile of its own."""
    context, page = await browser.new_context(), None
    try:
        with anyio.fail_after(patience_seconds):
            page = await new_tab(context, chaos, **options)
            yield page
    except TimeoutError as error:
        seen = await page.evaluate("[chat.state, chat.via, seen, JSON.stringify(sessionStorage)]") if page else None
        error.add_note(f"{seen} {chaos.requests} {chaos.open} open")
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await context.close()


async def new_tab(context: BrowserContext, chaos: Chaos, **options: Any) -> Page:
    page = await context.new_page()
    options = PACE | {"connectMs": CONNECT_MS} | options
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
    tokens, count, read = scale(150, 500), scale(10, 170), list[Any]()
    patience, options = patience_seconds(count), {"transport": transport, "connectMs": scale(1500, CONNECT_MS)}
    async with (
        harmed(long_answer(tokens), files()) as chaos,
        open_page(chromium, chaos, patience, **options) as page,
    ):
        chaos.faults = cuts(seeded(), reach(tokens))
        while chaos.cuts.total() < count:
            await page.evaluate("hops => void ask('tell me', {}, {hops, keep: false})", hops)
            read.append(await finished(page))
            await check_answers(chaos.server, read)


# ---- what happens to pages ------------------------------------------------------------------------------------------


async def comes_online(scene: Scene) -> None:
    """The device has no network for a while. The page would wait for ever between two tries, were it not told."""
    await scene.page.context.set_offline(True)
    await scene.page.wait_for_function("chat.state === 'offline'")
    if scene.transport == "sse":
        scene.chaos.reset_all()  # Chromium's emulation lets a stream that is open go on; a WebSocket falls silent.
    scene.gate.set()
    await scene.page.wait_for_function("seen.losses > 0")
    await scene.page.context.set_offline(False)
    await check_page(scene.page, scene.chaos)


async def thaws(scene: Scene) -> None:
    """The tab is frozen, and its connections die."""
    devtools = await scene.page.context.new_cdp_session(scene.page)
    await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    scene.chaos.reset_all()
    scene.gate.set()
    await devtools.send("Page.setWebLifecycleState", {"state": "active"})
    await check_page(scene.page, scene.chaos)


async def goes_back(scene: Scene) -> None:
    """The user goes to another page and comes back: this one was kept, its connections were not."""
    await scene.page.goto(f"{scene.chaos.url}/web/other.html")
    scene.gate.set()
    await scene.page.go_back(wait_until="commit")
    await scene.page.wait_for_function("seen.pageshow.includes(true)")
    await check_page(scene.page, scene.chaos)


async def reloads(scene: Scene) -> None:
    """The page begins anew with what it kept: a run, a number and the text up to it."""
    await scene.page.reload()
    await is_ready(scene.page)
    assert await scene.page.evaluate("seen.restored") == BEFORE + 1
    scene.gate.set()
    await check_page(scene.page, scene.chaos)


async def reads_in_two_tabs(scene: Scene) -> None:
    """Another tab reads the same run, over the other transport."""
    other = "sse" if scene.transport == "ws" else "ws"
    second = await new_tab(scene.page.context, scene.chaos, transport=other)
    run_id = await scene.page.evaluate("JSON.parse(sessionStorage.run).id")
    await second.evaluate("id => void (window.finished = show(chat.attach(id)))", run_id)
    await shows(second, BEFORE - 1)
    scene.gate.set()
    await check_page(scene.page, scene.chaos)
    await check_page(second, scene.chaos)


async def outlives_silence(scene: Scene, seconds: float = 0) -> None:
    """The server is gone without a word, as behind a lid that was shut; later it is there again."""
    await scene.page.evaluate("seen.states = []")
    scene.chaos.go()
    scene.gate.set()
    await scene.page.wait_for_function("seen.states.filter(state => state === 'stalled').length > 1")
    await asyncio.sleep(seconds)  # So long the lid is shut; nothing is waited for.
    scene.chaos.come_back()
    await check_page(scene.page, scene.chaos)


@each_transport
async def test_a_device_without_a_network_comes_back(chromium: Browser, transport: str) -> None:
    async with scene(chromium, transport, backoffMs=NEVER_MS) as each:
        await comes_online(each)


@each_transport
@pytest.mark.parametrize("proof", [thaws, goes_back, reloads, reads_in_two_tabs])
async def test_the_answer_goes_on_where_it_was(
    chromium: Browser, transport: str, proof: Callable[[Scene], Awaitable[None]]
) -> None:
    async with scene(chromium, transport) as each:
        await proof(each)


@each_transport
async def test_a_server_that_was_gone_is_come_back_to(chromium: Browser, transport: str, scale: Scale) -> None:
    async with scene(chromium, transport, patience_seconds=90, connectMs=scale(1500, CONNECT_MS)) as each:
        await outlives_silence(each, scale(0, 30))


async def test_a_server_that_is_replaced_is_gone_on_with(chromium: Browser, tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with FakeUpstream() as upstream:
        upstream.always(halves(gate))
        async with (
            ServerProcess(
                upstream.url, tmp_path, is_forked=True, heartbeat_seconds=HEARTBEAT_SECONDS, drain_seconds=0.5
            ) as server,
            Chaos(server, files()) as chaos,
            open_page(chromium, chaos, transport="sse", backoffMs=300) as over_sse,
            open_page(chromium, chaos, transport="ws", backoffMs=300) as over_ws,
        ):
            pages = {"POST /chat/stream": over_sse, "GET /chat/ws": over_ws}
            for page in pages.values():
                await ask(page)
            server.terminate()
            for page in pages.values():
                answer = await finished(page)
                assert answer["end"]["code"] == "interrupted"
            assert await server.wait() == 0
            for request, page in pages.items():
                asked = sum(each.startswith(request) for each in chaos.requests)
                await page.evaluate("void ask('once more')")
                await chaos.until_requested(request, asked + 3)
            gate.set()
            await server.start()
            for page in pages.values():
                await check_page(page, chaos, posts=1000)


async def test_a_browsers_own_event_source_reads_a_run_to_its_end(chromium: Browser) -> None:
    async with scene(chromium, "sse") as each:
        await each.page.evaluate(
            """() => {
                window.texts = [];
                window.source = new EventSource("../chat/runs/" + JSON.parse(sessionStorage.run).id + "/events");
                source.addEventListener("token", ({data}) => texts.push(JSON.parse(data).content));
                window.ended = new Promise((resolve) => source.addEventListener("error", () => {
                    if (source.readyState === EventSource.CLOSED) resolve(texts.join(""));
                }));
            }"""
        )
        await each.page.wait_for_function(f"texts.length === {BEFORE}")
        each.chaos.reset_all()
        each.gate.set()
        answer = await check_page(each.page, each.chaos)
        assert await each.page.evaluate("ended") == answer["text"]


# ---- clients that are wrong -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A client with a fault, the proof that finds it, and what that says; nothing: it hangs."""

    proof: Callable[[Scene], Awaitable[None]]
    transport: str
    changes: tuple[tuple[str, str], ...]
    verdict: str | None = None
    backoff_ms: int | None = None

    def __str__(self) -> str:
        return f"{self.proof.__name__}-{self.transport}-{self.changes[0][1]}"


DEAF = (('listen?.("online"', 'listen?.("outline"'),)
WITHOUT_A_WATCH = (("if (left > 0) this.#timer", "if (left > 0 || this.hasHeard) this.#timer"),)
CURSOR_TOO_HIGH = (("runId, after, parts)", "runId, after + 1, parts)"),)
CURSOR_TOO_LOW = (("runId, after, parts)", "runId, after - 1, parts)"),)
STARTS_AGAIN = (("const path = run.id ?", "run.id = null; const path = run.id ?"),)
MINDS_NOTHING = (
    ("event.seq <= this.cursor", "false"),
    ('first !== this.cursor + 1 && event.type !== "snapshot"', "false"),
)
FROM_THE_START = (("after: run.cursor }", "after: 0 }"), *MINDS_NOTHING)
WRONG = [
    Wrong(comes_online, "sse", DEAF, backoff_ms=NEVER_MS),
    Wrong(reloads, "sse", CURSOR_TOO_HIGH, "gap|assert ''"),
    Wrong(reloads, "ws", CURSOR_TOO_LOW, "assert '0 1"),
    Wrong(thaws, "sse", STARTS_AGAIN, "gap|POST /chat/stream"),
    Wrong(goes_back, "ws", FROM_THE_START, "assert '0 1"),
]
SLOW_TO_FIND = [  # Without a watch it hangs in Node too: tests/test_web_cuts.py.
    Wrong(comes_online, "ws", WITHOUT_A_WATCH),
    Wrong(outlives_silence, "sse", WITHOUT_A_WATCH),
    Wrong(outlives_silence, "ws", WITHOUT_A_WATCH),
]


@pytest.mark.parametrize("case", [*WRONG, *SLOW_TO_FIND] if IS_FULL else WRONG, ids=str)
async def test_a_wrong_client_is_found(chromium: Browser, case: Wrong, tmp_path: Path) -> None:
    client = wrong(tmp_path, *case.changes)
    with pytest.raises(AssertionError if case.verdict else TimeoutError, match=case.verdict):
        async with scene(chromium, case.transport, client, 6, connectMs=1500, backoffMs=case.backoff_ms) as each:
            await case.proof(each)
