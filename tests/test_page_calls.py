"""Calls of tools on the page: input that grows, progress, and forms for what waits. Nothing in them is ever markup."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, expect

from tests.approved_tools import LEDGER
from tests.browser import open_chromium
from tests.fake_upstream import FakeUpstream
from tests.live import LiveServer, live_server
from tests.page_driver import Driver, opened
from tests.test_page_safety import from_node, is_unharmed
from tests.test_waiting import calling, serving

PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DINNER = {"people": 2, "time": "19:00"}
MENUS = [{"const": "v", "title": "vegan"}, {"const": "f", "title": "fish"}]
FORM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Name", "description": "as on the bill", "minLength": 2},
        "mail": {"type": "string", "format": "email"},
        "guests": {"type": "integer", "minimum": 1, "maximum": 9, "default": 2},
        "price": {"type": "number"},
        "smokes": {"type": "boolean", "title": "Smoking"},
        "room": {"type": "string", "enum": ["hall", "yard"], "enumNames": ["The hall", "The yard"]},
        "menus": {"type": "array", "items": {"anyOf": MENUS}},
        "other": {"type": "object"},
    },
    "required": ["name", "guests", "room"],
}


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[LiveServer]:
    async with live_server(None) as server:
        yield server


@pytest.fixture(scope="module")
async def shared(chromium: Browser, server: LiveServer) -> AsyncIterator[Driver]:
    async with opened(chromium, f"{server.url}/") as page:
        yield page


@pytest.fixture
async def page(shared: Driver) -> Driver:
    """The page of all tests here, with an answer of the test's own."""
    await shared.probe("begin")
    return shared


def call(call_id: str = "a", tool: str = "book_table", **more: Any) -> dict[str, Any]:
    called = {"call_id": call_id, "tool": tool, "args": DINNER, "needs_approval": False, "executor": "server"}
    return {"type": "tool_call"} | called | more


def question(schema: Any, message: Any = "Who comes?", call_id: str = "a") -> dict[str, Any]:
    return call(call_id, "ask_user", args={"message": message, "schema": schema}, executor="client")


def result(call_id: str = "a", **more: Any) -> dict[str, Any]:
    ended = {"tool": "book_table", "result": {"table": 7}, "is_error": False, "truncated": False, "duration_ms": 12}
    return {"type": "tool_result", "call_id": call_id} | ended | more


def written(delta: str, call_id: str = "a", tool: str = "book_table") -> dict[str, Any]:
    return {"type": "tool_input", "call_id": call_id, "tool": tool, "delta": delta}


def progress(message: str | None, progress: float | None, total: float | None, call_id: str = "a") -> dict[str, Any]:
    return {"type": "tool_progress", "call_id": call_id, "message": message, "progress": progress, "total": total}


async def tell(page: Driver, *events: dict[str, Any]) -> Locator:
    """Let these events come; the card of the newest call."""
    await page.probe("tell", list(events))
    return page.answer.locator(".tool").last


async def answered(page: Driver) -> Any:
    return await page.page.evaluate("window.answered")


# ---- what comes of itself -------------------------------------------------------------------------------------------


async def test_input_grows_and_becomes_the_call(page: Driver) -> None:
    card = await tell(page, {"type": "token", "content": "I look. "}, written('{"people"'))
    await expect(card).to_have_attribute("data-state", "writing")
    await expect(card.locator("summary")).to_contain_text('{"people"')
    await tell(page, written(": 2, "), written("[1", "b", "other"))
    await expect(page(".tool")).to_have_count(2)
    await expect(page(".tool pre").first).to_have_text('{"people": 2, ')
    await card.first.evaluate("(card) => (window.card = card)")
    await tell(page, call(), call("b", "other"))
    await expect(page(".tool")).to_have_count(2)
    await expect(page(".tool summary").first).to_contain_text('people: 2, time: "19:00"')
    await expect(page(".tool").first).to_have_attribute("data-state", "running")
    await tell(page, result(), result("b"), {"type": "token", "content": "So it is."}, written("{", "c", "lost"))
    kinds = await page.page.evaluate("[...document.querySelectorAll('.parts > *')].map((each) => each.className)")
    assert kinds == ["prose", "tool", "tool", "prose", "tool"]
    await tell(page, {"type": "error", "code": "llm_error", "message": "cut", "retryable": True, "retry_after": None})
    await expect(page(".tool")).to_have_count(2)  # What was never called is gone.


