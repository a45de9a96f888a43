"""Strict JSON, and Structs from JSON.

The sender chooses what is in a document, and so what reading the document costs. So every pass over the whole document
is made in C, no tree is built, and a value that is no field of the wanted Struct is not decoded.
"""

import json
import re
from functools import cache
from itertools import accumulate
from math import inf
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Raw

from chatserver.errors import BadJson, BadRequest

NESTING_LIMIT = 32
NUMBER_DIGITS_LIMIT = 4300
"""More than any number needs, and as many as Python takes."""

_SYNTAX = msgspec.json.Decoder(Raw)
_DECODER = json.JSONDecoder()
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_FLOAT = re.compile(rb"(?<![0-9.])[0-9]++(?:\.[0-9]++(?:[eE]\+?[0-9]++)?|[eE]\+?[0-9]++)")

_BLANKS = b" \t\r\n"
_PUNCTUATION = bytes.maketrans(b"{}:", b"[],")
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]"))
_STEPS = bytes.maketrans(b"[]", bytes((1, 255)))  # 255 is -1 where bytes are read as signed.
_ZEROED = bytes.maketrans(b"123456789E", b"000000000e")
_UNKNOWN_FIELD = "Object contains unknown field `"

T = TypeVar("T")


def json_text(body: bytes | str) -> str:
    """The text of one JSON document in UTF-8: finite numbers, no lone surrogates, at most 32 levels deep.

    Raises:
        BadJson: it is not that.
    """
    try:
        text = body.decode() if isinstance(body, bytes) else body
        _SYNTAX.decode(text)
    except RecursionError:
        raise BadJson("nested too deeply") from None
    except ValueError:
        raise BadJson("this is not valid JSON in UTF-8") from None
    bare = _bare(text.encode())
    if _is_deep(bare):
        raise BadJson("nested too deeply")
    _check_numbers(bare)
    return text


def is_nested_too_deeply(document: bytes) -> bool:
    """Whether more than 32 arrays and objects of a JSON document are open at once."""
    return _is_deep(_bare(document))


def _bare(document: bytes) -> bytes:
    """The document with `0` in place of each text, brackets in place of braces, and no blanks."""
    outside = document.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    return b"0".join(outside).translate(_PUNCTUATION, _BLANKS)


def _is_deep(bare: bytes) -> bool:
    brackets = bare.translate(None, _ALL_BUT_BRACKETS).replace(b"[]", b"")  # Removes one level, and so most brackets.
    return NESTING_LIMIT in accumulate(memoryview(brackets.translate(_STEPS)).cast("b"))


def _check_numbers(bare: bytes) -> None:
    zeros = bare.translate(_ZEROED, b"+")
    if b"0" * (NUMBER_DIGITS_LIMIT + 1) in zeros:
        raise BadJson(f"a number has over {NUMBER_DIGITS_LIMIT} digits in a row")
    # The largest float is 1.8e308: a larger number has an exponent of three digits, or many digits before its point.
    is_suspect = b"e000" in zeros or b"0" * 200 in zeros
    if is_suspect and inf in map(float, _FLOAT.findall(bare)):
        raise BadJson("a number is too large for a float")


def texts_of(text: str, kind: Any) -> dict[str, str]:
    """The fields of a JSON object that are texts, unchecked, whatever else the object holds; of no object, {}."""
    try:
        given = _decoder(kind, False).decode(text)
    except msgspec.ValidationError:
        return {}
    return {name: json.loads(raw) for name, raw in _given(given) if raw[:1] == b'"'}


def convert(text: str, kind: type[T]) -> T:
    """A JSON object as a Struct, its texts checked and with LF line ends.

    Raises:
        BadRequest: the document is no object, or a field is missing, unknown, repeated, of the wrong type, or holds
            control characters; ``pointer`` says which field.
    """
    try:
        raws = _decoder(cast(Any, kind), True).decode(text)
    except msgspec.ValidationError as error:
        name = str(error).removeprefix(_UNKNOWN_FIELD)
        if name == str(error):
            raise BadRequest("a JSON object is needed") from None
        raise BadRequest("there is no such field", _pointer(name.removesuffix("`"))) from None
    given = {name: _value(name, raw) for name, raw in _given(raws)}
    for name in _required(cast(Any, kind)):
        if name not in given:
            raise BadRequest(f"`{name}` is required", _pointer(name))
    try:
        converted = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `$.")
        sentence = sentence.partition(" '")[0]  # The wrong value is not repeated: it may be a secret.
        raise BadRequest(sentence, f"/{path.rstrip('`')}" if path else "") from None
    _check_unique(text)
    return converted


@cache
def _required(kind: Any) -> list[str]:
    return [each.name for each in msgspec.structs.fields(kind) if each.required]


@cache
def _decoder(kind: Any, is_strict: bool) -> msgspec.json.Decoder[Any]:
    """A decoder that cuts an object into the bytes of its fields; the tag counts as a field."""
    names = [each.name for each in msgspec.structs.fields(kind)]
    names += [tag for tag in [kind.__struct_config__.tag_field] if tag]
    fields = [(name, Raw, Raw()) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct(kind.__name__, fields, forbid_unknown_fields=is_strict))


def _given(raws: Any) -> list[tuple[str, bytes]]:
    return [(name, raw) for name in raws.__struct_fields__ if (raw := bytes(getattr(raws, name)))]


def _value(name: str, raw: bytes) -> Any:
    """A field's value. No field may be an array or an object, so these come out empty: only their type matters."""
    if raw[:1] in (b"[", b"{"):
        return [] if raw[:1] == b"[" else {}
    value = json.loads(raw)
    return plain_text(value, _pointer(name)) if isinstance(value, str) else value


def plain_text(text: str, pointer: str) -> str:
    """A client's text with LF in place of CR LF and CR.

    Raises:
        BadRequest: the text holds control characters.
    """
    if _CONTROL.search(text):
        raise BadRequest("control characters are not allowed", pointer)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_unique(text: str) -> None:
    """Refuse repeated fields. All fields are known and of the right type here, so the loop is short."""
    seen, at = set[str](), 0
    while (at := text.find('"', at)) >= 0:
        name, at = _DECODER.raw_decode(text, at)
        at = cast(re.Match[str], _COLON.match(text, at)).end()
        if name in seen or text[at] in "[{":  # Of the wrong type: so another field of this name was converted.
            raise BadRequest("a field comes twice", _pointer(name))
        seen.add(name)
        _, at = _DECODER.raw_decode(text, at)


def _pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")
