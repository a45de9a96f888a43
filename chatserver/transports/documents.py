"""The machine-readable contract, served."""

from typing import Any

from litestar import get

from chatserver import schema


@get("/schema/events.json", media_type="application/schema+json", include_in_schema=False)
async def events_schema() -> dict[str, Any]:
    """JSON Schema of the events."""
    return schema.events()


@get("/schema/asyncapi.json", include_in_schema=False)
async def asyncapi_document() -> dict[str, Any]:
    """AsyncAPI of the WebSocket."""
    return schema.asyncapi()


ROUTES = [events_schema, asyncapi_document]
