"""The route of Prometheus."""

from typing import Any

import anyio
from litestar import Request, Response, get
from litestar.datastructures import State

from chatserver.auth import LOCAL_USER
from chatserver.auth.origins import header, is_from_own_machine
from chatserver.errors import Unauthenticated
from chatserver.routes import components_of
from chatserver.routes.http import OPEN_WHILE_DRAINING, PUBLIC


@get("/metrics", opt={OPEN_WHILE_DRAINING: True, PUBLIC: True}, include_in_schema=False)
async def metrics(request: Request[str, Any, State]) -> Response[bytes]:
    """All metrics, for programs of this machine, or for whoever has a token.

    Raises:
        Unauthenticated: somebody else asks, or a proxy for somebody else.
    """
    components = components_of(request)
    if not is_from_own_machine(request.scope):
        identity = await components.gate.identify(request.scope)
        if identity.user == LOCAL_USER:  # Everybody, in `none` mode.
            raise Unauthenticated
        await components.admissions.count(identity.user)
    accept = header(request.scope["headers"], b"accept")
    # In a thread: the files of many workers take longer to read than a token may be late.
    body, media_type = await anyio.to_thread.run_sync(components.metrics.scrape, accept)
    return Response(body, headers={"Content-Type": media_type})
