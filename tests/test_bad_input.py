"""The contract's table of bad input, each row over HTTP and over WebSocket, while a stream goes on beside it.

Every refusal is a problem document or a `rejected` frame with the same status and code; the log says nothing of it,
the connection lives on where the contract says so, and the bystander's stream misses no event.
"""

import json
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, TypeAlias

import anyio
import anyio.to_thread
import pytest

from tests.clients import (
    SSE,
    WS,
    Address,
    Body,
    ClosedError,
    HandshakeRefusedError,
    Headers,
    HttpReader,
    Reading,
    Response,
    Wire,
    WsReader,
    documents_of,
    request,
)
from tests.conftest import Scale
from tests.fake_upstream import FakeUpstream, Gate, Reply, Step, say, token
from tests.live import CANARY, LiveServer, live_server

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 10.0
MESSAGE_BYTES, BODY_BYTES, FRAME_BYTES = 32768, 1048576, 262144
"""The limits that the contract states as defaults."""

HUGE_BYTES = 20_000_000
PIECE = b"x" * 65536
ID = "unknown_but_well-formed"
REF = "ref-1"

VIAS = ("/chat/stream", "/chat/runs", "ws")
"""The three ways to send a ChatRequest."""

Case: TypeAlias = Any
"""What `pytest.param` makes."""


# ---- the server, and the stream that nothing may disturb ------------------------------------------------------------


class Bystander:
    """One run, read on both transports, that gives a token whenever it is asked to."""

    def __init__(self, server: LiveServer, upstream: FakeUpstream) -> None:
        self.server = server
        self.upstream = upstream
        self.readings: list[Reading] = []
        self.run_id = ""
        self.last_seq = 0

    async def begin(self) -> None:
        wanted = self._wanted = anyio.Semaphore(0)

        async def permit(_: Reply) -> None:
            await wanted.acquire()

        def script(_: Reply) -> Iterator[Step]:
            while True:
                yield permit
                yield token("still here")

        self.leave()
        self.upstream.script(script)
        first = await SSE.start(self.server, {"message": "go on"})
        self.run_id, self.last_seq = first.run_id, 1
        self.readings = [first, await WS.attach(self.server, first.run_id)]
        for reading in self.readings:
            await reading.take(1)

    async def next(self) -> None:
        """The next event comes to both readers, with the next number."""
        self._wanted.release()
        self.last_seq += 1
        try:
            for reading in self.readings:
                (document,) = await reading.take(1)
                event = json.loads(document)
                assert (event["seq"], event.get("content")) == (self.last_seq, "still here")
        except BaseException:
            await self.begin()  # for the next test
            raise

    def leave(self) -> None:
        for reading in self.readings:
            reading.cut()


@dataclass
class Place:
    server: LiveServer
    upstream: FakeUpstream
    bystander: Bystander
    run_id: str
    """A finished run."""
    last_seq: int
    session_id: str


@pytest.fixture(scope="module")
async def place(anyio_backend: str) -> AsyncIterator[Place]:
    async with FakeUpstream() as upstream, live_server(upstream.url, upstream_idle_seconds=600.0) as server:
        upstream.always(*say("An answer.", 3))
        documents = [json.loads(each) for each in await documents_of(await SSE.start(server, {"message": "Hi"}))]
        bystander = Bystander(server, upstream)
        await bystander.begin()
        start, done = documents[0], documents[-1]
        yield Place(server, upstream, bystander, start["run_id"], done["seq"], start["session_id"])
        bystander.leave()


