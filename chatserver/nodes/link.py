"""A node's link to Redis: scripts, commands and channels over one connection, which is made anew when it is lost.

A caller waits for a reply with a future of its own, so a caller that is cancelled neither takes nor leaves behind the
reply of another. While Redis cannot be reached, whatever is asked is refused at once (``Unavailable``).
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha1
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import anyio
from redis.exceptions import AuthenticationError, InvalidResponse, RedisError, ResponseError

from chatserver.errors import SettingsError
from chatserver.nodes.address import Address
from chatserver.nodes.wire import OnError, OnReply, Wire, Word, packed, unavailable
from chatserver.settings import variable

logger = logging.getLogger(__name__)

SCRIPTS = {path.stem: path.read_bytes() for path in Path(__file__).with_name("scripts").glob("*.lua")}
"""All that runs in Redis, by its name. Each connection begins with giving it to Redis: modules that run scripts may be
imported later."""

REPLY_SECONDS = 5.0
"""How long a reply is waited for before the connection is given up."""

PATIENT_LOOKS = 5
"""How often that time is looked whether something has come."""

LONGEST_PAUSE_SECONDS = 1.0
"""Between two tries to connect."""

TELL_AGAIN_SECONDS = 60.0
"""Between two lines in the log about a Redis that answers and refuses: a full memory takes some writes."""

PASSING = (
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN",
)  # fmt: skip
"""How the errors begin that pass without a change of the settings."""

TROUBLE = (*PASSING, "NOAUTH", "NOPERM")
"""How the errors begin that are the fault of Redis, and not of what was asked."""

OnMessage: TypeAlias = Callable[[bytes], None]


class Script:
    """A Lua script of the folder ``scripts``. Redis runs nothing else meanwhile."""

    def __init__(self, name: str) -> None:
        self.source = SCRIPTS[name]
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest()


class Link:
    """The connection of this node to Redis, and what is to be known when it is lost and made again."""

    def __init__(self, address: Address, patience_seconds: float = REPLY_SECONDS) -> None:
        self.on_up: list[Callable[[], None]] = []
        """Called when Redis is reached again: messages may have been missed. All channels are subscribed to again."""

        self.on_down: list[Callable[[], None]] = []
        """Called when the connection is lost."""

        self._address = address
        self._patience_seconds = patience_seconds
        self._wire: Wire | None = None
        self._channels: dict[bytes, OnMessage] = {}
        self._told_at = -TELL_AGAIN_SECONDS

    @property
    def is_up(self) -> bool:
        """Whether Redis is connected; it may refuse all the same."""
        return self._wire is not None and not self._wire.lost.is_set()

    # What is asked.

    async def call(self, script: Script, keys: Sequence[Word] = (), args: Sequence[Word] = ()) -> Any:
        """The reply of a script. Texts come as bytes.

        Raises:
            Unavailable: Redis cannot be used now. The script may have run all the same. ``__cause__`` is the error
                with which Redis refused, if it did.
            ResponseError: the script is wrong.
        """
        return await _reply(partial(self.post, script, keys, args))

    async def command(self, *words: Word) -> Any:
        """The reply of a command, as of a script."""
        return await _reply(partial(self._send_command, packed(*words)))

    def _send_command(self, command: bytes, on_reply: OnReply) -> None:
        self._send(command, on_reply, partial(self._judge, on_reply))

    def post(self, script: Script, keys: Sequence[Word], args: Sequence[Word], on_reply: OnReply) -> None:
        """As ``call``, without a task: ``on_reply`` is given the reply or the exception, later."""
        command = packed("EVALSHA", script.digest, len(keys), *keys, *args)
        self._send(command, on_reply, partial(self._send_source, script, keys, args, on_reply))

    def _send_source(
        self, script: Script, keys: Sequence[Word], args: Sequence[Word], on_reply: OnReply, error: ResponseError
    ) -> None:
        """Send a script that was refused once more, if that was since Redis does not know it."""
        if str(error).startswith("NOSCRIPT"):
            command = packed("EVAL", script.source, len(keys), *keys, *args)
            self._send(command, on_reply, partial(self._judge, on_reply))
        else:
            self._judge(on_reply, error)

    def _send(self, command: bytes, on_reply: OnReply, on_error: OnError) -> None:
        if self._wire is None:
            asyncio.get_running_loop().call_soon(on_reply, unavailable())
        else:
            self._wire.send(command, on_reply, on_error)

    def _judge(self, on_reply: OnReply, error: ResponseError) -> None:
        """Hand an error on; one that is Redis' own fault as ``Unavailable``."""
        words = str(error)
        if not words.startswith(TROUBLE):
            return on_reply(error)
        self._tell_trouble(words)
        if words.startswith("READONLY") and self._wire is not None:  # A master no longer.
            self._wire.abort("it is a replica")
        refusal = unavailable()
        refusal.__cause__ = error
        on_reply(refusal)

    def _tell_trouble(self, words: str) -> None:
        if monotonic() - self._told_at >= TELL_AGAIN_SECONDS:
            self._told_at = monotonic()
            logger.error("Redis refuses, what needs it is refused: %s", words)

    # Channels.

    def subscribe(self, channel: str, on_message: OnMessage) -> None:
        """Be given the messages of a channel.

        What is asked after this is answered after the subscription: a state that is read then, and the messages, leave
        no gap between them.
        """
        self._channels[channel.encode()] = on_message
        self._want("SUBSCRIBE", channel)

    def publish(self, channel: str, message: bytes) -> None:
        """Say something in a channel, if Redis can be used now."""
        self._send_command(packed("PUBLISH", channel, message), _nobody)

    def unsubscribe(self, channel: str) -> None:
        """Be given no more messages of the channel."""
        if self._channels.pop(channel.encode(), None):
            self._want("UNSUBSCRIBE", channel)

    def _want(self, verb: str, channel: str | bytes) -> None:
        if self._wire is not None:
            wire = self._wire  # Of no use without its channels.
            wire.send(packed(verb, channel), _nobody, lambda error: wire.abort(str(error)))

    def _pushed(self, push: Sequence[Any]) -> None:
        if push[0] == b"message" and (on_message := self._channels.get(push[1])):
            on_message(push[2])

    # The connection.

    async def connect(self) -> None:
        """
        Raises:
            RedisError, OSError: there is no Redis now.
        """
        self._wire = Wire(await self._address.connect(), self._pushed)
        for source in SCRIPTS.values():  # One that is sent only when Redis does not know it runs behind later ones.
            self._wire.send(packed("SCRIPT", "LOAD", source), _nobody, _nobody)
        for channel in self._channels:
            self._want("SUBSCRIBE", channel)
        _call_all(self.on_up)

    async def keep(self) -> None:
        """Watch the connection, and make it anew when it is lost, for ever."""
        while True:
            if self._wire is not None:
                await self._watch(self._wire)
                self._wire = None
                _call_all(self.on_down)
            await self._connect_again()

    async def _watch(self, wire: Wire) -> None:
        silent_looks = 0  # Not what a clock says: this process may have been frozen, or have had no processor.
        while not wire.lost.is_set():
            with anyio.move_on_after(self._patience_seconds / PATIENT_LOOKS):
                await wire.lost.wait()
            silent_looks = silent_looks + 1 if wire.is_silent() else 0
            if silent_looks > PATIENT_LOOKS:  # The first one may have come right behind the question.
                wire.abort("it does not answer")
        logger.error("Redis is lost, what needs it is refused: %s", wire.reason)

    async def _connect_again(self) -> None:
        for pause in _pauses():
            try:
                await self.connect()
            except (RedisError, OSError):
                await anyio.sleep(pause)
            else:
                logger.warning("Redis is reached again")
                return

    async def close(self) -> None:
        """Hang up."""
        if self._wire is not None:
            self._wire.abort("this server ends")
        await self._address.close()


