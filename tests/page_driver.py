"""The page in Chromium, as tests drive it: a browser for a module, an empty profile for a test, gates in answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

from playwright.async_api import Browser, Locator, Page, expect

from tests.fake_upstream import Done, FakeUpstream, Gate, Step, finish, role, token, usage
from tests.live import ROOT, LiveServer, live_server

WAIT_MS = 15_000
PROBES = (ROOT / "tests" / "page" / "probes.js").read_text().partition("*/")[2].strip()
VIEWPORT: Any = {"width": 1280, "height": 720}
MEDIA: Any = {"color_scheme": "light", "reduced_motion": "no-preference", "forced_colors": "none"}

_idle: WeakKeyDictionary[Browser, dict[str, Page]] = WeakKeyDictionary()
"""Of each browser the empty pages that wait for a test, by the options of their profiles.

The process of a new profile costs more than most tests do in it.
"""


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: Any) -> AsyncIterator["Driver"]:
    """A page that knows of nothing. What it complains about, or asks elsewhere for, fails the test.

    ``options`` are those of ``Browser.new_context``. With the same ones, what has passed leaves its profile to the
    next, without what was stored in it; what has failed takes it away.
    """
    expect.set_options(timeout=WAIT_MS)
    viewport, permissions = options.pop("viewport", VIEWPORT), options.pop("permissions", [])
    media = {name: options.pop(name, usual) for name, usual in MEDIA.items()}
    idle, kind = _idle.setdefault(browser, {}), repr(sorted(options.items()))
    page = idle.pop(kind, None) or await _new_page(browser, options)
    driver = Driver(page, url)
    try:
        if page.viewport_size != viewport:
            await page.set_viewport_size(viewport)
        await page.emulate_media(**media)
        await page.context.grant_permissions(permissions)
        await page.goto(url)
        await expect(page.locator("#suggestions button").first).to_be_attached()
        yield driver
        assert not driver.complaints, driver.complaints
        driver.leave()
        await _forget(page, url)
    except BaseException:
        await page.context.close()
        raise
    if kind in idle:
        await page.context.close()
    else:
        idle[kind] = page


async def _new_page(browser: Browser, options: dict[str, Any]) -> Page:
    profile = await browser.new_context(**options)
    profile.set_default_timeout(WAIT_MS)
    return await profile.new_page()


async def _forget(page: Page, url: str) -> None:
    """Make a page and its profile as if they were new: from an address of the same origin that keeps nothing."""
    profile = page.context
    for each in profile.pages:
        if each is not page:
            await each.close()
    await page.unroute_all()
    await page.mouse.move(-1, -1)
    await profile.set_offline(False)
    await profile.clear_permissions()
    await page.goto(f"{url}livez")
    await page.evaluate("(localStorage.clear(), sessionStorage.clear())")
    await profile.clear_cookies()


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
    """A page of one origin, and what one does with it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._origin = "/".join(url.split("/")[:3])
        self.complaints: list[str] = []
        self._listeners: dict[Any, Callable[[Any], None]] = {
            "pageerror": lambda error: self.complaints.append(str(error)),
            "console": lambda message: self._hear(message.type, message.text),
            "request": lambda request: self._watch(request.url),
            "websocket": lambda socket: self._watch(socket.url.replace("ws", "http", 1)),
        }
        for event, listener in self._listeners.items():
            page.on(event, listener)

    def leave(self) -> None:
        """Hear and watch no more."""
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error" and "Failed to load resource" not in text:  # A refusal is no fault of the page.
            self.complaints.append(text)

    def _watch(self, url: str) -> None:
        if not url.startswith((self._origin, f"blob:{self._origin}")):
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

    async def begin_anew(self) -> None:
        """Leave the chat that is open for one that is empty."""
        await self("#new").click()
        await expect(self("#welcome")).to_be_visible()

    async def is_legible(self) -> None:
        """All that is seen has a name, and contrast by day and by night."""
        assert await self.probe("nameless") == []
        for scheme in ("light", "dark"):
            await self.page.emulate_media(color_scheme=scheme)
            assert await self.probe("faint") == [], scheme

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
