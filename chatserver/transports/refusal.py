"""Refusing a connection before any route has it: a plain answer, or the answer to a handshake."""

import msgspec

from chatserver.errors import ChatError
from chatserver.transports.connections import Scope, Send


def problem_of(error: ChatError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of a refusal."""
    body = msgspec.json.encode(error.problem())
    about = {"Content-Type": "application/problem+json", "Content-Length": str(len(body))}
    return [(name.lower().encode(), value.encode()) for name, value in (about | error.headers()).items()], body


async def refuse(scope: Scope, send: Send, error: ChatError) -> None:
    """Answer a request, or a WebSocket's handshake, with a problem document."""
    headers, body = problem_of(error)
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    await send({"type": f"{prefix}.response.start", "status": error.status, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body, "more_body": False})
