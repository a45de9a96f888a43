"""Nothing that was said is lost on the page: an edit and another answer are versions beside what there was."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser import open_chromium
from tests.clients import request
from tests.fake_upstream import refuse, say
from tests.live import LiveServer
from tests.page_driver import Driver, chatting, parts


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


async def stored(page: Driver, server: LiveServer) -> list[dict[str, Any]]:
    """All messages of the chat that is open, whatever their branch."""
    session = page.page.url.rpartition("/")[2]
    found: list[dict[str, Any]] = (await request(server, "GET", f"/chat/sessions/{session}?branches=all")).json[
        "messages"
    ]
    return found


async def is_shown(page: Driver, *texts: str) -> None:
    await expect(page("#messages .bubble, #messages .answer .prose")).to_have_text(list(texts))


async def test_another_answer_leaves_what_followed_the_first(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        for text in ("One.", "Two.", "One again.", "Two again.", "Three."):
            upstream.script(*say(text))
        for question, answer in (("A", "One."), ("B", "Two.")):
            await page.send(question)
            await page.answered(answer)
        await expect(page(".pager")).to_have_count(0)
        await page(".answer").first.get_by_label("Answer again").click()
        await page.answered("One again.")
        await is_shown(page, "A", "One again.")
        await expect(page(".pager")).to_have_text("‹2/2›")
        await page("[aria-label^='Previous version']").focus()
        await page.page.keyboard.press("Enter")
        await is_shown(page, "A", "One.", "B", "Two.")
        await expect(page("#announcer")).to_contain_text("Version 1 of 2")
        await expect(page("[aria-label^='Next version']")).to_be_focused()
        await expect(page.page.get_by_role("group", name="Version 1 of 2 of this answer")).to_be_visible()
        await page.page.reload()
        await is_shown(page, "A", "One.", "B", "Two.")  # The branch that was chosen, though it is not the newest.
        await page(".answer").last.get_by_label("Answer again").click()
        await page.answered("Two again.")
        await is_shown(page, "A", "One.", "B", "Two again.")
        await page(".pager").first.get_by_label("Next version").click()
        await is_shown(page, "A", "One again.")
        await page.send("C")
        await page.answered("Three.")
        await is_shown(page, "A", "One again.", "C", "Three.")
        told = [each["content"] for each in upstream.requests[-1].json["messages"]]
        assert told[-3:] == ["A", "One again.", "C"]
        await page(".pager").first.get_by_label("Previous version").click()
        await is_shown(page, "A", "One.", "B", "Two again.")
        assert len(await stored(page, server)) == 8


async def test_an_edit_leaves_what_there_was(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        for text in ("One.", "Two.", "Other one."):
            upstream.script(*say(text))
        for question, answer in (("A", "One."), ("B", "Two.")):
            await page.send(question)
            await page.answered(answer)
        await page(".question").first.hover()
        await page(".question .edit").first.click()
        await page(".editor textarea").fill("A2")
        await page.page.keyboard.press("Enter")
        await page.answered("Other one.")
        await is_shown(page, "A2", "Other one.")
        await page(".question .pager").get_by_label("Previous version").click()
        await is_shown(page, "A", "One.", "B", "Two.")
        await expect(page.answer.locator("footer .facts")).to_contain_text("first token")
        session = page.page.url.rpartition("/")[2]
        path = f"/chat/sessions/{session}"
        assert [each["content"] for each in await stored(page, server)] == [
            "A",
            "One.",
            "B",
            "Two.",
            "A2",
            "Other one.",
        ]
        upstream.script(*say("Three."))
        await page.send("C")
        await page.answered("Three.")
        shown = [each["content"] for each in (await request(server, "GET", path)).json["messages"]]
        assert shown == ["A", "One.", "B", "Two.", "C", "Three."]
        await page.page.reload()
        await is_shown(page, *shown)


async def test_what_is_refused_leaves_a_way_back(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*say("One."))
        await page.send("A")
        await page.answered("One.")
        await page.page.route(
            "**/chat/stream", lambda route: route.fulfill(status=400, json={"detail": "no", "code": "x"})
        )
        await page.use("sse")
        await page.answer.get_by_label("Answer again").click()
        await expect(page.answer.locator(".failure")).to_contain_text("No. x")
        await page.page.get_by_role("button", name="Back to what was there").click()
        await is_shown(page, "A", "One.")
        await page.page.unroute("**/chat/stream")
        # One that fails behind its start is a version, and the first is still there.
        upstream.always(*refuse(400))
        await page.answer.get_by_label("Answer again").click()
        await expect(page.answer.locator(".failure")).to_be_visible()
        await page(".pager").get_by_label("Previous version").click()
        await is_shown(page, "A", "One.")
        upstream.script(*parts("Half ", gate, "whole."))
        await page.send("B")
        await expect(page.answer).to_contain_text("Half")
        await expect(page(".pager button").first).not_to_be_visible()  # Not while an answer is written.
        gate.set()
        await page.answered("Half whole.")


async def test_a_long_chat_comes_in_pages(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        upstream.always(*say("Yes."))
        for number in range(60):
            body = {"message": f"Question {number}", "session_id": "long"}
            await request(server, "POST", "/chat/stream", body)
        await page.page.goto(f"{server.url}/#/s/long")
        await expect(page(".bubble")).to_have_count(50)
        await expect(page(".bubble").last).to_be_in_viewport()
        before = await page(".bubble").first.text_content()
        await page("#scroller").evaluate("(each) => (each.scrollTop = 0)")
        await page.page.get_by_role("button", name="Earlier messages").click()
        await expect(page(".bubble")).to_have_count(60)
        await expect(page(".earlier")).to_have_count(0)
        await expect(page(".bubble", has_text=before or "?")).to_be_in_viewport()
        await expect(page(".bubble").first).to_have_text("Question 0")
        # A branch is known to be chosen even if it begins on an older page.
        await page(".question").first.hover()
        await page(".question .edit").first.click()
        await page(".editor textarea").fill("Something else")
        await page.page.keyboard.press("Enter")
        await page.answered("Yes.")
        await page(".pager").get_by_label("Previous version").click()
        await expect(page(".bubble")).to_have_count(60)
        await page.page.reload()
        await expect(page(".bubble").last).to_have_text("Question 59")
