"""The page in Chromium, as its tests drive it: a browser for a module, a profile for each test, gates in answers."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, Locator, Page, expect

from tests.fake_upstream import Done, FakeUpstream, Gate, Step, finish, role, token, usage
from tests.live import ROOT, LiveServer, live_server

WAIT_MS = 15_000
PROBES = (ROOT / "tests" / "page" / "probes.js").read_text().partition("*/")[2].strip()


@asynccontextmanager
async def opened(browser: Browser, url: str, **context: Any) -> AsyncIterator["Driver"]:
    """A page in a profile of its own. What it complains about, or asks elsewhere for, fails the test."""
    expect.set_options(timeout=WAIT_MS)
    profile = await browser.new_context(**context)
    profile.set_default_timeout(WAIT_MS)
    page = await profile.new_page()
    driver = Driver(page)
    await page.goto(url)
    await expect(page.locator("#suggestions button").first).to_be_attached()
    try:
        yield driver
        assert not driver.complaints, driver.complaints
    finally:
        await profile.close()


@asynccontextmanager
async def chatting(browser: Browser, **context: Any) -> AsyncIterator[tuple["Driver", LiveServer, FakeUpstream]]:
    """The page of a server whose model says what the test scripts."""
    async with (
        FakeUpstream() as upstream,
        live_server(upstream.url) as server,
        opened(browser, f"{server.url}/", **context) as driver,
    ):
        yield driver, server, upstream


class Driver:
    """One page, and what one does with it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("request", lambda request: self._watch(request.url))
        page.on("websocket", lambda socket: self._watch(socket.url.replace("ws", "http", 1)))

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error" and "Failed to load resource" not in text:  # A refusal is no fault of the page.
            self.complaints.append(text)

    def _watch(self, url: str) -> None:
        origin = "/".join(self.page.url.split("/")[:3])
        if self.page.url.startswith("http") and not url.startswith((origin, f"blob:{origin}")):
            self.complaints.append(f"a request to {url}")

    def __call__(self, selector: str, **options: Any) -> Locator:
        return self.page.locator(selector, **options)

    @property
    def answer(self) -> Locator:
        """The newest one."""
        return self.page.locator(".answer").last

    async def probe(self, name: str, given: object = None) -> Any:
        """What a member of ``tests/page/probes.js`` finds."""
        return await self.page.evaluate(f"(given) => {PROBES}.{name}(given)", given)

    async def send(self, text: str) -> None:
        await self.page.fill("#message", text)
        await self.page.press("#message", "Enter")

    async def answered(self, text: str | None = None) -> None:
        """Wait until the newest answer is complete."""
        if text is not None:
            await expect(self.answer.locator(".parts")).to_contain_text(text)
        await expect(self.answer).to_have_attribute("data-state", "done")
        await expect(self("#send")).to_be_visible()

    async def use(self, transport: str) -> None:
        await self(f"#transport input[value={transport}]").check(force=True)


def parts(*texts: str | asyncio.Event) -> Iterable[Step]:
    """An answer of these tokens, and of gates between them."""
    yield role()
    for each in texts:
        yield Gate(each) if isinstance(each, asyncio.Event) else token(each)
    yield from (finish(), usage(12, len(texts)), Done())


def words(first: int, last: int) -> list[str]:
    return [f"word{number} " for number in range(first, last)]