@pytest.fixture(autouse=True)
async def undisturbed(place: Place) -> AsyncIterator[None]:
    """Nothing above INFO is logged in the test, by whomever, and the bystander gets its next event after it."""
    records: list[logging.LogRecord] = []
    original = logging.getLogRecordFactory()

    def keep(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = original(*args, **kwargs)
        if record.levelno > logging.INFO:
            records.append(record)
        return record

    logging.setLogRecordFactory(keep)
    try:
        yield
        with anyio.fail_after(WAIT_SECONDS):
            await place.bystander.next()
    finally:
        logging.setLogRecordFactory(original)
    said = [f"{each.name} {each.levelname}: {each.getMessage()} {each.exc_info or ''}" for each in records]
    assert said == []


# ---- asking, and what a refusal is ----------------------------------------------------------------------------------


def problem_of(response: Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, which must be one with this status and code."""
    assert response.headers.get("content-type") == "application/problem+json", response
    said: dict[str, Any] = response.json
    assert (response.status, said["status"], said["code"]) == (status, status, code)
    assert all(isinstance(said[name], str) and said[name] for name in ("type", "title", "detail", "code"))
    assert CANARY.encode() not in response.body and b"Traceback" not in response.body
    return said


async def ask(
    server: Address, method: str, path: str, body: Body = None, headers: Headers = (), **options: Any
) -> Response:
    with anyio.fail_after(WAIT_SECONDS):
        return await request(server, method, path, body, headers, **options)


async def rejection(server: Address, frame: str, status: int, code: str) -> dict[str, Any]:
    """What a frame is rejected with; the connection then still answers."""
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(server) as reader:
            reader.send_text(frame)
            said = await reader.answer()
            assert (said["type"], said["status"], said["code"]) == ("rejected", status, code)
            assert isinstance(said["message"], str) and said["message"]
            reader.send({"type": "ping"})
            await reader.until("pong")
    return said


async def refusal(place: Place, via: str, body: Mapping[str, Any] | str, status: int, code: str) -> dict[str, Any]:
    """What a ChatRequest is refused with; over WebSocket the answer must name its ``ref``."""
    text = body if isinstance(body, str) else json.dumps(body)
    if via != "ws":
        return problem_of(await ask(place.server, "POST", via, text), status, code)
    rest = text.strip().removeprefix("{")
    said = await rejection(
        place.server, f'{{"type":"send","ref":"{REF}"{"" if rest == "}" else ","}{rest}', status, code
    )
    assert said.get("ref") == REF
    return said


def pointers(said: Mapping[str, Any]) -> list[str]:
    assert all(isinstance(each["detail"], str) and each["detail"] for each in said["errors"])
    return [each["pointer"] for each in said["errors"]]


def named(cases: Mapping[str, Any]) -> list[Case]:
    """A table with a column of names as parameters."""
    return [pytest.param(*(row if isinstance(row, tuple) else (row,)), id=name) for name, row in cases.items()]


# ---- what is no JSON ------------------------------------------------------------------------------------------------

BAD_JSON: dict[str, str] = {
    "empty": "",
    "blank": " \n",
    "truncated": '{"message": "x"',
    "truncated string": '{"message": "x',
    "words": "hello",
    "single quotes": "{'message': 'x'}",
    "comma at the end": '{"message": "x",}',
    "comment": '{"message": "x"} // please',
    "two documents": '{"message": "x"}{"message": "x"}',
    "byte order mark": '\ufeff{"message": "x"}',
    "lone surrogate": r'{"message": "\ud800"}',
    "lone low surrogate": r'{"message": "a\udc00b"}',
    "swapped surrogates": r'{"message": "\ude00\ud83d"}',
    "lone surrogate as a name": r'{"message": "x", "\ud800": 1}',
    "raw line end in a string": '{"message": "a\nb"}',
    "raw NUL in a string": '{"message": "a\0b"}',
    "nesting of 33": '{"message": ' + "[" * 32 + "]" * 32 + "}",
    "nesting of 33 objects": '{"a":' * 33 + "1" + "}" * 33,
    "nesting of 100000": "[" * 100_000,
    "nesting of 100000 objects": '{"a":' * 50_000,
    "NaN": '{"message": "x", "temperature": NaN}',
    "Infinity": '{"message": "x", "temperature": Infinity}',
    "-Infinity": '{"message": "x", "temperature": -Infinity}',
    "1e999": '{"message": "x", "temperature": 1e999}',
    "-1e999": '{"message": "x", "temperature": -1e999}',
    "number of 5000 digits": '{"message": "x", "max_output_tokens": ' + "9" * 5000 + "}",
    "hexadecimal": '{"message": "x", "max_output_tokens": 0x10}',
}

BAD_UTF8: dict[str, bytes] = {
    "a lone byte": b'{"message": "\xff"}',
    "overlong": b'{"message": "\xc0\xaf"}',
    "encoded surrogate": b'{"message": "\xed\xa0\x80"}',
    "beyond Unicode": b'{"message": "\xf4\x90\x80\x80"}',
    "half a character": b'{"message": "\xe2\x82"}',
    "half a character at the end": b'{"message": "x"}\xf0\x9f',
    "UTF-16": '{"message": "x"}'.encode("utf-16"),
    "bytes": bytes(range(256)),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
}


@pytest.mark.parametrize("via", [*VIAS, "PATCH"])
@pytest.mark.parametrize("text", named(BAD_JSON))
async def test_what_is_no_json_is_bad_json(place: Place, text: str, via: str) -> None:
    if via == "ws":
        await rejection(place.server, text, 400, "bad_json")
    else:
        method, path = ("PATCH", f"/chat/sessions/{place.session_id}") if via == "PATCH" else ("POST", via)
        problem_of(await ask(place.server, method, path, text), 400, "bad_json")


@pytest.mark.parametrize("path", ["/chat/stream", "/chat/runs"])
@pytest.mark.parametrize("body", named(BAD_UTF8))
async def test_a_body_that_is_not_utf8_is_bad_json(place: Place, body: bytes, path: str) -> None:
    problem_of(await ask(place.server, "POST", path, body), 400, "bad_json")


@pytest.mark.parametrize("body", named(BAD_UTF8))
async def test_a_text_frame_that_is_not_utf8_closes_1007(place: Place, body: bytes) -> None:
    assert await closing(place.server, masked(TEXT, body)) == 1007


# ---- JSON with wrong fields -----------------------------------------------------------------------------------------


def field_cases() -> Iterator[Case]:
    """Bodies with one wrong field, and the pointer to it."""

    value: Any

    def case(name: str, value: Any, pointer: str | None = None) -> Case:
        body = {name: value} if name == "message" else {"message": "x", name: value}
        return pytest.param(body, f"/{name}" if pointer is None else pointer, id=f"{name} {ascii(value)[:40]}")

    for value in (5, True, [], {}, 1.5):
        yield case("message", value)
    yield case("message", ["x"], "/message/0")
    yield case("message", [{"type": "text", "text": "a\0b"}], "/message/0/text")
    yield case("message", [{"type": "image", "url": "file:///etc/passwd"}], "/message/0/url")
    for value in ("", " ", "\n\t ", "\u3000\u2003", "\r\n"):
        yield case("message", value)
    for control in "\0\x01\x08\x0b\x0c\x0e\x1b\x1f":
        yield case("message", f"a{control}b")
    for name in ("session_id", "idempotency_key", "model", "system", "regenerate", "parent_id"):
        for value in (5, True, [], {}, "a\0b", "a\x1fb"):
            yield case(name, value)
    for name in ("model", "idempotency_key"):
        for value in ("", " ", "x" * 257, "a\nb"):
            yield case(name, value)
    for value in ("0.5", True, [], -0.1, 2.1, 1e308, 10**400, -(10**400)):
        yield case("temperature", value)
    for value in ("5", 1.5, True, [], 0, -1, 10**9, 10**400):
        yield case("max_output_tokens", value)
    for value in ("explode", "", "Cancel", 5, [], None):
        yield case("on_disconnect", value)
    for name in ("nope", "Message", "__proto__", "seq", "run_id", "a.b", "a b", "a[0]", "ä", "😀", ""):
        yield case(name, 1, f"/{name}")
    yield case("a/b", 1, "/a~1b")
    yield case("m~n", 1, "/m~0n")
    yield case("a`b", 1)
    yield case("x` - at `$.message", 1)
    yield pytest.param({}, "/message", id="message missing")
    yield pytest.param({"session_id": "s"}, "/message", id="message missing beside another field")
    yield pytest.param({"message": None}, "/message", id="message null")
    yield pytest.param('{"message": "x", "message": "x"}', "/message", id="message twice")
    yield pytest.param('{"message": "x", "model": "a", "model": "b"}', "/model", id="model twice")
    yield pytest.param({"message": "x", "a\0b": 1}, None, id="control character in a name")
    yield pytest.param({"message": [[[[1]]]]}, "/message/0", id="message nested")
    yield pytest.param('{"message": ' + "[" * 31 + "]" * 31 + "}", "/message/0", id="nesting of 32")


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize(("body", "pointer"), list(field_cases()))
async def test_a_wrong_field_is_a_bad_request_that_points_at_it(
    place: Place, body: Mapping[str, Any] | str, pointer: str | None, via: str
) -> None:
    said = await refusal(place, via, body, 400, "bad_request")
    assert len(said["errors"]) == 1 if pointer is None else pointers(said) == [pointer]


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("text", ["[]", '[{"message": "x"}]', '"message"', "5", "null", "true"])
async def test_json_that_is_no_object_is_a_bad_request(place: Place, text: str, via: str) -> None:
    if via == "ws":
        await rejection(place.server, text, 400, "bad_request")
    else:
        assert pointers(problem_of(await ask(place.server, "POST", via, text), 400, "bad_request")) == [""]


@pytest.mark.parametrize(
    ("body", "pointer"),
    named(
        {
            "missing": ({}, "/title"),
            "null": ({"title": None}, "/title"),
            "number": ({"title": 5}, "/title"),
            "list": ({"title": ["x"]}, "/title"),
            "empty": ({"title": ""}, "/title"),
            "blank": ({"title": " \n\t"}, "/title"),
            "NUL": ({"title": "a\0b"}, "/title"),
            "too long": ({"title": "x" * 10_000}, "/title"),
            "unknown field": ({"title": "x", "nope": 1}, "/nope"),
            "read-only field": ({"title": "x", "session_id": "y"}, "/session_id"),
            "twice": ('{"title": "x", "title": "y"}', "/title"),
            "no object": ("[]", ""),
        }
    ),
)
async def test_a_wrong_title_is_a_bad_request(place: Place, body: Body, pointer: str) -> None:
    response = await ask(place.server, "PATCH", f"/chat/sessions/{place.session_id}", body)
    assert pointers(problem_of(response, 400, "bad_request")) == [pointer]


@pytest.mark.parametrize(
    ("command", "pointer"),
    named(
        {
            "no type": ({"run_id": ID}, "/type"),
            "type of no command": ({"type": "explode"}, "/type"),
            "type of another case": ({"type": "PING"}, "/type"),
            "type of an event": ({"type": "token", "content": "x"}, "/type"),
            "type no text": ({"type": 5}, "/type"),
            "type null": ({"type": None}, "/type"),
            "type a list": ({"type": ["send"]}, "/type"),
            "attach without run_id": ({"type": "attach", "after": 0}, "/run_id"),
            "attach to a number": ({"type": "attach", "run_id": 5}, "/run_id"),
            "attach with an unknown field": ({"type": "attach", "run_id": ID, "nope": 1}, "/nope"),
            "attach with NUL": ({"type": "attach", "run_id": "a\0b"}, "/run_id"),
            "detach without run_id": ({"type": "detach"}, "/run_id"),
            "detach from null": ({"type": "detach", "run_id": None}, "/run_id"),
            "cancel without run_id": ({"type": "cancel"}, "/run_id"),
            "cancel of a list": ({"type": "cancel", "run_id": []}, "/run_id"),
            "ping with an unknown field": ({"type": "ping", "nope": 1}, "/nope"),
            "ref no text": ({"type": "send", "message": "x", "ref": 5}, "/ref"),
            "ref with NUL": ({"type": "send", "message": "x", "ref": "a\0b"}, "/ref"),
        }
    ),
)
async def test_a_wrong_command_is_rejected_as_a_bad_request(
    place: Place, command: dict[str, Any], pointer: str
) -> None:
    said = await rejection(place.server, json.dumps(command), 400, "bad_request")
    assert pointers(said) == [pointer]


# ---- good input that looks bad --------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize(
    ("text", "stored"),
    named(
        {
            "CR LF and CR": ("a\r\nb\rc\n\rd", "a\nb\nc\n\nd"),
            "tab and newline": ("\ta\n", "\ta\n"),
            "not a control of C0": ("a\x7f\x85\u2028\u200b\ufeff", "a\x7f\x85\u2028\u200b\ufeff"),
            "a pair of surrogates": ("\U0001f600", "\U0001f600"),
            "brackets in text": ("[" * 1000, "[" * 1000),
            "at the limit": ("x" * MESSAGE_BYTES, "x" * MESSAGE_BYTES),
            "at the limit in characters of 4 bytes": ("😀" * (MESSAGE_BYTES // 4), "😀" * (MESSAGE_BYTES // 4)),
        }
    ),
)
async def test_text_at_the_edge_is_taken_as_it_is_but_for_its_line_ends(
    place: Place, text: str, stored: str, via: str
) -> None:
    body = json.dumps({"message": text})
    asked = len(place.upstream.requests)
    with anyio.fail_after(WAIT_SECONDS):
        if via == "ws":
            async with await WsReader.connect(place.server) as reader:
                await reader.run({"message": text})
                await reader.until("done")
        else:
            assert (await request(place.server, "POST", via, body)).status in (200, 202)
        await place.upstream.until(lambda: len(place.upstream.requests) > asked)
    assert place.upstream.requests[asked].json["messages"][-1]["content"] == stored


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("text", ["x" * (MESSAGE_BYTES + 1), "ä" * (MESSAGE_BYTES // 2) + "x", "😀" * 50_000])
async def test_a_message_over_its_limit_is_too_large(place: Place, text: str, via: str) -> None:
    await refusal(place, via, json.dumps({"message": text}, ensure_ascii=False), 413, "too_large")


@dataclass(frozen=True)
class Way:
    """How a client puts a body on the wire: framed how, on a connection that lives on or not."""

    framing: str
    version: str = "1.1"
    close: bool = False

    def head(self, size: int, *more: str) -> bytes:
        lines = [f"POST /chat/stream HTTP/{self.version}", "Host: 127.0.0.1", "Content-Type: application/json", *more]
        lines.append("Transfer-Encoding: chunked" if self.framing == "chunked" else f"Content-Length: {size}")
        return "\r\n".join([*lines, *["Connection: close"] * self.close, "", ""]).encode()

    def body(self, size: int) -> Iterator[bytes]:
        for start in range(0, size, len(PIECE)):
            piece = PIECE[: size - start]
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if self.framing == "chunked" else piece
        if self.framing == "chunked":
            yield b"0\r\n\r\n"


WAYS = {
    "length": Way("length"),
    "chunked": Way("chunked"),
    "length, then close": Way("length", close=True),
    "chunked, then close": Way("chunked", close=True),
    "HTTP 1.0": Way("length", version="1.0"),
}


def send_all_then_read(server: Address, pieces: Iterable[bytes]) -> Response:
    """A client that looks at the answer only when it has sent everything; blocking, on the socket itself."""
    with socket.create_connection((server.host, server.port), timeout=WAIT_SECONDS) as sock:
        for piece in pieces:
            sock.sendall(piece)
        with HTTPResponse(sock, method="POST") as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, headers, response.read())


@pytest.mark.parametrize("size", [BODY_BYTES + 1, HUGE_BYTES])
@pytest.mark.parametrize("way", named(WAYS))
async def test_a_client_that_sends_all_of_a_huge_body_first_can_read_that_it_is_too_large(
    place: Place, way: Way, size: int
) -> None:
    def pieces() -> Iterator[bytes]:
        yield way.head(size)
        yield from way.body(size)

    response = await anyio.to_thread.run_sync(send_all_then_read, place.server, pieces())
    problem_of(response, 413, "too_large")


@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)], ids=["at once", "asking first"])
async def test_a_content_length_over_the_limit_is_refused_before_the_body_comes(
    place: Place, more: tuple[str, ...]
) -> None:
    data = await raw_answer(place.server, Way("length").head(HUGE_BYTES, *more))
    problem_of(final_response(data), 413, "too_large")


async def test_a_body_just_at_its_limit_is_read(place: Place) -> None:
    body = b'{"message": "x"}'
    assert (await ask(place.server, "POST", "/chat/runs", body.ljust(BODY_BYTES))).status == 202
    problem_of(await ask(place.server, "POST", "/chat/runs", body.ljust(BODY_BYTES + 1)), 413, "too_large")


async def test_a_client_that_asks_first_is_told_to_go_on(place: Place) -> None:
    body = b'{"message": "x"}'
    with anyio.fail_after(WAIT_SECONDS):
        wire = await Wire.open(place.server)
        wire.write(Way("length", close=True).head(len(body), "Expect: 100-continue"))
        assert (await wire.read()).startswith(b"HTTP/1.1 100 ")
        wire.write(body)
        data = b"".join([part async for part in parts(wire)])
        wire.cut()
    assert data.startswith(b"HTTP/1.1 200 ") and b"event: done" in data


# ---- HTTP -----------------------------------------------------------------------------------------------------------


async def parts(wire: Wire) -> AsyncIterator[bytes]:
    """All that comes until the server closes."""
    while data := await wire.read():
        yield data


async def raw_answer(server: Address, data: bytes, *, half_close: bool = False) -> bytes:
    """What the server answers to bytes: one whole problem document, or all until it closes."""
    answer = b""
    with anyio.fail_after(WAIT_SECONDS):
        wire = await Wire.open(server)
        wire.write(data)
        if half_close:
            wire.writer.write_eof()
        async for part in parts(wire):
            answer += part
            if b"application/problem+json" in answer and answer.endswith(b"}"):
                break
        wire.cut()
    return answer


def final_response(data: bytes) -> Response:
    """The answer in these bytes, behind any `100 Continue`."""
    head, _, body = data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Response(int(first.split(" ")[1]), headers, body)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/chat/stream"), ("POST", "/chat/runs"), ("PATCH", "/chat/sessions/x")]
)
@pytest.mark.parametrize(
    "headers",
    named(
        {
            "text": {"Content-Type": "text/plain"},
            "form": {"Content-Type": "application/x-www-form-urlencoded"},
            "multipart": {"Content-Type": "multipart/form-data; boundary=x"},
            "none": {"Content-Type": None},
            "empty": {"Content-Type": ""},
            "begins like JSON": {"Content-Type": "application/jsonx"},
            "a list": {"Content-Type": "application/json, text/plain"},
            "Latin-1": {"Content-Type": "application/json; charset=latin-1"},
            "UTF-16": {"Content-Type": "application/json; charset=utf-16"},
            "gzip": {"Content-Encoding": "gzip"},
            "brotli": {"Content-Encoding": "br"},
            "unknown coding": {"Content-Encoding": "nonsense"},
        }
    ),
)
async def test_a_body_that_is_not_plain_json_in_utf8_is_unsupported(
    place: Place, headers: dict[str, str | None], method: str, path: str
) -> None:
    response = await ask(place.server, method, path, b'{"message": "x"}', headers)
    problem_of(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "headers",
    named(
        {
            "charset": {"Content-Type": "application/json; charset=utf-8"},
            "charset quoted": {"Content-Type": 'application/json;charset="UTF-8"'},
            "case": {"Content-Type": "Application/JSON"},
            "identity": {"Content-Encoding": "identity"},
        }
    ),
)
async def test_plain_json_is_known_however_its_type_is_written(place: Place, headers: dict[str, str]) -> None:
    assert (await ask(place.server, "POST", "/chat/runs", b'{"message": "x"}', headers)).status == 202


ROUTES: dict[str, frozenset[str]] = {
    "/chat/stream": frozenset({"POST"}),
    "/chat/runs": frozenset({"POST"}),
    f"/chat/runs/{ID}": frozenset({"GET"}),
    f"/chat/runs/{ID}/events": frozenset({"GET"}),
    f"/chat/runs/{ID}/cancel": frozenset({"POST"}),
    "/chat/models": frozenset({"GET"}),
    "/chat/sessions": frozenset({"GET"}),
    f"/chat/sessions/{ID}": frozenset({"GET", "PATCH", "DELETE"}),
    "/livez": frozenset({"GET"}),
    "/readyz": frozenset({"GET"}),
    "/": frozenset({"GET"}),
    "/web/chatserver.js": frozenset({"GET"}),
    "/schema": frozenset({"GET"}),
    "/schema/events.json": frozenset({"GET"}),
    "/schema/asyncapi.json": frozenset({"GET"}),
}
ALIASES = {"/chat/runs/": frozenset({"POST"}), "/livez/": frozenset({"GET"})}
"""Where these are routes at all, they are like those they resemble."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")


@pytest.mark.parametrize(("path", "methods"), [pytest.param(*each, id=each[0]) for each in (ROUTES | ALIASES).items()])
async def test_a_method_that_a_route_has_not_is_not_allowed_and_the_others_are_named(
    place: Place, path: str, methods: frozenset[str]
) -> None:
    for method in METHODS:
        if method not in methods:
            response = await ask(place.server, method, path)
            if response.status == 404 and path in ALIASES:
                continue
            problem_of(response, 405, "method_not_allowed")
            assert {each.strip() for each in response.headers["allow"].split(",")} >= methods


async def test_the_methods_of_a_route_are_named_under_a_root_path_too() -> None:
    async with live_server(None, root_path="/api") as server:
        response = await ask(server, "PUT", "/livez")
        problem_of(response, 405, "method_not_allowed")
        assert "GET" in response.headers["allow"]


@pytest.mark.parametrize("path", ROUTES)
async def test_head_is_answered_without_a_body(place: Place, path: str) -> None:
    lines = [f"HEAD {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", "", ""]
    head = final_response(await raw_answer(place.server, "\r\n".join(lines).encode()))
    assert head.body == b""
    if "GET" not in ROUTES[path]:
        assert head.status == 405 and "GET" not in head.headers["allow"]
        return
    answer = await ask(place.server, "GET", path)
    without = {"date", "connection"}
    assert head.status == answer.status
    assert {name: value for name, value in head.headers.items() if name not in without} == {
        name: value for name, value in answer.headers.items() if name not in without
    }
    refused = await ask(place.server, "PROPFIND", path)
    assert {"GET", "HEAD"} <= set(refused.headers["allow"].split(", "))


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    ["/index.html", "/nope", "/chat", "/chat/nope", "/chat/stream/x", f"/chat/runs/{ID}/nope", "/%00", "/%ff", "/.env"],
)
async def test_an_unknown_route_is_not_found(place: Place, path: str, method: str) -> None:
    problem_of(await ask(place.server, method, path), 404, "not_found")


