"""The dialogue over one WebSocket: commands that are obeyed in order, and any number of runs with a pump each."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from anyio.lowlevel import checkpoint

from chatserver.auth import Identity
from chatserver.commands import (
    AnswerCall,
    Attach,
    Cancel,
    Command,
    Detach,
    Ping,
    Send,
    names_in,
    parse_command,
    parse_cursor,
)
from chatserver.errors import BadJson, ChatError, NoCommand
from chatserver.events import Record
from chatserver.replies import PING, Accepted, Pong, Rejected, rejected
from chatserver.runs.runs import Runs
from chatserver.runs.subscription import Subscription
from chatserver.strict_json import json_text
from chatserver.telemetry import NOTHING
from chatserver.transports.admission import Admission, Admissions
from chatserver.transports.close_codes import (
    BINARY_FRAME,
    EXPIRED,
    FAILED,
    GOING_DOWN,
    NO_COMMANDS,
    TOO_MANY_COMMANDS,
    Closing,
)
from chatserver.transports.components import Components
from chatserver.transports.connections import Connection
from chatserver.transports.frames import text_frame, text_frames
from chatserver.transports.peer import SocketPeer
from chatserver.transports.pump import Pump
from chatserver.transports.refusal import refusal_of

logger = logging.getLogger(__name__)

INBOX_BYTES_LIMIT = 1024 * 1024
"""The bytes of commands that wait while one is obeyed. No honest client is so much faster than its answers."""

FRAME_OVERHEAD_BYTES = 100
"""How many bytes a waiting frame takes beside its text."""

NO_COMMANDS_LIMIT = 10
"""After so many frames in a row that are no commands, the peer is taken for another kind of client."""

PING_FRAME = text_frame(PING)


class Multiplexer(Connection):
    """One WebSocket with its runs and its waiting commands."""

    transport, form = "websocket", "json"

    def __init__(
        self,
        peer: SocketPeer,
        identity: Identity,
        components: Components,
        admission: Admission,
        carrier: Mapping[str, str] = NOTHING,
    ) -> None:
        """``carrier`` names the trace that the handshake, and so each run of this connection, belongs to."""
        self._socket = peer
        self._carrier = carrier
        self._identity = identity
        self._runs: Runs = components.runs
        self._admissions: Admissions = components.admissions
        self._pumps: dict[str, Pump] = {}
        self._no_commands = 0
        self._inbox: list[str] = []
        self._inbox_bytes = 0
        self._obeying: asyncio.Task[None] | None = None
        self._is_draining = False
        peer.on_text = self._text_came
        super().__init__(peer, components.connections, admission, PING_FRAME, identity.expires_at)

    # calls of the peer and the clock

    def _text_came(self, text: str | None) -> None:
        """Take every frame as it comes: an unread frame would hide the pongs behind it."""
        if text is None:
            return self._close(BINARY_FRAME)
        self._inbox.append(text)
        self._inbox_bytes += len(text) + FRAME_OVERHEAD_BYTES
        if self._inbox_bytes > INBOX_BYTES_LIMIT:
            return self._close(TOO_MANY_COMMANDS)
        self._obey_soon()

    def writable(self) -> None:
        for pump in list(self._pumps.values()):
            pump.run()
        self._obey_soon()

    def left(self) -> None:
        self._stop()
        self._obey_soon()  # A client may cancel a run and leave: what came before the end counts.

    def drain(self) -> None:
        self._is_draining = True
        self._close_if_drained()

    def expire(self) -> None:
        self._close(EXPIRED)

    def _close(self, closing: Closing) -> None:
        """Close with the reason, and write nothing more."""
        if not self.is_open:
            return
        self._stop()
        self._inbox.clear()
        self._socket.close(closing.code, closing.reason)
        self._look_at_peer()

    def _stop(self) -> None:
        """Send nothing more. A command that has begun ends by itself: a run in mid commit would be lost."""
        self.is_open = False
        for pump in self._pumps.values():
            pump.close()
        self._pumps.clear()

    def _close_if_drained(self) -> None:
        # A pump whose run is over must still send the end, and a command that is being obeyed has a reply to come.
        if self._is_draining and not self._pumps and self._obeying is None:
            self._close(GOING_DOWN)

    # commands

    def _obey_soon(self) -> None:
        """Obey the waiting commands in a task that ends with the last one."""
        if self._obeying is None and self._may_obey():
            self._obeying = asyncio.get_running_loop().create_task(self._obey_all())
            self._obeying.add_done_callback(self._obeyed)

    def _may_obey(self) -> bool:
        """Whether a command waits, and a peer that is still there takes the answer."""
        return bool(self._inbox) and (self.peer.is_writable or not self.is_open)

    def _obeyed(self, task: "asyncio.Task[None]") -> None:
        self._obeying = None
        if task.cancelled():  # By the end of the loop.
            return
        if error := task.exception():
            logger.error("a WebSocket failed", exc_info=error)
            return self._close(FAILED)
        self._obey_soon()
        self._close_if_drained()

    async def _obey_all(self) -> None:
        while self._may_obey():
            text = self._inbox.pop(0)
            self._inbox_bytes -= len(text) + FRAME_OVERHEAD_BYTES
            if self._identity.is_expired:
                return self._close(EXPIRED)
            await self._obey_text(text)
            await checkpoint()  # A peer with many commands must not keep the event loop for itself.

    async def _obey_text(self, text: str) -> None:
        """Obey one frame, or reject it."""
        about: dict[str, Any] = {}
        try:
            text = json_text(text)
            about = names_in(text)
            await self._obey(parse_command(text), about)
            self._no_commands = 0
        except Exception as error:  # noqa: BLE001 - logged by `refusal_of`
            self._reject(refusal_of(error, "a command of a WebSocket"), about)

    def _reject(self, error: ChatError, about: dict[str, Any]) -> None:
        self._connections.observer.refused(error.code)
        self._no_commands = self._no_commands + 1 if isinstance(error, BadJson | NoCommand) else 0
        self._reply(rejected(error, about))
        if self._no_commands >= NO_COMMANDS_LIMIT:
            self._close(NO_COMMANDS)

    async def _obey(self, wanted: Command, about: dict[str, Any]) -> None:
        if not isinstance(wanted, Ping):
            await self._admissions.count(self._identity.user)
        user = self._identity.user
        match wanted:
            case Send():
                self._attach(await self._runs.start(user, wanted.request(), self._carrier), about)
            case Attach():
                after = parse_cursor(wanted.after)
                self._attach(await self._runs.subscribe(user, wanted.run_id, after), about)
            case Detach():
                await self._runs.resource(user, wanted.run_id)
                self._detach(wanted.run_id)
                self._reply(Accepted(**about))
            case Cancel():
                with self._holding(wanted.run_id):
                    await self._runs.cancel(user, wanted.run_id)
                    self._reply(Accepted(**about))
            case AnswerCall():
                with self._holding(wanted.run_id):
                    await self._runs.answer(user, wanted.run_id, wanted.call_id, wanted.answer())
                    self._reply(Accepted(**about))
            case Ping():
                self._reply(Pong())

    def _attach(self, subscription: Subscription, about: dict[str, Any]) -> None:
        """Accept, then let a pump send what follows the cursor."""
        run_id = subscription.run_id
        self._detach(run_id)
        self._reply(Accepted(**about | {"run_id": run_id}, ended=subscription.is_at_end))
        if subscription.is_at_end or not self.is_open:
            return subscription.close()
        try:
            pump = self._pumps[run_id] = Pump(subscription, self, text_frames, self._run_is_over)
        except Exception as error:  # noqa: BLE001 - logged by `refusal_of`
            subscription.close()
            refusal_of(error, "a WebSocket's reader")
            return self._close(FAILED)
        pump.run()

    @contextmanager
    def _holding(self, run_id: str) -> Iterator[None]:
        """Hold this run's events back: the reply to a command comes before the events that the command causes."""
        pump = self._pumps.get(run_id)
        if pump is not None:
            pump.is_sending = False
        try:
            yield
        finally:
            if pump is not None and self._pumps.get(run_id) is pump:
                pump.is_sending = True
                pump.run()

    def _detach(self, run_id: str) -> None:
        if pump := self._pumps.pop(run_id, None):
            pump.close()

    def _run_is_over(self, pump: Pump, last: Record | None) -> None:
        self._detach(pump.subscription.run_id)
        if last is None and not self._is_draining:
            return self._close(FAILED)
        self._close_if_drained()

    def _reply(self, reply: Accepted | Rejected | Pong) -> None:
        if self.is_open:
            self.write(text_frame(msgspec.json.encode(reply)))
