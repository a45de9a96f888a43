"""How a run's documents are framed, to the byte: SSE, NDJSON, text, WebSocket; and the schemas that describe them."""

import json
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from jsonschema import Draft202012Validator, ValidationError

from chatserver.answer import Answer
from chatserver.events import Snapshot, Token, record
from chatserver.parts import ReasoningPart, TextPart
from chatserver.tools.context import ToolContext
from chatserver.transports.formats.text import PlainText
from tests.clients import (
    NDJSON,
    SSE,
    SUBPROTOCOL,
    TRANSPORTS,
    WS,
    Address,
    BrokenError,
    HttpReader,
    NdjsonReader,
    Response,
    SseReader,
    Transport,
    Wire,
    WsReader,
    cancel,
    documents_of,
    is_terminal,
    request,
    text_of,
    types_of,
)
from tests.fake_upstream import (
    Cut,
    Done,
    FakeUpstream,
    Gate,
    Reached,
    Step,
    call,
    finish,
    reasoning,
    refuse,
    role,
    say,
    token,
    tool_call,
    usage,
)
from tests.live import LiveServer, live_server
from tests.merging import first_seq_of, unmerged

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 15.0
EVENT_BYTES = 64 * 1024
CLIENTS = Path(__file__).parents[1] / "clients"
MESSAGE = {"message": "Hi"}

LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Whatever any language takes for the end of a line: Python's `str.splitlines` takes all of them."""

NASTY = "</script><!--\x1b[2J\x9b2J\ufeff" + "".join(
    f"{end}data: 5{end}{end}id: 99{end}event: done{end}retry: 1{end}: ping{end}" for end in (*LINE_ENDS, "\r\n")
)
"""Text that would be lines of a stream, markup, or orders to a terminal, if it could."""


# ---- tools of the test server: `tests.test_framing:TOOLS` -----------------------------------------------------------


def nasty(context: ToolContext, a: str = "") -> str:
    """Text that would forge lines if it could, also of the arguments, and told on the way."""
    context.progress(f"{NASTY[:400]}\0\ud83e", 1, 2)  # type: ignore[unused-awaitable]
    return f"\0{NASTY}{a}"


def nasty_object() -> dict[str, list[str]]:
    """The same, inside."""
    return {NASTY: [NASTY]}


def megabyte() -> str:
    """Far more than fits."""
    return "ä" * 500_000


def megabyte_of_controls() -> str:
    """Each character takes 6 bytes in JSON."""
    return "\x01" * 1_000_000


def megabyte_of_numbers() -> list[int]:
    """Far more than fits, and no text."""
    return list(range(150_000))


def megabyte_of_excuses() -> str:
    """Fails at length."""
    raise ValueError("\x01" * 1_000_000)


TOOLS = [nasty, nasty_object, megabyte, megabyte_of_controls, megabyte_of_numbers, megabyte_of_excuses]


# ---- a server and runs ----------------------------------------------------------------------------------------------


class Place:
    """A server with its upstream, and what is often asked of it."""

    def __init__(self, server: LiveServer, upstream: FakeUpstream) -> None:
        self.server = server
        self.upstream = upstream

    async def run(self, *steps: Step, then: Sequence[Step] | None = None) -> list[bytes]:
        """The documents of a run with this answer; ``then``: the answer after the tools it called."""
        self.upstream.script(*steps)
        if then is not None:
            self.upstream.script(*then)
        with anyio.fail_after(WAIT_SECONDS):
            return await documents_of(await SSE.start(self.server, MESSAGE))

    async def rich(self) -> list[bytes]:
        """A run with every kind of event but `error` and `snapshot`."""
        calls = [
            *tool_call("nasty", {"a": NASTY}, pieces=40),
            *tool_call("nasty_object", {}, id="call_2", index=1),
            *tool_call(NASTY[:200], {"a": NASTY}, id=NASTY, index=2, pieces=2),
        ]
        said = [role(), reasoning(f"Think … ä€😀{NASTY}"), token("Grüße 😀")]
        then = say(f"tokens{NASTY}€😀" * 3, 40)
        return await self.run(*said, *calls, finish("tool_calls"), usage(7, 5), Done(), then=then)


@pytest.fixture(scope="module")
async def place(anyio_backend: str) -> AsyncIterator[Place]:
    async with FakeUpstream() as upstream, live_server(upstream.url, tools=f"{__name__}:TOOLS") as server:
        upstream.always(*say("An answer."))
        yield Place(server, upstream)


def run_id_of(documents: Sequence[bytes]) -> str:
    return str(json.loads(documents[0])["run_id"])


def events_path(documents: Sequence[bytes], after: int | str = 0) -> str:
    return f"/chat/runs/{run_id_of(documents)}/events?after={after}"