async def test_an_unknown_schema_is_not_found(place: Place) -> None:
    problem_of(await ask(place.server, "GET", "/schema/nope"), 404, "not_found")


ODD_IDS = {
    "unknown": ID,
    "NUL": "%00",
    "NUL inside": "a%00b",
    "dots": "..",
    "dots encoded": "%2e%2e",
    "up": "..%2f..%2fetc%2fpasswd",
    "up unencoded": "../x",
    "65 characters": "x" * 65,
    "5000 characters": "x" * 5000,
    "two bytes": "%C3%A4",
    "four bytes": "%F0%9F%98%80",
    "no UTF-8": "%ff%fe",
    "space": "a%20b",
    "line end": "a%0d%0aX-Forged:%20b",
    "separator": "%E2%80%A8",
    "half an escape": "%",
    "no escape": "%zz",
    "punctuation": "a;b:c@d!e*f'g",
    "SQL": "'%20OR%201=1--",
    "own template": "{run_id:str}",
}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/chat/runs/{}"),
        ("GET", "/chat/runs/{}/events"),
        ("GET", "/chat/runs/{}/events?after=5"),
        ("POST", "/chat/runs/{}/cancel"),
        ("GET", "/chat/sessions/{}"),
        ("GET", "/chat/sessions/{}?branches=all"),
        ("PATCH", "/chat/sessions/{}"),
        ("DELETE", "/chat/sessions/{}"),
    ],
)
@pytest.mark.parametrize("id", named(ODD_IDS))
async def test_an_odd_id_in_a_path_is_not_found(place: Place, id: str, method: str, path: str) -> None:
    body = {"title": "x"} if method == "PATCH" else None
    problem_of(await ask(place.server, method, path.replace("{}", id), body), 404, "not_found")


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("name", ["session_id", "regenerate", "parent_id"])
@pytest.mark.parametrize(
    "id", ["", "a b", "ä", "😀", "../x", "a/b", "a.b", "a\nb", "a\tb", "x" * 65, " abc", "a\u2028"]
)
async def test_a_malformed_id_in_a_request_is_not_found(place: Place, id: str, name: str, via: str) -> None:
    await refusal(place, via, {"message": "x", name: id}, 404, "not_found")


