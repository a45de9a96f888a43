"""Images and files on the page: picked, pasted, dropped, shrunk, sent, and shown again after a reload."""

from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.browser import open_chromium
from tests.fake_upstream import FakeUpstream, refuse, say
from tests.live import live_server
from tests.page_driver import Driver, chatting, opened
from tests.pictures import GIF
from tests.test_page_reach import PHONE

GIF_FILE: Any = {"name": "dot.gif", "mimeType": "image/gif", "buffer": b64decode(GIF)}
TEXT_FILE: Any = {"name": "notes.md", "mimeType": "", "buffer": "Grüße".encode()}

OFFER = """async ([way, width, height]) => {
    const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
    const noise = context.createImageData(width, height);
    for (let i = 0; i < noise.data.length; i += 65536) crypto.getRandomValues(noise.data.subarray(i, i + 65536));
    context.putImageData(noise, 0, 0);
    const data = new DataTransfer();
    data.items.add(new File([await canvas.convertToBlob()], "noise.png", {type: "image/png"}));
    const made = way === "paste" ? new ClipboardEvent(way, {clipboardData: data, bubbles: true, cancelable: true})
        : new DragEvent(way, {dataTransfer: data, bubbles: true, cancelable: true});
    return document.getElementById("message").dispatchEvent(made);
}"""


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


def content(upstream: FakeUpstream) -> Any:
    return upstream.requests[-1].json["messages"][-1]["content"]


async def has_drawn(page: Driver, selector: str) -> None:
    """Its image is there to be seen, under a name, and its address is no longer good."""
    image = page(selector).first
    await expect(image).to_be_visible()
    await expect(image).to_have_attribute("alt", "Image")
    assert await image.evaluate("async (image) => (await image.decode().catch(() => {}), image.naturalWidth)") > 0
    again = "(image) => Object.assign(new Image(), {src: image.src}).decode().then(() => true, () => false)"
    assert await image.evaluate(again) is False


@pytest.mark.parametrize(("context", "transport"), [({}, "sse"), (PHONE, "ws")], ids=["wide-sse", "phone-ws"])
async def test_images_and_files_are_sent_and_shown_again(
    chromium: Browser, context: dict[str, Any], transport: str
) -> None:
    async with chatting(chromium, color_scheme="dark" if context else "light", **context) as (page, _, upstream):
        await page.use(transport)
        await page("#files").set_input_files([GIF_FILE, TEXT_FILE])
        await has_drawn(page, "#attachments img")
        await expect(page("#attachments .file")).to_contain_text("notes.md")
        upstream.script(*say("One dot."))
        await page.send("What is it?")
        await page.answered("One dot.")
        assert [each["type"] for each in content(upstream)] == ["text", "image_url", "text"]
        assert content(upstream)[1]["image_url"]["url"] == f"data:image/gif;base64,{GIF}"
        assert "Grüße" in content(upstream)[2]["text"]
        await expect(page("#attachments")).to_be_hidden()
        await page.page.reload()
        await has_drawn(page, ".question img")
        await expect(page(".question .file")).to_contain_text("notes.md")
        upstream.script(*say("A dot again."))
        await page(".question").hover()
        await page(".question .edit").click()
        await page(".editor textarea").fill("And now?")
        await page(".editor .primary").click()
        await page.answered("A dot again.")
        assert [each["type"] for each in content(upstream)] == ["text", "image_url", "text"]
        assert content(upstream)[0]["text"] == "And now?"


async def test_a_large_image_is_made_to_fit_and_goes_over_any_transport(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        for way, transport in (("drop", "ws"), ("paste", "sse")):
            await page.begin_anew()
            await page.use(transport)
            assert await page.page.evaluate(OFFER, [way, 640, 500]) is False, f"{way} is left to the browser"
            await has_drawn(page, "#attachments img")
            upstream.script(*say("Noise."))
            await page.page.press("#message", "Enter")
            await page.answered("Noise.")
            (image,) = content(upstream)
            data = image["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
            assert 80_000 < len(data) < 270_000
            assert b64decode(data).startswith(b"\xff\xd8\xff")
            await expect(page("#title")).to_have_text("Image")


async def test_what_cannot_be_sent_says_why(chromium: Browser) -> None:
    async with chatting(chromium) as (page, _, upstream):
        svg = {"name": "a.svg", "mimeType": "image/svg+xml", "buffer": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
        archive = {"name": "a.zip", "mimeType": "application/zip", "buffer": b"PK\x03\x04\xff"}
        refused: list[tuple[Any, str]] = [(svg, "this browser cannot read"), (archive, "it is no image, PDF or text")]
        for file, why in refused:
            await page("#files").set_input_files([file])
            await expect(page("#note")).to_contain_text(why)
            await expect(page("#attachments")).to_be_hidden()
        broken = GIF_FILE | {"buffer": b"no gif"}
        await page("#files").set_input_files([broken])
        await page.send("What is it?")
        await expect(page.answer).to_contain_text("`data` is no image/gif")
        await page("#files").set_input_files([GIF_FILE])
        await page("#attachments .remove").click()
        await expect(page("#attachments")).to_be_hidden()
        assert upstream.requests == []
        await page("#files").set_input_files([GIF_FILE])
        upstream.script(*refuse(400, {"error": {"message": "this model does not support image input"}}))
        await page.page.press("#message", "Enter")
        await expect(page.answer).to_contain_text("takes no images")


async def test_where_the_server_takes_none_the_page_says_so(chromium: Browser) -> None:
    async with (
        FakeUpstream() as upstream,
        live_server(upstream.url, max_inline_bytes=0) as server,
        opened(chromium, f"{server.url}/") as page,
    ):
        await expect(page("#attach")).to_be_hidden()
        assert await page.page.evaluate(OFFER, ["drop", 2, 2]) is False
        await expect(page("#note")).to_have_text("Files cannot be sent here: this chat takes text.")
