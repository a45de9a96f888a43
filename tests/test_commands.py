"""What a client may ask for: strict JSON, exact fields, and a refusal that says where."""

import json
import re
from typing import Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatserver.client_tools import CLIENT_TOOLS_BYTES_LIMIT, CLIENT_TOOLS_LIMIT, checked_client_tools
from chatserver.commands import (
    COMMAND_TYPES,
    NAME_CHARS_LIMIT,
    OUTPUT_TOKENS_LIMIT,
    SYSTEM_BYTES_LIMIT,
    AnswerCall,
    Attach,
    Cancel,
    ChatRequest,
    ClientTool,
    Command,
    Detach,
    Ping,
    Rename,
    Send,
    checked_id,
    checked_request,
    checked_title,
    new_id,
    parse_command,
    parse_cursor,
)
from chatserver.errors import BadCursor, BadRequest, ChatError, FieldProblem, NotFound, TooLarge
from chatserver.strict_json import convert
from chatserver.structured import JsonFormat

LIMIT = 32 * 1024

T = TypeVar("T")

# ---- fields ---------------------------------------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "message": "Hi",
    "session_id": "s",
    "idempotency_key": "k",
    "model": "m",
    "system": "Be kind.",
    "temperature": 0.5,
    "max_output_tokens": 5,
    "regenerate": "m1",
    "parent_id": "m2",
    "response_format": {"type": "json_object"},
    "on_disconnect": "continue",
}

MADE = FULL | {"response_format": JsonFormat()}

texts = st.text(st.characters(codec="utf-8", exclude_characters=[chr(n) for n in range(32) if n not in (9, 10)]))


def read(fields: Any, kind: type[T]) -> T:
    return convert(json.dumps(fields), kind)


def obeyed(fields: Any) -> Command:
    return parse_command(json.dumps(fields))