@pytest.mark.parametrize("via", VIAS)
async def test_an_unknown_message_cannot_be_answered_again(place: Place, via: str) -> None:
    await refusal(place, via, {"regenerate": ID}, 404, "not_found")
    await refusal(place, via, {"regenerate": ID, "session_id": place.session_id}, 404, "not_found")
    await refusal(place, via, {"message": "x", "parent_id": ID}, 404, "not_found")
    await refusal(place, via, {"message": "x", "regenerate": ID, "parent_id": ID}, 400, "bad_request")


@pytest.mark.parametrize("type", ["attach", "detach", "cancel"])
@pytest.mark.parametrize("id", [ID, "", "a b", "ä", "😀", "../x", "a\nb", "x" * 65, "x" * 5000, "\u2028"])
async def test_an_odd_id_in_a_frame_is_not_found_and_comes_back(place: Place, id: str, type: str) -> None:
    said = await rejection(place.server, json.dumps({"type": type, "run_id": id, "ref": REF}), 404, "not_found")
    assert (said["run_id"], said["ref"]) == (id, REF)


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=x", "limit=", "limit=101", "limit=1e1", "branches=x"])
async def test_a_wrong_query_is_a_bad_request(place: Place, query: str) -> None:
    path = f"/chat/sessions/{place.session_id}" if query.startswith("branches") else "/chat/sessions"
    said = problem_of(await ask(place.server, "GET", f"{path}?{query}"), 400, "bad_request")
    assert pointers(said) == [f"/{query.partition('=')[0]}"]


