"""Parts of the OpenAPI document that Litestar cannot derive: strict bodies, streams, and every refusal."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, cast

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Components, OpenAPIMediaType, Operation, RequestBody, SecurityScheme
from msgspec import Meta, Struct

from chatserver import errors
from chatserver.auth import COOKIE, Ticket
from chatserver.errors import ChatError
from chatserver.replies import Problem
from chatserver.resources import ModelList, RunResource, SessionDetail, SessionPage
from chatserver.transports.refusal import MEDIA_TYPE

SECURITY = Components(
    security_schemes={
        "token": SecurityScheme(type="http", scheme="bearer", bearer_format="JWT"),
        "cookie": SecurityScheme(type="apiKey", name=COOKIE, security_scheme_in="cookie"),
        "ticket": SecurityScheme(type="apiKey", name="ticket", security_scheme_in="query"),
    }
)
BY_TOKEN: list[dict[str, list[str]]] = [{"token": []}, {"cookie": []}]
BY_TICKET: list[dict[str, list[str]]] = [*BY_TOKEN, {"ticket": []}]
BY_NOTHING: list[dict[str, list[str]]] = [{}]

ALWAYS = (errors.BadHttp, errors.Forbidden, errors.TooSlow, errors.HeadTooLarge, errors.Overloaded)
WITH_USER = (*ALWAYS, errors.Unauthenticated, errors.TooMany, errors.Unavailable, errors.Draining)
WITH_BODY = (*WITH_USER, errors.BadJson, errors.BadRequest, errors.TooLarge, errors.UnsupportedMedia)
STARTING = (*WITH_BODY, errors.NotFound, errors.RunActive, errors.KeyReused, errors.QuotaExceeded)


RESOURCES = (ModelList, RunResource, SessionDetail, SessionPage, Ticket, Problem)
"""The documents that routes answer with."""


class ServerSentEvent(Struct):
    """The fields of one SSE event of a stream."""

    id: Annotated[str, Meta(description="the event's `seq`")]
    event: Annotated[str, Meta(description="the event's `type`")]
    data: Annotated[str, Meta(description="the event, a JSON document as `/schema/events.json` has it")]


def refusals(*kinds: type[ChatError]) -> dict[int, ResponseSpec]:
    """The refusals of a route as its OpenAPI responses."""
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(f"`{kind.code}`")
    return {
        status: ResponseSpec(
            Problem,
            generate_examples=False,
            media_type=cast(Any, MEDIA_TYPE),
            description=f"{HTTPStatus(status).phrase}: {', '.join(codes)}",
        )
        for status, codes in by_status.items()
    }


def body_of(kind: type[Struct]) -> type[Operation]:
    """Document a body that the route itself reads, strictly: Litestar would coerce "1" to 1."""
    _, definitions = msgspec.json.schema_components([kind])

    @dataclass
    class WithBody(Operation):
        def __post_init__(self) -> None:
            content = OpenAPIMediaType(schema=_whole(definitions[kind.__name__], definitions))
            self.request_body = RequestBody(content={"application/json": content}, required=True)

    return WithBody


def _whole(node: Any, definitions: dict[str, Any]) -> Any:
    """A schema with what it refers to in place of the references: OpenAPI looks for those elsewhere."""
    match node:
        case {"$ref": str(reference)}:
            return _whole(definitions[reference.rpartition("/")[2]], definitions)
        case dict():
            return {name: _whole(each, definitions) for name, each in node.items() if name != "discriminator"}
        case list():
            return [_whole(each, definitions) for each in node]
        case _:
            return node


STREAM = {
    200: ResponseSpec(
        ServerSentEvent, generate_examples=False, media_type="text/event-stream", description="the run's events"
    ),
}
STREAM_OR_END = STREAM | {204: ResponseSpec(None, description="the run is over and `after` is its end")}
