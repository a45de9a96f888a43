"""The chat at `/`, in Chromium against a real server: each thing that a reader can do, and what is seen of it."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, expect

from tests.browser import open_chromium
from tests.clients import request
from tests.fake_upstream import Done, Gate, call, finish, reasoning, refuse, role, say, token
from tests.live import live_server
from tests.page_driver import chatting, opened, parts, words

ALL = "".join(words(0, 40)).strip()


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


# ---- a question and its answer --------------------------------------------------------------------------------------


async def test_a_question_is_answered_and_kept(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*parts("# Title\n\n**bo", gate, "ld** and `code`\n\n", "| a | b |\n|---|---|\n| 1 | 2 |\n"))
        await page.page.fill("#message", "first line")
        await page.page.press("#message", "Shift+Enter")
        await page.page.keyboard.type("second line")
        await page.page.keyboard.press("Enter")
        await expect(page(".question .bubble")).to_have_text("first line\nsecond line")
        await expect(page.answer.locator("strong")).to_have_text("bo")
        await expect(page("#state")).to_have_text("open · WS")
        await expect(page("#stop")).to_be_visible()
        gate.set()
        await page.answered()
        await expect(page.answer.locator("h1")).to_have_text("Title")
        await expect(page.answer.locator("strong")).to_have_text("bold")
        await expect(page.answer.locator("td")).to_have_text(["1", "2"])
        await expect(page.answer.locator("footer .badge")).to_have_text("WebSocket")
        await expect(page.answer.locator("footer .facts")).to_contain_text("first token")
        await expect(page.answer.locator("footer .facts")).to_contain_text("12 tokens in, 4 out")
        await expect(page("#sessions a[aria-current]")).to_have_text("first line")
        await expect(page("#title")).to_have_text("first line")
        await expect(page("#demo")).to_be_hidden()
        assert "#/s/" in page.page.url
        await page.page.reload()
        await page.answered("bold and code")
        await expect(page(".question .bubble")).to_have_text("first line\nsecond line")


async def test_many_gaps_are_drawn(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*parts(*words(0, 40)))
        await page.send("Say much")
        await page.answered(ALL)
        plot = page.answer.locator("svg.gaps")
        assert "Gaps between tokens: median" in (await plot.get_attribute("aria-label") or "")
        assert await plot.locator("rect.ws").count() > 10
        await expect(page.answer.locator("footer .facts")).to_contain_text("tokens/s")


async def test_the_transport_may_change_in_mid_answer(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        for first, then in (("ws", "sse"), ("sse", "ws")):
            gate = asyncio.Event()
            upstream.script(*parts(*words(0, 20), gate, *words(20, 40)))
            await page.begin_anew()
            await page.use(first)
            await page.send("Say much")
            await expect(page.answer).to_contain_text("word19")
            await page.use(then)
            await expect(page("#state")).to_have_text(f"open · {'SSE' if then == 'sse' else 'WS'}")
            gate.set()
            await page.answered()
            assert (await page.answer.locator(".prose").inner_text()).strip() == ALL
            names = ["WebSocket", "SSE"] if first == "ws" else ["SSE", "WebSocket"]
            await expect(page.answer.locator("footer .badge")).to_have_text(names)
            await page.page.reload()
            await expect(page(f"#transport input[value={then}]")).to_be_checked()


async def test_a_cut_connection_loses_nothing(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        for transport in ("ws", "sse"):
            gate = asyncio.Event()
            upstream.script(*parts(*words(0, 20), gate, *words(20, 40)))
            await page.begin_anew()
            await expect(page("#cut")).to_be_disabled()
            await page.use(transport)
            await page.send("Say much")
            await expect(page.answer).to_contain_text("word19")
            async with (
                page.page.expect_event("websocket") if transport == "ws" else page.page.expect_request("**/events")
            ):
                await page("#cut").click()
            gate.set()
            await page.answered()
            assert (await page.answer.locator(".prose").inner_text()).strip() == ALL
            await expect(page.answer.locator("svg.gaps .resumed")).to_have_count(1)
            session = page.page.url.rpartition("/")[2]
            stored = (await request(server, "GET", f"/chat/sessions/{session}")).json["messages"][-1]
            assert stored["content"].strip() == ALL


async def test_a_reload_in_mid_answer_goes_on(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*parts(*words(0, 20), gate, *words(20, 40)))
        await page.send("Say much")
        await expect(page.answer).to_contain_text("word19")
        await page.page.reload()
        await expect(page.answer).to_contain_text("word19")
        await expect(page("#stop")).to_be_visible()
        gate.set()
        await page.answered()
        assert (await page.answer.locator(".prose").inner_text()).strip() == ALL
        await expect(page(".answer")).to_have_count(1)
        assert len(upstream.requests) == 1


async def test_another_chat_may_be_read_while_an_answer_is_written(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*parts(*words(0, 20), gate, *words(20, 40)))
        await page.send("Say much")
        await expect(page.answer).to_contain_text("word19")
        await page.page.keyboard.press("Alt+n")
        await expect(page("#welcome")).to_be_visible()
        await expect(page("#sessions .going")).to_be_visible()
        upstream.script(*say("Another answer."))
        await page.send("Something else")
        await page.answered("Another answer.")
        await page("#sessions a", has_text="Say much").click()
        await expect(page.answer).to_contain_text("word19")
        gate.set()
        await page.answered()
        assert (await page.answer.locator(".prose").inner_text()).strip() == ALL


async def test_what_was_measured_stays_when_the_tab_comes_back(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        upstream.always(*say("Yes.", pieces=3))
        await page.send("Hello")
        await page.answered("Yes.")
        session = page.page.url.rpartition("/")[2]
        async with page.page.expect_response(f"**/chat/sessions/{session}?branches=all"):
            await page.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await expect(page.answer.locator("footer .facts")).to_contain_text("first token")
        await request(server, "POST", "/chat/stream", {"message": "From elsewhere", "session_id": session})
        await page.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await expect(page(".bubble")).to_have_text(["Hello", "From elsewhere"])


async def test_the_focus_and_the_view_stay_where_they_are_needed(chromium: Browser) -> None:
    gate, other = asyncio.Event(), asyncio.Event()
    async with chatting(chromium, viewport={"width": 900, "height": 500}) as (page, _, upstream):
        upstream.script(*parts("line  \n" * 60, gate, "line  \n" * 30, other))
        await page.page.fill("#message", "Say much")
        await page("#send").focus()
        await page.page.keyboard.press("Enter")
        await expect(page("#stop")).to_be_focused()
        place = page("#scroller")
        await expect(page.answer.locator("br").nth(50)).to_be_in_viewport()
        await place.hover()
        await page.page.mouse.wheel(0, -600)
        await expect(page.answer.locator("br").nth(50)).not_to_be_in_viewport()
        gate.set()
        await expect(page("#to-end")).to_be_visible()
        await expect(page.answer.locator("br")).to_have_count(89)
        await expect(page.answer.locator("br").nth(80)).not_to_be_in_viewport()
        await page("#to-end").click()
        await expect(page.answer.locator("br").nth(80)).to_be_in_viewport()
        await page("#stop").focus()
        await page.page.keyboard.press("Enter")
        await page.answered()
        await expect(page("#message")).to_be_focused()


async def test_escape_stops(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*parts(*words(0, 5), gate))
        await page.send("Say much")
        await expect(page.answer).to_contain_text("word4")
        await page.page.keyboard.press("Escape")
        await page.answered()
        await expect(page.answer.locator(".note")).to_have_text("stopped")
        await upstream.closed()


# ---- again ----------------------------------------------------------------------------------------------------------


async def test_an_answer_is_given_again_and_a_message_edited(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        for text in ("One.", "Two.", "Three."):
            upstream.script(*say(text))
        await page.send("First")
        await page.answered("One.")
        await page.answer.get_by_label("Answer again").click()
        await page.answered("Two.")
        await expect(page(".answer")).to_have_count(1)
        await page.page.keyboard.press("/")
        await page.page.press("#message", "ArrowUp")
        editor = page(".editor textarea")
        await expect(editor).to_be_focused()
        await editor.fill("Second")
        await editor.press("Enter")
        await page.answered("Three.")
        await expect(page(".bubble")).to_have_text("Second")
        assert [each.json["messages"][-1]["content"] for each in upstream.requests] == ["First", "First", "Second"]
        await page.page.reload()
        await page.answered("Three.")
        await expect(page(".bubble")).to_have_text("Second")


async def test_a_failure_says_why_and_can_be_retried(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*refuse(429, headers={"Retry-After": "7"}))
        upstream.script(*say("Now it works."))
        await page.send("Hello")
        failure = page.answer.locator(".failure")
        await expect(failure).to_contain_text("The model is busy")
        await expect(failure).to_contain_text("rate_limited")
        await expect(failure.get_by_role("button")).to_have_text(re.compile(r"Try again in [1-7] s"))
        await page.page.reload()
        await expect(page(".failure")).to_contain_text("rate_limited")
        await page(".failure button").click()
        await page.answered("Now it works.")
        await expect(page(".failure:visible")).to_have_count(0)
        await expect(page(".bubble")).to_have_text("Hello")


async def test_a_broken_answer_keeps_what_came(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(role(), token("Half of "), token("it"))
        await page.send("Hello")
        await expect(page.answer.locator(".failure")).to_contain_text("broke off")
        await expect(page.answer.locator(".prose")).to_have_text("Half of it")


async def test_a_second_message_is_refused_and_the_first_answer_shown(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium) as (page, server, upstream):
        upstream.script(*say("One."))
        await page.send("First")
        await page.answered("One.")
        session = page.page.url.rpartition("/")[2]
        upstream.script(*parts("From elsewhere", gate, "."))
        body = {"message": "Other", "session_id": session, "on_disconnect": "continue"}
        await request(server, "POST", "/chat/runs", body)
        await page.send("Second")
        await expect(page.answer).to_contain_text("From elsewhere")
        gate.set()
        await page.answered("From elsewhere.")


# ---- inside an answer -----------------------------------------------------------------------------------------------


async def test_tools_are_cards(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*call("calculator", {"expression": "6 * 7"}))
        upstream.script(*call("calculator", {"expression": "1 / 0"}, id="call_2"))
        upstream.script(*say("That was that."))
        await page.send("Work it out")
        await page.answered("That was that.")
        good, bad = page.answer.locator(".tool").nth(0), page.answer.locator(".tool").nth(1)
        await expect(good).to_have_attribute("data-state", "done")
        await expect(good.locator("summary")).to_contain_text('expression: "6 * 7"')
        await expect(good.locator(".body")).to_be_hidden()
        await good.locator("summary").press("Enter")
        await expect(good.locator("pre")).to_have_text(['{\n  "expression": "6 * 7"\n}', "42"])
        await expect(bad).to_have_attribute("data-state", "failed")
        await expect(bad.locator("pre").last).to_be_visible()
        await page.page.reload()
        await page.answered("That was that.")
        await expect(page(".tool")).to_have_count(2)
        await expect(page(".tool").first).to_have_attribute("data-state", "done")


async def test_reasoning_is_folded(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(
            role(), reasoning("First this, "), reasoning("then that."), token("So it is."), finish(), Done()
        )
        await page.send("Think")
        await page.answered("So it is.")
        thoughts = page.answer.locator(".reasoning")
        await expect(thoughts.locator(".prose")).to_be_hidden()
        await thoughts.locator("summary").click()
        await expect(thoughts.locator(".prose")).to_have_text("First this, then that.")


async def test_an_answer_looks_after_a_reload_as_when_it_was_written(chromium: Browser) -> None:
    """Thoughts, texts and tools in the order in which they happened."""
    gate = asyncio.Event()
    async with chatting(chromium) as (page, _, upstream):
        for thought, text, sum_ in (("First this.", "I look.", "6 * 7"), ("Then that.", "Once more.", "1 / 0")):
            upstream.script(role(), reasoning(thought), token(text), *call("calculator", {"expression": sum_})[1:])
        upstream.script(role(), reasoning("So."), token("It "), Gate(gate), token("is **42**."), finish(), Done())
        await page.send("Work it out")
        await expect(page.answer.locator(".parts > *").last).to_have_text("It")
        await page.page.reload()
        await expect(page.answer.locator(".parts > *").last).to_have_text("It")
        gate.set()
        await page.answered("It is 42.")
        kinds = ["reasoning", "prose", "tool", "reasoning", "prose", "tool", "reasoning", "prose"]
        for _ in range(2):
            shown = await page.page.evaluate(
                "[...document.querySelectorAll('.parts > *')].map((each) => each.className)"
            )
            assert shown == kinds
            await expect(page.answer.locator(".parts > .prose")).to_have_text(["I look.", "Once more.", "It is 42."])
            await page.page.reload()
            await page.answered("It is 42.")


async def test_code_is_coloured_and_copied(chromium: Browser) -> None:
    async with chatting(chromium, permissions=["clipboard-read", "clipboard-write"]) as (page, _, upstream):
        upstream.script(*say("```python\ndef f():\n    return 1\n```\n\nDone.", pieces=9))
        await page.send("Code")
        await page.answered("Done.")
        await expect(page.answer.locator(".keyword")).to_have_text(["def", "return"])
        await page.answer.locator(".copy-code").click()
        await expect(page("#announcer")).to_contain_text("Code copied")
        assert await page.page.evaluate("navigator.clipboard.readText()") == "def f():\n    return 1"
        await page.answer.get_by_label("Copy the answer").click()
        await expect(page("#announcer")).to_contain_text("Copied")
        assert (await page.page.evaluate("navigator.clipboard.readText()")).startswith("```python")


# ---- sessions -------------------------------------------------------------------------------------------------------


async def test_chats_are_listed_renamed_and_deleted(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        upstream.always(*say("Yes."))
        for text in ("Apples", "Pears"):
            await page.begin_anew()
            await page.send(text)
            await page.answered("Yes.")
        await expect(page("#sessions a")).to_have_text(["Pears", "Apples"])
        await page("#sessions li", has_text="Apples").hover()
        await page.page.get_by_label("Rename “Apples”").click()
        await page.page.keyboard.type("Plums")
        await page.page.keyboard.press("Enter")
        await expect(page("#sessions a")).to_have_text(["Pears", "Plums"])
        titles = [each["title"] for each in (await request(server, "GET", "/chat/sessions")).json["sessions"]]
        assert sorted(titles) == ["Pears", "Plums"]
        await page("#sessions li", has_text="Pears").hover()
        await page.page.get_by_role("button", name="Delete “Pears”").click()
        await page("#confirm").get_by_text("Keep").click()
        await expect(page("#sessions a")).to_have_count(2)
        await page.page.get_by_role("button", name="Delete “Pears”").click()
        await page("#confirm").get_by_role("button", name="Delete").click()
        await expect(page("#sessions a")).to_have_text(["Plums"])
        await expect(page("#welcome")).to_be_visible()
        await page.page.keyboard.press("Alt+ArrowDown")
        await page.answered("Yes.")


async def test_a_link_leads_to_its_chat(chromium: Browser) -> None:
    async with chatting(chromium) as (page, server, upstream):
        upstream.always(*say("Yes."))
        await request(server, "POST", "/chat/stream", {"message": "Deep", "session_id": "deep"})
        await page.page.goto(f"{server.url}/#/s/deep")
        await page.answered("Yes.")
        await expect(page("#title")).to_have_text("Deep")
        await page.page.goto(f"{server.url}/#/s/nowhere")
        await expect(page("#messages")).to_contain_text("not here any more")
        await page.page.get_by_text("Begin a new one").click()
        await expect(page("#welcome")).to_be_visible()


# ---- around it ------------------------------------------------------------------------------------------------------


async def test_the_wire_shows_what_came(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        for transport in ("ws", "sse"):
            upstream.script(*say("Some words.", pieces=3))
            await page.begin_anew()
            await page.use(transport)
            await page("#open-wire").click()
            await page.send("Hello")
            await page.answered("Some words.")
            await expect(page(f"#frames .{transport}.out", has_text="Hello")).to_have_count(1)
            frames = page(f"#frames .{transport}.in")
            await expect(frames.filter(has_text='"type":"done"')).to_have_count(1)
            if transport == "sse":
                await expect(frames.first).to_contain_text("retry: 1000")
                await expect(frames.filter(has_text="event: token").first).to_be_visible()
            await expect(page("#wire-sum")).to_contain_text("B in")
            await page("#clear-wire").click()
            await expect(page("#frames li")).to_have_count(0)
            await page("#close-wire").click()
            await expect(page("#wire")).to_be_hidden()


async def test_the_demo_model_is_named(chromium: Browser) -> None:
    async with live_server(None) as server, opened(chromium, f"{server.url}/") as page:
        await expect(page("#demo")).to_be_visible()
        await page("#suggestions button", has_text="Tokyo").click()
        await page.answered("The tools answered")
        await expect(page.answer.locator(".tool")).to_have_count(2)


async def test_the_keys_are_listed_and_work(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, _):
        await page("#title").click()
        await page.page.keyboard.press("?")
        await expect(page("#shortcuts")).to_be_visible()
        await expect(page("#shortcuts dt")).to_have_count(13)
        await page.page.keyboard.press("Escape")
        await expect(page("#shortcuts")).to_be_hidden()
        await page.page.keyboard.press("/")
        await expect(page("#message")).to_be_focused()
        await page.page.keyboard.press("Alt+t")
        await expect(page("#transport input[value=sse]")).to_be_checked()
        await page.page.keyboard.press("Alt+w")
        await expect(page("#wire")).to_be_visible()
        await page.page.keyboard.press("Alt+c")
        await expect(page("#compare")).to_be_visible()
        await page.page.keyboard.press("Alt+n")
        await expect(page("#message")).to_be_focused()
        await page.page.keyboard.type("a?/")
        assert await page.page.input_value("#message") == "a?/"


async def test_it_fits_a_phone(chromium: Browser) -> None:
    size = {"width": 360, "height": 640}
    async with chatting(chromium, viewport=size, has_touch=True, is_mobile=True) as (page, _, upstream):
        gate = asyncio.Event()
        code = "\n```\n" + "x" * 200 + "\n```\n\n| a | b |\n|---|---|\n| " + "y" * 90 + " | z |\n"
        upstream.script(*parts("w" * 120, code, gate, "End."))
        assert not await page.probe("isTooWide")
        await page.page.fill("#message", "long" * 60)
        await page("#send").tap()
        await expect(page.answer.locator("td").first).to_be_visible()
        assert not await page.probe("isTooWide")
        gate.set()
        await page.answered("End.")
        await page("#open-sidebar").tap()
        await expect(page("#sessions a")).to_be_in_viewport()
        await page("#shade").tap(position={"x": 340, "y": 300})
        await expect(page("#sessions a")).not_to_be_in_viewport()
        await page("#open-wire").tap()
        await expect(page("#frames li").first).to_be_visible()
        assert not await page.probe("isTooWide")


async def test_it_can_be_read_and_heard(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        await page.is_legible()
        upstream.script(*call("calculator", {"expression": "1 / 0"}))
        code = "```python\n# c\ndef f(x: Any) -> str:\n    return 'a' + g(1)\n```\n"
        upstream.script(
            *say(f"A **word**, [a link](https://a.example), `code`.\n\n{code}\n> quoted\n\n| a |\n|---|\n| b |")
        )
        upstream.script(*refuse(500), *refuse(500))
        upstream.always(*refuse(400))
        await page.send("First")
        await page.answered("quoted")
        await expect(page("#announcer")).to_contain_text("A word, a link, code.")
        await page("#open-wire").click()
        await page.send("Second")
        await expect(page.answer.locator(".failure")).to_be_visible()
        await page.is_legible()


async def test_nothing_moves_for_those_who_asked_for_that(chromium: Browser) -> None:
    gate = asyncio.Event()
    async with chatting(chromium, reduced_motion="reduce") as (page, _, upstream):
        upstream.script(role(), *parts(gate, "Yes."))
        await page.send("Hello")
        await expect(page(".pending")).to_be_visible()
        assert await page.probe("moving") == 0
        gate.set()
        await page.answered("Yes.")
