"""The access log, where an operator wants one: a line for each request and each WebSocket, when it has ended."""

import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeAlias

from chatserver.syntax import one_line
from chatserver.transports.connections import Message, Receive, Scope, Send

App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("chatserver.access")

PATH_CHARS_LIMIT = 256

IS_OWN = "chatserver.is_own"
"""In the scope of a request that this server has sent to itself, for the demo model: nobody has come."""


class AccessLog:
    """An ASGI application that logs how another one answers.

    A line has the method (`WS` for a WebSocket), the path, the status or close code, the `Content-Length` of the answer
    and milliseconds. The query is left out: a ticket may be in it. `cut` stands behind the status of an answer that
    did not come to its end, as when the peer has left. Tokens that are written without waiting do not pass here.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        logger.setLevel(logging.INFO)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        line = _Line(scope)

        async def told_receive() -> Message:
            message = await receive()
            line.note(message)
            return message

        async def told_send(message: Message) -> None:
            line.note(message)
            await send(message)

        try:
            await self._app(scope, told_receive, told_send)
        finally:
            if not scope.get(IS_OWN):
                logger.info("%s", line)


class _Line:
    """What is known so far of a request or a WebSocket."""

    def __init__(self, scope: Scope) -> None:
        path = one_line(scope["raw_path"].decode("latin-1"))
        self._began = monotonic()
        self._method = scope.get("method", "WS")
        self._path = path if len(path) <= PATH_CHARS_LIMIT else f"{path[:PATH_CHARS_LIMIT]}…"
        self._status = "-"
        self._length = "-"
        self._is_whole = False

    def note(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self._status = str(message["status"])
                headers = message.get("headers", ())
                self._length = next((value.decode() for name, value in headers if name == b"content-length"), "-")
            case "http.response.body" | "websocket.http.response.body":
                self._is_whole = not message.get("more_body", False)
            case "websocket.close" | "websocket.disconnect" if not self._is_whole:  # The first one says why.
                self._status, self._is_whole = str(message.get("code", 1000)), True

    def __str__(self) -> str:
        cut = "" if self._is_whole else " cut"
        milliseconds = (monotonic() - self._began) * 1000
        return f"{self._method} {self._path} {self._status}{cut} {self._length} {milliseconds:.0f} ms"
