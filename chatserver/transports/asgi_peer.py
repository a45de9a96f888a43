"""Peers under another ASGI server: the same calls, carried over ASGI's messages by two tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import anyio

from chatserver.transports.asgi import AsgiMessage, AsgiReceive, AsgiSend
from chatserver.transports.close_codes import TOO_BIG
from chatserver.transports.frames import texts_of


def nobody() -> None:
    """Do nothing: no callback is set."""


class AsgiPeer(ABC):
    """A ``Peer`` over ``send`` and ``receive``; not writable until ``send`` has returned."""

    def __init__(self) -> None:
        self.is_writable = True
        self.on_writable = self.on_leave = nobody
        self._unsent: list[bytes] = []
        self._has_come = anyio.Event()
        self._is_ending = False
        self._scope = anyio.CancelScope()

    def write(self, data: bytes) -> None:
        self._unsent.append(data)
        self.is_writable = False
        self._has_come.set()

    def abort(self) -> None:
        """Return: the server closes a connection whose response or WebSocket is not over."""
        self._scope.cancel()

    def _end(self) -> None:
        self._is_ending = True
        self.write(b"")

    async def serve(self, receive: AsgiReceive, send: AsgiSend) -> None:
        """Carry what is written until the end, or until the peer has left."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._listen, receive)
                    await self._send_all(send)
                    self._scope.cancel()
        finally:
            self.is_writable = False
            self.on_leave()

    async def _send_all(self, send: AsgiSend) -> None:
        try:
            while True:
                await self._has_come.wait()
                self._has_come = anyio.Event()
                unsent, self._unsent = b"".join(self._unsent), []
                for message in self._messages(unsent):
                    await send(message)
                if self._unsent:
                    continue
                if self._is_ending:
                    return await self._say_goodbye(send)
                self.is_writable = True
                self.on_writable()
        except (OSError, RuntimeError):
            return  # The peer has left, or the connection is closing.

    @abstractmethod
    def _messages(self, data: bytes) -> Iterable[AsgiMessage]: ...

    @abstractmethod
    async def _say_goodbye(self, send: AsgiSend) -> None: ...

    @abstractmethod
    async def _listen(self, receive: AsgiReceive) -> None: ...


class AsgiBody(AsgiPeer):
    """A ``BodyPeer`` over ASGI."""

    _is_cut = False

    def end(self, last: bytes = b"") -> None:
        self.write(last)
        self._end()

    def cut(self) -> None:
        self._is_cut = True
        self._end()

    def _messages(self, data: bytes) -> Iterable[AsgiMessage]:
        return [{"type": "http.response.body", "body": data, "more_body": True}] if data else []

    async def _say_goodbye(self, send: AsgiSend) -> None:
        if not self._is_cut:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _listen(self, receive: AsgiReceive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._scope.cancel()


class AsgiSocket(AsgiPeer):
    """A ``SocketPeer`` over ASGI. ASGI knows texts and no frames, so written frames are taken apart again.

    Other servers have limits of their own for what comes, or none: a message over ``bytes_limit`` closes.
    """

    def __init__(self, bytes_limit: int) -> None:
        super().__init__()
        self._bytes_limit = bytes_limit
        self.on_text: Callable[[str | None], None] = _unheard
        self._goodbye: AsgiMessage = {}

    def close(self, code: int, reason: str) -> None:
        self._goodbye = {"type": "websocket.close", "code": code, "reason": reason}
        self.on_text = _unheard
        self._end()

    def _messages(self, data: bytes) -> Iterable[AsgiMessage]:
        return [{"type": "websocket.send", "text": text} for text in texts_of(data)]

    async def _say_goodbye(self, send: AsgiSend) -> None:
        await send(self._goodbye)

    async def _listen(self, receive: AsgiReceive) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive":
                self._deliver(message.get("text"), message.get("bytes") or b"")
        self._scope.cancel()

    def _deliver(self, text: str | None, data: bytes) -> None:
        if len(data if text is None else text.encode()) > self._bytes_limit:
            self.close(TOO_BIG.code, TOO_BIG.reason)
        else:
            self.on_text(text)


def _unheard(_: str | None) -> None:
    """Ignore what comes behind a close."""
