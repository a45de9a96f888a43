"""A client in Python: the events of a run over either transport, each once and in order, whatever is cut in between."""

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal, Self, TypeAlias

import anyio
import httpx2
import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from chatserver.commands import Attach, Ping
from chatserver.events import Event, Start, Terminal
from chatserver.replies import Accepted, Pong, Problem, Rejected
from chatserver.syntax import headers_of, server_url
from chatserver.transports.close_codes import CLOSE_CODES
from chatserver.upstream.sse_decoder import SSEDecoder

Transport: TypeAlias = Literal["sse", "ws"]
Document: TypeAlias = Event | Accepted | Rejected | Pong | Ping

DIAL_SECONDS = 10.0
SILENT_HEARTBEATS = 3
"""A connection on which nothing has come for so many heartbeats is dead."""

SILENCE_SECONDS = 60.0
"""The same before a server has told its heartbeat."""

TRIES = 8
"""So many connections in a row that bring nothing are the end, after some 30 seconds."""

WAIT_LIMIT_SECONDS = 20.0
"""Between two tries."""

FINAL_CODES = {each.code for each in CLOSE_CODES.values() if not each.may_return}

_document_of: msgspec.json.Decoder[Document] = msgspec.json.Decoder(Document)
_problem_of = msgspec.json.Decoder(Problem)


class Refused(Exception):
    """The server refuses, in its own words. ``status``: as over HTTP, or the code of a close.

    ``retry_after``: seconds after which it may do otherwise.
    """

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Unreachable(Exception):
    """No connection to the server brought anything."""


