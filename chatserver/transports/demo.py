"""The demo model's endpoint: an OpenAI-compatible server inside this one."""

from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.response import Stream

from chatserver.errors import BadJson
from chatserver.providers.demo import Refusal, answer
from chatserver.transports.http import OPEN_WHILE_DRAINING

PATH = "/demo/v1"


@post(f"{PATH}/chat/completions", status_code=200, opt={OPEN_WHILE_DRAINING: True}, include_in_schema=False)
async def chat_completions(request: Request[str, Any, State]) -> Response[Any]:
    """Chat Completions as the demo model answers them."""
    try:
        body = msgspec.json.decode(await request.body(), type=dict[str, Any])
    except msgspec.DecodeError:
        raise BadJson from None
    said = answer(body)
    if isinstance(said, Refusal):
        return Response(said.body, status_code=said.status, headers=said.headers, media_type="application/json")
    return Stream(said, media_type="text/event-stream")
