"""Messages of parts: which are taken, what each counts, and how a model is told of them."""

from functools import partial
from typing import Any

import msgspec
import pytest

from chatserver.commands import MESSAGE_PARTS_LIMIT, ChatRequest, checked_request, parts_of
from chatserver.content import FILE_BYTES, IMAGE_BYTES, INLINE_SHARE
from chatserver.dialogue import (
    BYTES_PER_TOKEN,
    MESSAGE_BYTES,
    PastMessage,
    UserMessage,
    asked_tokens,
    dialogue,
    estimated_tokens,
    told_bytes,
)
from chatserver.errors import BadRequest, TooLarge
from chatserver.media import FILE_NAME_CHARS_LIMIT, URL_CHARS_LIMIT
from chatserver.parts import FilePart, ImagePart, TextPart, UserPart
from chatserver.providers.chat_completions.requests import messages_of
from chatserver.strict_json import convert
from tests.cost import steps
from tests.pictures import BEGINNINGS, GIF, at, attached, based, inline, shown, text, told

TEXT_LIMIT, INLINE_LIMIT = 1000, 3001
ENDLESS = 10**9


def taken(message: Any) -> ChatRequest:
    request = convert(msgspec.json.encode({"message": message}).decode(), ChatRequest)
    return checked_request(request, TEXT_LIMIT, INLINE_LIMIT)


def past(message: Any) -> PastMessage:
    return PastMessage(True, parts_of(taken(message).message or ""), ())


def said(words: str) -> PastMessage:
    return PastMessage(False, (TextPart(words),) if words else (), ())


def upstream(*messages: PastMessage) -> list[dict[str, Any]]:
    return messages_of(dialogue(messages, None, ENDLESS))


# ---- what is taken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        [text("Hi")],
        [text(""), text("a\r\nb")],
        *[[attached("text/plain", "a", b"x" * (INLINE_LIMIT - few))] for few in range(3)],
        [inline()],
        [text(" "), inline()],
        *[[inline(kind)] for kind in BEGINNINGS if kind.startswith("image/")],
        *[[attached(kind, "a")] for kind in BEGINNINGS],
        [at("https://example.org/a.png"), at("HTTP://[::1]:8080/ü".replace("ü", "%C3%BC"))],
        [at("https://example.org/?a=b@c#d", name="Grüße.pdf")],
        [at("https://e.org/" + "x" * (URL_CHARS_LIMIT - 14)), attached(name="x" * FILE_NAME_CHARS_LIMIT)],
        [text("x")] * MESSAGE_PARTS_LIMIT,
        [text("x" * (TEXT_LIMIT - 2)), text("é")],
        [inline("image/png", INLINE_LIMIT // 2), inline("image/png", INLINE_LIMIT // 2)],
    ],
    ids=lambda message: str(message)[:60],
)
def test_parts_within_the_rules_are_taken_as_they_are(message: list[dict[str, Any]]) -> None:
    parts = parts_of(taken(message).message or "")
    given = [shown(part) | ({"text": part["text"].replace("\r\n", "\n")} if "text" in part else {}) for part in message]
    assert msgspec.json.decode(msgspec.json.encode(parts)) == given


