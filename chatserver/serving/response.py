"""Answers as uvicorn has them, and what those lack: a write without waiting, an end for clients that know no chunks."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from chatserver.serving.http_bytes import chunk


def write_now(cycle: RequestResponseCycle, body: bytes) -> bool:
    """A part of a response as uvicorn's cycle sends it, where that would neither wait nor do anything else.

    uvicorn's way is a coroutine, a message and a list for it: with waking the reader's task, a third of an event's CPU.
    """
    if not cycle.chunked_encoding or cycle.response_complete or cycle.disconnected or cycle.flow.write_paused:
        return False
    if body:
        cycle.transport.write(chunk(body))
    return True


class ToTheEnd(RequestResponseCycle):
    """An answer to HTTP/1.0, which knows no chunks: a body of unknown length ends with the connection."""

    is_unmeasured = False

    async def receive(self) -> Any:
        self.waiting_for_100_continue = False  # HTTP/1.0 knows no answer before the answer.
        return await super().receive()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.is_unmeasured = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            self.chunked_encoding = False if self.is_unmeasured else None
        elif self.is_unmeasured:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