def test_a_request_has_just_these_fields() -> None:
    assert read(FULL, ChatRequest) == ChatRequest(**MADE)
    assert [*FULL, "tools"] == list(ChatRequest.__struct_fields__)
    assert read({"message": "Hi"}, ChatRequest) == ChatRequest(message="Hi", on_disconnect="cancel")
    assert obeyed({"type": "send", "ref": "1"} | FULL) == Send(ref="1", **MADE)
    assert Send(ref="1", **MADE).request() == ChatRequest(**MADE)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"message": 5}, "/message"),
        ({"message": ["Hi"]}, "/message/0"),
        ({"session_id": 7}, "/session_id"),
        ({"idempotency_key": {}}, "/idempotency_key"),
        ({"model": 1.5}, "/model"),
        ({"system": True}, "/system"),
        ({"temperature": "0.5"}, "/temperature"),
        ({"temperature": True}, "/temperature"),
        ({"max_output_tokens": "5"}, "/max_output_tokens"),
        ({"max_output_tokens": 1.5}, "/max_output_tokens"),
        ({"max_output_tokens": False}, "/max_output_tokens"),
        ({"regenerate": 1}, "/regenerate"),
        ({"parent_id": 1}, "/parent_id"),
        ({"on_disconnect": "stay"}, "/on_disconnect"),
        ({"on_disconnect": None}, "/on_disconnect"),
        ({"messages": "Hi"}, "/messages"),
        ({"a/b~c": 1}, "/a~1b~0c"),
        ({"ref": "1"}, "/ref"),
        ({"type": "send"}, "/type"),
    ],
)
def test_a_wrong_or_unknown_field_is_named(fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read({"message": "Hi"} | fields, ChatRequest)
    assert refusal.value.facts()["errors"] == [FieldProblem(pointer, refusal.value.detail)]
    assert "$" not in refusal.value.detail


@given(texts.filter(lambda name: name not in FULL))
@example("a`b")
@example("a - at `$.message`")
@example("`")
def test_an_unknown_field_is_named_whatever_its_name(name: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read({"message": "Hi", name: 1}, ChatRequest)
    assert refusal.value.pointer == "/" + name.replace("~", "~0").replace("/", "~1")


@pytest.mark.parametrize("tree", [None, 1, "Hi", [], [{"message": "Hi"}], True])
def test_a_request_is_an_object(tree: Any) -> None:
    with pytest.raises(BadRequest) as refusal:
        read(tree, ChatRequest)
    assert refusal.value.pointer == ""


@pytest.mark.parametrize(
    ("frame", "wanted"),
    [
        ({"type": "attach", "run_id": "r"}, Attach(run_id="r", after=0)),
        ({"type": "attach", "run_id": "r", "after": 7, "ref": "x"}, Attach(run_id="r", after=7, ref="x")),
        ({"type": "detach", "run_id": "r"}, Detach(run_id="r")),
        ({"type": "cancel", "run_id": "r", "ref": "x"}, Cancel(run_id="r", ref="x")),
        (
            {"type": "answer", "run_id": "r", "call_id": "c", "approve": True, "args": {"a": [1]}},
            AnswerCall(run_id="r", call_id="c", approve=True, args={"a": [1]}),
        ),
        (
            {"type": "answer", "run_id": "r", "call_id": "c", "result": None, "ref": "x"},
            AnswerCall(run_id="r", call_id="c", result=None, ref="x"),
        ),
        ({"type": "ping"}, Ping()),
    ],
)
def test_a_frame_is_a_command(frame: dict[str, Any], wanted: Command) -> None:
    assert obeyed(frame) == wanted


@pytest.mark.parametrize(
    ("frame", "pointer"),
    [
        ({"type": "attach"}, "/run_id"),
        ({"type": "detach", "run_id": 1}, "/run_id"),
        ({"type": "cancel", "run_id": "r", "after": 1}, "/after"),
        ({"type": "answer", "run_id": "r"}, "/call_id"),
        ({"type": "answer", "run_id": "r", "call_id": "c", "args": [1]}, "/args"),
        ({"type": "ping", "ref": 1}, "/ref"),
        ({"type": "send", "message": 1}, "/message"),
    ],
)
def test_a_wrong_field_of_a_frame_is_named(frame: dict[str, Any], pointer: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        obeyed(frame)
    assert refusal.value.pointer == pointer


def test_commands_of_the_contract_that_this_version_has() -> None:
    tags = [each.__struct_config__.tag for each in COMMAND_TYPES]
    assert tags == ["send", "attach", "detach", "cancel", "answer", "ping"]


TOOL: dict[str, Any] = {"name": "screen", "description": "é", "parameters": {"type": "object", "a": [1, {"b": None}]}}


def test_tools_of_a_client_are_read_as_they_are() -> None:
    (tool,) = read({"message": "Hi", "tools": [TOOL]}, ChatRequest).tools or ()
    assert tool == ClientTool(**TOOL)


@pytest.mark.parametrize(
    ("tools", "pointer"),
    [
        ([TOOL, TOOL], "/tools/1/name"),
        ([TOOL | {"name": "a b"}], "/tools/0/name"),
        ([TOOL | {"name": "clock"}], "/tools/0/name"),
        ([TOOL, TOOL | {"name": "ask_user"}], "/tools/1/name"),
        ([TOOL | {"parameters": {}}], "/tools/0/parameters"),
        ([TOOL | {"parameters": {"type": "array"}}], "/tools/0/parameters"),
        ([{"name": "a"}], "/tools/0"),
        ([TOOL | {"nope": 1}], "/tools/0"),
        ("screen", "/tools"),
        ([TOOL | {"name": f"t{number}"} for number in range(CLIENT_TOOLS_LIMIT + 1)], "/tools"),
    ],
)
def test_a_wrong_tool_of_a_client_is_named(tools: Any, pointer: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        checked_client_tools(read({"message": "Hi", "tools": tools}, ChatRequest), {"clock"})
    assert refusal.value.pointer == pointer


def test_tools_of_a_client_have_a_size() -> None:
    tools = [TOOL | {"description": "x" * CLIENT_TOOLS_BYTES_LIMIT}]
    with pytest.raises(TooLarge):
        checked_client_tools(read({"message": "Hi", "tools": tools}, ChatRequest), ())


# ---- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"message": "x"},
        {"message": "x" * LIMIT},
        {"message": "é" * (LIMIT // 2)},
        {"message": " \n x"},
        {"regenerate": "m1"},
        {"message": "Hi", "parent_id": "m2"},
        {"message": "Hi", "regenerate": "m1"},
        {"message": "Hi", "session_id": "A-Z_09" + "z" * 58},
        {"message": "Hi", "temperature": 0},
        {"message": "Hi", "temperature": 2},
        {"message": "Hi", "max_output_tokens": 1},
        {"message": "Hi", "max_output_tokens": OUTPUT_TOKENS_LIMIT},
        {"message": "Hi", "system": "x" * SYSTEM_BYTES_LIMIT},
        {"message": "Hi", "system": ""},
        {"message": "Hi", "model": "m" * NAME_CHARS_LIMIT, "idempotency_key": "k" * NAME_CHARS_LIMIT},
        FULL | {"parent_id": None},
    ],
    ids=lambda fields: "-".join(f"{name}={str(value)[:8]}" for name, value in fields.items())[:60],
)
def test_a_request_within_the_rules_stays_as_it_is(fields: dict[str, Any]) -> None:
    request = read(fields, ChatRequest)
    assert checked_request(request, LIMIT, LIMIT) is request


@pytest.mark.parametrize(
    ("fields", "error", "pointer"),
    [
        ({}, BadRequest, "/message"),
        ({"message": None}, BadRequest, "/message"),
        ({"message": ""}, BadRequest, "/message"),
        ({"message": " \t\n\u00a0\u2003"}, BadRequest, "/message"),
        ({"message": "", "regenerate": "m1"}, BadRequest, "/message"),
        ({"message": "x" * (LIMIT + 1)}, TooLarge, None),
        ({"message": "é" * (LIMIT // 2) + "x"}, TooLarge, None),
        ({"system": "x" * (SYSTEM_BYTES_LIMIT + 1)}, TooLarge, None),
        ({"session_id": ""}, NotFound, None),
        ({"session_id": "a" * 65}, NotFound, None),
        ({"session_id": "../etc"}, NotFound, None),
        ({"session_id": "é"}, NotFound, None),
        ({"session_id": "a\n"}, NotFound, None),
        ({"regenerate": "a b"}, NotFound, None),
        ({"parent_id": "a b"}, NotFound, None),
        ({"regenerate": "m1", "parent_id": "m2"}, BadRequest, "/parent_id"),
        ({"model": ""}, BadRequest, "/model"),
        ({"model": "m" * (NAME_CHARS_LIMIT + 1)}, BadRequest, "/model"),
        ({"model": "a\nb"}, BadRequest, "/model"),
        ({"idempotency_key": " "}, BadRequest, "/idempotency_key"),
        ({"temperature": -0.1}, BadRequest, "/temperature"),
        ({"temperature": 2.1}, BadRequest, "/temperature"),
        ({"max_output_tokens": 0}, BadRequest, "/max_output_tokens"),
        ({"max_output_tokens": OUTPUT_TOKENS_LIMIT + 1}, BadRequest, "/max_output_tokens"),
    ],
)
def test_a_broken_rule_is_told(fields: dict[str, Any], error: type[ChatError], pointer: str | None) -> None:
    given = fields if {"message", "regenerate"} & set(fields) or not fields else {"message": "Hi"} | fields
    with pytest.raises(error) as refusal:
        checked_request(ChatRequest(**given), LIMIT, LIMIT)
    assert pointer is None or refusal.value.facts()["errors"][0].pointer == pointer


@pytest.mark.parametrize(("given", "title"), [("Rivers", "Rivers"), ("  a \n\t b ", "a b"), ("x" * 256, "x" * 256)])
def test_a_title_is_one_trimmed_line(given: str, title: str) -> None:
    assert checked_title(Rename(given)) == title


@pytest.mark.parametrize("given", ["", " \n", "x" * (NAME_CHARS_LIMIT + 1)])
def test_a_title_says_something_and_is_not_long(given: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        checked_title(Rename(given))
    assert refusal.value.pointer == "/title"


def test_ids_are_random_and_of_the_form_that_is_known() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    for id in ids:
        assert re.fullmatch(r"[A-Za-z0-9_-]{22,64}", id), "6 bits a character: 22 of them hold 122 random bits"
        assert checked_id(id) == id


@pytest.mark.parametrize("id", ["a", "-", "_", "A" * 64, "0"])
def test_a_well_formed_id_is_known(id: str) -> None:
    assert checked_id(id) == id


@pytest.mark.parametrize("id", ["", "a" * 65, "a b", "a/b", "é", "a\n", "\n", "a\0", "１", "a.b"])
def test_a_malformed_id_is_one_that_nobody_has(id: str) -> None:
    with pytest.raises(NotFound):
        checked_id(id)


@pytest.mark.parametrize(
    ("after", "seq"), [(0, 0), (7, 7), ("0", 0), ("7", 7), ("007", 7), (10**17, 10**17), ("9" * 18, 10**18 - 1)]
)
def test_a_cursor_is_a_number_from_0(after: object, seq: int) -> None:
    assert parse_cursor(after) == seq


@pytest.mark.parametrize(
    "after", [-1, "-1", "", " 1", "1 ", "+1", "1.0", 1.0, "1e3", "0x1", "１", "²", True, None, [1], "x", "9" * 5000]
)
def test_what_is_no_cursor_is_refused(after: object) -> None:
    with pytest.raises(BadCursor):
        parse_cursor(after)
