"""Structured output: the form that a request wants its answer in, and whether the answer has it.

Schema and answer are chosen by others, so checking one against the other is bounded in steps: references can double
with each level. What no bound helps against is passed on to the model and not checked here: regular expressions, and
what collects the properties that were evaluated elsewhere.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeAlias, cast

import msgspec
from anyio import to_thread
from msgspec import Struct

from chatserver.errors import BadJson, BadRequest, TooLarge, UpstreamError
from chatserver.strict_json import json_text

SCHEMA_BYTES_LIMIT = 16 * 1024
"""Of a schema as JSON. The largest that people have seen to work with models are of some 10 KiB."""

CHECK_STEPS_LIMIT = 30_000
"""Keywords of a schema that are applied in checking one answer: about a second, in a thread."""

PLACE_CHARS = 200
"""How much of the place of a mistake is told."""

UNCHECKED = frozenset({"pattern", "patternProperties", "unevaluatedItems", "unevaluatedProperties"})
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """Any text: what an answer is anyway."""


class JsonFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """A JSON object."""


class NamedSchema(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A JSON Schema (2020-12) with the name under which the model is told of it."""

    name: str
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class SchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that fits a schema."""

    json_schema: NamedSchema


ResponseFormat: TypeAlias = TextFormat | JsonFormat | SchemaFormat


class TooManySteps(Exception):
    """A check that has no end that anybody would wait for."""


def check_format(wanted: ResponseFormat) -> None:
    """Refuse a format that breaks a rule which can be seen at once.

    Raises:
        BadRequest, TooLarge: it does.
    """
    if not isinstance(wanted, SchemaFormat):
        return
    named, pointer = wanted.json_schema, "/response_format/json_schema"
    if not _NAME.fullmatch(named.name):
        raise BadRequest("`name` is 1 to 64 letters, digits, `_` and `-`", f"{pointer}/name")
    if len(msgspec.json.encode(named.schema)) > SCHEMA_BYTES_LIMIT:
        raise TooLarge(f"the schema of `response_format` is over {SCHEMA_BYTES_LIMIT} bytes")
    if refers_outside(named.schema):
        raise BadRequest("a `$ref` of a schema stays within the schema: it begins with `#`", f"{pointer}/schema")


async def check_schema(wanted: ResponseFormat | None) -> None:
    """Refuse a schema that is none.

    Raises:
        BadRequest: it is none; ``pointer`` says where.
    """
    if not isinstance(wanted, SchemaFormat):
        return
    if (mistake := await to_thread.run_sync(mistake_in_schema, wanted.json_schema.schema)) is not None:
        raise BadRequest(f"the schema is none: {mistake}", "/response_format/json_schema/schema")


async def check_answer(wanted: ResponseFormat | None, text: str) -> None:
    """Fail a whole answer that has not the form.

    Raises:
        UpstreamError: it has not; the message says where.
    """
    if wanted is None or isinstance(wanted, TextFormat):
        return
    try:
        answer = msgspec.json.decode(json_text(text))
    except (BadJson, ValueError) as error:
        raise _unfit("it is no JSON") from error
    if isinstance(wanted, JsonFormat):
        if not isinstance(answer, dict):
            raise _unfit("it is no JSON object")
        return
    if (mistake := await to_thread.run_sync(mistake_in, wanted.json_schema.schema, answer)) is not None:
        raise _unfit(mistake)


def _unfit(mistake: str) -> UpstreamError:
    return UpstreamError("llm_error", f"the answer does not have the form of `response_format`: {mistake}")


def refers_outside(schema: Any) -> bool:
    """Whether a schema refers to another document."""
    return any(not reference.startswith("#") for reference in _references(schema))


def _references(schema: Any) -> Iterator[str]:
    left = [schema]
    while left:
        match left.pop():
            case dict() as each:
                yield from (each[name] for name in ("$ref", "$dynamicRef") if isinstance(each.get(name), str))
                left += each.values()
            case list() as each:
                left += each


def mistake_in(schema: Any, instance: Any) -> str | None:
    """The first thing that is wrong, by its place and the keyword that it breaks; nothing of its text."""
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    try:
        error = next(_class()(schema, registry=REGISTRY, format_checker=_Steps()).iter_errors(instance), None)
    except TooManySteps:
        return "it takes too long to check"
    except Exception:  # noqa: BLE001 - a reference that leads nowhere or round in circles, a keyword of a wrong type
        return "its schema cannot be followed"
    if error is None:
        return None
    return f"at {error.json_path[:PLACE_CHARS]} it breaks `{error.validator}`"


def mistake_in_schema(schema: Any) -> str | None:
    """The first thing that is wrong with a schema."""
    return mistake_in(_class().META_SCHEMA, schema)


class _Steps:
    """How many keywords may still be applied. Handed on as the format checker, which each part of a check gets."""

    def __init__(self) -> None:
        self.left = CHECK_STEPS_LIMIT

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooManySteps


Check: TypeAlias = Callable[[Any, Any, Any, Any], Iterable[Any] | None]


@cache
def _class() -> Any:
    """Checks by JSON Schema 2020-12 that count their steps and look nothing up outside of a schema."""
    from jsonschema import Draft202012Validator, ValidationError, validators

    def counted(check: Check) -> Check:
        def step(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[Any] | None:
            validator.format_checker.take()
            return check(validator, value, instance, schema)

        return step

    def unique(_: Any, value: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
        # The library's own takes quadratic time.
        if value and isinstance(instance, list):
            known = {msgspec.json.encode(each, order="deterministic") for each in instance}
            if len(known) < len(instance):
                yield ValidationError("not unique")

    def no_others(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[Any] | None:
        is_known = "patternProperties" not in schema
        return standard["additionalProperties"](validator, value, instance, schema) if is_known else None

    standard: dict[str, Any] = dict(Draft202012Validator.VALIDATORS)
    own = {"uniqueItems": unique, "additionalProperties": no_others, "format": lambda *_: None}
    checks = {name: counted(own.get(name, check)) for name, check in standard.items() if name not in UNCHECKED}
    meta = Draft202012Validator.META_SCHEMA
    made = cast(Any, validators).create(meta, checks, version=None, id_of=Draft202012Validator.ID_OF)
    evolve = made.evolve

    def evolved(validator: Any, **changes: Any) -> Any:
        # By its `$schema`, a schema would choose another class of the library, which counts nothing.
        if isinstance(schema := changes.get("schema"), dict) and "$schema" in schema:
            changes["schema"] = {name: value for name, value in schema.items() if name != "$schema"}
        return evolve(validator, **changes)

    made.evolve = evolved
    return made
