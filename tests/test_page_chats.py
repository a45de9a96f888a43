"""The page's list of chats, what is written to each, and what another page does meanwhile."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Browser, expect

from chatserver.auth import LOCAL_USER
from chatserver.resources import timestamp
from chatserver.sessions.schema import folded
from tests.browser import open_chromium
from tests.clients import request
from tests.fake_upstream import say
from tests.live import LiveServer
from tests.page_driver import Driver, chatting, parts


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


def remember(server: LiveServer, ages: dict[str, timedelta]) -> None:
    """Chats with these titles, last used so long ago."""
    rows = []
    for number, (title, age) in enumerate(ages.items()):
        when = timestamp(datetime.now(UTC) - age)
        rows.append((LOCAL_USER, f"chat{number}", title, folded(title), when, when))
    with sqlite3.connect(server.settings.database_url.removeprefix("sqlite:///")) as database:
        columns = "user_id, session_id, title, folded_title, created_at, updated_at"
        database.executemany(f"INSERT INTO sessions ({columns}) VALUES (?, ?, ?, ?, ?, ?)", rows)
    database.close()


async def test_every_chat_can_be_reached_and_found(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        await expect(page("#sessions")).to_have_text("No chats yet")
        remember(server, {f"Talk {number}": timedelta(minutes=number) for number in range(245)})
        upstream.script(*say("Yes."))
        await page.send("Pröst & <b>")
        await page.answered("Yes.")
        links = page("#sessions a")
        await expect(links.first).to_have_text("Pröst & <b>")
        shown = 0
        while (count := await links.count()) < 246:
            assert count > shown or await page("#more-sessions").is_visible()
            shown = count
            await links.last.scroll_into_view_if_needed()
            await page.page.wait_for_function(
                "(count) => document.querySelectorAll('#sessions a').length > count", arg=count
            )
        await expect(page("#more-sessions")).to_be_hidden()
        await expect(links.last).to_have_text("Talk 244")
        assert len(set(await links.all_text_contents())) == 246
        # What is new comes in front, and nothing that was read is forgotten.
        upstream.script(*say("Yes."))
        await page.send("Again")
        await page.answered("Yes.")
        await expect(links).to_have_count(246)
        await page("#search").fill("PRÖST")
        await expect(links).to_have_text(["Pröst & <b>"])
        await expect(page("#announcer")).to_contain_text("1 chats found")
        await page("#search").fill("nowhere")
        await expect(page("#sessions")).to_have_text("No chat has this in its title")
        await page("#search").press("Escape")
        await expect(links.first).to_have_text("Pröst & <b>")
        await expect(page("#search")).to_have_value("")


async def test_chats_are_told_apart_by_days(chromium: Browser) -> None:
    async with chatting(chromium, timezone_id="UTC") as (page, server, _):
        days = {"A": 0, "B": 1, "C": 5, "D": 20}
        remember(server, {title: timedelta(days=count) for title, count in days.items()} | {"E": timedelta(days=400)})
        await page.page.reload()
        long_ago = (datetime.now(UTC) - timedelta(days=400)).strftime("%B %Y")
        await expect(page("#sessions h2")).to_have_text(["Today", "Yesterday", "Last 7 days", "Last 30 days", long_ago])
        await expect(page("#sessions section").nth(1).locator("a")).to_have_text("B")


async def test_each_chat_has_its_draft(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.always(*say("Yes."))
        await page.send("Apples")
        await page.answered("Yes.")
        await page.page.fill("#message", "half a thought")
        await page("#new").click()
        await expect(page("#message")).to_have_value("")
        await page.page.fill("#message", "something new")
        await page.page.reload()
        await expect(page("#message")).to_have_value("something new")
        await page("#sessions a").click()
        await expect(page("#message")).to_have_value("half a thought")
        upstream.script(*parts("More", gate))
        await page.page.press("#message", "Enter")
        await expect(page.answer).to_contain_text("More")
        await page.page.fill("#message", "the next")
        await page.page.press("#message", "Enter")
        await expect(page("#note")).to_contain_text("An answer is being written")
        gate.set()
        await page.answered("More")
        await expect(page("#message")).to_have_value("the next")
        await page.page.fill("#message", "")
        await page.page.reload()
        await page.answered("More")
        await expect(page("#message")).to_have_value("")


async def test_what_another_tab_does_is_seen(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*say("One."))
        await page.send("A")
        await page.answered("One.")
        other = Driver(await page.page.context.new_page(), page.page.url)
        await other.page.goto(page.page.url)
        await other.answered("One.")
        upstream.script(*parts("Two", gate, "."))
        await page.send("B")
        await expect(other.answer).to_contain_text("Two")  # While it is written, and without a look away.
        gate.set()
        await other.answered("Two.")
        await expect(other(".bubble")).to_have_text(["A", "B"])
        await page("#sessions li").hover()
        await page.page.get_by_label("Rename “A”").click()
        await page.page.keyboard.type("Letters")
        await page.page.keyboard.press("Enter")
        await expect(other("#sessions a")).to_have_text("Letters")
        await expect(other("#title")).to_have_text("Letters")
        assert other.complaints == []


async def test_what_is_written_to_a_chat_that_is_gone_begins_a_new_one(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        await page.page.goto(f"{server.url}/#/s/nowhere")
        await expect(page(".missing")).to_contain_text("What you write begins a new one")
        upstream.script(*say("Yes."))
        await page.send("Hello")
        await page.answered("Yes.")
        await expect(page(".missing")).to_have_count(0)
        assert not page.page.url.endswith("nowhere")
        assert (await request(server, "GET", "/chat/sessions/nowhere")).status == 404