@pytest.mark.parametrize("page", ["x", "%00", "%ff", "a" * 5000, "W10", "eyJhIjoxfQ", "bnVsbA==", "-1", "[]"])
async def test_a_page_that_was_never_given_is_a_bad_cursor(place: Place, page: str) -> None:
    problem_of(await ask(place.server, "GET", f"/chat/sessions?cursor={page}"), 400, "bad_cursor")


# ---- cursors --------------------------------------------------------------------------------------------------------

CURSORS = (
    "-1",
    "-0",
    "x",
    "1.0",
    "1e0",
    "0x1",
    "١",
    "²",
    "1_0",
    "null",
    "true",
    "9" * 18,
    "9" * 19,
    "9" * 5000,
)


@pytest.mark.parametrize("is_header", [False, True], ids=["query", "header"])
@pytest.mark.parametrize("after", [each for each in CURSORS if each.isascii()])
async def test_a_wrong_cursor_is_refused_over_http(place: Place, after: str, is_header: bool) -> None:
    path = f"/chat/runs/{place.run_id}/events"
    if is_header:
        response = await ask(place.server, "GET", f"{path}?after=0", headers={"Last-Event-ID": after})
    else:
        response = await ask(place.server, "GET", f"{path}?after={after.replace(' ', '%20')}")
    problem_of(response, 400, "bad_cursor")


@pytest.mark.parametrize("after", ["%D9%A1", "%C2%B2", "%00", "%ff", "1%0a", "%2b1", "+1", "1,2"])
async def test_a_wrong_cursor_in_percent_is_refused(place: Place, after: str) -> None:
    response = await ask(place.server, "GET", f"/chat/runs/{place.run_id}/events?after={after}")
    problem_of(response, 400, "bad_cursor")


@pytest.mark.parametrize("after", [*CURSORS, "", " ", -1, -(10**30), 10**30, 0.5, None, True, False, [], {}, [0]])
async def test_a_wrong_cursor_is_rejected_over_websocket(place: Place, after: Any) -> None:
    command = {"type": "attach", "run_id": place.run_id, "after": after, "ref": REF}
    said = await rejection(place.server, json.dumps(command), 400, "bad_cursor")
    assert (said["run_id"], said["ref"]) == (place.run_id, REF)


async def test_a_cursor_past_the_end_is_refused_on_a_run_that_goes_on_too(place: Place) -> None:
    run_id, after = place.bystander.run_id, place.bystander.last_seq + 1
    problem_of(await ask(place.server, "GET", f"/chat/runs/{run_id}/events?after={after}"), 400, "bad_cursor")
    command = {"type": "attach", "run_id": run_id, "after": after}
    assert (await rejection(place.server, json.dumps(command), 400, "bad_cursor"))["run_id"] == run_id


# ---- what is well formed, but not now -------------------------------------------------------------------------------


