"""Strict JSON: what is none, what is no request, over both transports the same, at a cost that no sender can choose."""

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatserver.commands import Attach, ChatRequest, Rename, Send, names_in, parse_command
from chatserver.errors import BadCursor, BadJson, BadRequest, ChatError, NoCommand
from chatserver.strict_json import convert, is_nested_too_deeply, json_text
from tests.conftest import Scale
from tests.cost import LINEAR, growth, steps
from tests.json_fuzz import Object, document, faults, reading

REF = "ref-1"


def request_of(body: bytes | str) -> ChatRequest:
    """As an HTTP body is read."""
    return convert(json_text(body), ChatRequest)


def sent(text: str) -> ChatRequest:
    """As a frame is read: ``text`` with the tag and a reference in front, if it is an object at all."""
    read = parse_command(json_text(framed(text)))
    assert isinstance(read, Send)
    return read.request()


def framed(text: str) -> str:
    """A body as a `send`."""
    head, brace, rest = text.partition("{")
    if head.strip(" \t\r\n") or not brace:
        return text
    comma = "" if rest.lstrip(" \t\r\n").startswith("}") else ","
    return f'{head}{{"type":"send","ref":"{REF}"{comma}{rest}'


def outcome(read: Callable[[], ChatRequest]) -> Any:
    """The request, or all that its sender is told instead."""
    try:
        return read()
    except ChatError as error:
        error.detail.encode()
        return error.status, error.code, error.detail, msgspec.json.encode(error.facts())


# ---- what is JSON ---------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BAD_JSON = [
    b"",
    b" ",
    b"{",
    b'{"message": "H',
    b'{"message": "Hi"} x',
    b"{}{}",
    b"{'message': 'Hi'}",
    b'{"a": 1,}',
    b"Hi",
    b"NaN",
    b'{"temperature": NaN}',
    b"[Infinity]",
    b"[-Infinity]",
    b"1e999",
    b"[-1e999]",
    b"[1.5E+0999]",
    b"[" + b"9" * 309 + b".5]",
    b"1" * 5000,
    b'"\xff"',
    b'"\xed\xa0\x80"',
    b'"\\ud83e"',
    b'["\\udd9c\\ud83e"]',
    b'{"\\ud83e": 1}',
    b'"\x00"',
    b'"\n"',
    b"\x00",
    b"\xef\xbb\xbf{}",
    '{"message": "Hi"}'.encode("utf-16"),
    nested(33),
    b"[1,[]," + nested(32) + b"]",
    b'{"a":' * 33 + b"1" + b"}" * 33,
    b"[" * 33 + b" " + b"]" * 33,
    nested(100_000),
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a": 1, "a": 1} x',
    b'{"a": {"b": 1, "b": 1}, garbage',
    b'{"a": 1, "a": ' + b"9" * 5000 + b"}",
    b'{"a": 1, "a": 1, "b": ' + b"[" * 100_000,
    b'{"\\ud800": 1, "\\ud800": 2}',
    b'{"x": 1, "x": 1, "ref": "\\ud800"}',
    b'{"x": "\\u0001", "ref": "\\ud800"}',
]


@pytest.mark.parametrize("body", BAD_JSON, ids=lambda body: str(body[:20]))
def test_what_is_not_json_is_refused_whatever_else_is_wrong_with_it(body: bytes) -> None:
    with pytest.raises(BadJson):
        json_text(body)
    if body.decode(errors="ignore").encode() == body:
        with pytest.raises(BadJson):
            json_text(body.decode())


def test_a_text_that_cannot_be_encoded_is_no_json() -> None:
    with pytest.raises(BadJson):
        json_text('{"message": "\ud800"}')


@pytest.mark.parametrize(
    "body",
    [
        b' {"message":\t"Hi"}\r\n',
        rb'"\ud83e\udd9c \u2028"',
        b"[1, -2.5e3, true, false, null, 12345678901234567890]",
        b"[0e999, 1e-999, 1e308, -1e308, " + b"9" * 4300 + b"]",
        b'["1e999", "' + b"9" * 5000 + b'", "' + b"[" * 100 + b'"]',
        rb'["\\", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["]',
        b"[" + b",".join([nested(31)] * 100) + b"]",
        nested(32),
        b'{"a":' * 32 + b"1" + b"}" * 32,
    ],
    ids=lambda body: str(body[:20]),
)
def test_json_at_its_edges_is_read(body: bytes) -> None:
    assert json_text(body) == json_text(body.decode()) == body.decode()


