"""The demo model's endpoint: an OpenAI-compatible server inside this one."""

from hmac import compare_digest
from typing import Any, cast

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.response import Stream

from chatserver.errors import BadRequest, Unauthenticated
from chatserver.providers.demo import CompletionRequest, Refusal, completion
from chatserver.routes import components_of
from chatserver.routes.body import body_bytes
from chatserver.routes.http import OPEN_WHILE_DRAINING, PUBLIC
from chatserver.transports.asgi import IS_OWN, AsgiScope

DEMO_PATH = "/demo/v1"
BODY_BYTES_LIMIT = 8 * 1024 * 1024
"""A session's whole context in one request, with room to spare."""


@post(
    f"{DEMO_PATH}/chat/completions",
    status_code=200,
    opt={OPEN_WHILE_DRAINING: True, PUBLIC: True},
    include_in_schema=False,
)
async def chat_completions(request: Request[str, Any, State]) -> Response[Any]:
    """Chat Completions as the demo model answers them; where there are users, to this server alone."""
    given, key = request.headers.get("authorization", ""), f"Bearer {request.app.state.demo_key}"
    is_own = compare_digest(given.encode(), key.encode())
    if components_of(request).settings.auth != "none" and not is_own:
        raise Unauthenticated
    cast(AsgiScope, request.scope)[IS_OWN] = is_own
    body = await body_bytes(request, BODY_BYTES_LIMIT)
    try:
        said = completion(msgspec.json.decode(body, type=CompletionRequest))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"this is no Chat Completions request: {error}") from None
    if isinstance(said, Refusal):
        return Response(said.body, status_code=said.status, headers=said.headers, media_type="application/json")
    return Stream(said, media_type="text/event-stream")