@pytest.mark.parametrize("via", VIAS)
async def test_a_second_run_in_a_session_is_refused_with_the_id_of_the_first(place: Place, via: str) -> None:
    run_id = place.bystander.run_id
    with anyio.fail_after(WAIT_SECONDS):
        session_id = (await request(place.server, "GET", f"/chat/runs/{run_id}")).json["session_id"]
    said = await refusal(place, via, {"message": "x", "session_id": session_id}, 409, "run_active")
    assert said["run_id"] == run_id


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize(
    "change", [{"message": "other"}, {"temperature": 1}, {"session_id": "other"}, {"on_disconnect": "continue"}]
)
async def test_an_idempotency_key_with_another_body_is_refused(place: Place, change: dict[str, Any], via: str) -> None:
    body = {"message": "x", "idempotency_key": f"key {via} {change}"}
    first = await ask(place.server, "POST", "/chat/runs", body)
    again = await ask(place.server, "POST", "/chat/runs", body)
    assert (first.status, again.status) == (202, 202)
    assert first.json["run_id"] == again.json["run_id"]
    await refusal(place, via, body | change, 422, "idempotency_key_reused")


async def test_too_many_runs_are_refused_with_the_time_to_wait(place: Place) -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, max_runs=1) as server:
        upstream.always(Gate(gate), *say("x"))
        other = Place(server, upstream, place.bystander, "", 0, "")
        async with await SSE.start(server, {"message": "x"}) as reading:
            for path in ("/chat/stream", "/chat/runs"):
                response = await ask(server, "POST", path, {"message": "x"})
                problem_of(response, 429, "too_many")
                assert int(response.headers["retry-after"]) >= 1
            assert (await refusal(other, "ws", {"message": "x"}, 429, "too_many"))["retry_after"] >= 1
            gate.set()
            await documents_of(reading)
        assert (await ask(server, "POST", "/chat/runs", {"message": "x"})).status == 202


async def test_too_many_connections_are_refused_on_both_transports(place: Place) -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, max_connections_per_user=2) as server:
        upstream.always(Gate(gate), *say("x"))
        async with await SSE.start(server, {"message": "x"}) as first, await WS.attach(server, first.run_id):
            for method, path in (("POST", "/chat/stream"), ("GET", f"/chat/runs/{first.run_id}/events")):
                body = {"message": "x"} if method == "POST" else None
                response = await ask(server, method, path, body)
                problem_of(response, 429, "too_many")
                assert int(response.headers["retry-after"]) >= 1
            with anyio.fail_after(WAIT_SECONDS):
                assert (await (await WsReader.connect(server)).closing()).code == 4429
            assert (await ask(server, "GET", f"/chat/runs/{first.run_id}")).status == 200
            gate.set()


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}])
async def test_a_foreign_origin_or_host_is_forbidden(place: Place, headers: dict[str, str]) -> None:
    for path in ("/chat/stream", "/chat/runs"):
        problem_of(await ask(place.server, "POST", path, {"message": "x"}, headers), 403, "forbidden")
    with anyio.fail_after(WAIT_SECONDS), pytest.raises(HandshakeRefusedError) as refused:
        await WsReader.connect(place.server, headers=headers)
    problem_of(Response(refused.value.status or 0, refused.value.headers, refused.value.body), 403, "forbidden")


async def test_a_server_that_goes_down_says_so_and_ends_what_it_has(place: Place) -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.always(Gate(gate), *say("x"))
        reading = await SSE.start(server, {"message": "x"})
        async with await WsReader.connect(server) as reader:
            await reader.attach(reading.run_id)
            server.begin_drain()
            for path in ("/chat/stream", "/chat/runs"):
                response = await ask(server, "POST", path, {"message": "x"})
                problem_of(response, 503, "draining")
                assert int(response.headers["retry-after"]) >= 1
            with anyio.fail_after(WAIT_SECONDS), pytest.raises(HandshakeRefusedError) as refused:
                await WsReader.connect(server)
            assert (refused.value.status, refused.value.code) == (503, "draining")
            reader.send({"type": "send", "message": "x", "ref": REF})
            with anyio.fail_after(WAIT_SECONDS):
                said = await reader.answer()
                assert (said["type"], said["status"], said["code"], said["ref"]) == ("rejected", 503, "draining", REF)
                gate.set()  # the run that goes on may end in front of its readers
                await reader.until("done")
                assert (await reader.closing()).code == 1012
                assert json.loads((await documents_of(reading))[-1])["type"] == "done"


# ---- broken HTTP ----------------------------------------------------------------------------------------------------

HEAD = "POST /chat/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = '{"message": "x"}'

BROKEN_HTTP = {
    "no HTTP": "hello\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x00" * 50,
    "a space in the path": "GET /chat/runs/a b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a byte over ASCII in the path": "GET /chat/runs/\xe4 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no path": "GET  HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "unknown method": "BREW /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "unknown version": "GET /livez HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "header without colon": "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nnonsense\r\n\r\n",
    "space before colon": "GET /livez HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n",
    "NUL in a header": "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: a\0b\r\n\r\n",
    "length no number": f"{HEAD}Content-Length: x\r\n\r\n{BODY}",
    "length negative": f"{HEAD}Content-Length: -5\r\n\r\n{BODY}",
    "length of 30 digits": f"{HEAD}Content-Length: {'9' * 30}\r\n\r\n{BODY}",
    "two lengths": f"{HEAD}Content-Length: 5\r\nContent-Length: 16\r\n\r\n{BODY}",
    "length and chunks": f"{HEAD}Content-Length: 16\r\nTransfer-Encoding: chunked\r\n\r\n{BODY}",
    "chunk size no number": f"{HEAD}Transfer-Encoding: chunked\r\n\r\nxyz\r\n{BODY}\r\n0\r\n\r\n",
    "chunk longer than its size": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n2\r\n{BODY}\r\n0\r\n\r\n",
    "length shorter than the body": f"{HEAD}Content-Length: 5\r\n\r\n{BODY}",
}


@pytest.mark.parametrize("text", named(BROKEN_HTTP))
async def test_broken_http_is_answered_with_a_problem_document(place: Place, text: str) -> None:
    data = await raw_answer(place.server, text.encode("latin-1"))
    response = final_response(data)
    assert 400 <= response.status < 500
    problem_of(
        response, response.status, response.json["code"] if "problem" in str(response.headers) else "bad_request"
    )


@pytest.mark.parametrize(
    "text",
    named(
        {
            "length longer than the body": f"{HEAD}Content-Length: 17\r\n\r\n{BODY}",
            "chunks without an end": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n10\r\n{BODY}\r\n",
            "half a chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n10\r\n{BODY[:5]}",
            "half a head": HEAD,
            "half a line": "POST /chat",
            "nothing": "",
        }
    ),
)
async def test_a_client_that_leaves_in_the_middle_of_its_request_starts_nothing(place: Place, text: str) -> None:
    asked = len(place.upstream.requests)
    answer = await raw_answer(place.server, text.encode(), half_close=True)
    assert not answer or final_response(answer).status in range(400, 500)
    assert len(place.upstream.requests) == asked