@given(st.binary() | st.text().map(lambda text: json.dumps({"message": text}).encode()))
@example(b'{"message": "\xff"}')
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    try:
        tree = reading(body)
    except ValueError:
        with pytest.raises(BadJson):
            json_text(body)
    else:
        assert json.loads(json_text(body), object_pairs_hook=Object) == tree


@pytest.mark.parametrize(
    ("depth", "is_too_deep"), [(0, False), (1, False), (31, False), (32, False), (33, True), (99, True)]
)
@pytest.mark.parametrize("pair", [b"[]", b"{}"])
def test_a_document_is_nested_too_deeply_over_32_levels(depth: int, is_too_deep: bool, pair: bytes) -> None:
    opening, closing = (b"[", b"]") if pair == b"[]" else (b'{"[":', b"}")
    assert is_nested_too_deeply(opening * depth + b'"]"' + closing * depth) == is_too_deep


# ---- what is a request ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        (r'{"message": "a\u0000b"}', "/message"),
        (r'{"message": "a", "message": "a"}', "/message"),
        (r'{"message": "a", "\u006dessage": "a"}', "/message"),
        (r'{"message": [1], "message": "a"}', "/message"),
        (r'{"message": {"a": 1, "a": 1}, "message": "a"}', "/message"),
        (r'{"message": "a", "a/b~": 1}', "/a~1b~0"),
        (r'{"message": {"b": 1, "b": 2}}', "/message"),
        (r'{"message": [{"type": "text", "text": "a", "text": "a"}]}', "/message/0/text"),
        (r'{"message": [{"type": "text", "text": "a"}], "message": [{"type": "text", "text": "a"}]}', "/message"),
        (r'{"nope": {"b": 1, "b": 2}}', "/nope"),
        (r'{"message": "a", "model": null, "model": null}', "/model"),
        ('{"message": "a"' + ', "model": "b"' * 1000 + "}", "/model"),
        ("[]", ""),
    ],
)
def test_what_is_no_request_is_refused_and_pointed_at(text: str, pointer: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        request_of(text)
    assert refusal.value.pointer == pointer


def test_line_ends_of_texts_are_one_and_other_texts_stay_as_they_are() -> None:
    assert request_of(r'{"message": "a\r\nb\rc\nd\te"}').message == "a\nb\nc\nd\te"
    assert request_of('{"message": "\x7f\x85\u2028🦜"}').message == "\x7f\x85\u2028🦜"
    assert request_of('{"message": "\\u0041", "model": ":{"}') == ChatRequest(message="A", model=":{")


@pytest.mark.parametrize("after", ["[1]", '{"a": 1}', '"x"', "-1", "1.5", "null", "true", '"' + "9" * 99 + '"'])
@pytest.mark.parametrize(
    "shape", ['{"type":"attach","run_id":"r","after":%s}', '{"after":%s,"type":"attach","run_id":"r"}']
)
def test_a_wrong_cursor_is_a_bad_cursor_wherever_it_stands(shape: str, after: str) -> None:
    with pytest.raises(BadCursor):
        parse_command(json_text(shape % after))
    assert parse_command(json_text(shape % 7)) == Attach(run_id="r", after=7)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"type":"send","ref":"a","run_id":"b","message":[]}', {"ref": "a", "run_id": "b"}),
        ('{"ref":"a","ref":"b","nope":[[]]}', {"ref": "b"}),
        ('{"nope":{"ref":"x"},"ref":"a\\r\\n\\u0000"}', {"ref": "a\r\n\0"}),
        ('{"ref":5,"run_id":["x"]}', {}),
        ('{"ref":null}', {}),
        ('["ref"]', {}),
        ('"ref"', {}),
    ],
)
def test_what_a_command_names_is_read_however_wrong_the_rest_is(text: str, names: dict[str, str]) -> None:
    assert names_in(json_text(text)) == names


def test_what_no_command_is_says_so() -> None:
    for text in ("[]", "5", '"send"', "{}", '{"type":"explode"}', '{"type":["send"]}', '{"type":{"type":"send"}}'):
        with pytest.raises(NoCommand):
            parse_command(json_text(text))
    with pytest.raises(BadRequest):
        parse_command(json_text('{"type":"ping","type":"ping"}'))


