"""Refusing a connection before any route has it: a plain answer, or the answer to a handshake."""

import msgspec

from chatserver.errors import ChatError
from chatserver.transports.connections import Scope, Send


async def refuse(scope: Scope, send: Send, error: ChatError) -> None:
    """Answer a request, or a WebSocket's handshake, with a problem document."""
    body = msgspec.json.encode(error.problem())
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
    headers += [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    await send({"type": f"{prefix}.response.start", "status": error.status, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body, "more_body": False})