# ---- broken WebSockets ----------------------------------------------------------------------------------------------

CONTINUATION, TEXT, BINARY, CLOSE, PING = 0, 1, 2, 8, 9


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """A client's frame, of whatever kind."""
    first, flag = (fin << 7) | (rsv << 4) | opcode, mask << 7
    if len(payload) < 126:
        length = bytes([flag | len(payload)])
    elif len(payload) < 65536:
        length = bytes([flag | 126]) + len(payload).to_bytes(2, "big")
    else:
        length = bytes([flag | 127]) + len(payload).to_bytes(8, "big")
    return bytes([first]) + length + (bytes(4) if mask else b"") + payload


async def closing(server: Address, data: bytes) -> int:
    """The code that the server closes with after these bytes."""
    with anyio.fail_after(WAIT_SECONDS):
        reader = await WsReader.connect(server)
        reader.send_wire(data)
        return (await reader.closing()).code


HUGE_HEAD = bytes([0x81, 0xFF]) + (2**62).to_bytes(8, "big") + bytes(4)


@pytest.mark.parametrize(
    ("code", "data"),
    named(
        {
            "binary": (1003, masked(BINARY, b'{"type":"ping"}')),
            "binary, empty": (1003, masked(BINARY)),
            "binary in fragments": (1003, masked(BINARY, b"a", fin=False) + masked(CONTINUATION, b"b")),
            "invalid UTF-8 over fragments": (1007, masked(TEXT, b"\xe2\x82", fin=False) + masked(CONTINUATION, b"x")),
            "invalid UTF-8 as a reason": (1007, masked(CLOSE, b"\x03\xe8\xff")),
            "a byte too big": (1009, masked(TEXT, b"x" * (FRAME_BYTES + 1))),
            "too big in fragments": (
                1009,
                masked(TEXT, b"x" * 200_000, fin=False) + masked(CONTINUATION, b"x" * 100_000, fin=False),
            ),
            "too big, says the head": (1009, HUGE_HEAD),
            "not masked": (1002, masked(TEXT, b'{"type":"ping"}', mask=False)),
            "reserved opcode": (1002, masked(3, b"x")),
            "reserved control opcode": (1002, masked(11, b"x")),
            "reserved bit": (1002, masked(TEXT, b"x", rsv=4)),
            "continuation of nothing": (1002, masked(CONTINUATION, b"x")),
            "text within fragments": (1002, masked(TEXT, b"a", fin=False) + masked(TEXT, b"b")),
            "ping in fragments": (1002, masked(PING, b"x", fin=False)),
            "ping over 125 bytes": (1002, masked(PING, b"x" * 126)),
            "close of one byte": (1002, masked(CLOSE, b"\x03")),
            "close with 999": (1002, masked(CLOSE, (999).to_bytes(2, "big"))),
            "close with 1005": (1002, masked(CLOSE, (1005).to_bytes(2, "big"))),
            "close with 1000": (1000, masked(CLOSE, (1000).to_bytes(2, "big"))),
            "close with 4999": (4999, masked(CLOSE, (4999).to_bytes(2, "big"))),
        }
    ),
)
async def test_broken_frames_close_with_the_code_that_says_why(place: Place, code: int, data: bytes) -> None:
    assert await closing(place.server, data) == code


async def test_a_client_that_sends_all_of_a_huge_frame_first_can_read_that_it_is_too_big(place: Place) -> None:
    lines = ["GET /chat/ws HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]

    def send_all_then_read_frame(server: Address) -> bytes:
        with socket.create_connection((server.host, server.port), timeout=WAIT_SECONDS) as sock:
            sock.sendall("\r\n".join(lines).encode())
            while not sock.recv(65536).endswith(b"\r\n\r\n"):
                pass
            sock.sendall(masked(TEXT, b"x" * HUGE_BYTES))
            return sock.recv(65536)

    frame = await anyio.to_thread.run_sync(send_all_then_read_frame, place.server)
    assert (frame[0], frame[2:4]) == (0x80 | CLOSE, (1009).to_bytes(2, "big"))


async def test_a_frame_at_its_limit_and_one_in_fragments_are_commands_like_any_other(place: Place) -> None:
    ping = b'{"type":"ping"}'
    text = b'{"type":"ping"}'.ljust(FRAME_BYTES)
    euro = json.dumps({"type": "send", "message": "€" * 20}, ensure_ascii=False).encode()
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(place.server) as reader:
            reader.send_wire(masked(TEXT, text))
            await reader.until("pong")
            for piece in (masked(TEXT, ping[:3], fin=False), masked(PING, b"x"), masked(CONTINUATION, ping[3:])):
                reader.send_wire(piece)
            await reader.until("pong")
            middle = euro.index("€".encode()) + 1  # within a character
            reader.send_wire(masked(TEXT, euro[:middle], fin=False) + masked(CONTINUATION, euro[middle:]))
            assert (await reader.answer())["type"] == "accepted"
            await reader.until("done")


async def test_the_tenth_frame_in_a_row_that_is_no_command_closes_4400_and_a_good_one_begins_anew(
    place: Place,
) -> None:
    bad = ["{", "nope", "", '{"type":"explode"}', "[]", '"x"', "NaN", r'"\ud800"', "5"]
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(place.server) as reader:
            for good in ({"type": "ping"}, {"type": "send", "message": "x"}, {"type": "ping"}):
                for text in bad:
                    reader.send_text(text)
                    assert (await reader.answer())["type"] == "rejected"
                reader.send(good)
                if good["type"] == "send":
                    assert (await reader.answer())["type"] == "accepted"
                await reader.until("pong" if good["type"] == "ping" else "done")
            for text in [*bad, "the tenth"]:
                reader.send_text(text)
            assert (await reader.closing()).code == 4400


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(
    "headers",
    named(
        {
            "no key": {"Sec-WebSocket-Key": None},
            "wrong key": {"Sec-WebSocket-Key": "x"},
            "other version": {"Sec-WebSocket-Version": "12"},
            "no version": {"Sec-WebSocket-Version": None},
            "a long header": {"X-Long": "x" * 20_000},
            "a header over ASCII": {"X-Odd": "\xe4"},
            "a subprotocol that is none": {"Sec-WebSocket-Protocol": ",,"},
            "an extension that is none": {"Sec-WebSocket-Extensions": "=;="},
            "an upgrade that is none": {"Connection": "Upgrades"},
        }
    ),
)
async def test_an_odd_handshake_is_refused_or_taken_but_never_fails(
    place: Place, headers: dict[str, str | None]
) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        async with await HttpReader.open(place.server, "GET", "/chat/ws", None, HANDSHAKE | headers) as reader:
            assert reader.status == 101 or 400 <= reader.status < 500
            assert reader.status == 101 or reader.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"X-Long": "x" * 30_000}, 101),
        ("GET", {"X-Long": "x" * 33_000}, 431),
        ("GET", {f"X-{number}": "x" for number in range(95)}, 101),
        ("GET", {f"X-{number}": "x" for number in range(100)}, 431),
        ("GET", {"Content-Length": "0"}, 101),
        ("GET", {"Content-Length": "5"}, 400),
        ("GET", {"Transfer-Encoding": "chunked"}, 400),
        ("POST", {}, 400),
    ],
)
async def test_a_handshake_is_a_get_without_a_body_and_has_the_limits_of_every_request(
    place: Place, method: str, headers: dict[str, str], status: int
) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        async with await HttpReader.open(place.server, method, "/chat/ws", None, HANDSHAKE | headers) as reader:
            assert reader.status == status