@pytest.mark.proof
def test_a_request_as_it_is_meant_to_be_and_over_both_transports_the_same(scale: Scale) -> None:
    """Of each document: what Python's own reader says of it, what HTTP says, what a frame is told."""
    rng = random.Random(11)
    taken = 0
    for _ in range(scale(4000, 200_000)):
        body = document(rng)
        over_http = outcome(partial(request_of, body))
        try:
            wrong = faults(reading(body))
        except ValueError:
            assert over_http[:2] == (400, "bad_json"), body
        else:
            if wrong:
                assert over_http[:2] == (400, "bad_request"), body
                pointer = json.loads(over_http[3])["errors"][0]["pointer"]
                assert {pointer, "/" + pointer.split("/")[1] if pointer else ""} & wrong, (body, over_http)
            else:
                fields = dict(json.loads(body))
                assert isinstance(over_http, ChatRequest), (body, over_http)
                taken += 1
                for name in ChatRequest.__struct_fields__:
                    given = fields.get(name)
                    if isinstance(given, str):
                        given = given.replace("\r\n", "\n").replace("\r", "\n")
                    if isinstance(given, list | dict):
                        given = getattr(convert(json.dumps({name: given}), ChatRequest), name)
                    assert getattr(over_http, name) == (
                        "cancel" if name == "on_disconnect" and given is None else given
                    )
        try:
            text = body.decode()
        except UnicodeDecodeError:
            continue
        in_frame = outcome(partial(sent, text))
        if framed(text) == text:
            assert isinstance(in_frame, tuple) and in_frame[:2] == over_http[:2], body
        else:
            assert in_frame == over_http, body
    assert taken > 0


# ---- what it costs --------------------------------------------------------------------------------------------------

MB = 1024 * 1024
HOSTILE: dict[str, Callable[[int], str]] = {
    name: (lambda size, unit=unit: f'{{"message":[{",".join([unit] * (size // (len(unit) + 1)))}]}}')  # type: ignore[misc]
    for name, unit in {
        "arrays": "[]",
        "objects": "{}",
        "numbers": "0",
        "floats": "1.5",
        "large floats": "1e300",
        "small floats": "1e-300",
        "long numbers": "9" * 199,
        "texts": '""',
        "escapes": r'"\\\""',
        "members": '{"a":0}',
        "depth": "[" * 29 + "]" * 29,
        "depth of objects": '{"":' * 29 + "0" + "}" * 29,
    }.items()
}
HOSTILE |= {
    "many fields": lambda size: "{" + ",".join(f'"k{n}":0' for n in range(size // 11)) + "}",
    "one field again": lambda size: "{" + '"nope":0,' * (size // 9) + '"message":"x"}',
    "a known field again": lambda size: "{" + '"model":"",' * (size // 11) + '"message":"x"}',
    "repeats far below": lambda size: '{"message":' + '{"a":' * 30 + '{"a":0' + ',"a":0' * (size // 6) + "}" * 31 + "}",
    "a long text": lambda size: '{"message":"' + "x" * size + '"}',
    "a text of escapes": lambda size: '{"message":"' + r"\n\"\\" * (size // 6) + '"}',
    "a text of quotes": lambda size: json.dumps({"message": '"' * (size // 2)}),
    "a text of backslashes": lambda size: json.dumps({"message": "\\" * (size // 2)}),
    "a text of controls": lambda size: '{"message":"' + r"\u0001" * (size // 6) + '"}',
    "a long name": lambda size: '{"' + "x" * size + '":1}',
    "blanks": lambda size: '{"message"' + " " * size + ':"x"}',
    "digits": lambda size: '{"message":' + "9" * size + "}",
    "digits behind a point": lambda size: '{"message":0.' + "9" * size + "}",
    "not closed": lambda size: '{"message":' + "[" * size,
    "a lone surrogate at the end": lambda size: '{"message":"' + "x" * size + r'\ud800"}',
}


def read(text: str) -> None:
    outcome(partial(request_of, text))
    outcome(partial(sent, text))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_document_takes_as_many_steps_however_long_it_is(name: str) -> None:
    read(HOSTILE[name](100))  # What is made once is made now.
    few, more, most = (steps(partial(read, HOSTILE[name](size))) for size in (20_000, 40_000, 80_000))
    assert few == more == most < 1500


@pytest.mark.parametrize("name", HOSTILE)
def test_the_passes_in_c_are_linear_too(name: str) -> None:
    texts = {size: HOSTILE[name](size) for size in (MB // 16, MB)}
    assert growth(lambda size: outcome(partial(request_of, texts[size])), MB // 16) < LINEAR


def test_a_field_is_no_array_or_object_where_none_is_wanted() -> None:
    for kind in (ChatRequest, Rename):
        for each in kind.__struct_fields__:
            for value in ("[[]]", "{}"):
                with pytest.raises(BadRequest):
                    convert(f'{{"message": "x", "title": "x", "{each}": {value}}}', kind)
