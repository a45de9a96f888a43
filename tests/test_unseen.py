"""A model that takes no images: a clear error where the newest message has one, and a session that can go on."""

import json
from typing import Any

import anyio
import pytest

from chatserver.dialogue import UserMessage
from chatserver.parts import FilePart, ImagePart, TextPart
from chatserver.providers.unseen import newest_of, refused_in, without
from tests.clients import BOTH, Transport, documents_of
from tests.fake_upstream import FakeUpstream, refuse, say
from tests.live import LiveServer, live_server
from tests.pictures import attached, inline, text, told

pytestmark = pytest.mark.anyio

IMAGE, FILE = ImagePart(url="https://e.org/a.png"), FilePart(name="a.pdf", url="https://e.org/a.pdf")
SEEN = [UserMessage((TextPart("Look"), IMAGE, FILE))]
NO_IMAGE = "[An image was here that you cannot see.]"
NO_FILE = "[The file a.pdf was here, which you cannot read.]"

REFUSALS = {
    "Invalid content type. image_url is only supported by certain models.": {"images"},
    "llama-3.1-8b is not a multimodal model": {"images"},
    "At most 0 image(s) may be provided in one request.": {"images"},
    "this model does not support image input (ref: 1)": {"images"},
    "this model is missing data required for image input": {"images"},
    "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj": {"images"},
    "No endpoints found that support image input": {"images"},
    "Image input modality is not enabled for models/x": {"images"},
    "This model doesn't support vision": {"images"},
    "Unsupported content part type for text-only server: image_url": {"images"},
    "Failed to deserialize the JSON body into the target type: messages[0]: unknown variant `image_url`, "
    "expected `text` at line 1 column 9": {"images"},
    "Failed to deserialize: messages[2]: invalid type: sequence, expected a string at line 1": {"images", "files"},
    "messages[1]: data did not match any variant of untagged enum ChatCompletionRequestContent": {"images", "files"},
    "messages[0].content must be a string": {"images", "files"},
    "Unknown part type: file": {"files"},
    "This model does not support file content types.": {"files"},
}
OTHERS = (
    "You uploaded an unsupported image. Please make sure your image has one of the following formats: png, jpeg",
    "image format is not supported",
    "failed to download the image: only https is allowed",
    "the image is too large; it is not accepted",
    "tools are not supported",
    "temperature is not supported with this model",
    "the server is overloaded",
)


@pytest.mark.parametrize("words", REFUSALS)
def test_how_servers_say_that_a_model_takes_none(words: str) -> None:
    assert refused_in(words, SEEN) == REFUSALS[words]
    assert refused_in(words, [UserMessage("Look")]) == set()


@pytest.mark.parametrize("words", OTHERS)
def test_what_is_about_another_thing(words: str) -> None:
    assert refused_in(words, SEEN) == set()


def test_only_older_messages_lose_what_cannot_be_seen() -> None:
    newest = UserMessage((IMAGE,), earlier=(TextPart("Look"), FILE))
    assert newest_of([*SEEN, newest]) == {"images"}
    assert newest_of([newest, UserMessage("Hi", earlier=(IMAGE,))]) == set()
    blind = list(without([*SEEN, newest], {"images", "files"}))
    assert blind == [
        UserMessage(f"Look\n\n{NO_IMAGE}\n\n{NO_FILE}"),
        UserMessage((IMAGE,), earlier=(TextPart("Look"), TextPart(NO_FILE))),
    ]
    assert list(without([UserMessage("And?", earlier=(IMAGE,))], {"images"})) == [UserMessage(f"{NO_IMAGE}\n\nAnd?")]
    assert list(without(SEEN * 2, {"images"}))[1] == SEEN[0]


async def asked(server: LiveServer, transport: Transport, message: Any) -> dict[str, Any]:
    with anyio.fail_after(30):
        *_, last = await documents_of(await transport.start(server, {"message": message, "session_id": "s"}))
    end: dict[str, Any] = json.loads(last)
    return end


@pytest.mark.parametrize("transport", BOTH, ids=str)
@pytest.mark.parametrize("status", [400, 422, 500])
async def test_a_refused_image_fails_its_run_and_no_later_one(transport: Transport, status: int) -> None:
    refusal = refuse(status, {"error": {"message": "image input is not supported", "type": "server_error"}})
    async with FakeUpstream() as upstream, live_server(upstream.url, model="blind") as server:
        upstream.script(*refusal)
        end = await asked(server, transport, [text("What is it?"), inline(), attached()])
        assert (end["type"], end["code"], end["retryable"]) == ("error", "llm_error", False)
        assert end["message"].startswith("the model blind takes no images: ")
        assert len(upstream.requests) == 1
        upstream.script(*refusal)
        upstream.script(*say("Hello"))
        assert (await asked(server, transport, "Hello?"))["type"] == "done"
        assert upstream.requests[-1].json["messages"][-1]["content"] == [
            text("What is it?"),
            text(NO_IMAGE),
            told(attached()),
            text("Hello?"),
        ]
