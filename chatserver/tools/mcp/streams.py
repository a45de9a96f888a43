"""What both ways to an MCP server have in common: limits, the pace of messages, and whose call a message belongs to."""

from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeAlias

import anyio
from mcp.shared.message import SessionMessage

from chatserver.limits import TokenBucket
from chatserver.tools.context import ToolContext

MESSAGE_BYTES_LIMIT = 4 * 1024 * 1024
"""One message of an MCP server. Decoding it holds the event loop, some 5 ms for each MiB."""

MESSAGES_AT_ONCE_LIMIT = 1000
MESSAGES_PER_SECOND_LIMIT = 500
"""A server that says more is read no faster, and waits for its pipe or socket. A message takes some 0.1 ms."""

Received: TypeAlias = SessionMessage | Exception

Lose: TypeAlias = Callable[[str], None]
"""Ends a connection, and tells why."""


Sift: TypeAlias = Callable[[Received], None]
"""Takes out of a message what the SDK must not see."""


class Call:
    """A call of a tool that waits for its server."""

    __slots__ = ("context", "is_undone")

    def __init__(self, context: ToolContext) -> None:
        self.context = context
        self.is_undone = False
        """The server has certainly not begun it."""


CALL: ContextVar[Call] = ContextVar("CALL")
"""The call that a message is sent for, or over HTTP comes for."""


class Paced:
    """The messages of a server as its session reads them: sifted, and no faster than the limits allow."""

    def __init__(self, messages: Any, sift: Sift) -> None:
        self._messages = messages
        self._sift = sift
        self._bucket = TokenBucket(MESSAGES_AT_ONCE_LIMIT, MESSAGES_PER_SECOND_LIMIT)

    @property
    def last_context(self) -> Any:
        """The context variables of whoever has received the newest message; the SDK asks for them by this name."""
        return getattr(self._messages, "last_context", None)

    async def receive(self) -> Received:
        message: Received = await self._messages.receive()
        while seconds := self._bucket.draw():  # noqa: ASYNC110 - the bucket fills by time alone
            await anyio.sleep(seconds)
        self._sift(message)
        return message

    async def aclose(self) -> None:
        await self._messages.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
