"""A dialogue over one WebSocket: any number of runs, one reader that always drains, one way out, a pump a run."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from msgspec import Struct

from chatserver.auth import Identity
from chatserver.commands import Attach, Cancel, Command, Detach, Ping, command, cursor, named
from chatserver.commands import Send as SendCommand
from chatserver.errors import BadJson, ChatError, NoCommand
from chatserver.events import Record
from chatserver.limits import Requests
from chatserver.replies import PING, Accepted, Pong, Rejected, rejected
from chatserver.runs.runs import Runs
from chatserver.runs.subscription import Subscription
from chatserver.strict_json import json_text
from chatserver.transports.close_codes import (
    BINARY_FRAME,
    EXPIRED,
    FAILED,
    GOING_DOWN,
    GONE,
    NO_COMMANDS,
    STUCK,
    TOO_MANY_COMMANDS,
    Closing,
)
from chatserver.transports.components import Components
from chatserver.transports.connections import WRITE_NOW, Connection, Connections, KeepAlive, Receive, Scope, Send
from chatserver.transports.frames import FRAMES, text_frame, text_frames
from chatserver.transports.refusal import refusal_of

logger = logging.getLogger(__name__)

INBOX_BYTES_LIMIT = 1024 * 1024
"""Commands that may wait while one is obeyed; a client that asks much faster than it is answered is no client."""

FRAME_OVERHEAD_BYTES = 100
"""What a waiting frame takes beside its text."""

NO_COMMANDS_LIMIT = 10
"""Frames in a row that are no commands at all, after which the peer is taken for something else."""

KEEP_ALIVE = KeepAlive({"type": "websocket.send", "text": PING.decode()}, text_frame(PING))


class Closed(Exception):
    """Whoever is at work on this connection stops: it is to be closed."""

    def __init__(self, closing: Closing) -> None:
        super().__init__(closing.reason)
        self.closing = closing


class _Pump(Struct, frozen=True):
    """One attached run: its subscription, and the task that reads it; as a task of a group it would take 2 KB more."""

    subscription: Subscription
    task: asyncio.Task[None]

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        self.subscription.close()  # A task that was cancelled before it began never entered it.


class Multiplexer:
    """What goes on over one WebSocket."""

    def __init__(self, identity: Identity, components: Components, scope: Scope, send: Send) -> None:
        self._identity = identity
        self._user = identity.user
        self._runs: Runs = components.runs
        self._requests: Requests = components.requests
        self._connections: Connections = components.connections
        self._send = send
        self._extensions = scope.get("extensions", {})
        self._pumps: dict[str, _Pump] = {}
        self._no_commands = 0
        self._inbox: list[str] = []
        self._inbox_bytes = 0
        self._closing: Closing | None = None
        self._is_draining = False
        self._tasks: TaskGroup
        self._connection: Connection

    async def run(self, receive: Receive) -> Closing | None:
        """Obey the peer until it leaves (None) or is to be closed."""
        self._connection = Connection(
            self._send,
            KEEP_ALIVE,
            drop=lambda: self._close(STUCK),
            drain=self._drain,
            write_now=self._extensions.get(WRITE_NOW),
            expire=lambda: self._close(EXPIRED),
            expires_at=self._identity.expires_at,
        )
        with self._connections.watched(self._connection):
            try:
                async with anyio.create_task_group() as self._tasks:
                    await self._listen(receive)
                    self._cancel_pumps()
                    await checkpoint()  # A command that came right before the end is still begun.
                    self._tasks.cancel_scope.cancel()
            finally:
                self._cancel_pumps()
                with anyio.CancelScope(shield=True):
                    for pump in list(self._pumps.values()):
                        await pump.end()
        del self._connection  # It calls us: a cycle, for the collector.
        return self._closing

    def _close(self, closing: Closing) -> None:
        self._closing = self._closing or closing
        self._tasks.cancel_scope.cancel()
        self._cancel_pumps()

    def _cancel_pumps(self) -> None:
        """Nothing more is sent, also while the group still waits for a command that is being obeyed."""
        for pump in self._pumps.values():
            pump.task.cancel()

    def _drain(self) -> None:
        self._is_draining = True
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self._is_draining and not self._pumps:  # One whose run is over has still to say so.
            self._close(GOING_DOWN)

    async def _listen(self, receive: Receive) -> None:
        """Take every frame as it comes: an unread one would keep the pongs behind it from being seen."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            if message["type"] != "websocket.receive":
                continue
            text = message.get("text")
            if text is None:
                return self._close(BINARY_FRAME)
            self._inbox.append(text)
            self._inbox_bytes += len(text) + FRAME_OVERHEAD_BYTES
            if self._inbox_bytes > INBOX_BYTES_LIMIT:
                return self._close(TOO_MANY_COMMANDS)
            if len(self._inbox) == 1:
                self._tasks.start_soon(self._obey_all)

    async def _obey_all(self) -> None:
        """Obey what waits, one after the other; over when nothing does: a task that waits takes 5 KB."""
        while self._inbox:
            text = self._inbox[0]  # It stays there until it is obeyed: nobody else begins meanwhile.
            self._inbox_bytes -= len(text) + FRAME_OVERHEAD_BYTES
            try:
                await self._obey_text(text)
            except Closed as closed:
                return self._close(closed.closing)
            await checkpoint()  # One that asks for much must not keep the loop for itself.
            del self._inbox[0]

    async def _obey_text(self, text: str) -> None:
        """Obey one frame, or say why not."""
        if self._identity.is_over:
            raise Closed(EXPIRED)
        about: dict[str, Any] = {}
        try:
            text = json_text(text)
            about = named(text)
            await self._obey(command(text), about)
            self._no_commands = 0
        except Closed:
            raise
        except Exception as error:  # noqa: BLE001 - logged by `refusal_of`
            await self._reject(refusal_of(error, "a command of a WebSocket"), about)

    async def _reject(self, error: ChatError, about: dict[str, Any]) -> None:
        self._no_commands = self._no_commands + 1 if isinstance(error, BadJson | NoCommand) else 0
        await self._say(rejected(error, about))
        if self._no_commands >= NO_COMMANDS_LIMIT:
            raise Closed(NO_COMMANDS)

    async def _obey(self, wanted: Command, about: dict[str, Any]) -> None:
        if not isinstance(wanted, Ping):
            await self._requests.count(self._user)
        match wanted:
            case SendCommand():
                await self._attach(await self._runs.start(self._user, wanted.request()), about)
            case Attach():
                after = cursor(wanted.after)
                await self._attach(await self._runs.subscribe(self._user, wanted.run_id, after), about)
            case Detach():
                await self._runs.record(self._user, wanted.run_id)
                await self._detach(wanted.run_id)
                await self._say(Accepted(**about))
            case Cancel():
                await self._runs.cancel(self._user, wanted.run_id)
                await self._say(Accepted(**about))
            case Ping():
                await self._say(Pong())

    async def _attach(self, subscription: Subscription, about: dict[str, Any]) -> None:
        """Say so, then let a pump send what follows the cursor."""
        run_id = subscription.run_id
        try:
            await self._detach(run_id)
            await self._say(Accepted(**about | {"run_id": run_id}, ended=subscription.is_at_end))
        except BaseException:
            subscription.close()
            raise
        if subscription.is_at_end:
            return subscription.close()
        self._pumps[run_id] = _Pump(subscription, asyncio.create_task(self._pump(subscription)))

    async def _detach(self, run_id: str) -> None:
        if pump := self._pumps.pop(run_id, None):
            await pump.end()

    async def _pump(self, subscription: Subscription) -> None:
        try:
            with subscription:
                async with aclosing(subscription.read()) as batches:
                    async for batch in batches:
                        await self._forward(batch)
        except Closed as closed:
            return self._close(closed.closing)
        except Exception:
            logger.exception("a WebSocket's reader of run %s failed", subscription.run_id)
            return self._close(FAILED)
        finally:
            self._forget(subscription)
        self._close_if_drained()

    def _forget(self, subscription: Subscription) -> None:
        pump = self._pumps.get(subscription.run_id)
        if pump is not None and pump.subscription is subscription:
            del self._pumps[subscription.run_id]

    async def _forward(self, batch: Sequence[Record]) -> None:
        """Each record as a text frame; the whole batch in one write where the server can do that."""
        if FRAMES in self._extensions:
            return await self._write({FRAMES: text_frames(batch)})
        for each in batch:
            await self._write({"text": each.data.decode()})

    async def _say(self, reply: Accepted | Rejected | Pong) -> None:
        await self._write({"text": msgspec.json.encode(reply).decode()})

    async def _write(self, content: dict[str, Any]) -> None:
        try:
            await self._connection.write({"type": "websocket.send"} | content)
        except OSError:  # Of the socket; one that a command meets elsewhere is a fault of the server.
            raise Closed(GONE) from None