def _pauses() -> Iterator[float]:
    pause = 0.02
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)


def _nobody(reply: Any) -> None:
    """Nobody waits for it."""


def _call_all(callbacks: Sequence[Callable[[], None]]) -> None:
    for each in callbacks:
        try:
            each()
        except Exception:
            logger.exception("a node could not follow its link to Redis")


async def _reply(send: Callable[[OnReply], None]) -> Any:
    future = asyncio.get_running_loop().create_future()

    def settle(reply: Any) -> None:
        if not future.done():  # Else its caller was cancelled.
            future.set_result(reply)

    send(settle)
    reply = await future
    if isinstance(reply, Exception):
        raise reply
    return reply


def check_settings(error: BaseException | None) -> None:
    """Tell at the start what would never pass by itself; whatever else is wrong with Redis is waited for.

    Raises:
        SettingsError: what answers is no Redis, refuses the user, or lacks what is needed.
    """
    if not isinstance(error, (AuthenticationError, InvalidResponse, ResponseError)):
        return
    words = f"{error.status_code or ''} {error}".lstrip()  # redis-py cuts off the codes that it knows.
    if not words.startswith(PASSING):
        raise SettingsError(f"{variable('redis_url')}: Redis cannot be used: {words}") from None


@asynccontextmanager
async def open_link(address: Address, patience_seconds: float = REPLY_SECONDS) -> AsyncIterator[Link]:
    """The link to the Redis at an address. One that cannot be reached yet is in trouble as one that is lost later.

    Raises:
        SettingsError: as ``check_settings``.
    """
    link = Link(address, patience_seconds)
    try:
        try:
            await link.connect()
        except (RedisError, OSError) as error:
            check_settings(error)
            logger.error("Redis is not reached, what needs it is refused: %s", error)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.keep)
            yield link
            tasks.cancel_scope.cancel()
    finally:
        await link.close()
