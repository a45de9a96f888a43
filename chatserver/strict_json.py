"""Strict JSON, and Structs from JSON.

The sender chooses what is in a document, and so what reading the document costs. So every pass over the whole document
is made in C, and a value that is no field of the wanted Struct, or no array or object where none is wanted, is not
decoded. A loop in Python runs over the fields of Structs alone, and how many of these there can be the Structs say.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from math import inf
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from chatserver.errors import BadJson, BadRequest

NESTING_LIMIT = 32
NUMBER_DIGITS_LIMIT = 4300
"""More than any number needs, and as many as Python takes."""

_SYNTAX = msgspec.json.Decoder(Raw)
_PIECES = msgspec.json.Decoder(list[Raw])
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
_WHERE = " - at `$"
_STEP = re.compile(r"\w+")

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
    """A JSON object as a Struct, its texts checked and with LF line ends, also those of the Structs in it.

    Raises:
        BadRequest: the document is no object, or a field is missing, unknown, repeated, of the wrong type, or holds
            control characters; ``pointer`` says which field.
    """
    given = _cut(text, kind, "")
    for name in _required(cast(Any, kind)):
        if name not in given:
            raise BadRequest(f"`{name}` is required", _pointer(name))
    values = {name: _value(raw, _pointer(name), _nested(cast(Any, kind)).get(name)) for name, raw in given.items()}
    try:
        converted = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise _refusal(error, "") from None
    _check_unique(text, given, "")
    return converted


def _cut(text: str, kind: Any, pointer: str) -> dict[str, bytes]:
    """The fields of an object, each as its bytes."""
    try:
        return dict(_given(_decoder(kind, True).decode(text)))
    except msgspec.ValidationError as error:
        name = str(error).removeprefix(_UNKNOWN_FIELD)
        if name == str(error):
            raise BadRequest("a JSON object is needed", pointer) from None
        raise BadRequest("there is no such field", pointer + _pointer(name.removesuffix("`"))) from None


def _refusal(error: msgspec.ValidationError, pointer: str) -> BadRequest:
    """What is wrong, and where below the pointer."""
    sentence, at, path = str(error).rpartition(_WHERE)
    if not at:
        sentence, path = path, ""
    # The wrong value is not repeated: it may be a secret.
    return BadRequest(sentence.partition(" '")[0], pointer + "".join(map(_pointer, _STEP.findall(path))))


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


@cache
def _nested(kind: Any) -> dict[str, msgspec.json.Decoder[Any]]:
    """A decoder for each field that may be an array or an object. What is of type ``Any`` may not."""
    fields = [(each.name, each.type) for each in msgspec.structs.fields(kind)]
    return {name: msgspec.json.Decoder(type) for name, type in fields if _is_nested(msgspec.inspect.type_info(type))}


def _is_nested(info: msgspec.inspect.Type) -> bool:
    if isinstance(info, msgspec.inspect.UnionType):
        return any(_is_nested(each) for each in info.types)
    return isinstance(info, msgspec.inspect.StructType | msgspec.inspect.DictType | msgspec.inspect.VarTupleType)


def _given(raws: Any) -> list[tuple[str, bytes]]:
    return [(name, raw) for name in raws.__struct_fields__ if (raw := bytes(getattr(raws, name)))]


def _value(raw: bytes, pointer: str, decoder: msgspec.json.Decoder[Any] | None) -> Any:
    """A field's value. An array or object that may not be one comes out empty: only its type matters."""
    if raw[:1] not in (b"[", b"{"):
        value = json.loads(raw)
        return plain_text(value, pointer) if isinstance(value, str) else value
    if decoder is None:
        return [] if raw[:1] == b"[" else {}
    try:
        value = decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _refusal(error, pointer) from None
    return _checked(value, raw, pointer)


def _checked(value: Any, raw: bytes, pointer: str) -> Any:
    """A value of the right type, the texts of its Structs as those of ``convert``. A plain object stays as it is."""
    match value:
        case str():
            return plain_text(value, pointer)
        case Struct():
            given = _cut(raw.decode(), type(value), pointer)
            _check_unique(raw.decode(), given, pointer)
            names = given.keys() & set(value.__struct_fields__)
            return replace(
                value, **{name: _checked(getattr(value, name), given[name], pointer + _pointer(name)) for name in names}
            )
        case tuple():
            pairs = enumerate(zip(value, _PIECES.decode(raw), strict=True))
            return tuple([_checked(each, bytes(piece), f"{pointer}/{place}") for place, (each, piece) in pairs])
        case _:
            return value


def plain_text(text: str, pointer: str) -> str:
    """A client's text with LF in place of CR LF and CR.

    Raises:
        BadRequest: the text holds control characters.
    """
    if _CONTROL.search(text):
        raise BadRequest("control characters are not allowed", pointer)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_unique(text: str, given: Mapping[str, bytes], pointer: str) -> None:
    """Refuse repeated fields. All fields are known, and of each the last value is given; so the loop is short."""
    seen, at = set[str](), 0
    while (at := text.find('"', at)) >= 0:
        name, at = _DECODER.raw_decode(text, at)
        at = cast(re.Match[str], _COLON.match(text, at)).end()
        value = given[name].decode()
        if name in seen or not text.startswith(value, at):
            raise BadRequest("a field comes twice", pointer + _pointer(name))
        seen.add(name)
        at += len(value)


def _pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")
