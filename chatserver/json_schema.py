"""JSON Schema (2020-12): whether a schema is one, and whether a value fits.

Schema and value are chosen by others, so checking one against the other is bounded in steps: references can double with
each level. What no bound helps against is not checked here: regular expressions, and what collects the properties that
were evaluated elsewhere.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias, cast

import msgspec

from chatserver.errors import BadRequest, TooLarge

SCHEMA_BYTES_LIMIT = 16 * 1024
"""Of a schema as JSON. The largest that people have seen to work with models are of some 10 KiB."""

CHECK_STEPS_LIMIT = 30_000
"""Keywords of a schema that are applied in one check: at most a second, in a thread."""

SCHEMAS_LIMIT = 256
"""Schemas of which is remembered what is wrong: clients declare the same tools with each message, 1 ms for each."""

PLACE_CHARS = 200
"""How much of the place of a mistake is told."""

UNCHECKED = frozenset({"pattern", "patternProperties", "unevaluatedItems", "unevaluatedProperties"})
REFERENCES = frozenset({"$ref", "$dynamicRef"})
IN_PLACE = frozenset({"allOf", "anyOf", "dependentSchemas", "else", "if", "not", "oneOf", "then"})
"""Keywords whose schemas are applied to the very value that the keyword is applied to."""

SELF = "urn:chatserver:schema"
"""The address of a schema that is checked or applied."""

Schema: TypeAlias = dict[str, Any] | bool


class TooManySteps(Exception):
    """A check that has no end that anybody would wait for."""


def check_schemas(schemas: Mapping[str, dict[str, Any]]) -> None:
    """Refuse what is no schema; ``schemas`` are those of a request, by their pointers. May take a second.

    Raises:
        BadRequest, TooLarge: one is none, or is too long.
    """
    for pointer, schema in schemas.items():
        if len(msgspec.json.encode(schema)) > SCHEMA_BYTES_LIMIT:
            raise TooLarge(f"the schema at `{pointer}` is over {SCHEMA_BYTES_LIMIT} bytes")
        if (mistake := mistake_in_schema(schema)) is not None:
            raise BadRequest(f"the schema is none: {mistake}", pointer)


def mistake_in(schema: Any, instance: Any) -> str | None:
    """The first thing that is wrong, by its place and the keyword that it breaks; nothing of its text."""
    try:
        return _mistake({"$ref": SELF}, _registry_with(schema), instance, _Steps())
    except TooManySteps:
        return "it takes too long to check"
    except Exception:  # noqa: BLE001 - what `mistake_in_schema` says of it
        return "its schema cannot be followed"


def mistake_in_schema(schema: Any) -> str | None:
    """The first thing that is wrong with a schema: it is none, or refers to what is none, or is not in it."""
    try:
        return _remembered(msgspec.json.encode(schema))
    except (TypeError, ValueError, RecursionError):
        return "it is no JSON"


@lru_cache(SCHEMAS_LIMIT)
def _remembered(encoded: bytes) -> str | None:
    schema, steps = msgspec.json.decode(encoded), _Steps()
    try:
        return _mistake_as_schema(schema, steps) or _mistake_in_references(schema, steps)
    except TooManySteps:
        return "it takes too long to check"
    except Exception:  # noqa: BLE001 - an `$id` that is no URI
        return "its references cannot be followed"


def _mistake_as_schema(schema: Any, steps: "_Steps") -> str | None:
    """What is wrong with a schema, wherever its references lead."""
    return _mistake(_class().META_SCHEMA, _standard_registry(), schema, steps)


def _mistake(schema: Any, registry: Any, instance: Any, steps: "_Steps") -> str | None:
    error = next(_class()(schema, registry=registry, format_checker=steps).iter_errors(instance), None)
    return None if error is None else f"at {error.json_path[:PLACE_CHARS]} it breaks `{error.validator}`"


def _mistake_in_references(schema: Schema, steps: "_Steps") -> str | None:
    """What is wrong with the references of a schema, also in branches that no value may ever reach."""
    followed = [_registry_with(schema).resolver().lookup(SELF)]
    in_place: dict[int, list[int]] = {}
    for each in followed:
        if isinstance(each.contents, bool) or id(each.contents) in in_place:
            continue
        if each.contents is not schema and (mistake := _mistake_as_schema(each.contents, steps)):
            return mistake  # It stands where no schema was expected.
        for part, resolver in _parts(each.contents, each.resolver):
            targets = []
            for name in REFERENCES & part.keys():
                if (target := _target(resolver, part[name])) is None:
                    reference = msgspec.json.encode({name: part[name][:PLACE_CHARS]}).decode()
                    return f"`{reference}` leads to no schema in it"
                targets.append(target)
            followed += targets
            beside = _specification().subresources_of({name: part[name] for name in IN_PLACE & part.keys()})
            in_place[id(part)] = [*map(id, beside), *(id(target.contents) for target in targets)]
    try:
        TopologicalSorter(in_place).prepare()
    except CycleError:
        return "it refers to itself without end"
    return None


def _parts(schema: Schema, resolver: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """A schema with all that are written in it, each with what resolves its references."""
    left = [(schema, resolver)]
    while left:
        part, resolver = left.pop()
        if isinstance(part, dict):
            yield part, resolver
            for each in _specification().subresources_of(part):
                left.append((each, resolver.in_subresource(_specification().create_resource(each))))


def _target(resolver: Any, reference: str) -> Any:
    """The schema that a reference leads to, in the same document; None: it leads elsewhere, or nowhere."""
    if not reference.startswith("#"):
        return None
    try:
        target = resolver.lookup(reference)
    except Exception:  # noqa: BLE001 - whatever comes of following a path through a text, a number, a list
        return None
    return target if isinstance(target.contents, dict | bool) else None


def _specification() -> Any:
    from referencing.jsonschema import DRAFT202012

    return DRAFT202012


def _standard_registry() -> Any:
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    return REGISTRY


def _registry_with(schema: Any) -> Any:
    """Where references are looked up. Walked through once: or else each look-up of an anchor would do that."""
    return _standard_registry().with_resource(SELF, _specification().create_resource(schema)).crawl()


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
