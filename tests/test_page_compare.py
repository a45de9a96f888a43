"""The comparison of the transports on the page: what it asks, what it draws, what it claims, what it hands out."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser import open_chromium
from tests.clients import request
from tests.fake_upstream import FakeUpstream, Pause, refuse
from tests.page_driver import chatting, opened, parts, words
from tests.users import guarded_server, of, token


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


def paced(count: int) -> list[object]:
    """An answer with a little time between its tokens."""
    begin, *rest = parts(*words(0, count))
    return [begin, *(step for each in rest for step in (each, Pause(0.002)))]


async def test_both_transports_are_measured_in_turns(chromium: Browser, tmp_path: Path) -> None:
    async with chatting(chromium) as (page, server, upstream):
        upstream.always(*paced(12))  # type: ignore[arg-type]
        await page("#to-compare").click()
        await expect(page("#title")).to_have_text("Compare transports")
        await expect(page(".compare .nothing")).to_contain_text("Nothing measured yet")
        await page(".compare").get_by_label("Rounds").fill("4")
        await page(".compare").get_by_label("Ask").fill("Say it")
        await page(".compare").get_by_role("button", name="Run").click()
        await expect(page(".compare .status")).to_have_text("Done: 8 answers.")
        assert len(upstream.requests) == 10
        for measure in ("firstEvent", "gaps"):
            card = page(f"[data-measure={measure}]")
            await expect(card.locator(".verdict")).to_contain_text("95 % interval")
            await expect(card.locator("svg .area")).to_have_count(2)
            await expect(card.locator("svg .median")).to_have_count(2)
            await expect(card.locator("tbody th")).to_have_text(["SSE", "WebSocket"])
        await expect(page("[data-measure=firstEvent] .small")).to_contain_text("Of fewer than 100 values")
        async with page.page.expect_download() as download:
            await page(".compare").get_by_role("button", name="Export JSON").click()
        path = tmp_path / "compare.json"
        await (await download.value).save_as(path)
        document = json.loads(path.read_text())
        order = [each["via"] for each in document["samples"]]
        assert order == ["sse", "ws", "ws", "sse"] * 2
        assert all(each["firstEventMs"] > 0 and len(each["gapsMs"]) == 11 for each in document["samples"])
        found = document["results"]["gaps"]["difference"]
        assert found["low"] <= found["value"] <= found["high"]
        assert found["isMeasurable"] is not (found["low"] <= 0 <= found["high"])
        said = await page("[data-measure=gaps] .verdict strong").text_content()
        assert (said == "No measurable difference") is not found["isMeasurable"]
        sessions = (await request(server, "GET", "/chat/sessions")).json["sessions"]
        assert sessions == []  # A measurement is no chat.


async def test_what_fails_is_counted(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        for _ in range(2):
            upstream.script(*paced(3))  # type: ignore[arg-type]
        upstream.always(*refuse(400))
        await page.page.goto(f"{page.page.url.rstrip('/')}/#compare")
        await page(".compare").get_by_label("Rounds").fill("2")
        await page(".compare").get_by_role("button", name="Run").click()
        await expect(page(".compare .status")).to_contain_text("0 answers. 4 failed")


async def test_it_can_be_stopped(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.always(*paced(5))  # type: ignore[arg-type]
        await page("#to-compare").click()
        await page(".compare").get_by_label("Rounds").fill("200")
        await page(".compare").get_by_role("button", name="Run").click()
        await expect(page(".compare .status")).to_contain_text("Round 2")
        await page(".compare").get_by_role("button", name="Stop").click()
        await expect(page(".compare .status")).to_contain_text("Stopped")


async def test_it_says_why_it_waits(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with (
        FakeUpstream() as upstream,
        guarded_server(upstream.url, max_runs_per_user=1) as server,
        opened(chromium, f"{server.url}/") as page,
    ):
        await page.page.context.add_cookies([{"name": "chatserver_token", "value": token("ann"), "url": server.url}])
        upstream.script(*parts("One", gate))
        upstream.always(*paced(3))  # type: ignore[arg-type]
        body = {"message": "A", "on_disconnect": "continue"}
        await request(server, "POST", "/chat/runs", body, headers=of("ann"))
        await page("#to-compare").click()
        await page(".compare").get_by_label("Rounds").fill("2")
        await page(".compare").get_by_role("button", name="Run").click()
        await expect(page(".compare .why")).to_contain_text("Waits: 1 answer is being written, the most at a time.")
        gate.set()
        await expect(page(".compare .status")).to_contain_text("Done: 4 answers.")
        await expect(page(".compare .why")).to_have_text("")