# ---- one document on all transports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
async def test_a_document_is_the_same_to_the_byte_on_all_transports(place: Place, transport: Transport) -> None:
    documents = await place.rich()
    tools = {"tool_input", "tool_call", "tool_progress", "tool_result"}
    assert set(types_of(documents)) == {"start", "reasoning", "token", "done"} | tools
    for after in (0, 1, 7, 12, len(documents) - 1):
        with anyio.fail_after(WAIT_SECONDS):
            read = await documents_of(await transport.attach(place.server, run_id_of(documents), after))
            assert read == await documents_of(await SSE.attach(place.server, run_id_of(documents), after))
        assert unmerged(read, documents) == documents[after:]


async def test_readers_of_a_run_that_goes_on_get_the_same_documents(place: Place) -> None:
    gate = anyio.Event()
    place.upstream.script(role(), token("ä"), Gate(gate), *say(NASTY, 5))
    with anyio.fail_after(WAIT_SECONDS):
        first = await NDJSON.start(place.server, MESSAGE)
        others = [await each.attach(place.server, first.run_id) for each in TRANSPORTS]
        for each in others:
            await each.take(2)
        gate.set()
        documents = await documents_of(first)
        for each in others:
            assert documents[:2] + await documents_of(each) == documents


async def test_the_bytes_of_an_event_stream_are_exact(place: Place) -> None:
    documents = await place.rich()
    for after in (0, 3):
        with anyio.fail_after(WAIT_SECONDS):
            raw = await (await SseReader.get(place.server, events_path(documents, after))).read_all()
            sent = await documents_of(await WS.attach(place.server, run_id_of(documents), after))
        opening = re.match(rb"retry: [0-9]+\n(?!\n)", raw)
        assert opening is not None
        heads = [json.loads(each) for each in sent]
        frames = [
            b"event: %b\ndata: %b\nid: %d\n\n" % (head["type"].encode(), document, head["seq"])
            for head, document in zip(heads, sent, strict=True)
        ]
        assert raw[opening.end() :] == b"".join(frames)


async def test_the_bytes_of_ndjson_are_exact(place: Place) -> None:
    documents = await place.rich()
    with anyio.fail_after(WAIT_SECONDS):
        raw = await (await NdjsonReader.get(place.server, events_path(documents))).read_all()
        sent = await documents_of(await WS.attach(place.server, run_id_of(documents)))
    assert raw == b"".join(document + b"\n" for document in sent)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "text/plain"])
@pytest.mark.parametrize("is_post", [True, False], ids=["POST", "GET"])
async def test_the_head_of_a_stream_is_exact(place: Place, accept: str, is_post: bool) -> None:
    documents = await place.run(*say("x"))
    headers = {"Accept": accept, "Accept-Encoding": "gzip, deflate, br, zstd"}
    with anyio.fail_after(WAIT_SECONDS):
        if is_post:
            reader = await HttpReader.post(place.server, "/chat/stream", MESSAGE, headers)
        else:
            reader = await HttpReader.get(place.server, events_path(documents), headers)
        await reader.read_all()
    names = [name.lower() for name, _ in reader.header_lines]
    assert len(names) == len(set(names))
    assert reader.status == 200
    assert reader.headers["content-type"].partition(";")[0] == accept
    if accept == "text/event-stream":
        assert reader.headers["content-type"] == "text/event-stream"
    assert reader.headers["cache-control"] == "no-cache, no-transform"
    assert reader.headers["x-accel-buffering"] == "no"
    assert not {"content-encoding", "content-length", "server"} & set(names)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "text/plain"])
async def test_the_first_bytes_leave_before_the_upstream_answers(place: Place, accept: str) -> None:
    gate = anyio.Event()
    place.upstream.script(Gate(gate), *say("x"))
    with anyio.fail_after(WAIT_SECONDS):
        async with await HttpReader.post(place.server, "/chat/stream", MESSAGE, {"Accept": accept}) as reader:
            assert reader.status == 200
            if accept != "text/plain":
                while b'"type":"start"' not in reader.raw:
                    await reader.more()
            gate.set()
            assert await reader.read_all()


# ---- forged lines, long text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [SseReader, NdjsonReader])
async def test_no_text_can_forge_a_line(place: Place, reader: type[SseReader] | type[NdjsonReader]) -> None:
    documents = await place.rich()
    with anyio.fail_after(WAIT_SECONDS):
        raw = await (await reader.get(place.server, events_path(documents))).read_all()
    assert b"\r" not in raw
    lines = raw.decode().splitlines()  # by the widest idea of what ends a line
    assert "\n".join(lines) + "\n" == raw.decode()
    kinds = {line.partition(":")[0] for line in lines} if reader is SseReader else {line[:8] for line in lines}
    assert kinds == ({"retry", "id", "event", "data", ""} if reader is SseReader else {'{"type":'})
    events = [json.loads(each) for each in documents]
    assert text_of(documents) == "Grüße 😀" + f"tokens{NASTY}€😀" * 3
    assert [each["content"] for each in events if each["type"] == "reasoning"] == [f"Think … ä€😀{NASTY}"]
    results = {each["tool"]: each["result"] for each in events if each["type"] == "tool_result"}
    no_tool = {NASTY[:200]: "there is no such tool"}
    assert results == {"nasty": f"\0{NASTY}{NASTY}", "nasty_object": nasty_object()} | no_tool
    (progress,) = (each for each in events if each["type"] == "tool_progress")
    assert progress["message"] == f"{NASTY[:400]}\0?"
    for made in (each for each in events if each["type"] == "tool_call"):
        inputs = [each for each in events if each["type"] == "tool_input" and each["call_id"] == made["call_id"]]
        assert {each["tool"] for each in inputs} <= {made["tool"]}
        written = json.loads("".join(each["delta"] for each in inputs) or "{}")
        assert written == (made["args"] if made["tool"] in results.keys() - no_tool else {"a": NASTY})


