"""One connection to Redis: what was asked over it, in its order, and who waits for each reply.

redis-py opens the connection (TLS, authentication, database). Then its transport is taken over: a reply through
redis-py's own reader costs a task's wake-up and two timers, and a reply comes with nearly every token.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import hiredis
from hiredis import PushNotification
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from chatserver.errors import Unavailable

logger = logging.getLogger(__name__)

REDIS_NAMES = ("_writer",)
"""What is used of redis-py's ``Connection`` that it does not promise. redis-py is pinned to the minor version in which
this was read; a test names what another version lacks."""

Word: TypeAlias = str | bytes | int | float

OnReply: TypeAlias = Callable[[Any], None]
"""Is given a reply, or ``Unavailable`` in its place."""

OnError: TypeAlias = Callable[[ResponseError], None]
"""Is given an error that Redis says."""

OnPush: TypeAlias = Callable[[Sequence[Any]], None]

_NOTHING = object()
_CONFIRMATIONS = (b"subscribe", b"unsubscribe")
"""Pushes that are replies: they come in the place of the command."""


def packed(*words: Word) -> bytes:
    """A command as Redis reads it."""
    return hiredis.pack_command(words)  # type: ignore[no-any-return,arg-type]  # any number of them


def unavailable() -> Unavailable:
    """What callers are told, whatever is wrong with Redis."""
    return Unavailable("Redis cannot be used now")


class Wire(asyncio.Protocol):
    """The protocol of an open connection. What is asked in one turn of the loop is written at once."""

    def __init__(self, connection: AbstractConnection, on_push: OnPush) -> None:
        self.lost = asyncio.Event()
        """Set when the connection is lost; from then on ``reason`` says why."""

        self.reason = "the connection was closed"
        self._connection = connection  # Kept: redis-py closes the transport of one that is collected.
        self._transport: asyncio.Transport = connection._writer.transport  # type: ignore[union-attr,assignment]
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=_NOTHING)
        self._on_push = on_push
        self._unsent: list[bytes] = []
        self._waiting = deque[tuple[OnReply, OnError]]()
        self._loop = asyncio.get_running_loop()
        self._has_heard = False
        self._transport.set_protocol(self)

    def send(self, command: bytes, on_reply: OnReply, on_error: OnError) -> None:
        """Write a packed command behind all others; one of the callbacks is called, once and never before this returns.

        The command has one reply: a ``SUBSCRIBE`` has one channel.
        """
        if self.lost.is_set():
            self._loop.call_soon(on_reply, unavailable())
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(command)
        self._waiting.append((on_reply, on_error))

    def _flush(self) -> None:
        commands, self._unsent = self._unsent, []
        if self._transport.is_closing():  # uvloop raises from a write then, and tells nobody of an end before this one.
            self.abort("the connection was closed")
        else:
            self._transport.write(b"".join(commands))

    def is_silent(self) -> bool:
        """Whether nothing has come since this was asked last, although a reply is due."""
        has_heard, self._has_heard = self._has_heard, False
        return bool(self._waiting) and not has_heard

    def data_received(self, data: bytes) -> None:
        self._has_heard = True
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                if isinstance(reply, PushNotification) and reply[0] not in _CONFIRMATIONS:
                    _tell(self._on_push, reply)
                else:
                    on_reply, on_error = self._waiting.popleft()
                    _tell(on_error if isinstance(reply, ResponseError) else on_reply, reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.abort(f"what it says is no reply: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.reason = str(error) or type(error).__name__
        self._end()

    def abort(self, reason: str) -> None:
        """Give the connection up: whoever waits is told at once."""
        if not self.lost.is_set():
            self.reason = reason
            self._end()

    def _end(self) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        self._transport.abort()
        self._connection._writer = None  # Else redis-py warns of a connection that was not closed.
        waiting, self._waiting = self._waiting, deque()
        for on_reply, _ in waiting:
            _tell(on_reply, unavailable())


def _tell(on_reply: Callable[[Any], None], reply: Any) -> None:
    try:
        on_reply(reply)
    except Exception:  # Others wait behind it.
        logger.exception("what Redis says could not be used")
