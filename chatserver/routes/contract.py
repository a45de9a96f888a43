"""The machine-readable contract, served."""

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State

from chatserver import schema
from chatserver.routes.http import PUBLIC


@get(["/schema", "/schema/openapi.json"], opt={PUBLIC: True}, include_in_schema=False)
async def openapi_document(request: Request[str, Any, State]) -> Response[bytes]:
    """OpenAPI of the HTTP routes."""
    state = request.app.state
    if "openapi" not in state:  # Made once: writing the document takes 20 ms, and the route needs no credential.
        state.openapi = msgspec.json.encode(request.app.openapi_schema.to_schema())
    return Response(state.openapi, media_type="application/json")


@get("/schema/events.json", media_type="application/schema+json", opt={PUBLIC: True}, include_in_schema=False)
async def events_schema() -> dict[str, Any]:
    """JSON Schema of the events."""
    return schema.events()


@get("/schema/asyncapi.json", opt={PUBLIC: True}, include_in_schema=False)
async def asyncapi_document() -> dict[str, Any]:
    """AsyncAPI of the WebSocket."""
    return schema.asyncapi()


ROUTES = [openapi_document, events_schema, asyncapi_document]