LONG = {
    "a byte": "x" * 300_000,
    "two bytes": "ä" * 100_000,
    "four bytes": "😀" * 50_000,
    "six bytes in JSON": "\x01" * 100_000,
    "quotes": '"\\' * 50_000,
    "ends of lines": "\u2028\u0085" * 30_000,
}


@pytest.mark.parametrize("name", ["content", "reasoning"])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
async def test_long_text_is_split_into_events_that_are_not_too_long(place: Place, text: str, name: str) -> None:
    delta = token(text) if name == "content" else reasoning(text)
    documents = await place.run(role(), delta, token("."), finish(), Done())
    assert max(map(len, documents)) <= EVENT_BYTES
    kind = "token" if name == "content" else "reasoning"
    said = [json.loads(each).get("content", "") for each in documents if json.loads(each)["type"] == kind]
    assert "".join(said).removesuffix("." if name == "content" else "") == text
    assert len(said) > 1


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
async def test_events_are_not_too_long_after_the_retention_either(transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, retention_seconds=0.0) as server:
        for text in LONG.values():
            upstream.script(role(), reasoning(text), token(text), token(NASTY), finish(), Done())
            with anyio.fail_after(WAIT_SECONDS):
                documents = await documents_of(await SSE.start(server, MESSAGE))
                kept = await documents_of(await transport.attach(server, run_id_of(documents)))
            assert max(map(len, kept)) <= EVENT_BYTES
            assert text_of(kept) == text + NASTY
            assert kept[-1] == documents[-1]


@pytest.mark.parametrize("name", [each.__name__ for each in TOOLS if each.__name__.startswith("megabyte")])
async def test_a_long_tool_result_is_truncated_and_says_so(place: Place, name: str) -> None:
    documents = await place.run(*call(name, {}), then=say("Done."))
    assert max(map(len, documents)) <= EVENT_BYTES
    (result,) = [each for each in map(json.loads, documents) if each["type"] == "tool_result"]
    assert result["truncated"] is True
    assert result["is_error"] is (name == "megabyte_of_excuses")
    assert len(json.dumps(result["result"])) >= 1000
    assert types_of(documents)[-1] == "done"


@pytest.mark.parametrize(
    ("name", "arguments", "id"),
    [
        ("nasty", {"a": "x" * 32_000}, "call_1"),
        ("nasty", {"a": "\x7f\u2028" * 7_000}, "call_1"),
        ("nasty", json.dumps({"a": "x" * 200_000}), "call_1"),
        ("nasty", json.dumps({"a": "\u2028" * 11_000}, ensure_ascii=False), "call_1"),
        ("nasty", "x" * 200_000, "call_1"),
        ("x" * 200_000, {}, "call_1"),
        ("\u2028" * 200_000, {}, "call_1"),
        ("nasty", {}, "c" * 200_000),
        ("nasty", {"a": "x" * 32_000}, "\x01" * 20_000),
    ],
    ids=["arguments", "odd", "huge", "separators", "nonsense", "name", "odd name", "id", "all"],
)
async def test_a_tool_call_that_is_too_long_is_cut_down_to_an_event(
    place: Place, name: str, arguments: Any, id: str
) -> None:
    documents = await place.run(*call(name, arguments, id=id), then=say("Done."))
    assert max(map(len, documents)) <= EVENT_BYTES
    found = {each["type"]: each for each in map(json.loads, documents)}
    assert found["tool_call"]["call_id"] == found["tool_result"]["call_id"]
    assert types_of(documents)[-1] == "done"


# ---- writes ---------------------------------------------------------------------------------------------------------


