"""Whatever fails in the server: one command is rejected, or one connection closes with a code of the contract."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from litestar import Litestar

from chatserver import Settings, auth, create_app
from chatserver.runs.runs import Runs
from chatserver.runs.subscription import Subscription
from chatserver.transports.admission import Admission, LocalAdmissions
from chatserver.transports.connections import Connections
from chatserver.transports.multiplexer import Multiplexer
from tests.clients import HandshakeRefusedError, Wire, WsReader, request
from tests.fake_upstream import Done, FakeUpstream, Gate, finish, say, token
from tests.live import LiveServer, live_server

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 10.0
FAULTS = [
    RuntimeError("a bug"),
    ConnectionRefusedError("a database is gone, which is no word of the peer"),
    TimeoutError("somebody was waited for"),
    ExceptionGroup("a task failed", [KeyError("a bug")]),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no text"),
]
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "send": ("start", {"message": "x"}),
    "attach": ("subscribe", {"run_id": "r", "after": 0}),
    "detach": ("resource", {"run_id": "r"}),
    "cancel": ("cancel", {"run_id": "r"}),
}
"""What each command does with ``Runs``, where it is made to fail."""


@pytest.fixture(scope="module")
async def upstream(anyio_backend: str) -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def server(upstream: FakeUpstream) -> AsyncIterator[LiveServer]:
    async with live_server(upstream.url) as server:
        yield server


def failing(fault: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    return fail


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [each.exc_info and each.exc_info[1] for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("name", COMMANDS)
async def test_a_command_that_fails_is_rejected_alone(
    server: LiveServer,
    upstream: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    fault: Exception,
) -> None:
    go_on = anyio.Event()
    upstream.script(token("a"), Gate(go_on), token("b"), finish(), Done())
    method, fields = COMMANDS[name]
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(server) as reader:
            run_id = await reader.run({"message": "go on"})
            await reader.until("token")
            with monkeypatch.context() as patch:
                patch.setattr(Runs, method, failing(fault))
                said = await reader.command(type=name, ref="7", **fields)
            named = {"ref": "7"} | {key: value for key, value in fields.items() if key == "run_id"}
            sentence = "the server failed; its log says why"
            refusal = {"type": "rejected", "status": 500, "code": "internal", "message": sentence}
            assert said == named | refusal
            assert tracebacks(caplog) == [fault], "one line for what failed"
            caplog.clear()
            go_on.set()
            await reader.until("done")
            assert [json.loads(each)["type"] for each in reader.documents_of(run_id)][-1] == "done"
            assert (await reader.command(type="detach", run_id=run_id))["type"] == "accepted"
    assert tracebacks(caplog) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_the_same_fault_is_the_same_refusal_over_http(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Runs, "start", failing(fault))
        answer = await request(server, "POST", "/chat/stream", {"message": "x"})
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert answer.json["detail"] == "the server failed; its log says why"
    assert tracebacks(caplog) == [fault]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (LocalAdmissions, "admit"),
        (Connections, "watch"),
        (Multiplexer, "_text_came"),
        (Multiplexer, "_obey_all"),
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
async def test_a_fault_around_all_commands_closes_with_1011(
    server: LiveServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    method: str,
    fault: Exception,
) -> None:
    """Litestar's own answer would be 4500, which clients must take as final."""
    with anyio.fail_after(WAIT_SECONDS), monkeypatch.context() as patch:
        patch.setattr(owner, method, failing(fault))
        reader = await WsReader.connect(server)
        reader.send({"type": "ping"})
        assert (await reader.closing()).code == 1011
    assert len(tracebacks(caplog)) == 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_reader_that_fails_closes_with_1011(
    server: LiveServer,
    upstream: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Exception,
) -> None:
    """It cannot go on with the run: coming back does."""
    upstream.script(*say("An answer."))
    with anyio.fail_after(WAIT_SECONDS), monkeypatch.context() as patch:
        patch.setattr(Subscription, "cursor", failing(fault))
        reader = await WsReader.connect(server)
        reader.send({"type": "send", "message": "x"})
        assert (await reader.closing()).code == 1011
    assert tracebacks(caplog) == [fault]


async def test_a_handshake_that_fails_is_refused_as_a_request_is(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fault = RuntimeError("a bug")
    with anyio.fail_after(WAIT_SECONDS), monkeypatch.context() as patch:
        patch.setattr(auth.Gate, "identify", failing(fault))
        with pytest.raises(HandshakeRefusedError) as refused:
            await WsReader.connect(server)
        assert (await request(server, "GET", "/chat/sessions")).status == 500
    assert (refused.value.status, refused.value.code) == (500, "internal")
    assert tracebacks(caplog) == [fault, fault]


@pytest.mark.parametrize(("version", "status"), [("1.1", 101), ("1.0", 400)])
async def test_a_handshake_is_of_http_1_1_and_its_answer_has_the_headers_of_the_application(
    version: str, status: int
) -> None:
    """Byte for byte, whatever the `websockets` library takes their encoding for."""

    async def add_header(message: Any, scope: Any) -> None:
        if message["type"] == "websocket.accept":
            message["headers"] = [*message.get("headers", ()), (b"x-name", "Zoë".encode())]

    def make_app(settings: Settings) -> Litestar:
        app = create_app(settings)
        app.before_send.append(add_header)
        return app

    async with live_server(None, make_app=make_app) as server:
        with anyio.fail_after(WAIT_SECONDS):
            wire = await Wire.open(server)
            lines = [f"GET /chat/ws HTTP/{version}", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
            lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
            wire.write("\r\n".join(lines).encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += await wire.read()
            wire.cut()
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert (b"\r\nx-name: Zo\xc3\xab\r\n" in head) == (status == 101)


async def test_what_comes_while_the_dialogue_is_being_begun_is_obeyed(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may speak as soon as it reads the answer to its handshake; who shares its limits may still be asked."""
    gate, admit = anyio.Event(), LocalAdmissions.admit

    async def admit_later(self: LocalAdmissions, user: str) -> Admission:
        await gate.wait()
        return await admit(self, user)

    with anyio.fail_after(WAIT_SECONDS), monkeypatch.context() as patch:
        patch.setattr(LocalAdmissions, "admit", admit_later)
        reader = await WsReader.connect(server)
        reader.send({"type": "ping"})
        await request(server, "GET", "/livez")  # The ping has come by now.
        gate.set()
        await reader.until("pong")
        reader.wire.cut()
