"""The page within reach: at every width, by key and finger, from both sides of writing, in one's own colours."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser import open_chromium
from tests.fake_upstream import call, say
from tests.page_driver import Driver, chatting, parts, words

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


# ---- the wire beside the chat ---------------------------------------------------------------------------------------


async def is_apart(page: Driver) -> None:
    """Nothing lies over the wire or the chat, and each is large enough to be used."""
    size = page.page.viewport_size
    assert size is not None
    names = ["#transport", "#state", "#cut", "#open-wire", "#message", "#stop", "#scroller"]
    wire, *boxes = await page.probe("boxes", ["#wire", *names])
    assert wire["height"] >= 120 and wire["width"] >= 300
    for name, box in zip(names, boxes, strict=True):
        assert box["width"] > 0 and box["height"] > 0, name
        across = min(box["x"] + box["width"], wire["x"] + wire["width"]) - max(box["x"], wire["x"])
        down = min(box["y"] + box["height"], wire["y"] + wire["height"]) - max(box["y"], wire["y"])
        assert min(across, down) <= 0.5, (name, size, box, wire)
        assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"] + 0.5, (name, size, box)
        assert box["y"] >= 0 and box["y"] + box["height"] <= size["height"] + 0.5, (name, size, box)
        if name == "#scroller":
            assert box["height"] >= 60, (size, box)
    for name in ("#cut", "#close-wire", "#message"):
        await page(name).click(trial=True)


async def test_the_wire_covers_nothing(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*parts(*words(0, 20), gate))
        await page.send("Say much")
        await expect(page.answer).to_contain_text("word19")
        await page("#open-wire").click()
        for width, height in [
            (1440, 900),
            (1180, 800),
            (1179, 800),
            (1024, 768),
            (900, 700),
            (768, 1024),
            (720, 450),
            (390, 844),
            (320, 568),
        ]:
            await page.page.set_viewport_size({"width": width, "height": height})
            await is_apart(page)
            assert not await page.probe("isTooWide"), width
        gate.set()
        await page.answered()


async def test_the_wire_leaves_the_end_of_the_conversation_in_view(chromium: Browser) -> None:
    async with chatting(chromium, viewport={"width": 900, "height": 700}) as (page, _, upstream):
        upstream.script(*say("\n\n".join(words(0, 40))))
        await page.send("Say much")
        await page.answered()
        await expect(page.answer.get_by_text("word39")).to_be_in_viewport()
        await page("#open-wire").click()
        await expect(page.answer.get_by_text("word39")).to_be_in_viewport()


# ---- keyboard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [{"viewport": {"width": 720, "height": 800}}, PHONE], ids=["narrow", "phone"])
async def test_what_is_behind_the_list_is_out_of_reach(chromium: Browser, context: dict[str, Any]) -> None:
    async with chatting(chromium, **context) as (page, _, upstream):
        upstream.script(*say("Yes."))
        await page.send("Hello")
        await page.answered("Yes.")
        opener = page("#open-sidebar")
        for way in ("Escape", "shade", "button"):
            await opener.focus()
            await page.page.keyboard.press("Enter")
            await expect(page("#close-sidebar")).to_be_focused()
            seen = set()
            for _ in range(12):
                await page.page.keyboard.press("Tab")
                seen.add(await page.page.evaluate("document.activeElement.closest('main, #wire, #skip')?.id ?? 'list'"))
            assert seen == {"list"}
            if way == "Escape":
                await page.page.keyboard.press("Escape")
            elif way == "shade":
                await page("#shade").click(position={"x": context["viewport"]["width"] - 20, "y": 300})
            else:
                await page("#close-sidebar").click()
            await expect(opener).to_be_focused()
            await expect(page("#sidebar")).to_be_hidden()
            await page("#message").click(trial=True)
        await opener.click()
        await page.page.set_viewport_size({"width": 1300, "height": 800})
        await page("#message").click()  # The list has its place again, and the chat is not inert.
        await expect(page("#message")).to_be_focused()


async def walk(page: Driver) -> None:
    """Press Tab until everything has had the focus, and see each time where it is."""
    wrong, left = set[str](), ["everything"]
    await page("#title").click()
    for _ in range(80):
        await page.page.keyboard.press("Tab")
        fault, left = await page.probe("step")
        wrong.add(fault)
        if left == []:
            break
    assert (left, wrong - {""}) == ([], set())


async def test_every_tab_stop_is_reached_and_seen(chromium: Browser) -> None:
    """Without motion: a list that slides out of view can still be reached while it does."""
    code = "\n".join(f"a{number} = {'x' * 200}" for number in range(5))
    async with chatting(chromium, reduced_motion="reduce") as (page, _, upstream):
        upstream.script(*call("calculator", {"expression": "6 * 7"}))
        upstream.script(*say(f"See [there](https://example.org/).\n\n```python\n{code}\n```\n\nDone."))
        await page.send("Work it out")
        await page.answered("Done.")
        chat = page.page.url.partition("#")[2]
        for width in (1300, 720, 390):
            await page.page.set_viewport_size({"width": width, "height": 700})
            await page.probe("unmark")
            await walk(page)
            await page("#open-wire").click()
            await walk(page)
            await page("#close-wire").click()
            await page.page.evaluate("location.hash = 'compare'")
            await expect(page(".compare")).to_be_visible()
            await walk(page)
            await page.page.evaluate("(hash) => (location.hash = hash)", chat)
            await page.answered("Done.")


async def test_the_skip_link_leads_on(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, _):
        for address, field in (("#/", page("#message")), ("#compare", page(".compare").get_by_label("Ask"))):
            await page.page.evaluate("(hash) => (location.hash = hash)", address)
            await page("#title").click()
            await page("#skip").focus()
            await page.page.keyboard.press("Enter")
            await expect(field).to_be_focused()


async def test_a_word_of_an_input_method_is_not_sent(chromium: Browser) -> None:
    """Safari ends the composition before the Enter that ends it: the key's code, 229, is all that tells."""
    ends = """(field) => field.dispatchEvent(
        new KeyboardEvent("keydown", {key: "Enter", keyCode: 229, bubbles: true, cancelable: true}))"""
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*say("Yes."))
        await page.page.fill("#message", "にほ")
        assert await page("#message").evaluate(ends), "the key is left to the browser"
        await expect(page(".bubble")).to_have_count(0)
        await page.page.press("#message", "Enter")
        await page.answered("Yes.")
        await page.page.press("#message", "ArrowUp")
        await page(".editor textarea").evaluate(ends)
        await expect(page(".editor textarea")).to_be_focused()
        await page.page.keyboard.press("Escape")
        await page("#sessions li").hover()
        await page.page.get_by_label("Rename “にほ”").click()
        await page("#sessions input").evaluate(ends)
        await expect(page("#sessions input")).to_be_focused()


