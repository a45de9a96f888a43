"""The harness itself: the fake upstream says just what it was told, and the clients take just what they were told."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request as WsRequest
from websockets.http11 import Response as WsResponse

from tests.clients import (
    NDJSON,
    SSE,
    TRANSPORTS,
    WS,
    BrokenError,
    HandshakeRefusedError,
    HttpReader,
    NdjsonReader,
    RefusedError,
    SseReader,
    Transport,
    Wire,
    WsReader,
    documents_of,
    request,
    text_of,
    types_of,
)
from tests.fake_upstream import (
    Chunk,
    Cut,
    Done,
    FakeUpstream,
    Fin,
    Gate,
    Hang,
    Pause,
    Pieces,
    Raw,
    Reached,
    Reply,
    Rst,
    Status,
    Step,
    body_of,
    call,
    cut_in,
    finish,
    reasoning,
    refuse,
    say,
    token,
    tool_fragment,
    usage,
)
from tests.fake_upstream import Wire as WireStep
from tests.live import CANARY, ServerProcess, live_server
from tests.merging import unmerged

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
SOON_SECONDS = 1.0


async def ask(upstream: FakeUpstream, body: Any = None) -> HttpReader:
    return await HttpReader.post(_At("127.0.0.1", upstream.port), PATH, body or {"model": "m"})


@dataclass(frozen=True)
class _At:
    host: str
    port: int


async def wire_bytes(upstream: FakeUpstream) -> bytes:
    """All bytes of the next reply, status line and framing too."""
    wire = await Wire.open(_At("127.0.0.1", upstream.port))
    wire.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    received = b""
    with anyio.fail_after(5):
        while data := await wire.read():
            received += data
    wire.cut()
    return received


# ---- what it writes -------------------------------------------------------------------------------------------------


async def test_a_chunk_is_one_data_line_of_compact_json() -> None:
    assert token("Grüße 👋").data == (
        b'data: {"id":"chatcmpl-fake","object":"chat.completion.chunk","created":1700000000,"model":"fake",'
        b'"choices":[{"index":0,"delta":{"content":"Gr\xc3\xbc\xc3\x9fe \xf0\x9f\x91\x8b"},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
    )


@pytest.mark.parametrize(
    ("made", "choice"),
    [
        (reasoning("hm"), {"delta": {"reasoning_content": "hm"}}),
        (reasoning("hm", "reasoning"), {"delta": {"reasoning": "hm"}}),
        (
            tool_fragment(1, "c", "clock", "{"),
            {
                "delta": {
                    "tool_calls": [
                        {"index": 1, "id": "c", "type": "function", "function": {"name": "clock", "arguments": "{"}}
                    ]
                }
            },
        ),
        (tool_fragment(None, arguments="}"), {"delta": {"tool_calls": [{"function": {"arguments": "}"}}]}}),
        (finish("length"), {"delta": {}, "finish_reason": "length"}),
    ],
)
async def test_builders_write_the_fields_they_are_given_and_no_others(made: Chunk, choice: dict[str, Any]) -> None:
    assert made.document["choices"] == [{"index": 0, "logprobs": None, "finish_reason": None} | choice]


async def test_usage_comes_in_a_chunk_without_choices() -> None:
    assert usage(3, 4).document["choices"] == []
    assert usage(3, 4).document["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize(("text", "pieces"), [("abcdefg", 1), ("abcdefg", 3), ("abc", 9), ("", 2)])
async def test_pieces_put_together_are_the_text(text: str, pieces: int) -> None:
    assert "".join(cut_in(text, pieces)) == text
    assert len(cut_in(text, pieces)) == min(pieces, len(text))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            [Raw(b"abc"), Raw(b"de"), Fin()],
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        ),
        (
            [Raw(b"abc"), Cut()],
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ),
        (
            [Status(503, (("Retry-After", "2"),), close=True), Raw(b"no")],
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\n\r\nno",
        ),
        ([Status(529, (), length=9), Raw(b"lie"), Cut()], b"HTTP/1.1 529 Unknown\r\nContent-Length: 9\r\n\r\nlie"),
        ([WireStep(b"SSH-2.0-x\r\n")], b"SSH-2.0-x\r\n"),
        (
            [Fin()],
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ([Cut()], b""),
    ],
)
async def test_a_script_is_written_to_the_byte(script: list[Step], expected: bytes) -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*script)
        assert await wire_bytes(upstream) == expected


async def test_an_answer_is_the_bytes_of_its_steps_and_the_connection_goes_on() -> None:
    async with FakeUpstream() as upstream:
        for script in (say("Hello there", 3), call("clock", {"zone": "UTC"})):
            upstream.script(*script)
            reader = await ask(upstream)
            assert await reader.read_all() == body_of(script)
            assert reader.headers["content-type"] == "text/event-stream"
            reader.cut()
        assert [each.state for each in upstream.replies] == ["ended", "ended"]
        assert upstream.replies[0].bytes_written == len(body_of(say("Hello there", 3)))
        assert upstream.cuts == []


async def test_one_connection_carries_many_requests() -> None:
    async with FakeUpstream() as upstream:
        upstream.always(*say("Hi"))
        wire = await Wire.open(_At("127.0.0.1", upstream.port))
        for count in range(1, 4):
            wire.write(f"POST {PATH} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            received = b""
            with anyio.fail_after(5):
                while not received.endswith(b"0\r\n\r\n"):
                    received += await wire.read()
            assert len(upstream.requests) == count
        assert upstream.connections_made == 1
        wire.cut()


async def test_pieces_arrive_one_by_one() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(Status(close=True), Pieces((b"a", b"b", b"c")))
        reader = await ask(upstream)
        with anyio.fail_after(5):
            assert await reader.read_all() == b"abc"
        upstream.script(Pieces(tuple(bytes([each]) for each in b"data: x\n\n")))
        assert await (await ask(upstream)).read_all() == b"data: x\n\n"


async def test_a_large_body_waits_for_its_reader_and_arrives_whole() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*[Raw(b"x" * 65536)] * 500, Done())
        reader = await ask(upstream)
        await anyio.wait_all_tasks_blocked()
        assert upstream.replies[0].bytes_written < 30_000_000
        assert len(await reader.read_all()) == 500 * 65536 + len(Done().data)


# ---- scripts --------------------------------------------------------------------------------------------------------


async def test_requests_are_kept_as_they_came() -> None:
    async with FakeUpstream() as upstream:
        upstream.always(*say("Hi"))
        await (await ask(upstream, {"model": "m", "messages": []})).read_all()
        with anyio.fail_after(SOON_SECONDS):
            asked = await upstream.next_request()
        assert (asked.method, asked.path, asked.json) == ("POST", PATH, {"model": "m", "messages": []})
        assert asked.headers["content-type"] == "application/json"


async def test_scripts_are_taken_in_order_and_then_the_default() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(Raw(b"1"))
        upstream.script(Raw(b"2"))
        upstream.always(Raw(b"default"))
        assert [await (await ask(upstream)).read_all() for _ in range(4)] == [b"1", b"2", b"default", b"default"]


async def test_a_request_without_a_script_gets_a_status_that_nobody_else_sends() -> None:
    async with FakeUpstream() as upstream, await ask(upstream) as reader:
        assert reader.status == 418


async def test_a_step_may_be_made_up_from_the_request() -> None:
    async def act(reply: Reply) -> None:
        seen.append(reply.steps)

    def echo(reply: Reply) -> Iterable[Step]:
        return [Raw(reply.request.json["model"].encode())]

    seen: list[int] = []
    async with FakeUpstream() as upstream:
        upstream.always(Raw(b"<"), echo, act, Raw(b">"))
        assert await (await ask(upstream, {"model": "gpt"})).read_all() == b"<gpt>"
        assert seen == [2]


async def test_what_goes_wrong_in_a_script_fails_the_test_that_wrote_it() -> None:
    def broken(reply: Reply) -> None:
        raise ZeroDivisionError

    upstream = await FakeUpstream().__aenter__()
    upstream.script(broken)
    with pytest.raises(BrokenError):
        await ask(upstream)
    with pytest.raises(ZeroDivisionError):
        await upstream.__aexit__(None, None, None)


async def test_a_gate_holds_what_follows_and_lets_out_what_came_before() -> None:
    gate, reached = anyio.Event(), anyio.Event()
    async with FakeUpstream() as upstream:
        upstream.script(token("a"), Reached(reached), Gate(gate), token("b"))
        reader = await ask(upstream)
        with anyio.fail_after(5):
            await reached.wait()
            assert await reader.more() == token("a").data
            await anyio.wait_all_tasks_blocked()
            assert upstream.active == 1
            gate.set()
            assert await reader.more() == token("b").data
            assert await reader.more() == b""
            await upstream.idle()


async def test_a_gate_before_the_first_byte_holds_the_head_too() -> None:
    gate = asyncio.Event()
    async with FakeUpstream() as upstream, anyio.create_task_group() as group:

        async def client() -> None:
            assert await (await ask(upstream)).read_all() == b"x"

        upstream.script(Gate(gate), Raw(b"x"))
        group.start_soon(client)
        with anyio.fail_after(5):
            await upstream.next_request()
            gate.set()


async def test_a_pause_takes_its_time() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(Pause(0.05), Raw(b"x"))
        began = monotonic()
        await (await ask(upstream)).read_all()
        assert monotonic() - began >= 0.05


# ---- endings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [Cut(), Rst()])
async def test_a_cut_body_cannot_be_taken_for_a_whole_one(ending: Step) -> None:
    async with FakeUpstream() as upstream:
        gate = anyio.Event()
        upstream.script(token("a"), Gate(gate), ending)
        reader = await ask(upstream)
        gate.set()
        with anyio.fail_after(5), pytest.raises(BrokenError):
            await reader.read_all()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([Pause(60)], id="before-the-head"),
        pytest.param([lambda reply: [token("a"), Gate(anyio.Event())]], id="in-a-gate"),
        pytest.param([token("a"), Pause(60)], id="in-a-pause"),
        pytest.param([token("a"), Hang()], id="hanging"),
        pytest.param([Raw(b"x" * 65536)] * 500, id="in-a-blocked-write"),
    ],
)
@pytest.mark.parametrize("leave", [Wire.cut, Wire.reset])
async def test_a_client_that_leaves_is_noticed_at_once(script: list[Step], leave: Callable[[Wire], None]) -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*script)
        wire = await Wire.open(_At("127.0.0.1", upstream.port))
        wire.write(f"POST {PATH} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        with anyio.fail_after(5):
            await upstream.next_request()
            await anyio.wait_all_tasks_blocked()
            assert upstream.active == 1
            left_at = monotonic()
            leave(wire)
            (reply,) = await upstream.closed(1)
        assert reply.state == "cut"
        assert upstream.active == 0
        assert left_at <= upstream.closed_at[0] <= left_at + SOON_SECONDS


async def test_a_client_that_leaves_after_the_end_has_cut_nothing() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*say("Hi"))
        reader = await ask(upstream)
        await reader.read_all()
        reader.cut()
        with anyio.fail_after(5):
            await upstream.until(lambda: upstream.connections == 0)
        assert upstream.cuts == []


async def test_leaving_it_closes_what_hangs() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(Hang())
        wire = await Wire.open(_At("127.0.0.1", upstream.port))
        wire.write(f"POST {PATH} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await upstream.next_request()
    with anyio.fail_after(5), pytest.raises(ConnectionError):
        await wire.read()
    wire.cut()


async def test_it_refuses_connections_when_told() -> None:
    async with FakeUpstream() as upstream:
        await upstream.refuse_connections()
        with pytest.raises(ConnectionRefusedError):
            await ask(upstream)


async def test_a_thousand_replies_cost_little() -> None:
    async with FakeUpstream() as upstream:
        upstream.always(*say("one two three four", 60))
        with anyio.fail_after(20):
            for _ in range(20):
                async with anyio.create_task_group() as group:
                    for _ in range(50):
                        group.start_soon(_whole, upstream)
        assert len(upstream.replies) == 1000
        assert {each.state for each in upstream.replies} == {"ended"}


async def _whole(upstream: FakeUpstream) -> None:
    async with await ask(upstream) as reader:
        await reader.read_all()


async def test_refusals_are_whole_json_bodies() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*refuse(429, {"message": "slow down", "code": "rate_limit_exceeded"}, {"Retry-After": "3"}))
        reader = await ask(upstream)
        assert reader.status == 429
        assert reader.headers["retry-after"] == "3"
        assert json.loads(await reader.read_all())["error"]["code"] == "rate_limit_exceeded"


# ---- the clients ----------------------------------------------------------------------------------------------------

EVENTS: list[dict[str, Any]] = [
    {"type": "start", "run_id": "r", "seq": 1},
    {"type": "token", "run_id": "r", "seq": 2, "content": "Grüße 👋"},
    {"type": "token", "run_id": "r", "seq": 3, "content": "!"},
    {"type": "done", "run_id": "r", "seq": 4},
]
DOCUMENTS = [json.dumps(each, ensure_ascii=False).encode() for each in EVENTS]
SSE_BODY = b"retry: 1000\n\n: ping\n\n" + b"".join(
    b"id: %d\nevent: %s\ndata: %s\n\n" % (event["seq"], event["type"].encode(), document)
    for event, document in zip(EVENTS, DOCUMENTS, strict=True)
)
NDJSON_BODY = b'{"type":"ping"}\n' + b"".join(document + b"\n" for document in DOCUMENTS)


async def test_the_sse_reader_hands_out_one_event_at_a_time() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(Raw(SSE_BODY))
        reader = await SseReader.post(_At("127.0.0.1", upstream.port), "/", {})
        first = await reader.next_event()
        assert first is not None
        assert (first.id, first.event, first.data) == ("1", "start", DOCUMENTS[0])
        assert reader.documents == DOCUMENTS[:1]
        assert reader.consumed == len(SSE_BODY.partition(b"id: 2")[0])
        assert [event.data async for event in reader] == DOCUMENTS[1:]
        assert reader.documents == DOCUMENTS
        assert reader.comments == [b"ping"]
        assert reader.retries == [1000]
        assert bytes(reader.raw) == SSE_BODY


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_the_sse_reader_knows_every_line_end_at_every_split(line_end: bytes, size: int) -> None:
    body = SSE_BODY.replace(b"\n", line_end)
    async with FakeUpstream() as upstream:
        upstream.script(Pieces(tuple(body[start : start + size] for start in range(0, len(body), size))))
        reader = await SseReader.get(_At("127.0.0.1", upstream.port), "/")
        assert [event.data async for event in reader] == DOCUMENTS


@pytest.mark.parametrize("ending", [Cut(), Rst()])
async def test_readers_tell_a_cut_from_an_end(ending: Step) -> None:
    async with FakeUpstream() as upstream:
        for body, kind in ((SSE_BODY, SseReader), (NDJSON_BODY, NdjsonReader)):
            gate = anyio.Event()
            upstream.script(Raw(body), Gate(gate), ending)
            reader = await kind.get(_At("127.0.0.1", upstream.port), "/")
            await reader.at_least(len(body))
            gate.set()
            with anyio.fail_after(5), pytest.raises(BrokenError):
                await reader.read_all()


async def test_a_cut_at_any_byte_leaves_just_the_events_that_were_whole() -> None:
    async with FakeUpstream() as upstream:
        upstream.always(Raw(SSE_BODY))
        for size in range(len(SSE_BODY) + 1):
            async with await SseReader.get(_At("127.0.0.1", upstream.port), "/") as reader:
                with anyio.fail_after(5):
                    await reader.read_bytes(size)
                assert reader.documents == DOCUMENTS[: SSE_BODY[:size].count(b"}\n\n")]
        upstream.always(Raw(NDJSON_BODY))
        for size in range(0, len(NDJSON_BODY) + 1, 5):
            async with await NdjsonReader.get(_At("127.0.0.1", upstream.port), "/") as lines:
                await lines.read_bytes(size)
                assert lines.documents == DOCUMENTS[: max(0, NDJSON_BODY[:size].count(b"\n") - 1)]


async def test_ordinary_requests_carry_any_bytes_and_headers() -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*refuse(400, {"message": "no"}))
        at = _At("127.0.0.1", upstream.port)
        response = await request(at, "POST", "/x", b"\xff{", {"Content-Type": "text/plain", "Host": None, "X": "1"})
        assert response.status == 400
        assert response.json == {"error": {"message": "no"}}
        assert upstream.requests[0].body == b"\xff{"
        assert upstream.requests[0].headers == {"content-type": "text/plain", "content-length": "2", "x": "1"}


@asynccontextmanager
async def ws_server(talk: Callable[[ServerConnection], Awaitable[None]], **options: Any) -> AsyncIterator[_At]:
    async with serve(talk, "127.0.0.1", 0, compression=None, **options) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield _At("127.0.0.1", port)


async def chat(ws: ServerConnection) -> None:
    """A server that speaks just enough of the protocol."""
    async for frame in ws:
        command = json.loads(frame)
        if command["type"] == "ping":
            await ws.send('{"type":"pong"}')
            continue
        if command["type"] == "nonsense":
            await ws.send(json.dumps({"type": "rejected", "status": 400, "code": "bad_request", "message": "no"}))
            continue
        await ws.send('{"type":"ping"}')
        await ws.send('{"type":"accepted","run_id":"r"}')
        last = DOCUMENTS[3:] if command.get("message") == "twice" else []
        for document in DOCUMENTS[command.get("after", 0) :] + last:
            await ws.send(document.decode())
        if command["type"] == "close":
            await ws.close(4400, "enough")


async def test_the_websocket_reader_hands_out_frame_by_frame() -> None:
    async with ws_server(chat) as at, await WsReader.connect(at, subprotocols=()) as ws:
        with anyio.fail_after(5):
            assert await ws.run({"message": "Hi"}) == "r"
            assert [(await ws.frame()).type for _ in range(3)] == ["ping", "start", "token"]
            assert ws.documents_of("r") == DOCUMENTS[:2]
            await ws.until("done")
            assert ws.documents == DOCUMENTS
            assert (await ws.command(type="nonsense"))["code"] == "bad_request"
            ws.send({"type": "close"})
            closed = await ws.closing()
            assert (closed.code, closed.reason) == (4400, "enough")
            assert ws.frames[-1].type == "done"


async def test_a_websocket_cut_at_any_byte_has_just_the_frames_that_were_whole() -> None:
    async with ws_server(chat) as at:
        sizes = [len(frame) + 2 for frame in (b'{"type":"ping"}', b'{"type":"accepted","run_id":"r"}', *DOCUMENTS)]
        for size in range(sum(sizes) + 1):
            ws = await WsReader.connect(at, subprotocols=())
            ws.send({"type": "attach", "run_id": "r", "after": 0})
            with anyio.fail_after(5):
                await ws.read_bytes(size)
            assert ws.consumed <= size
            assert len(ws.frames) == sum(1 for count in range(1, 7) if sum(sizes[:count]) <= size)
            ws.reset()


async def test_a_refused_handshake_tells_its_status_and_problem() -> None:
    async def refusing(connection: ServerConnection, request: WsRequest) -> WsResponse:
        return connection.respond(403, '{"code":"forbidden"}')

    async with ws_server(chat, process_request=refusing) as at:
        with anyio.fail_after(5), pytest.raises(HandshakeRefusedError) as refused:
            await WsReader.connect(at)
        assert (refused.value.status, refused.value.code) == (403, "forbidden")


@pytest.mark.parametrize("transport", [SSE, NDJSON])
async def test_http_transports_give_a_run_to_its_terminal_event(transport: Transport) -> None:
    body = SSE_BODY if transport is SSE else NDJSON_BODY
    async with FakeUpstream() as upstream:
        at = _At("127.0.0.1", upstream.port)
        upstream.script(Raw(body))
        reading = await transport.start(at, {"message": "Hi"})
        assert reading.run_id == "r"
        with anyio.fail_after(5):
            documents = await documents_of(reading)
        assert documents == DOCUMENTS
        assert text_of(documents) == "Grüße 👋!"
        upstream.script(Status(204, (), length=0))
        assert [each async for each in await transport.attach(at, "r", 4)] == []
        upstream.script(Raw(body + body.removeprefix(b"retry: 1000\n\n")))
        with anyio.fail_after(5), pytest.raises(BrokenError, match="behind"):
            await documents_of(await transport.attach(at, "r"))
        upstream.script(Raw(body[:-20]))
        with anyio.fail_after(5), pytest.raises(BrokenError, match="without a terminal"):
            await documents_of(await transport.attach(at, "r"))


async def test_the_websocket_transport_gives_a_run_to_its_terminal_event() -> None:
    async with ws_server(chat, subprotocols=["chatserver.v1"]) as at:
        with anyio.fail_after(5):
            assert await documents_of(await WS.start(at, {"message": "Hi"})) == DOCUMENTS
            with pytest.raises(BrokenError, match="behind"):
                await documents_of(await WS.start(at, {"message": "twice"}))
            again = await WS.attach(at, "r", 2)
            assert await again.take(2) == DOCUMENTS[2:]
            assert again.after == 4
            await again.leave()


# ---- the servers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
async def test_a_live_server_answers_through_the_fake_upstream(transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, heartbeat_seconds=7) as server:
        upstream.always(*say("Grüße 👋", 3))
        with anyio.fail_after(20):
            documents = await documents_of(await transport.start(server, {"message": "Hi"}))
            assert types_of(documents) == ["start", "token", "token", "token", "done"]
            assert text_of(documents) == "Grüße 👋"
            assert json.loads(documents[0])["heartbeat_ms"] == 7000
            assert upstream.requests[0].headers["authorization"] == f"Bearer {CANARY}"
            run_id = json.loads(documents[0])["run_id"]
            assert unmerged(await documents_of(await transport.attach(server, run_id, 2)), documents) == documents[2:]
            with pytest.raises(RefusedError) as refused:
                await transport.attach(server, "unknown")
            assert (refused.value.status, refused.value.code) == (404, "not_found")


@pytest.mark.parametrize("is_forked", [False, True], ids=["from nothing", "forked"])
async def test_a_server_process_lives_again_on_its_database(tmp_path: Path, is_forked: bool) -> None:
    async with (
        FakeUpstream() as upstream,
        ServerProcess(upstream.url, tmp_path, is_forked=is_forked, drain_seconds=0.5) as server,
    ):
        upstream.always(*say("Hi"))
        with anyio.fail_after(50):
            await documents_of(await SSE.start(server, {"message": "Hi", "session_id": "abc"}))
            server.terminate()
            assert await server.wait() == 0
            await server.start()
            assert (await request(server, "GET", "/chat/sessions/abc")).json["session_id"] == "abc"
            server.kill()
            assert await server.wait() == -9
        assert CANARY not in server.output
