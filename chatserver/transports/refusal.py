"""Refusals: from any exception to the bytes of a response, also before a route has the connection."""

import logging

import msgspec

from chatserver.errors import ChatError, Internal
from chatserver.replies import problem_of
from chatserver.telemetry import Observer
from chatserver.transports.asgi import AsgiScope, AsgiSend

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def refusal_of(error: Exception, what: str) -> ChatError:
    """The refusal for an exception in ``what``. An unexpected exception is logged and becomes `internal`."""
    if isinstance(error, ChatError):
        return error
    logger.error("%s failed", what, exc_info=error)
    return Internal()


def problem_bytes(error: ChatError) -> bytes:
    """The problem document of a refusal."""
    return msgspec.json.encode(problem_of(error))


def response_of(error: ChatError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of a refusal as a whole response."""
    body = problem_bytes(error)
    about = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body))}
    return [(name.lower().encode(), value.encode()) for name, value in (about | error.headers()).items()], body


async def refuse(scope: AsgiScope, send: AsgiSend, error: ChatError, observer: Observer) -> None:
    """Answer a request, or a WebSocket's handshake, with a problem document."""
    observer.refused(error.code)
    headers, body = response_of(error)
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    await send({"type": f"{prefix}.response.start", "status": error.status, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body, "more_body": False})
