"""Where nothing comes the page says why, goes on by itself, and keeps what was written; and it says what a cut cost."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, expect

from tests.browser import open_chromium
from tests.clients import request
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.page_driver import Driver, chatting, opened, parts, words
from tests.users import guarded_server, of, token


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


# ---- signed out -----------------------------------------------------------------------------------------------------


async def sign_in(page: Driver, url: str) -> None:
    await page.page.context.add_cookies([{"name": "chatserver_token", "value": token(), "url": url}])


async def expire(page: Driver, server: LiveServer) -> None:
    """Now the token is over: for the browser, which forgets its cookie, and for the connections that it let in."""
    await page.page.context.clear_cookies()
    for connection in server.app.state.components.connections:
        connection.expires_at = 0


async def come_back(page: Driver) -> None:
    """What the page hears of when its window is looked at again."""
    await page.page.evaluate("window.dispatchEvent(new Event('focus'))")


@pytest.mark.parametrize("transport", ["ws", "sse"])
async def test_who_is_signed_out_is_told_and_goes_on(chromium: Browser, transport: str) -> None:
    gate = asyncio.Event()
    async with (
        FakeUpstream() as upstream,
        guarded_server(upstream.url, login_url="/sign/in?to=/", heartbeat_seconds=1) as server,
        opened(chromium, f"{server.url}/") as page,
    ):
        await page.use(transport)
        await expect(page("#signed-out")).to_be_visible()
        await expect(page("#sign-in")).to_have_attribute("href", "/sign/in?to=/")
        upstream.script(*parts(*words(0, 20), gate, *words(20, 40)))
        await page.send("Hello")
        await expect(page.answer.locator(".why")).to_have_text(
            "You are signed out. It goes on when you have signed in."
        )
        await come_back(page)  # Nobody has signed in.
        await sign_in(page, server.url)
        await come_back(page)
        await expect(page("#signed-out")).to_be_hidden()
        await expect(page.answer).to_contain_text("word19")
        await expect(page("#sessions a")).to_have_text("Hello")
        await expire(page, server)
        await expect(page("#signed-out")).to_be_visible()
        await expect(page.answer).to_contain_text("word19")
        gate.set()
        await sign_in(page, server.url)
        await come_back(page)
        await page.answered()
        text = "".join(words(0, 40)).strip()
        assert (await page.answer.locator(".prose").inner_text()).strip() == text
        await expect(page("#signed-out")).to_be_hidden()
        assert len(upstream.requests) == 1


async def test_without_an_address_there_is_no_link(chromium: Browser) -> None:
    async with (
        FakeUpstream() as upstream,
        guarded_server(upstream.url) as server,
        opened(chromium, f"{server.url}/") as page,
    ):
        await request(server, "POST", "/chat/stream", {"message": "Deep", "session_id": "deep"}, headers=of("ann"))
        await page.page.goto(f"{server.url}/#/s/deep")
        await expect(page("#signed-out")).to_be_visible()
        await expect(page("#sign-in")).to_be_hidden()
        await sign_in(page, server.url)
        await page.page.get_by_role("button", name="I have signed in").click()
        await expect(page(".bubble")).to_have_text("Deep")


# ---- waiting --------------------------------------------------------------------------------------------------------


async def test_a_limit_is_told_and_waited_for(chromium: Browser) -> None:
    async with (
        FakeUpstream() as upstream,
        guarded_server(upstream.url, max_runs_per_user=1) as server,
        opened(chromium, f"{server.url}/") as page,
    ):
        await sign_in(page, server.url)
        await page.page.get_by_role("button", name="I have signed in").click()
        await expect(page("#signed-out")).to_be_hidden()
        upstream.always(*say("Two."))
        for transport in ("ws", "sse"):
            gate = asyncio.Event()
            await page.begin_anew()
            await page.use(transport)
            upstream.script(*parts("One", gate))
            await page.send("A")
            await expect(page.answer).to_contain_text("One")
            await page.begin_anew()
            await page.send("B")
            await expect(page.answer.locator(".why")).to_contain_text(
                "Waits: 1 answer is being written, the most at a time."
            )
            await page("#stop").click()  # It is not sent, and not lost.
            await expect(page(".bubble")).to_have_count(0)
            await expect(page("#message")).to_have_value("B")
            await expect(page("#note")).to_have_text("It was not sent.")
            await page.page.press("#message", "Enter")
            await expect(page.answer.locator(".why")).to_contain_text("Waits: ")
            gate.set()
            await page.answered("Two.")
            await expect(page.answer.locator(".why")).to_be_hidden()


async def test_what_waits_is_not_lost_by_a_look_elsewhere(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.always(*say("Yes."))
        await page.send("A")
        await page.answered("Yes.")
        await page.page.context.set_offline(True)
        await page.send("B")
        await expect(page.answer.locator(".why")).to_contain_text("offline")
        await page.begin_anew()
        await page("#sessions a").click()
        await expect(page("#message")).to_have_value("B")


async def test_a_server_that_is_away_is_told(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*parts(*words(0, 20), gate))
        await page.use("sse")
        await page.send("Say much")
        await expect(page.answer).to_contain_text("word19")
        await page.page.route("**/events", lambda route: route.abort())
        await page("#cut").click()
        await expect(page.answer.locator(".why")).to_contain_text("The server cannot be reached.")
        await page.page.unroute("**/events")
        gate.set()
        await page.answered("word19")
        await expect(page.answer.locator(".why")).to_be_hidden()


async def test_stop_without_a_network_is_obeyed_later_and_says_so(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*parts(*words(0, 20), gate))
        await page.use("sse")
        await page.send("Say much")
        await expect(page.answer).to_contain_text("word19")
        await page.page.context.set_offline(True)
        await page("#cut").click()
        await expect(page.answer.locator(".why")).to_have_text("You are offline. It goes on when the network is back.")
        await page("#stop").click()
        await expect(page.answer.locator(".why")).to_have_text("It will stop as soon as the server can be reached.")
        await page.page.context.set_offline(False)
        await page.answered()
        await expect(page.answer.locator(".note")).to_have_text("stopped")
        await upstream.closed()
        await page.page.reload()
        await expect(page.answer.locator(".note")).to_have_text("stopped")
        await expect(page.answer.locator("footer .badge")).to_have_text("SSE")
        await expect(page.answer.locator("footer .facts")).to_contain_text("first token")


# ---- what is measured, what is too long -----------------------------------------------------------------------------


async def test_what_cuts_cost_is_told_and_kept(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        for transport in ("ws", "sse"):
            gates = [asyncio.Event(), asyncio.Event()]
            await page.begin_anew()
            upstream.script(*parts(*words(0, 10), gates[0], *words(10, 20), gates[1], *words(20, 30)))
            await page.use(transport)
            await page.send("Say much")
            for gate, word in zip(gates, ("word9", "word19"), strict=True):
                await expect(page.answer).to_contain_text(word)
                async with (
                    page.page.expect_event("websocket") if transport == "ws" else page.page.expect_request("**/events")
                ):
                    await page("#cut").click()
                gate.set()
            await page.answered("word29")
            marked = await page.page.evaluate("[...CSS.highlights.get('cut')].map(String)")
            assert marked == ["word9", "word19"]
            await expect(page(".cuts")).to_contain_text("2 cuts survived, back in ")
            await expect(page(".cuts")).to_contain_text("ms, 0 lost, 0 twice")
            facts = await page.answer.locator(".facts").inner_text()
            bars = await page.answer.locator("svg.gaps rect").count()
            await page.page.reload()
            await page.answered("word29")
            assert await page.answer.locator(".facts").inner_text() == facts
            assert await page.answer.locator("svg.gaps rect").count() == bars > 10


async def test_a_message_over_the_limit_stays_in_the_field(chromium: Browser) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, max_message_bytes=1000) as server:
        async with opened(chromium, f"{server.url}/") as page:
            await page.send("ü" * 501)
            await expect(page("#note")).to_contain_text("Too long by 2: 1,002 of at most 1,000 bytes.")
            await expect(page("#message")).to_have_value("ü" * 501)
            await expect(page(".bubble")).to_have_count(0)
            await page.page.fill("#message", "ü" * 450)
            await expect(page("#note")).to_have_text("900 of 1,000 bytes")
            upstream.script(*say("Yes."))
            await page.page.press("#message", "Enter")
            await page.answered("Yes.")
            await page("#message").press("ArrowUp")
            await page(".editor textarea").fill("a" * 1001)
            await page.page.keyboard.press("Enter")
            await expect(page(".editor .note")).to_contain_text("Too long by 1")
            await page.page.keyboard.press("Escape")
        async with opened(chromium, f"{server.url}/") as page:
            # Where the page did not learn the limit in time, the server says it.
            await page.page.route("**/readyz", lambda route: route.abort())
            await page.page.reload()
            await page.send("b" * 1001)
            await expect(page("#note")).to_contain_text("over 1000 bytes")
            await expect(page("#message")).to_have_value("b" * 1001)
            await expect(page(".bubble")).to_have_count(0)