def writes_to(server: LiveServer, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the server writes on this connection from now on, an entry a write."""
    written: list[bytes] = []
    ours = wire.writer.get_extra_info("sockname")
    connections: Any = server.server.server_state.connections
    (transport,) = [each.transport for each in connections if each.transport.get_extra_info("peername")[:2] == ours[:2]]
    original = transport.write

    def write(data: bytes) -> None:
        written.append(bytes(data))
        original(data)

    monkeypatch.setattr(transport, "write", write)
    return written


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "websocket"])
async def test_all_events_that_are_ready_leave_in_one_write(
    place: Place, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = await place.run(*say("x" * 200, 200))
    with anyio.fail_after(WAIT_SECONDS):
        if accept == "websocket":
            reader = await WsReader.connect(place.server)
            written = writes_to(place.server, reader.wire, monkeypatch)
            await reader.attach(run_id_of(documents))
            await reader.until("done")
            reader.close()
        else:
            wire = await Wire.open(place.server)
            await exchange(wire, "GET", "/livez")
            written = writes_to(place.server, wire, monkeypatch)
            await exchange(wire, "GET", events_path(documents), {"Accept": accept})
            wire.cut()
    assert [each.count(b'"seq":') for each in written if b'"seq":' in each] == [3]


# ---- text -----------------------------------------------------------------------------------------------------------

TEXT = {"Accept": "text/plain"}


async def text_reader(place: Place, *steps: Step) -> HttpReader:
    place.upstream.script(*steps)
    return await HttpReader.post(place.server, "/chat/stream", MESSAGE, TEXT)


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_plain_text_is_the_tokens_and_ends_cleanly_when_the_run_is_done(place: Place, reason: str) -> None:
    text = f"Grüße, 😀{NASTY}"
    calls = [*tool_call("nasty", {}), finish("tool_calls")]
    place.upstream.script(role(), reasoning("Not this."), token("Before. "), *calls, Done())
    with anyio.fail_after(WAIT_SECONDS):
        place.upstream.script(*say(text, 7, reason))
        reader = await HttpReader.post(place.server, "/chat/stream", MESSAGE, TEXT)
        assert (await reader.read_all()).decode() == "Before. " + text
    assert reader.has_ended


async def test_plain_text_ends_cleanly_when_the_run_is_cancelled(place: Place) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        async with await text_reader(place, role(), token("So far"), Gate(anyio.Event())) as reader:
            await reader.at_least(6)
            sessions = (await request(place.server, "GET", "/chat/sessions?limit=1")).json["sessions"]
            assert (await cancel(place.server, sessions[0]["active_run_id"])).status == 202
            assert await reader.read_all() == b"So far"
    assert reader.has_ended


async def test_plain_text_of_a_stored_run_is_all_its_text() -> None:
    """Its tokens are merged."""
    text = (f"Grüße, 😀{NASTY}" * 9000)[:90_000]
    async with FakeUpstream() as upstream, live_server(upstream.url, retention_seconds=0.0) as server:
        parts = [token(text[at : at + 50]) for at in range(0, len(text), 50)]
        upstream.script(role(), reasoning("Not this."), *parts, finish(), Done())
        with anyio.fail_after(WAIT_SECONDS):
            documents = await documents_of(await SSE.start(server, MESSAGE))
            reader = await HttpReader.get(server, events_path(documents), TEXT)
            assert (await reader.read_all()).decode() == text
    assert reader.has_ended


def test_plain_text_of_what_a_crash_left_begins_with_the_texts_of_the_snapshot() -> None:
    parts = (ReasoningPart("Not this."), TextPart("Grüße, "), TextPart("😀 "))
    events = (Snapshot(run_id="r", seq=7, parts=parts), Token(run_id="r", seq=8, content="here"))
    assert PlainText().frame([record(each) for each in events]).decode() == "Grüße, 😀 here"


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((role(), token("So far"), Cut()), b"So far"),
        ((role(), token("So far")), b"So far"),
        (refuse(401), b""),
        (refuse(400), b""),
    ],
    ids=["cut", "no reason", "no key", "refused"],
)
async def test_plain_text_is_broken_off_when_the_run_fails(place: Place, steps: Sequence[Step], text: bytes) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        reader = await text_reader(place, *steps)
        assert reader.status == 200
        with pytest.raises(BrokenError):
            await reader.read_all()
    assert bytes(reader.raw) == text
    assert not reader.has_ended


# ---- negotiation ----------------------------------------------------------------------------------------------------

STREAM, LINES, PLAIN = "text/event-stream", "application/x-ndjson", "text/plain"

ACCEPTED: list[tuple[str | None, str]] = [
    (None, STREAM),
    ("", STREAM),
    ("*/*", STREAM),
    ("text/*", STREAM),
    ("application/*", LINES),
    (STREAM, STREAM),
    (LINES, LINES),
    (PLAIN, PLAIN),
    ("Text/PLAIN", PLAIN),
    ("text/event-stream; charset=utf-8", STREAM),
    ("text/plain, text/event-stream", STREAM),
    ("application/x-ndjson, text/event-stream", STREAM),
    ("text/plain;q=0.5, application/x-ndjson;q=0.5, text/event-stream;q=0.5", STREAM),
    ("text/plain;q=0.9, application/x-ndjson", LINES),
    ("text/event-stream;q=0.1, text/plain;q=0.2", PLAIN),
    ("text/event-stream;q=0.999,text/plain;q=1.000", PLAIN),
    ("text/event-stream ; q=0.5 , text/plain ; q=0.6", PLAIN),
    ("text/event-stream;Q=0.1, text/plain;Q=0.2", PLAIN),
    ("text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", STREAM),
    ("application/json, text/plain, */*", STREAM),
    ("text/plain, */*;q=0.1", PLAIN),
    ("*/*;q=0.1, application/x-ndjson", LINES),
    ("text/plain;q=0, */*", STREAM),
    ("text/event-stream;q=0, */*", LINES),
    ("text/*;q=0, */*", LINES),
    ("text/*;q=0.5, application/x-ndjson;q=0.4", STREAM),
    ("image/png, text/plain;q=0.001", PLAIN),
    ("text/plain;q=7, application/x-ndjson", LINES),
    ("text/event-stream;q=-7, text/plain;q=1e400, application/x-ndjson;q=0.999", PLAIN),
    ("text/plain;q=high, application/x-ndjson;q=0.001", LINES),
    ("text/plain;q=, text/event-stream;q=nan, application/x-ndjson;q=0.001", LINES),
]
REFUSED = [
    "application/json",
    "image/*",
    "text/html",
    "text/event-streams",
    "text",
    "text/event-stream;q=0",
    "*/*;q=0",
    "text/*;q=0.0, application/*;q=0.000",
    "application/x-ndjson;q=0, application/json",
]
GARBAGE = [",,,", ";", "/", "*/*;q=", "q=1", "text/plain;q=nan", "text/plain;q=-1", "text/plain;q=1e400", "x" * 5000]
GARBAGE += ["*", "*/plain", "\xff\xfe", "text/plain;q=1;q=0", 'text/plain;a=",";q=0', "," * 5000]


@pytest.mark.parametrize(("accept", "media_type"), ACCEPTED)
async def test_accept_chooses_how_a_stream_is_written(place: Place, accept: str | None, media_type: str) -> None:
    documents = await place.run(*say("x"))
    with anyio.fail_after(WAIT_SECONDS):
        for method, path in (("GET", events_path(documents)), ("POST", "/chat/stream")):
            body = MESSAGE if method == "POST" else None
            response = await request(place.server, method, path, body, {"Accept": accept})
            assert (response.status, response.headers["content-type"].partition(";")[0]) == (200, media_type)


async def test_accept_may_come_in_two_lines(place: Place) -> None:
    headers = [("Accept", "text/html"), ("Accept", "text/plain")]
    with anyio.fail_after(WAIT_SECONDS):
        response = await request(place.server, "POST", "/chat/stream", MESSAGE, headers)
    assert (response.status, response.headers["content-type"].partition(";")[0]) == (200, PLAIN)


@pytest.mark.parametrize("accept", REFUSED)
async def test_an_accept_that_no_format_meets_is_refused_and_starts_nothing(place: Place, accept: str) -> None:
    documents = await place.run(*say("x"))
    asked = len(place.upstream.requests)
    with anyio.fail_after(WAIT_SECONDS):
        newest = (await request(place.server, "GET", "/chat/sessions?limit=1")).json
        for method, path in (("GET", events_path(documents)), ("POST", "/chat/stream")):
            body = MESSAGE if method == "POST" else None
            response = await request(place.server, method, path, body, {"Accept": accept})
            assert response.headers["content-type"] == "application/problem+json"
            assert (response.status, response.json["status"], response.json["code"]) == (406, 406, "not_acceptable")
        assert (await request(place.server, "GET", "/chat/sessions?limit=1")).json == newest
    assert len(place.upstream.requests) == asked


@pytest.mark.parametrize("accept", GARBAGE)
async def test_an_accept_that_makes_no_sense_is_answered_all_the_same(place: Place, accept: str) -> None:
    documents = await place.run(*say("x"))
    with anyio.fail_after(WAIT_SECONDS):
        response = await request(place.server, "GET", events_path(documents), headers={"Accept": accept})
    assert response.status in (200, 406)


# ---- cursors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [STREAM, LINES, PLAIN])
async def test_the_end_of_a_finished_run_is_no_content(place: Place, accept: str) -> None:
    documents = await place.run(*say("x"))
    end = len(documents)
    with anyio.fail_after(WAIT_SECONDS):
        wire = await Wire.open(place.server)
        for headers in ({"Accept": accept}, {"Accept": accept, "Last-Event-ID": str(end)}):
            after = 0 if "Last-Event-ID" in headers else end
            response = await exchange(wire, "GET", events_path(documents, after), headers)
            assert (response.status, response.body) == (204, b"")
            assert "transfer-encoding" not in response.headers
        assert (await exchange(wire, "GET", "/livez")).status == 200
        wire.cut()


@pytest.mark.parametrize("accept", [STREAM, LINES])
async def test_last_event_id_wins_over_after(place: Place, accept: str) -> None:
    documents = await place.run(*say("abcdef", 6))
    for header, after, first in ((3, 0, 4), (0, 5, 1), (5, "nonsense", 6), (2, 999_999, 3)):
        headers = {"Last-Event-ID": str(header), "Accept": accept}
        with anyio.fail_after(WAIT_SECONDS):
            response = await request(place.server, "GET", events_path(documents, after), headers=headers)
        assert response.status == 200
        assert first_seq_of(re.findall(rb"^(?:data: )?({.*)$", response.body, re.MULTILINE)[0]) == first
    with anyio.fail_after(WAIT_SECONDS):
        response = await request(place.server, "GET", events_path(documents), headers={"Last-Event-ID": "nonsense"})
    assert (response.status, response.json["code"]) == (400, "bad_cursor")


async def test_a_stream_without_a_cursor_begins_at_the_start(place: Place) -> None:
    documents = await place.run(*say("x"))
    with anyio.fail_after(WAIT_SECONDS):
        response = await request(place.server, "GET", f"/chat/runs/{run_id_of(documents)}/events")
    assert response.body.count(b"data: ") == len(documents)


# ---- the connection -------------------------------------------------------------------------------------------------


async def exchange(
    wire: Wire,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Response:
    """One request and its whole answer on a connection that lives on."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    wire.write("\r\n".join([*lines, "", ""]).encode() + body)
    data = b""
    while (response := whole_response(data)) is None:
        arrived = await wire.read()
        assert arrived, f"closed after {data!r}"
        data += arrived
    return response


def whole_response(data: bytes) -> Response | None:
    """The answer that these bytes are, once they are all of it and nothing more."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") != "chunked":
        return Response(status, headers, rest) if len(rest) >= int(headers.get("content-length", 0)) else None
    if not rest.endswith(b"0\r\n\r\n"):
        return None
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if len(rest) < length + 2:
            return None
        body, rest = body + rest[:length], rest[length + 2 :]
    return Response(status, headers, body)


@pytest.mark.parametrize("accept", [STREAM, LINES, PLAIN])
async def test_a_connection_is_used_again_after_a_stream_has_ended(place: Place, accept: str) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        wire = await Wire.open(place.server)
        for _ in range(3):
            response = await exchange(wire, "POST", "/chat/stream", {"Accept": accept}, b'{"message": "Hi"}')
            assert response.status == 200 and b"answer" in response.body
            assert (await exchange(wire, "POST", "/chat/stream", {}, b'{"message": ""}')).status == 400
            assert (await exchange(wire, "GET", "/nope")).status == 404
        place.upstream.script(role(), token("So far"), Cut())
        if accept != PLAIN:  # which is broken off
            response = await exchange(wire, "POST", "/chat/stream", {"Accept": accept}, b'{"message": "Hi"}')
            assert b"upstream_truncated" in response.body
        assert (await exchange(wire, "GET", "/livez")).status == 200
        wire.cut()


# ---- WebSocket ------------------------------------------------------------------------------------------------------

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(
    ("offered", "echoed"),
    [
        ((), None),
        ((SUBPROTOCOL,), SUBPROTOCOL),
        (("soap", SUBPROTOCOL), SUBPROTOCOL),
        ((SUBPROTOCOL, "soap"), SUBPROTOCOL),
        (("soap",), None),
        (("chatserver.v2",), None),
        (("CHATSERVER.V1",), None),
    ],
)
async def test_the_subprotocol_is_echoed_when_it_is_offered(
    place: Place, offered: Sequence[str], echoed: str | None
) -> None:
    given = HANDSHAKE | ({"Sec-WebSocket-Protocol": ", ".join(offered)} if offered else {})
    with anyio.fail_after(WAIT_SECONDS):
        async with await HttpReader.open(place.server, "GET", "/chat/ws", None, given) as reader:
            assert reader.status == 101
            assert reader.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            assert reader.headers.get("sec-websocket-protocol") == echoed
        async with await WsReader.connect(place.server, subprotocols=offered) as client:
            assert client.subprotocol == echoed
            assert (await documents_of_ws(client, MESSAGE))[-1]


async def documents_of_ws(reader: WsReader, body: Mapping[str, Any]) -> list[bytes]:
    run_id = await reader.run(body)
    while not (documents := reader.documents_of(run_id)) or not is_terminal(documents[-1]):
        await reader.frame()
    return documents


async def test_compression_is_not_negotiated(place: Place) -> None:
    given = HANDSHAKE | {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    with anyio.fail_after(WAIT_SECONDS):
        async with await HttpReader.open(place.server, "GET", "/chat/ws", None, given) as reader:
            assert reader.status == 101
            assert "sec-websocket-extensions" not in reader.headers


def frames_in(data: bytes) -> list[tuple[int, bytes]]:
    """Frames of a server as first byte and payload; none of them is masked."""
    found = []
    while data:
        size, start = data[1], 2
        assert size < 128
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        found.append((data[0], data[start : start + size]))
        data = data[start + size :]
    return found


async def test_all_that_is_said_is_said_in_whole_text_frames(tmp_path: Path) -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, heartbeat_seconds=0.2) as server:
        upstream.script(Gate(gate), *say(f"ä€😀{NASTY}" * 200, 100))
        with anyio.fail_after(WAIT_SECONDS):
            reader = await WsReader.connect(server)
            for text in ('{"type":"send","message":"x","ref":"€"}', "nonsense", '{"type":"ping"}'):
                reader.send_text(text)
            data = b""
            while b'"type":"done"' not in data:
                data += await reader.wire.read()
                if b'{"type":"ping"}' in data:
                    gate.set()
            reader.cut()
    frames = frames_in(data)
    assert {first for first, _ in frames} == {0x81}
    said = [json.loads(payload) for _, payload in frames]
    assert {each["type"] for each in said} == {"accepted", "rejected", "pong", "ping", "start", "token", "done"}
    numbers = [
        number
        for each in said
        if "seq" in each
        for number in range(each.get("first_seq", each["seq"]), each["seq"] + 1)
    ]
    assert numbers == list(range(1, 103))


async def test_accepted_comes_before_any_event_of_its_run(place: Place) -> None:
    runs = [await place.run(*say("abc", 3)) for _ in range(10)]
    ids = [run_id_of(each) for each in runs]
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(place.server) as reader:
            for number, run_id in enumerate(ids):
                reader.send({"type": "attach", "run_id": run_id, "ref": f"r{number}"})
                reader.send({"type": "send", "message": "Hi", "ref": f"s{number}"})
            seen: dict[str, list[str]] = {}
            while sum("done" in each for each in seen.values()) < 20:
                frame = await reader.frame()
                assert "run_id" in frame.message, frame.raw
                seen.setdefault(frame.message["run_id"], []).append(frame.type)
                if frame.is_answer:
                    assert frame.message.keys() >= {"ref", "run_id"}
    assert len(seen) == 20
    assert all(each[:2] == ["accepted", "start"] and each.count("accepted") == 1 for each in seen.values())
    answers = [each.message["ref"] for each in reader.frames if each.is_answer]
    assert answers == [f"{kind}{number}" for number in range(10) for kind in "rs"]


async def test_only_the_end_of_a_finished_run_is_accepted_as_ended(place: Place) -> None:
    documents = await place.run(*say("x"))
    end = len(documents)
    gate, reached = anyio.Event(), anyio.Event()
    place.upstream.script(role(), token("x"), Reached(reached), Gate(gate), finish(), Done())
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(place.server) as reader:
            assert (await reader.attach(run_id_of(documents), end))["ended"] is True
            reader.send({"type": "ping"})
            assert [(await reader.frame()).type] == ["pong"]
            assert not (await reader.attach(run_id_of(documents), end - 1)).get("ended")
            await reader.until("done")
            run_id = await reader.run(MESSAGE)
            await reader.until("token")
            assert not (await reader.attach(run_id, 2)).get("ended")
            gate.set()
            await reader.until("done")
            assert (await reader.attach(run_id, 3))["ended"] is True


# ---- a browser's own means ------------------------------------------------------------------------------------------

SNIPPET = """
const response = await fetch("/chat/stream", {
  method: "POST",
  headers: {"Content-Type": "application/json"},
  body: JSON.stringify({message, session_id: "abc123"})
});
const reader = response.body.getReader();
const decoder = new TextDecoder();
let buffer = "", answer = "";
while (true) {
  const {done, value} = await reader.read();
  if (done) break;
  buffer += decoder.decode(value, {stream: true});
  const lines = buffer.split("\\n");
  buffer = lines.pop();
  for (const line of lines) {
    if (line.startsWith("data: ")) {
      const data = JSON.parse(line.slice(6));
      if (data.content) answer += data.content;
    }
  }
}
"""

AROUND = """
const [base, message] = process.argv.slice(2);
const fetch = (path, options) => globalThis.fetch(base + path, options);
{snippet}
process.stdout.write(JSON.stringify({{status: response.status, answer}}));
"""


async def test_the_snippet_that_the_field_uses_works_as_it_is(tmp_path: Path) -> None:
    """Node stands for the browser; without it this is skipped, which CI does not allow."""
    try:
        await anyio.run_process(["node", "--version"])
    except FileNotFoundError:
        pytest.skip("node is not installed")
    script = tmp_path / "snippet.mjs"
    script.write_text(AROUND.format(snippet=SNIPPET))
    text = f"Grüße 😀 {NASTY}" * 40
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        for turn in range(2):  # the second one goes on in the session that the first made
            upstream.script(*say(text, 300))
            with anyio.fail_after(2 * WAIT_SECONDS):
                ran = await anyio.run_process(["node", str(script), server.url, f"message {turn}"], check=False)
            assert (ran.returncode, ran.stderr) == (0, b"")
            assert json.loads(ran.stdout) == {"status": 200, "answer": text}
        session = (await request(server, "GET", "/chat/sessions/abc123")).json
    assert [each["content"] for each in session["messages"]] == ["message 0", text, "message 1", text]


# ---- schemas --------------------------------------------------------------------------------------------------------

TOOL_TYPES = {"tool_input", "tool_call", "tool_progress", "tool_result"}
EVENT_TYPES = {"start", "token", "reasoning", *TOOL_TYPES, "snapshot", "done", "error"}
PATHS = {
    "/chat/stream": {"post"},
    "/chat/runs": {"post"},
    "/chat/runs/{run_id}": {"get"},
    "/chat/runs/{run_id}/events": {"get"},
    "/chat/runs/{run_id}/cancel": {"post"},
    "/chat/sessions": {"get"},
    "/chat/sessions/{session_id}": {"get", "patch", "delete"},
    "/livez": {"get"},
    "/readyz": {"get"},
}


async def document_at(server: Address, path: str, *media_types: str) -> Any:
    with anyio.fail_after(WAIT_SECONDS):
        response = await request(server, "GET", path)
    assert (response.status, response.headers["content-type"].partition(";")[0] in media_types) == (200, True)
    return response.json


def references(tree: Any) -> Iterator[str]:
    """All `$ref` in a document."""
    if isinstance(tree, dict):
        if isinstance(tree.get("$ref"), str):
            yield tree["$ref"]
        for each in tree.values():
            yield from references(each)
    elif isinstance(tree, list):
        for each in tree:
            yield from references(each)


def resolved(document: Any, reference: str) -> Any:
    assert reference.startswith("#/"), "a reference that leads out"
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


async def test_every_document_of_a_run_is_valid_by_the_schema_of_events(place: Place) -> None:
    schema = await document_at(place.server, "/schema/events.json", "application/schema+json", "application/json")
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    documents = await place.rich()
    documents += await place.run(role(), token("x"), Cut())
    documents += await place.run(*refuse(429, headers={"Retry-After": "7"}))
    documents += await place.run(*call("unknown", "nonsense"), then=say("x"))
    documents += await documents_of(await SSE.attach(place.server, run_id_of(documents)))
    assert any("first_seq" in json.loads(each) for each in documents)
    documents.append(record(Answer((TextPart("so far"),)).snapshot("r", 7)).data)
    for document in documents:
        validator.validate(json.loads(document))
    assert set(types_of(documents)) == EVENT_TYPES
    for document in documents:
        event = json.loads(document)
        for name in event.keys() - {"first_seq"}:
            with pytest.raises(ValidationError):
                validator.validate({key: value for key, value in event.items() if key != name})


def files_in(*folders: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for folder in folders for each in folder.glob("*.*")}


async def test_the_schemas_that_are_checked_in_are_those_of_the_program(place: Place, tmp_path: Path) -> None:
    with anyio.fail_after(2 * WAIT_SECONDS):
        await anyio.run_process([sys.executable, "-m", "chatserver", "schema", str(tmp_path)], cwd=CLIENTS.parent)
    written, kept = files_in(tmp_path), files_in(CLIENTS, CLIENTS / "web")
    assert set(written) == {"events.json", "asyncapi.json", "events.d.ts", "resources.d.ts"}
    for name, data in written.items():
        assert kept[name] == data, "run `just schema`"
    del written["events.d.ts"], written["resources.d.ts"]
    for name, data in written.items():
        media_types = ("application/schema+json", "application/json")
        assert json.loads(data) == await document_at(place.server, f"/schema/{name}", *media_types)


async def test_openapi_describes_every_call(place: Place) -> None:
    document = await document_at(place.server, "/schema", "application/vnd.oai.openapi+json", "application/json")
    assert document["openapi"].startswith("3.1")
    assert {path: set(document["paths"][path]) for path in PATHS} == PATHS
    for reference in references(document):
        resolved(document, reference)
    for path, method in (("/chat/stream", "post"), ("/chat/runs/{run_id}/events", "get")):
        assert "text/event-stream" in document["paths"][path][method]["responses"]["200"]["content"]
    for path in ("/chat/stream", "/chat/runs"):
        (content,) = document["paths"][path]["post"]["requestBody"]["content"].items()
        assert content[0] == "application/json"
        body = content[1]["schema"]
        fields = body.get("properties") or resolved(document, body["$ref"])["properties"]
        assert set(fields) >= {"message", "session_id", "idempotency_key", "regenerate", "on_disconnect"}


async def test_asyncapi_describes_every_frame(place: Place) -> None:
    document = await document_at(place.server, "/schema/asyncapi.json", "application/json")
    assert document["asyncapi"].startswith("3.")
    for reference in references(document):
        resolved(document, reference)
    (channel,) = document["channels"].values()
    assert channel["address"] == "/chat/ws"
    commands: list[dict[str, Any]] = [
        {"type": "ping"},
        {"type": "send", "message": "Hi", "ref": "r", "on_disconnect": "continue"},
        {"type": "attach", "run_id": "unknown", "after": 0},
        {"type": "detach", "run_id": "unknown"},
        {"type": "cancel", "run_id": "unknown"},
    ]
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(place.server) as reader:
            for command in commands:
                reader.send(command)
            await reader.until("done")
            while sum(each.message["type"] == "rejected" for each in reader.frames) < 3:
                await reader.frame()  # The run may be over sooner than these are looked up.
    said = [each.message for each in reader.frames] + [{"type": "ping"}]
    assert {each["type"] for each in said} >= {"accepted", "rejected", "pong", "start", "token", "done"}
    for message, name in [(each, f"{each['type']}_command") for each in commands] + [(m, m["type"]) for m in said]:
        payload = channel["messages"][name]["payload"]
        schema = {"components": document["components"], "allOf": [payload]}
        Draft202012Validator(schema).validate(message)
        with pytest.raises(ValidationError):
            Draft202012Validator(schema).validate(message | {"type": "nonsense"})