class Client:
    """One user of the server at a URL, usable while entered. ``headers``: lines of `Name: value` for each request.

    Raises:
        ValueError: a wrong URL, or a wrong header.
    """

    http: httpx2.AsyncClient

    def __init__(self, url: str, transport: Transport, headers: tuple[str, ...] = ()) -> None:
        self._url, self._headers = server_url(url), headers_of("\n".join(headers))
        self._documents = self._over_sse if transport == "sse" else self._over_ws
        self._silence_seconds = SILENCE_SECONDS

    async def __aenter__(self) -> Self:
        timeout = httpx2.Timeout(DIAL_SECONDS, read=None)
        self.http = httpx2.AsyncClient(base_url=self._url, headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    def ask(self, request: dict[str, Any]) -> AsyncGenerator[Event]:
        """Start a run and read it to its end.

        Raises:
            Refused: the server takes no such request.
            Unreachable: there is no server; of a run that has begun, there is none for half a minute.
        """
        return self._events(request, "", 0)

    def attach(self, run_id: str, after: int) -> AsyncGenerator[Event]:
        """Read a run behind a cursor to its end; raises as ``ask`` does."""
        return self._events({}, run_id, after)

    async def cancel(self, run_id: str) -> None:
        """End a run.

        Raises:
            Refused: there is no such run.
        """
        await self._post(f"/chat/runs/{run_id}/cancel", {})

    async def answer(self, run_id: str, call_id: str, answer: dict[str, Any]) -> None:
        """Answer a call that waits.

        Raises:
            Refused: the answer does not fit, or another one came first.
        """
        await self._post(f"/chat/runs/{run_id}/tool_calls/{call_id}", answer)

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        try:
            response = await self.http.post(path, json=body, timeout=DIAL_SECONDS)
        except httpx2.RequestError as error:
            raise self._unreachable(error) from None
        if not response.is_success:
            raise _refused(response.status_code, response.content, response.headers.get("Location"))

    async def _events(self, request: dict[str, Any], run_id: str, after: int) -> AsyncGenerator[Event]:
        tries = 0
        while True:
            try:
                async with aclosing(self._of_one_connection(request, run_id, after)) as events:
                    async for event in events:
                        tries, run_id, after = 0, event.run_id, event.seq
                        yield event
                return
            except Refused as refusal:
                if refusal.retry_after is None or tries == TRIES or not run_id:
                    raise
                wait = min(WAIT_LIMIT_SECONDS, refusal.retry_after)
            except Unreachable:
                if tries == TRIES or not run_id:
                    raise
                wait = random.uniform(0, min(WAIT_LIMIT_SECONDS, 0.5 * 2**tries))  # noqa: S311 - no secret
            tries += 1
            await anyio.sleep(wait)

    async def _of_one_connection(self, request: dict[str, Any], run_id: str, after: int) -> AsyncGenerator[Event]:
        """Events up to the run's end; a connection that ends before is ``Unreachable``, or ``Refused`` for good."""
        try:
            async with aclosing(self._documents(request, run_id, after)) as documents:
                while (document := await self._next(documents)) is not None:
                    match document:
                        case Rejected():
                            raise Refused(document.message, document.status, document.retry_after or None)
                        case Accepted(ended=True):
                            return
                        case Accepted() | Ping() | Pong():
                            continue
                    if isinstance(document, Start):
                        self._silence_seconds = SILENT_HEARTBEATS * document.heartbeat_ms / 1000
                    yield document
                    if isinstance(document, Terminal):
                        return
        except ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code in FINAL_CODES:
                raise Refused(error.rcvd.reason, error.rcvd.code) from None
        except (httpx2.RequestError, WebSocketException, OSError, TimeoutError, msgspec.DecodeError) as error:
            raise self._unreachable(error) from None
        raise Unreachable(f"{self._url} has cut the connection")

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"{self._url} cannot be reached: {str(error) or type(error).__name__}")

    async def _next(self, documents: AsyncGenerator[Document]) -> Document | None:
        with anyio.fail_after(self._silence_seconds):
            return await anext(documents, None)

    async def _over_sse(self, request: dict[str, Any], run_id: str, after: int) -> AsyncGenerator[Document]:
        call = (
            self.http.stream("GET", f"/chat/runs/{run_id}/events", params={"after": after})
            if run_id
            else self.http.stream("POST", "/chat/stream", json=request)
        )
        async with call as response:
            if not response.is_success:
                raise _refused(response.status_code, await response.aread(), response.headers.get("Location"))
            if response.status_code == httpx2.codes.NO_CONTENT:
                yield Accepted(ended=True)
            decoder = SSEDecoder()
            async for chunk in response.aiter_bytes():
                yield Ping()  # A comment shows that the connection lives, too.
                for _, data in decoder.feed(chunk):
                    yield _document(data)

    async def _over_ws(self, request: dict[str, Any], run_id: str, after: int) -> AsyncGenerator[Document]:
        command = Attach(run_id=run_id, after=after) if run_id else {"type": "send"} | request
        try:
            async with connect(
                f"ws{self._url.removeprefix('http')}/chat/ws",
                subprotocols=[Subprotocol("chatserver.v1")],
                additional_headers=self._headers,
                open_timeout=DIAL_SECONDS,
                compression=None,
                max_size=None,
            ) as socket:
                await socket.send(msgspec.json.encode(command), text=True)
                while True:
                    yield _document(await socket.recv(decode=False))
        except InvalidStatus as error:
            raise _refused(error.response.status_code, error.response.body) from None


def _document(data: bytes) -> Document:
    """A document. One of a type that this version does not know says only that the connection lives.

    Raises:
        msgspec.DecodeError: no chatserver sends this.
    """
    try:
        return _document_of.decode(data)
    except msgspec.ValidationError:
        return Ping()


def _refused(status: int, body: bytes | bytearray, location: str | None = None) -> Refused | Unreachable:
    """The refusal in a response: of the server, or of a proxy, whose server may come back."""
    try:
        problem = _problem_of.decode(body)
    except msgspec.DecodeError:
        words = f"to {location}" if location else body[:200].decode(errors="replace").strip()
        refusal = f"HTTP {status}, not of a chatserver: {words}"
        return Unreachable(refusal) if status >= httpx2.codes.INTERNAL_SERVER_ERROR else Refused(refusal, status)
    return Refused(problem.detail, status, problem.retry_after or None)