async def test_a_tool_tells_how_far_it_is(page: Driver) -> None:
    card = await tell(page, call(), progress("Baking", 3, 10))
    bar = card.locator("progress")
    await expect(card.locator(".progress")).to_contain_text("Baking")
    await expect(card.locator(".progress")).to_contain_text("3 of 10")
    assert await bar.evaluate("(bar) => bar.value / bar.max") == 0.3
    await tell(page, progress(None, 4.5, None))
    await expect(card.locator(".count")).to_have_text("4.5")
    assert await bar.evaluate("(bar) => bar.position") == -1
    await tell(page, progress("Over", 12, 0), progress("Over", 12, 10))
    assert await bar.evaluate("(bar) => bar.position") == 1
    await tell(page, result())
    await expect(card.locator(".progress")).to_be_hidden()
    await expect(card).to_have_attribute("data-state", "done")


# ---- what somebody is asked -----------------------------------------------------------------------------------------


async def test_an_approval_is_given_as_it_is_asked_for(page: Driver) -> None:
    card = await tell(page, call(needs_approval=True))
    await expect(card).to_have_attribute("data-state", "waiting")
    await expect(page("#announcer")).to_contain_text("book_table needs your approval.")
    await expect(card.get_by_label("Arguments")).to_have_value(json.dumps(DINNER, indent=2))
    await card.get_by_role("button", name="Approve").press("Enter")
    await expect(card.locator("form")).to_have_count(0)
    await expect(card).to_have_attribute("data-state", "running")
    await expect(card.locator("summary")).to_be_focused()
    assert await answered(page) == [["a", {"approve": True}]]


async def test_arguments_are_edited_and_only_an_object_is_taken(page: Driver) -> None:
    card = await tell(page, call(needs_approval=True))
    for wrong in ("{", "[]", "null", "7"):
        await card.get_by_label("Arguments").fill(wrong)
        await card.get_by_role("button", name="Approve").click()
    assert await answered(page) == []
    await card.get_by_label("Arguments").fill('{"people": 4}')
    await card.get_by_role("button", name="Approve").click()
    await expect(card.locator("form")).to_have_count(0)
    assert await answered(page) == [["a", {"approve": True, "args": {"people": 4}}]]
    await tell(page, result(args={"people": 4}))
    await expect(card.locator("summary")).to_contain_text("people: 4")
    await expect(card.locator("pre").first).to_have_text('{\n  "people": 4\n}')


async def test_a_refusal_has_its_reason_and_enter_there_does_not_approve(page: Driver) -> None:
    card = await tell(page, call(needs_approval=True))
    await card.get_by_label("Reason, if you refuse").fill("too late")
    await page.page.keyboard.press("Enter")
    await expect(card.locator("form")).to_have_count(0)
    assert await answered(page) == [["a", {"approve": False, "reason": "too late"}]]
    await tell(page, result(result="refused: too late", is_error=True))
    await expect(card).to_have_attribute("data-state", "failed")
    await expect(card.locator("pre").last).to_have_text("refused: too late")


async def test_what_cannot_be_sent_stays_and_what_was_answered_elsewhere_goes(page: Driver) -> None:
    card = await tell(page, call(needs_approval=True), call("b", needs_approval=True))
    await page.page.evaluate("window.refusal = new Error('no network')")
    await card.get_by_role("button", name="Refuse").click()
    await expect(card.locator(".note")).to_have_text("It could not be sent: no network.")
    await expect(card.get_by_role("button", name="Refuse")).to_be_focused()
    await page.page.evaluate("window.refusal = Object.assign(new Error(), {code: 'already_answered'})")
    await card.get_by_role("button", name="Refuse").click()
    await expect(card.locator("form")).to_have_count(0)
    await tell(page, progress("it was approved on the phone", None, None))
    await expect(page(".tool form")).to_have_count(0)


async def test_escape_leaves_the_form_and_the_run_alone(page: Driver) -> None:
    card = await tell(page, call(needs_approval=True))
    await card.get_by_label("Arguments").focus()
    await page.page.keyboard.press("Escape")
    await expect(page("#message")).to_be_focused()
    await expect(card.locator("form")).to_have_count(1)