# ---- names, directions, fingers, colours ----------------------------------------------------------------------------


async def test_what_is_written_from_the_right_is_shown_so(chromium: Browser) -> None:
    blocks = ["שלום, world.", "- אחת\n- two", "1. one", "> ציטוט", "| אב | b |\n|---|---|\n| c | ד |", "# כותרת"]
    text = "\n\n".join([*blocks, "```\nשורה = 1\n```", "end"])
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*say(text))
        await page.page.fill("#message", "שלום")
        rtl = "(each) => getComputedStyle(each).direction"
        assert await page("#message").evaluate(rtl) == "rtl"
        await page.page.press("#message", "Enter")
        await page.answered("end")
        for selector, directions in {
            ".bubble": ["rtl"],
            ".prose > p": ["rtl", "ltr"],
            ".prose h1": ["rtl"],
            "blockquote": ["rtl"],
            ".prose ul": ["rtl"],
            ".prose ol": ["ltr"],
            ".prose li": ["rtl", "ltr", "ltr"],
            "pre": ["ltr"],
            "table": ["rtl"],
            "th": ["rtl", "ltr"],
            "td": ["ltr", "rtl"],
            "#title": ["rtl"],
            "#sessions a span": ["rtl"],
        }.items():
            found = await page(selector).evaluate_all("(all) => all.map((each) => getComputedStyle(each).direction)")
            assert found == directions, selector
        marker = "(list) => list.getBoundingClientRect().right - list.firstChild.getBoundingClientRect().right"
        assert await page(".prose ul").evaluate(marker) > 10  # There is room for its bullets.


