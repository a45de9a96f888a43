"""A fuzzer that knows JSON: documents that are nearly requests, and what a plain reading by Python says of each.

Everything comes from the seed: repeated fields, surrogates raw and escaped, depth, numbers, broken UTF-8, unknown
fields, wrong types, control characters, blanks, marks and garbage around it, texts of all sizes.
"""

import json
import random
import re
import sys
from collections.abc import Callable
from typing import Any

from chatserver.commands import ChatRequest

FIELDS = ChatRequest.__struct_fields__
NESTING = 32
DIGITS = 4300

GOOD: dict[str, tuple[str, ...]] = {
    "message": (
        '"Hi"',
        r'"\u0048i\r\n"',
        '"🦜 é"',
        r'"a\\\"b"',
        '"[{\\"}]"',
        r'[{"type":"text","text":"a\r\n[{\""}]',
        '[{"type":"text","text":"a"},{"url":"b", "type":"image"}]',
    ),
    "session_id": ('"s"', '"A-Z_09"', "null"),
    "idempotency_key": ('"k"', "null"),
    "model": ('"m"', "null"),
    "system": ('"Be kind."', '""', "null"),
    "temperature": ("0.5", "1", "2e0", "0.05e1", "7e-1", "null"),
    "max_output_tokens": ("5", "1000000", "null"),
    "regenerate": ('"m1"', "null"),
    "response_format": ('{"type":"text"}', "null"),
    "on_disconnect": ('"cancel"', '"continue"'),
    "tools": ("null",),
}
NAMES = ("nope", "Message", "", "a/b~c", "__proto__", "m\\u0065ssage", "ünï", r"\ud83e\udd9c", "seq", "a`b", "x" * 300)
BAD_TEXTS = (r"\ud800", r"\udc00x", r"\ude00\ud83d", r"\u0000", r"\u001f", "\x01", "\n", "\x7f", r"\x", r"\u12", "\\")
TEXTS = ("", "x", "é", "🦜", r"\n", r"\t", r"\"", r"\\", r"\/", r"\u0041", r"\ud83e\udd9c", ":", "{", "]", ",", " ")
NUMBERS: tuple[str, ...] = (
    "0",
    "-0",
    "1",
    "-1",
    "1.5",
    "1e5",
    "1E+5",
    "1e-5",
    "1e308",
    "-1e308",
    "1e-999",
    "0e999",
    "9" * 400,
)
NUMBERS += ("1e999", "-1e999", "1E0999", "9" * 400 + ".0", "9" * 400 + "e1", "0." + "9" * 400, "9" * 220 + "e99")
NUMBERS += ("9" * 5000, "01", "1.", ".5", "+1", "1e", "0x10", "NaN", "Infinity", "-Infinity", "1" + "0" * 309, "1_0")
ENDS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    lambda rng, body: body[: rng.randint(0, len(body))],
    lambda rng, body: body + rng.choice((b"x", b" {}", b"}", b",", b"\0", b"//", b"[" * 100_000, b"9" * 5000)),
    lambda rng, body: b"\xef\xbb\xbf" + body,
    lambda rng, body: body.replace(b'"', rng.choice((b"'", b"")), 1),
    lambda rng, body: _spliced(
        rng, body, rng.choice((b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2"))
    ),
    lambda rng, body: _spliced(rng, body, rng.choice((b"\0", b'"', b"\\", b",", b":", b"[", b"}", b"null", b"\x0c"))),
)


def document(rng: random.Random) -> bytes:
    """A body, as likely whole and right in most things as not."""
    if rng.random() < 0.05:
        text = _value(rng, rng.randint(0, 3))
    else:
        members = [_member(rng) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5, 12)))]
        if rng.random() < 0.7:
            members.append(f'"message":{rng.choice(GOOD["message"])}')
        if members and rng.random() < 0.2:
            members.insert(rng.randint(0, len(members)), rng.choice(members))
        rng.shuffle(members)
        text = _blank(rng) + "{" + ",".join(members) + _blank(rng) + "}" + _blank(rng)
    body = text.encode()
    return rng.choice(ENDS)(rng, body) if rng.random() < 0.2 else body


def _member(rng: random.Random) -> str:
    name = rng.choice(FIELDS)
    value = (
        rng.choice(GOOD.get(name, ('"an_id"', "null"))) if rng.random() < 0.8 else _value(rng, rng.choice((0, 0, 1, 2)))
    )
    if rng.random() < 0.1:
        name = rng.choice(NAMES) if rng.random() < 0.7 else _string(rng)[1:-1]
    return f'{_blank(rng)}"{name}"{_blank(rng)}:{_blank(rng)}{value}'