async def test_a_question_is_a_form(page: Driver) -> None:
    card = await tell(page, question(FORM))
    await expect(card.locator(".what")).to_have_text("Who comes?")
    await card.get_by_role("button", name="Send").click()
    assert await answered(page) == []  # The name is missing.
    await card.get_by_label("Name").fill("Bo")
    await card.get_by_label("room").select_option("The yard")
    await card.get_by_label("guests").fill("12")
    await page.page.keyboard.press("Enter")
    assert await answered(page) == []
    await card.get_by_label("guests").fill("3")
    await card.get_by_label("price").fill("9.5")
    await card.get_by_label("vegan").check()
    await card.get_by_label("other").fill('{"a": 1}')
    await page.page.keyboard.press("Tab")
    await card.get_by_role("button", name="Send").click()
    await expect(card.locator("form")).to_have_count(0)
    content = {
        "name": "Bo",
        "guests": 3,
        "price": 9.5,
        "smokes": False,
        "room": "yard",
        "menus": ["v"],
        "other": {"a": 1},
    }
    assert await answered(page) == [["a", {"result": {"action": "accept", "content": content}}]]


async def test_a_question_is_declined_as_it_stands(page: Driver) -> None:
    await tell(page, question(FORM, call_id="a"), question(FORM, call_id="b"))
    for button in ("Decline", "Cancel"):
        await page.answer.get_by_role("button", name=button).first.click()
    await expect(page(".tool form")).to_have_count(0)
    ways = [[call_id, answer["result"]["action"]] for call_id, answer in await answered(page)]
    assert ways == [["a", "decline"], ["b", "cancel"]]


async def test_a_tool_of_another_client_is_waited_for(page: Driver) -> None:
    card = await tell(page, call(tool="unlock_phone", executor="client"))
    await expect(card.locator(".what")).to_have_text("unlock_phone waits for a client that has this tool.")
    await tell(
        page, {"type": "done", "session_id": "s", "message_id": "m", "finish_reason": "cancelled", "usage": None}
    )
    await expect(card).to_have_attribute("data-state", "left")
    await expect(card.locator(".ask")).to_have_count(0)


# ---- with a real server ---------------------------------------------------------------------------------------------


async def test_a_call_of_the_demo_waits_through_a_reload(chromium: Browser, server: LiveServer) -> None:
    async with opened(chromium, f"{server.url}/", viewport={"width": 1100, "height": 800}) as page:
        for transport in ("ws", "sse"):
            await page.begin_anew()
            await page.use(transport)
            await page.send("What is my screen size?")
            await page.answered("Your screen has 1100 × 800 pixels.")
            await page.send("Book a table for 4 at 19:30")
            form = page.answer.locator("form")
            await expect(form).to_be_visible()
            await page.page.reload()
            await form.get_by_label("Arguments").fill('{"people": "many"}')
            await form.get_by_role("button", name="Approve").click()
            await expect(form.locator(".note")).to_contain_text("It was refused: the arguments do not fit: ")
            await expect(form.locator(".note")).to_contain_text("$.people")
            await expect(form.get_by_label("Arguments")).to_have_value('{"people": "many"}')
            await form.get_by_label("Arguments").fill('{"people": 5, "time": "20:00"}')
            await form.get_by_role("button", name="Approve").click()
            await page.answered("A table for 5 at 20:00 is booked")
            await expect(page.answer.locator("summary .args")).to_have_text('people: 5, time: "20:00"')
            await page.send("Book a table")
            await form.get_by_label("Reason, if you refuse").fill("too late")
            await form.get_by_role("button", name="Refuse").click()
            await page.answered("I have no table for you")
            await expect(page.answer.locator(".tool")).to_have_attribute("data-state", "failed")


