"""The probes of whoever watches the server."""

from typing import Any

from litestar import Request, get
from litestar.datastructures import State

from chatserver.errors import Draining, Unavailable
from chatserver.routes import components_of
from chatserver.routes.http import OPEN_WHILE_DRAINING, PUBLIC
from chatserver.routes.openapi import ALWAYS, BY_NOTHING, refusals

ABOUT = ("model", "is_demo", "login_url", "max_message_bytes", "max_inline_bytes")
"""What a client may know of the settings."""

OF_ANY_PAGE = {"Cross-Origin-Resource-Policy": "cross-origin"}
"""A page of any origin may notice the response, not read it: so it can tell a server that does not let it in from none.
"""


@get(
    "/livez",
    opt={OPEN_WHILE_DRAINING: True, PUBLIC: True},
    response_headers=OF_ANY_PAGE,
    security=BY_NOTHING,
    responses=refusals(*ALWAYS),
)
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@get("/readyz", opt={PUBLIC: True}, security=BY_NOTHING, responses=refusals(*ALWAYS, Draining, Unavailable))
async def readyz(request: Request[str, Any, State]) -> dict[str, Any]:
    """This model answers new runs; 503 while draining, or without the database.

    Not without Redis: no node would be left to show sessions, and what needs Redis is refused in words.
    """
    if not await components_of(request).sessions.is_writable():
        raise Unavailable("the database cannot be written")
    settings = components_of(request).settings
    about = {name: getattr(settings, name) for name in ABOUT}
    if settings.redis_url:
        about["redis"] = "ready" if components_of(request).runs.are_welcome else "down"
    mcp = components_of(request).mcp
    return {"status": "ok"} | about | ({} if mcp is None else {"mcp": mcp.states})


ROUTES = [livez, readyz]