def _value(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(9)
    if kind == 0:
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        levels = rng.choice((1, 30, 31, 32, 33, 40, 2000))
        return opening * levels + rng.choice(("1", '""', "[]", "{}")) + closing * levels
    if depth and kind < 4:
        parts = [_value(rng, depth - 1) for _ in range(rng.choice((0, 1, 2, 3, 40)))]
        return f"[{','.join(parts)}]" if rng.random() < 0.5 else f"{{{','.join(f'{_string(rng)}:{p}' for p in parts)}}}"
    if kind < 6:
        return rng.choice(NUMBERS)
    return _string(rng) if kind < 8 else rng.choice(("true", "false", "null", "nul", "True"))


def _string(rng: random.Random) -> str:
    parts = [rng.choice(TEXTS) for _ in range(rng.choice((0, 1, 2, 5, 300)))]
    if rng.random() < 0.1:
        parts.insert(rng.randint(0, len(parts)), rng.choice(BAD_TEXTS))
    return f'"{"".join(parts)}"'


def _blank(rng: random.Random) -> str:
    return rng.choice(("", "", "", " ", "\n", "\r\n\t "))


def _spliced(rng: random.Random, body: bytes, piece: bytes) -> bytes:
    at = rng.randint(0, len(body))
    return body[:at] + piece + body[at:]


# ---- what is right --------------------------------------------------------------------------------------------------


class Object(list[tuple[str, Any]]):
    """An object of JSON with all its members, also those of one name."""


def reading(body: bytes) -> Any:
    """The document as Python reads it: objects as ``Object``; None of it counts if this is no strict JSON.

    Raises:
        ValueError: it is not.
    """
    if len(body) > 50_000 and body.count(b"[" * 1000):
        raise ValueError("deeper than this reader goes")
    try:
        tree = json.loads(
            body.decode(), object_pairs_hook=Object, parse_constant=_refused, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise ValueError("deeper than this reader goes") from None
    _walk(tree, 0)
    return tree


def _refused(text: str) -> Any:
    raise ValueError(text)


def _finite(text: str) -> float:
    number = float(_short(text))
    if number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return number


def _whole(text: str) -> int:
    return int(_short(text))


def _short(number: str) -> str:
    if any(len(digits) > DIGITS for digits in re.findall(r"\d+", number)):
        raise ValueError("too many digits in a row")
    return number


def _walk(tree: Any, depth: int) -> None:
    if isinstance(tree, str) and re.search("[\ud800-\udfff]", tree):
        raise ValueError("a lone surrogate")
    if isinstance(tree, list):
        if depth == NESTING:
            raise ValueError("nested too deeply")
        for each in tree:
            for part in each if isinstance(tree, Object) else (each,):
                _walk(part, depth + 1)


def faults(tree: Any) -> set[str]:
    """The pointers of all that is wrong with a request, as far as its form goes; empty: it is one."""
    if not isinstance(tree, Object):
        return {""}
    names = [name for name, _ in tree]
    wrong = {name for name in names if name not in FIELDS or names.count(name) > 1}
    wrong |= {name for name, value in tree if name in FIELDS and not _fits(name, value)}
    return {"/" + name.replace("~", "~0").replace("/", "~1") for name in wrong}


def _fits(name: str, value: Any) -> bool:
    if isinstance(value, str) and re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", value):
        return False
    if name == "on_disconnect":
        return value in ("cancel", "continue")
    if value is None:
        return True
    if name == "tools":
        return value == [] and not isinstance(value, Object)
    if name == "response_format":
        return bool(value == Object([("type", "text")]))
    if name == "temperature":
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if name == "max_output_tokens":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str) or (name == "message" and _are_parts(value))


def _are_parts(tree: Any) -> bool:
    return isinstance(tree, list) and not isinstance(tree, Object) and 1 <= len(tree) <= 32 and all(map(_is_part, tree))


def _is_part(tree: Any) -> bool:
    """Whether this is a part of those that are made here."""
    return isinstance(tree, Object) and sorted(tree) in (
        *([("type", "image"), ("url", url)] for name, url in tree if name == "url" and isinstance(url, str)),
        *([("text", text), ("type", "text")] for name, text in tree if name == "text" and isinstance(text, str)),
    )
