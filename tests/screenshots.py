"""The pictures of the page that README shows, light and dark: ``python -m tests.screenshots``, or ``just screenshots``.

A scripted model answers, so that every run draws the same conversation: thoughts, a tool, two cuts, code, a table.
"""

import asyncio
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator

import anyio
from playwright.async_api import Browser, expect

from tests.browser import open_chromium
from tests.clients import request
from tests.fake_upstream import Done, Gate, Pause, Step, call, finish, reasoning, role, say, token, usage
from tests.live import ROOT
from tests.page_driver import Driver, chatting

SIZE = {"width": 1360, "height": 850}
TOKEN_SECONDS = 0.02
AS_WEBP = """async (png) => {
    const picture = new Image();
    picture.src = "data:image/png;base64," + png;
    await picture.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width: picture.width, height: picture.height});
    canvas.getContext("2d").drawImage(picture, 0, 0);
    return canvas.toDataURL("image/webp", 0.85);
}"""
OTHERS = ("Sourdough at 18 °C", "Regex for ISO dates", "Names for a cat", "Trains from Oslo to Bergen")

QUESTION = "At 48 tokens a second, how long is an answer of 1,800 tokens? And what does a cut cost?"
THOUGHTS = "Two questions: a division, and what happens to a stream that is cut. "
ANSWER = (
    """\
1,800 tokens at 48 a second take **37.5 s**.

A cut costs no token. Every event has a number, and a client that comes """,
    """back names the last one it saw, over SSE or """,
    """WebSocket:

```js
const run = chat.attach(runId, { after: 412 });
for await (const event of run) show(event);
```

| cut for | the reader misses |
|---|---|
| 200 ms | nothing |
| 9 s | nothing |

The server sends event 413 next, and the model never knew.""",
)


def spoken(text: str) -> Iterator[Step]:
    for word in re.findall(r"\s*\S+ *", text):
        yield token(word)
        yield Pause(TOKEN_SECONDS)


def answer(gates: list[asyncio.Event]) -> Iterator[Step]:
    """The turn behind the tool's result, with a gate at each place where the connection is cut."""
    yield role()
    for text, gate in zip(ANSWER, [*gates, None], strict=True):
        yield from spoken(text)
        if gate is not None:
            yield Gate(gate)
    yield from (finish(), usage(214, 198), Done())


async def draw(browser: Browser, scheme: str) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    async with chatting(browser, viewport=SIZE, color_scheme=scheme) as (page, server, upstream):
        for title in OTHERS:
            upstream.script(*say("Yes."))
            await request(server, "POST", "/chat/stream", {"message": title})
        first = call("calculator", {"expression": "1800 / 48"})
        upstream.script(first[0], reasoning(THOUGHTS), Pause(0.4), *first[1:])
        upstream.script(*answer(gates))
        await page.page.reload()
        await page("#open-wire").click()
        await page.send(QUESTION)
        await cut_and_go_on(page, gates)
        await page.answered("never knew")
        await page.page.mouse.move(640, 790)
        picture = await page.page.screenshot()
    path = ROOT / "clients" / f"page-{scheme}.webp"
    path.write_bytes(await as_webp(browser, picture))


async def as_webp(browser: Browser, png: bytes) -> bytes:
    """A third of the size; the browser is the encoder that is at hand."""
    page = await browser.new_page()
    found = await page.evaluate(AS_WEBP, b64encode(png).decode())
    await page.close()
    return b64decode(found.partition(",")[2])


async def cut_and_go_on(page: Driver, gates: list[asyncio.Event]) -> None:
    """Two cuts, each at its gate; behind the second one the answer comes over the other transport."""
    for text, gate in zip(ANSWER, gates, strict=False):
        await expect(page.answer.locator(".parts")).to_contain_text(text.split()[-1])
        await anyio.sleep(0.2)
        async with page.page.expect_event("websocket"):
            await page("#cut").click()
        await expect(page("#state")).to_have_text("open · WS")
        if gate is gates[-1]:
            await page.use("sse")
            await expect(page("#state")).to_have_text("open · SSE")
        gate.set()


async def main() -> None:
    async with open_chromium("--force-color-profile=srgb", "--font-render-hinting=none") as browser:
        for scheme in ("light", "dark"):
            await draw(browser, scheme)


if __name__ == "__main__":
    anyio.run(main)