async def test_what_is_shown_is_what_is_called(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit, of numbers too that JavaScript rounds."""
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    big = 2**53 + 1
    shown = f'{{\n  "amount": {big},\n  "to": "Bo"\n}}'
    async with FakeUpstream() as upstream:
        upstream.always(calling(("pay", {"amount": big, "to": "Bo"})))
        async with serving(upstream, tmp_path) as server, opened(chromium, f"{server.url}/") as page:
            for transport in ("ws", "sse"):
                await page.begin_anew()
                await page.use(transport)
                for is_edited in (False, True):
                    await page.send("Pay")
                    arguments = page.answer.get_by_label("Arguments")
                    await expect(arguments).to_have_value(shown)
                    if is_edited:
                        await page.page.reload()
                        await expect(arguments).to_have_value(shown)
                        await arguments.fill(shown.replace("Bo", "Cy"))
                    await page.answer.get_by_role("button", name="Approve").click()
                    await page.answered("so: ")
                for _ in range(2):
                    called, result = await page.answer.locator("pre").all_text_contents()
                    assert called == shown.replace("Bo", "Cy")
                    assert result == f'{{\n  "paid": {big},\n  "rate": 1.0\n}}'
                    await page.page.reload()
                    await page.answered("so: ")
    assert (tmp_path / "ledger").read_text() == f"pay {big} Bo\npay {big} Cy\n" * 2


async def test_numbers_of_a_question_are_sent_as_they_are_written(page: Driver) -> None:
    fields = {"amount": {"type": "integer"}, "rate": {"type": "number"}, "other": {"type": "array"}}
    card = await tell(page, question({"type": "object", "properties": fields}))
    await card.get_by_label("amount").fill("9007199254740993")
    await card.get_by_label("rate").fill(".50")
    await card.get_by_label("other").fill("[1e400]")
    await card.get_by_role("button", name="Send").click()
    assert await answered(page) == []  # The server would refuse the whole frame.
    await card.get_by_label("other").fill("[1.0]")
    await card.get_by_role("button", name="Send").click()
    await expect(card.locator("form")).to_have_count(0)
    sent = await page.page.evaluate(
        "import('./web/page/exact.js').then(({stringify}) => stringify(window.answered[0][1].result.content))"
    )
    assert sent == '{"amount":9007199254740993,"rate":0.50,"other":[1.0]}'


async def test_a_number_that_no_server_takes_is_not_sent(page: Driver) -> None:
    card = await tell(page, call(needs_approval=True))
    await card.get_by_label("Arguments").fill('{"people": 1e400}')
    await card.get_by_role("button", name="Approve").click()
    message = await card.get_by_label("Arguments").evaluate("(field) => field.validationMessage")
    assert message == "The number 1e400 is too large to be sent."
    assert await answered(page) == []


# ---- data are data --------------------------------------------------------------------------------------------------

ODD_SCHEMAS: list[Any] = [
    None,
    [],
    "x",
    {"properties": []},
    {"properties": {"a": None, "b": {"type": "string", "enum": []}, "c": {"type": "array", "items": {"enum": "x"}}}},
    {"properties": {"__proto__": {"type": "string", "minLength": -1, "maxLength": "x", "format": "constructor"}}},
    {"properties": {"a": {"oneOf": [{"const": {"b": 1}}, {"const": None, "title": 7}]}}, "required": "a"},
]


async def test_no_value_of_a_call_is_markup(page: Driver) -> None:
    payloads = [
        "<img src=x onerror=pwn(1)>",
        "</pre><script>pwn(1)</script>",
        *from_node("payloads.mjs", "it.PAYLOADS")[::30],
    ]
    await page.probe("raiseAlarm")
    for i, hostile in enumerate(payloads):
        schema = {
            "type": "object",
            "properties": {
                hostile: {"type": "string", "title": hostile, "description": hostile, "default": hostile},
                "e": {"enum": [hostile], "enumNames": [hostile]},
                "b": {"type": "boolean", "title": hostile, "description": hostile},
                "m": {"type": "array", "title": hostile, "items": {"enum": [hostile]}},
            },
        }
        ids = [f"{kind}{i}" for kind in "abcd"]
        await tell(
            page,
            written(hostile, ids[0], hostile),
            call(ids[0], hostile, args={hostile: hostile}, needs_approval=True),
            question(schema, hostile, ids[1]),
            call(ids[2], hostile, args={hostile: hostile}),
            progress(hostile, 1, 2, ids[2]),
            call(ids[3], hostile),
            result(ids[3], result={hostile: hostile}, is_error=i % 2 == 0),
        )
    assert await page(".tool").count() == 4 * len(payloads)
    await is_unharmed(page)


async def test_odd_schemas_make_a_form_that_can_be_declined(page: Driver) -> None:
    for i, schema in enumerate(ODD_SCHEMAS):
        card = await tell(page, question(schema, i, f"q{i}"))
        await card.get_by_role("button", name="Send").click()
        await card.get_by_role("button", name="Decline").click() if await card.locator("form").count() else None
        await expect(card.locator("form")).to_have_count(0)
    assert [each for each, _ in await answered(page)] == [f"q{i}" for i in range(len(ODD_SCHEMAS))]


# ---- for everybody --------------------------------------------------------------------------------------------------


async def test_it_can_be_read_heard_and_touched(chromium: Browser, server: LiveServer) -> None:
    async with opened(chromium, f"{server.url}/", **PHONE) as page:
        await page.probe("begin")
        await tell(
            page,
            written('{"a', "w"),
            call("p"),
            progress("Baking " * 9, 3, 10, "p"),
            call("a", needs_approval=True, args={"note": "x" * 200}),
            question(FORM, call_id="q"),
            call("o", tool="unlock_phone", executor="client"),
        )
        await expect(page(".tool")).to_have_count(5)
        await page.is_legible()
        assert await page.probe("small") == []
        assert not await page.probe("isTooWide")
