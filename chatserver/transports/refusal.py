"""Refusals on their way to a client: from any exception to bytes, also before a route has the connection."""

import logging

import msgspec

from chatserver.errors import ChatError, Internal
from chatserver.replies import problem_of
from chatserver.transports.asgi import AsgiScope, AsgiSend

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def refusal_of(error: Exception, what: str) -> ChatError:
    """What a client is told of an exception in ``what``: one that was not foreseen is told to the log alone."""
    if isinstance(error, ChatError):
        return error
    logger.error("%s failed", what, exc_info=error)
    return Internal()


def problem_bytes(error: ChatError) -> bytes:
    """The problem document of a refusal."""
    return msgspec.json.encode(problem_of(error))


def response_of(error: ChatError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of a refusal that is a whole response."""
    body = problem_bytes(error)
    about = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body))}
    return [(name.lower().encode(), value.encode()) for name, value in (about | error.headers()).items()], body


async def refuse(scope: AsgiScope, send: AsgiSend, error: ChatError) -> None:
    """Answer a request, or a WebSocket's handshake, with a problem document."""
    headers, body = response_of(error)
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    await send({"type": f"{prefix}.response.start", "status": error.status, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body, "more_body": False})
