"""Structured output: the form that a request wants its answer in, and whether the answer has it."""

import re
from typing import Any, TypeAlias

import msgspec
from anyio import to_thread
from msgspec import Struct

from chatserver.errors import BadJson, BadRequest, UpstreamError
from chatserver.json_schema import mistake_in
from chatserver.strict_json import json_text

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


def check_format(wanted: ResponseFormat) -> None:
    """Refuse a format that breaks a rule which can be seen at once; its schema is checked with all of the request.

    Raises:
        BadRequest: it does.
    """
    if isinstance(wanted, SchemaFormat) and not _NAME.fullmatch(wanted.json_schema.name):
        raise BadRequest("`name` is 1 to 64 letters, digits, `_` and `-`", "/response_format/json_schema/name")


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