@pytest.mark.parametrize(
    ("message", "pointer"),
    [
        ([], "/message"),
        ({}, "/message"),
        ([1], "/message/0"),
        (["Hi"], "/message/0"),
        ([[]], "/message/0"),
        ([{}], "/message/0"),
        ([{"type": "sound"}], "/message/0/type"),
        ([{"type": "reasoning", "text": "x"}], "/message/0/type"),
        ([text("x"), {"type": "text"}], "/message/1"),
        ([text("x"), {"type": "text", "text": 1}], "/message/1/text"),
        ([text("x"), {"type": "text", "text": "x", "a/b": 1}], "/message/1/a~1b"),
        ([text("a\0b")], "/message/0/text"),
        ([text(""), text(" \n")], "/message"),
        ([text("x")] * (MESSAGE_PARTS_LIMIT + 1), "/message"),
        ([{"type": "image"}], "/message/0"),
        ([{"type": "image", "data": GIF}], "/message/0"),
        ([{"type": "image", "media_type": "image/gif"}], "/message/0"),
        ([inline() | {"url": "https://e.org"}], "/message/0"),
        ([at("https://e.org", media_type="image/gif")], "/message/0"),
        ([at("https://e.org") | {"detail": "low"}], "/message/0/detail"),
        ([at("https://e.org"), {"type": "file", "url": "https://e.org"}], "/message/1"),
        ([attached(name=" ")], "/message/0/name"),
        ([attached(name="a\nb")], "/message/0/name"),
        ([attached(name="x" * (FILE_NAME_CHARS_LIMIT + 1))], "/message/0/name"),
        *[
            ([at(url)], "/message/0/url")
            for url in (
                "",
                "e.org",
                "//e.org",
                "ftp://e.org",
                "file:///etc/passwd",
                "javascript:alert(1)",
                "data:image/gif;base64," + GIF,
                "https://",
                "https:///a",
                "https://user@e.org/",
                "https://user:word@e.org/",
                "https://e.org\\@other.org/",
                "https://e.org/a b",
                "https://e.org/ü",
                "https://e.org:0/",
                "https://e.org:99999/",
                "https://[::1/",
                "https://e.org/" + "x" * URL_CHARS_LIMIT,
            )
        ],
        *[
            ([inline() | {"media_type": kind}], "/message/0/media_type")
            for kind in ("", "image/svg+xml", "image/bmp", "IMAGE/GIF", "text/plain", "application/pdf")
        ],
        ([attached() | {"media_type": "application/zip"}], "/message/0/media_type"),
        ([attached() | {"media_type": "text/"}], "/message/0/media_type"),
        ([attached() | {"media_type": "text/plain; charset=utf-8"}], "/message/0/media_type"),
        *[
            ([inline() | {"data": data}], "/message/0/data")
            for data in ("", "x", GIF[:-1], GIF + "=", GIF[:8] + "\n" + GIF[8:])
        ],
        ([inline() | {"data": "data:image/gif;base64," + GIF}], "/message/0/data"),
        *[([inline(kind) | {"media_type": "image/gif"}], "/message/0/data") for kind in ("image/png", "image/webp")],
        ([inline() | {"data": based(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}], "/message/0/data"),
        ([attached("text/plain", "a", b"\xff")], "/message/0/data"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_part_that_breaks_a_rule_is_pointed_at(message: Any, pointer: str) -> None:
    with pytest.raises(BadRequest) as refused:
        taken(message)
    assert refused.value.pointer == pointer
    assert len(refused.value.detail) < 200


def test_a_field_of_a_part_comes_once() -> None:
    for twice in ('"text":"a","text":"a"', '"text":"a","text":"b"', '"text":1,"text":"a"', '"type":"text","text":"a"'):
        with pytest.raises(BadRequest) as refused:
            convert(f'{{"message":[{{"type":"text","text":"x"}},{{"type":"text",{twice}}}]}}', ChatRequest)
        assert refused.value.pointer in ("/message/1/text", "/message/1/type")


@pytest.mark.parametrize(
    "message",
    [
        [text("x" * (TEXT_LIMIT - 1)), text("é")],
        [inline("image/png", INLINE_LIMIT // 2), inline("image/png", INLINE_LIMIT // 2 + 9)],
        [attached("text/plain", "a", b"x" * (INLINE_LIMIT + 1))],
    ],
    ids=["texts", "images", "a file"],
)
def test_a_message_over_a_limit_is_too_large(message: Any) -> None:
    with pytest.raises(TooLarge):
        taken(message)


@pytest.mark.parametrize("unit", ['{"type":"text","text":""}', '{"type":"image"}', '{"type":"text","text":"","a":0}'])
def test_parts_take_as_many_steps_however_many_there_are(unit: str) -> None:
    def read(size: int) -> None:
        with pytest.raises(BadRequest):
            convert(f'{{"message":[{",".join([unit] * (size // len(unit)))}]}}', ChatRequest)

    read(2000)
    few, more = (steps(partial(read, size)) for size in (20_000, 80_000))
    assert few == more < 1500


# ---- how a model is told --------------------------------------------------------------------------------------------

WITH_IMAGE = [text("Look: "), inline(), text("What is it?"), at("https://e.org/a.png")]


def test_text_alone_is_told_as_text_however_many_parts_it_has() -> None:
    assert upstream(past([text("Hi "), text("there")])) == [{"role": "user", "content": "Hi there"}]


def test_images_and_files_are_told_in_their_places() -> None:
    message = [*WITH_IMAGE, attached(), at("https://e.org/b.pdf", name="b.pdf")]
    assert upstream(past(message)) == [{"role": "user", "content": [told(part) for part in message]}]


def test_the_text_of_a_file_is_told_as_text() -> None:
    (only,) = upstream(past([text("Sum up"), attached("text/plain", "a.txt", "Grüße".encode())]))
    assert only == {"role": "user", "content": "Sum up\n\na.txt:\n\nGrüße\n\n"}


def test_messages_without_answer_keep_their_parts_and_which_are_new() -> None:
    (only,) = dialogue([past(WITH_IMAGE), said(""), past("And now?"), said(""), past([inline()])], None, ENDLESS)
    assert isinstance(only, UserMessage)
    assert only.content == (ImagePart(data=GIF, media_type="image/gif"),)
    assert only.earlier == (*parts_of(taken(WITH_IMAGE).message or ""), TextPart("And now?"))
    assert only.text == "Look: What is it?And now?"
    assert messages_of([only]) == [
        {"role": "user", "content": [*map(told, WITH_IMAGE), text("And now?"), told(inline())]}
    ]
    assert upstream(past("a"), said(""), past("b")) == [{"role": "user", "content": "a\n\nb"}]


# ---- what it counts -------------------------------------------------------------------------------------------------


def test_an_image_counts_as_an_estimate_and_a_file_of_text_as_its_text() -> None:
    large = "QUFB" * INLINE_SHARE * 10
    sizes: dict[UserPart, int] = {
        ImagePart(url="https://e.org"): IMAGE_BYTES,
        ImagePart(data=large, media_type="image/png"): IMAGE_BYTES + 40,
        FilePart(name="a.pdf", data=large, media_type="application/pdf"): FILE_BYTES + 40,
        FilePart(name="a.txt", url="https://e.org/a.txt"): FILE_BYTES,
        FilePart(name="ü.txt", data=large, media_type="text/plain"): 6 + len(large) * 3 // 4,
        TextPart("Grüße"): 7,
    }
    for part, size in sizes.items():
        assert told_bytes((part, TextPart("x"))) == MESSAGE_BYTES + size + 1
        (item,) = dialogue([PastMessage(True, (part, TextPart("x")), ())], None, ENDLESS)
        assert isinstance(item, UserMessage)
        if item.has_media:
            assert asked_tokens([item]) == -(-(len(msgspec.json.encode([UserMessage("x")])) + size) // BYTES_PER_TOKEN)


def test_a_dialogue_of_text_counts_as_its_json() -> None:
    told = dialogue([past("Grüße"), said("Hi"), past("b")], "Be kind.", ENDLESS)
    assert asked_tokens(told) == estimated_tokens(told)


def test_the_budget_counts_images_by_the_estimate() -> None:
    messages = [past([text(f"{number:04}"), at("https://e.org")]) for number in range(100)]
    tokens = sum(asked_tokens(dialogue([message], None, ENDLESS)) for message in messages[:7])
    (only,) = dialogue(messages, None, tokens)
    assert only.text == "".join(f"{number:04}" for number in range(93, 100))
