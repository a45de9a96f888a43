"""What a model says cannot harm its reader: no script of it runs, no request goes elsewhere, nothing slows down."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser import open_chromium
from tests.fake_upstream import FakeUpstream, say
from tests.live import ROOT, live_server
from tests.page_driver import PROBES, Driver, chatting, opened
from tests.tcp_server import HOST, tcp_server
from tests.web_client import node

CHANGES_LIMIT = 3


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


def from_node(module: str, expression: str) -> Any:
    """What a module of ``tests/page`` exports."""
    url = json.dumps((ROOT / "tests" / "page" / module).as_uri())
    code = f"import * as it from {url}; console.log(JSON.stringify({expression}))"
    done = subprocess.run([node(), "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@asynccontextmanager
async def alarmed(browser: Browser) -> AsyncIterator[tuple[Driver, FakeUpstream]]:
    """A page in which what would be harm is seen, from its load on."""
    async with chatting(browser) as (page, _, upstream), await page.page.add_init_script(f"{PROBES}.raiseAlarm()"):
        await page.page.reload()
        yield page, upstream


async def is_unharmed(page: Driver) -> None:
    assert await page.probe("foreign") == []
    assert await page.probe("alarms") == []


async def test_no_payload_runs_or_asks_elsewhere(chromium: Browser) -> None:
    """A request to another origin is a complaint of the driver, and fails the test."""
    payloads = from_node("payloads.mjs", "it.PAYLOADS")
    assert len(payloads) >= 300
    async with alarmed(chromium) as (page, _):
        await page.probe("draw", payloads)
        assert await page("#messages a").count() > 50  # Links to the web are links.
        await is_unharmed(page)


async def test_what_would_be_harm_is_seen(chromium: Browser) -> None:
    async with alarmed(chromium) as (page, _):
        await page.page.evaluate("document.getElementById('messages').append(new Image())")
        await page.page.evaluate("document.querySelector('#messages img').src = 'https://leak.invalid/a.png'")
        assert len(await page.probe("foreign")) == 1
        assert "img-src https://leak.invalid/a.png" in (await page.probe("alarms"))[0]
        page.complaints.clear()


async def test_no_payload_does_so_on_its_way_through_an_answer(chromium: Browser) -> None:
    payloads = [each.replace("\0", "").replace("\x01", "") for each in from_node("payloads.mjs", "it.PAYLOADS")]
    async with alarmed(chromium) as (page, upstream):
        upstream.script(*say("\n\n".join(payloads) + "\n\n~~~~~~\n\nThe end", pieces=900))
        await page.send("<img src=x onerror=pwn(1)> [x](javascript:pwn(1))")
        await page.answered("The end")
        await is_unharmed(page)
        await page.page.reload()
        await page.answered("The end")
        await is_unharmed(page)


ATTEMPTS = [
    "document.body.innerHTML = '<b>a</b>'",
    "document.createElement('script').text = 'pwn(1)'",
    "new Function('pwn(1)')()",
    "setTimeout('pwn(1)')",
    "window.trustedTypes.createPolicy('x', {createHTML: (text) => text})",
]


async def test_the_policy_holds_even_if_the_page_did_not(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, _):
        for attempt in ATTEMPTS:
            later = f"try {{ {attempt}; resolve() }} catch (error) {{ resolve(error.name) }}"
            # What is evaluated at once may do what it likes.
            said = await page.page.evaluate(f"new Promise((resolve) => setTimeout(() => {{ {later} }}))")
            assert said in ("TypeError", "EvalError"), attempt
        page.complaints.clear()


async def test_a_link_opens_without_a_trace(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        upstream.script(*say("[a](https://a.example/b)"))
        await page.send("Link")
        await page.answered("a")
        link = page.answer.locator("a")
        for name, value in (
            ("rel", "noopener noreferrer nofollow"),
            ("target", "_blank"),
            ("title", "https://a.example/b"),
        ):
            await expect(link).to_have_attribute(name, value)


async def test_a_long_answer_costs_little(chromium: Browser) -> None:
    """8 KB in 2,000 tokens, each of them drawn: that changes the end of the page, and not all that stands above it."""
    text = from_node("sample.mjs", "it.sample()")
    async with chatting(chromium) as (page, _, _):
        changes = await page.probe("changes", {"text": text, "tokens": 2000})
        assert changes < 2000 * CHANGES_LIMIT


@asynccontextmanager
async def prefixed(port: int, prefix: str) -> AsyncIterator[str]:
    """A proxy that shows a server under a path, as nginx does with ``location /some/path/``."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prefix: bytes) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data.replace(b" " + prefix, b" /", 1) if prefix else data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(carry(reader, outer, prefix.encode()), carry(inner, writer, b""))
        finally:
            outer.transport.abort()

    async with tcp_server(serve) as there:
        yield f"http://{HOST}:{there}{prefix}"


async def test_it_works_under_a_path(chromium: Browser) -> None:
    async with (
        FakeUpstream() as upstream,
        live_server(upstream.url, root_path="/some/path") as server,
        prefixed(server.port, "/some/path/") as url,
        opened(chromium, url) as page,
    ):
        for number, transport in enumerate(("ws", "sse"), 1):
            upstream.script(*say("Here too."))
            await page.begin_anew()
            await page.use(transport)
            await page.send("Hello")
            await page.answered("Here too.")
            await expect(page.answer.locator("footer .badge")).to_have_text("WebSocket" if transport == "ws" else "SSE")
            await expect(page("#sessions a")).to_have_text(["Hello"] * number)
            assert "/some/path/#/s/" in page.page.url