@pytest.mark.parametrize("path", ["/chat/nope", "/", "/chat/stream", f"/chat/runs/{ID}/events", "/chat/ws/x", "/livez"])
async def test_a_handshake_where_no_websocket_lives_is_refused(place: Place, path: str) -> None:
    with anyio.fail_after(WAIT_SECONDS), pytest.raises(HandshakeRefusedError) as refused:
        await WsReader.connect(place.server, path)
    assert refused.value.status is not None and 400 <= refused.value.status < 500


async def test_plain_http_where_the_websocket_lives_is_told_to_upgrade(place: Place) -> None:
    response = await ask(place.server, "GET", "/chat/ws")
    problem_of(response, 426, "upgrade_required")
    assert response.headers.get("upgrade") == "websocket"


# ---- whatever else --------------------------------------------------------------------------------------------------

SEEDS = (
    b'{"message": "Hello", "session_id": "abc123", "temperature": 0.7}',
    b'{"message": "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "max_output_tokens": 100, "on_disconnect": "continue"}',
    rb'{"message": "a\u00e4\ud83d\ude00\n", "idempotency_key": "k", "model": "m", "system": "s"}',
    b'{"regenerate": "abc", "message": "x"}',
)
FRAME_SEEDS = (
    b'{"type": "send", "ref": "r", "message": "Hello", "session_id": "abc123"}',
    b'{"type": "attach", "run_id": "abc", "after": 0}',
    b'{"type": "detach", "run_id": "abc", "ref": "\xe2\x82\xac"}',
    b'{"type": "cancel", "run_id": "abc"}',
    b'{"type": "ping"}',
)
SPLINTERS: tuple[bytes, ...] = (
    b"\0",
    b"\xff",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"1e999",
    b"-1",
    b"NaN",
    b"9" * 400,
    b":",
    b",",
)
SPLINTERS += (rb"\ud800", rb"\u0000", b"[" * 40, b'"message":', b'"type":', b'{"a":', b"true", b"\r\n", b"\xed\xa0\x80")


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The data with one to five small accidents."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randint(0, len(result))
        end = min(len(result), at + rng.randint(1, 8))
        match rng.randrange(6):
            case 0:
                del result[at:end]
            case 1:
                result[at:at] = rng.choice(SPLINTERS)
            case 2:
                result[at:end] = rng.choice(SPLINTERS)
            case 3:
                result[at:at] = result[at:end]
            case 4 if at < len(result):
                result[at] ^= 1 << rng.randrange(8)
            case _:
                del result[at:]
    return bytes(result)


@pytest.mark.proof
async def test_no_mutated_body_makes_the_server_fail(place: Place, scale: Scale) -> None:
    rng = random.Random(2)
    for _ in range(scale(300, 3000)):
        method, path = rng.choice(
            (("POST", "/chat/stream"), ("POST", "/chat/runs"), ("PATCH", "/chat/sessions/abc123"))
        )
        body = mutated(rng, b'{"title": "A title"}' if method == "PATCH" else rng.choice(SEEDS))
        response = await ask(place.server, method, path, body)
        if response.status >= 400:
            problem_of(response, response.status, response.json["code"])
        assert response.status in (200, 202, 400, 404, 409, 413, 422), (body, response)


@pytest.mark.proof
async def test_no_mutated_text_frame_makes_the_server_fail(place: Place, scale: Scale) -> None:
    rng = random.Random(3)
    for _ in range(scale(30, 300)):
        frames = [mutated(rng, rng.choice(FRAME_SEEDS)) for _ in range(10)]
        frames[:9] = [frame.decode(errors="ignore").encode() for frame in frames[:9]]
        with anyio.fail_after(WAIT_SECONDS):
            reader = await WsReader.connect(place.server)
            for frame in frames:
                reader.send_text(frame)
                reader.send({"type": "ping"})
            try:
                for _ in frames:
                    await reader.until("pong")
                code = None
            except ClosedError as closed:
                code = closed.code
        assert code == (None if is_utf8(frames[-1]) else 1007), frames
        rejected = [each.message for each in reader.frames if each.type == "rejected"]
        assert {each["status"] for each in rejected} <= {400, 404, 409, 413, 422}, (frames, rejected)
        reader.close()


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.proof
async def test_no_mutated_framing_makes_the_server_fail(place: Place, scale: Scale) -> None:
    rng = random.Random(4)
    makers: tuple[Callable[[bytes], bytes], ...] = (
        lambda payload: masked(TEXT, payload),
        lambda payload: masked(TEXT, payload[:9], fin=False) + masked(CONTINUATION, payload[9:]),
        lambda payload: masked(PING, payload[:100]) + masked(TEXT, payload),
        lambda payload: masked(CLOSE, b"\x03\xe8" + payload[:50]),
    )
    for _ in range(scale(150, 1500)):
        data = mutated(rng, rng.choice(makers)(rng.choice(FRAME_SEEDS)))
        with anyio.fail_after(WAIT_SECONDS):
            reader = await WsReader.connect(place.server)
            reader.send_wire(data)
            reader.wire.writer.write_eof()  # it may have broken off in the middle of a frame
            said = b"".join([part async for part in parts(reader.wire)])
            reader.cut()
        assert close_code(said) not in (1005, 1006, 1011), (data, said)


def close_code(said: bytes) -> int | None:
    """The code in a close frame at the end of what a server sent, if it sent one."""
    while said:
        size, start = said[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(said[2:start], "big")
        frame, said = said[: start + size], said[start + size :]
        if frame[0] == 0x80 | CLOSE:
            return int.from_bytes(frame[start : start + 2], "big") if size else 1000
    return None