async def test_formulas_stay_as_they_were_written(chromium: Browser) -> None:
    text = "So \\(e^{i\\pi} + 1 = 0\\) holds.\n\n\\[\na\n+ b \\\\\n\\]\n\nIt costs $5 and $10."
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*say(text, pieces=20))
        await page.send("Euler")
        await page.answered("$5 and $10.")
        await expect(page("code.math")).to_have_text("\\(e^{i\\pi} + 1 = 0\\)")
        assert await page("pre.math").inner_text() == "\\[\na\n+ b \\\\\n\\]"


async def test_a_finger_finds_everything(chromium: Browser) -> None:
    async with chatting(chromium, **PHONE) as (page, _, upstream):
        assert await page.probe("small") == []
        upstream.script(*call("calculator", {"expression": "1 / 0"}))
        upstream.script(*say("```python\na = 1\n```\n\nDone."))
        upstream.script(*say("Again."))
        await page.send("Hello")
        await page.answered("Done.")
        await page.answer.get_by_label("Answer again").tap()
        await page.answered("Again.")
        await page.page.get_by_label("Previous version").tap()
        assert await page.probe("small") == []
        await page("#open-wire").tap()
        assert await page.probe("small") == []
        await page("#close-wire").tap()
        await page(".question .edit").tap()
        assert await page.probe("small") == []
        await page.page.get_by_role("button", name="Cancel").tap()
        await page("#open-sidebar").tap()
        await expect(page("#sessions a")).to_be_in_viewport()
        assert await page.probe("small") == []
        await page.page.get_by_role("button", name="Delete “Hello”").tap()
        assert await page.probe("small") == []
        await page("#confirm").get_by_text("Keep").tap()
        await page("#to-compare").tap()
        assert await page.probe("small") == []


async def test_colours_of_ones_own_tell_what_is_chosen(chromium: Browser) -> None:
    """Where colours are forced, only what keeps its own can differ from the rest."""
    look = "(each) => [getComputedStyle(each).forcedColorAdjust, getComputedStyle(each).backgroundColor]"
    async with chatting(chromium, forced_colors="active") as (page, _, upstream):
        upstream.always(*say("Yes."))
        for text in ("One", "Two"):
            await page.begin_anew()
            await page.send(text)
            await page.answered("Yes.")
        await page("#title").hover()
        for chosen, other in (
            ("#transport input:checked + span", "#transport label:last-child input + span"),
            ("#sessions a[aria-current]", "#sessions a:not([aria-current])"),
            ("#state i", "#state"),
        ):
            adjust, colour = await page(chosen).evaluate(look)
            assert adjust == "none", chosen
            assert colour != (await page(other).evaluate(look))[1], chosen


async def test_those_who_listen_find_their_way(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*call("calculator", {"expression": "6 * 7"}))
        upstream.script(*say("It is 42."))
        await page.send("Work it out")
        await page.answered("It is 42.")
        await expect(page("#messages").get_by_role("heading", level=2)).to_have_text(["You", "Answer"])
        await expect(page.page.get_by_role("group", name="Tool call: calculator")).to_have_count(1)
        order = await page(".question").evaluate("(each) => [...each.children].map((child) => child.className)")
        assert order.index("bubble") < order.index("actions")
