"""What a model is told of its own turns: word for word what it said, with what it alone understands, however long ago.

An upstream here knows what it has said and was told. Whatever it is asked must be exactly that: in the run, in later
messages, on another branch, after a restart, after a cancel or a crash in the middle of a tool.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import anyio
import pytest

from chatserver.dialogue import INTERRUPTED_CALL, INTERRUPTED_TEXT
from chatserver.providers.api import LEAVINGS_BYTES_LIMIT
from tests.clients import BOTH, SSE, Transport, cancel, documents_of, request
from tests.fake_upstream import Chunk, Done, FakeUpstream, Request, chunk, finish
from tests.live import LiveServer, ServerProcess, live_server
from tests.slow_tools import REFERENCE
from tests.tool_calls import call_ids_of

pytestmark = pytest.mark.anyio

SECONDS = 30.0
each_transport = pytest.mark.parametrize("transport", BOTH, ids=str)

Message = dict[str, Any]


class Turn(NamedTuple):
    """What an upstream streams, and the message that it wants back for that."""

    chunks: Sequence[Chunk]
    message: Message
    results: Sequence[Message] = ()


def call(id: str, a: int, b: int, **fields: Any) -> Message:
    arguments = json.dumps({"a": a, "b": b}, separators=(",", ":"))
    return {"id": id, "type": "function", "function": {"name": "add", "arguments": arguments}} | fields


def assistant(text: str | None, *calls: Message, **fields: Any) -> Message:
    return {"role": "assistant", "content": text} | fields | ({"tool_calls": list(calls)} if calls else {})


def result(id: str, text: str) -> Message:
    return {"role": "tool", "tool_call_id": id, "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def calling(*calls: Message) -> Chunk:
    return chunk({"tool_calls": [{"index": index} | each for index, each in enumerate(calls)]})


def said(text: str) -> Turn:
    return Turn([chunk({"content": text})], assistant(text))


SIGNED = {"extra_content": {"google": {"thought_signature": "c2lnLW9uZQ=="}}}
"""Of parallel calls, Gemini signs the first alone."""

ENCRYPTED = {"type": "reasoning.encrypted", "data": "gAAA", "id": "e1", "format": "openai-responses-v1", "index": 1}
THOUGHT = {"type": "reasoning.text", "text": "hm, so", "signature": "c2ln", "format": "anthropic-claude-v1", "index": 0}
DETAILS = [
    {"type": "reasoning.text", "text": "hm, ", "format": "anthropic-claude-v1", "index": 0},
    {"type": "reasoning.text", "text": "so", "signature": None, "index": 0},
    {"type": "reasoning.text", "text": "", "signature": "c2ln", "index": 0},
    ENCRYPTED,
]

KINDS: dict[str, list[Turn]] = {
    "gemini": [
        Turn(
            [calling(call("f-1", 1, 2) | SIGNED, call("f-2", 3, 4))],
            assistant(None, call("f-1", 1, 2, **SIGNED), call("f-2", 3, 4)),
            [result("f-1", "3"), result("f-2", "7")],
        ),
        Turn([chunk({"content": "Th"}), chunk({"content": "ree"} | SIGNED)], assistant("Three", **SIGNED)),
    ],
    "a-signature-by-itself": [
        Turn(
            [calling(call("f-1", 1, 2)), chunk({"tool_calls": [{"index": 0} | SIGNED]})],
            assistant(None, call("f-1", 1, 2, **SIGNED)),
            [result("f-1", "3")],
        ),
        Turn([chunk({"content": "Three"}), chunk({"content": ""} | SIGNED)], assistant("Three", **SIGNED)),
    ],
    "deepseek": [
        Turn(
            [chunk({"reasoning_content": "h"}), chunk({"reasoning_content": "m"}), calling(call("c", 1, 2))],
            assistant(None, call("c", 1, 2), reasoning_content="hm"),
            [result("c", "3")],
        ),
        Turn([chunk({"reasoning_content": "so"}), chunk({"content": "Three"})], assistant("Three")),
    ],
    "deepseek-without-a-thought": [
        Turn(
            [chunk({"reasoning_content": "hm"}), calling(call("c", 1, 2))],
            assistant(None, call("c", 1, 2), reasoning_content="hm"),
            [result("c", "3")],
        ),
        Turn(
            [chunk({"content": "So. ", "reasoning_content": ""}), calling(call("c2", 3, 4))],
            assistant("So. ", call("c2", 3, 4), reasoning_content=""),
            [result("c2", "7")],
        ),
        Turn(
            [chunk({"reasoning_content": "", "reasoning": "hm"}), calling(call("c3", 5, 6))],
            assistant(None, call("c3", 5, 6), reasoning="hm"),
            [result("c3", "11")],
        ),
        Turn([chunk({"content": "", "reasoning_content": ""}), chunk({"content": "Eleven"})], assistant("Eleven")),
    ],
    "reasoning-by-another-name": [
        Turn(
            [chunk({"reasoning": "hm"}), calling(call("c", 1, 2))],
            assistant(None, call("c", 1, 2), reasoning="hm"),
            [result("c", "3")],
        ),
        said("Three"),
    ],
    "kimi": [
        Turn(
            [calling(call("functions.add:0", 1, 2))],
            assistant(None, call("functions.add:0", 1, 2)),
            [result("functions.add:0", "3")],
        ),
        Turn(
            [calling(call("functions.add:1", 3, 4))],
            assistant(None, call("functions.add:1", 3, 4)),
            [result("functions.add:1", "7")],
        ),
        said("Seven"),
    ],
    "openrouter": [
        Turn(
            [*(chunk({"content": "", "reasoning_details": [each]}) for each in DETAILS), calling(call("c", 1, 2))],
            assistant(None, call("c", 1, 2), reasoning_details=[THOUGHT, ENCRYPTED]),
            [result("c", "3")],
        ),
        Turn(
            [chunk({"content": "Three", "reasoning_details": [THOUGHT]})],
            assistant("Three", reasoning_details=[THOUGHT]),
        ),
    ],
    "turn-by-turn": [
        Turn(
            [chunk({"content": "First. "}), calling(call("a1", 1, 2))],
            assistant("First. ", call("a1", 1, 2)),
            [result("a1", "3")],
        ),
        Turn(
            [chunk({"content": "Then. "}), calling(call("a1", 3, 4))],
            assistant("Then. ", call("a1", 3, 4)),
            [result("a1", "7")],
        ),
        said("Seven"),
    ],
}

OPAQUE = ("extra_content", "reasoning_content", "reasoning", "reasoning_details")


def foreign(messages: Sequence[Message], call_ids: Iterable[str]) -> list[Message]:
    """The same dialogue for another model, which knows the calls by these ids."""
    ids, of_turn, told = iter(call_ids), iter(()), list[Message]()
    for message in messages:
        bare = {name: value for name, value in message.items() if name not in OPAQUE}
        if "tool_calls" in message:
            bare["tool_calls"] = [each | {"id": next(ids)} for each in foreign(message["tool_calls"], ())]
            of_turn = iter([each["id"] for each in bare["tool_calls"]])
        elif message.get("role") == "tool":
            bare["tool_call_id"] = next(of_turn)
        told.append(bare)
    return told


class Stage:
    """A chat with an upstream of one kind, which answers each message with the same turns."""

    def __init__(self, upstream: FakeUpstream, turns: list[Turn]) -> None:
        self.upstream = upstream
        self.turns = turns
        self.answer = [message for turn in turns for message in (turn.message, *turn.results)]

    async def ask(self, server: Any, transport: Transport, **body: Any) -> tuple[str, list[Request]]:
        """Send a message; the user message's id, and what the upstream was asked."""
        for turn in self.turns:
            end = finish("tool_calls" if turn.results else "stop")
            self.upstream.script(*turn.chunks, end, Done())
        begin = len(self.upstream.requests)
        with anyio.fail_after(SECONDS):
            reading = await transport.start(server, {"session_id": "s"} | body)
            start, *_, last = map(json.loads, await documents_of(reading))
        assert last["type"] == "done", last
        return start["user_message_id"], self.upstream.requests[begin:]

    def told(self, before: Sequence[Message], asked: str) -> list[list[Message]]:
        """The messages of each request of a run."""
        requests, messages = [], [*before, user(asked)]
        for turn in self.turns:
            requests.append(messages)
            messages = [*messages, turn.message, *turn.results]
        return requests


def messages_of(requests: Sequence[Request]) -> list[list[Message]]:
    return [each.json["messages"] for each in requests]


@each_transport
@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_is_told_what_it_said(transport: Transport, kind: str, tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        stage = Stage(upstream, KINDS[kind])
        settings: dict[str, Any] = {"directory": tmp_path, "tools": REFERENCE, "model": "m"}
        async with live_server(upstream.url, **settings) as server:
            _, asked = await stage.ask(server, transport, message="One")
            assert messages_of(asked) == stage.told([], "One")
            one = [user("One"), *stage.answer]
            second, asked = await stage.ask(server, transport, message="Two")
            assert messages_of(asked) == stage.told(one, "Two")
            _, asked = await stage.ask(server, transport, regenerate=second)
            assert messages_of(asked) == stage.told(one, "Two")
        two = [*one, user("Two"), *stage.answer]
        async with live_server(upstream.url, **settings) as server:
            _, asked = await stage.ask(server, transport, message="Three")
            assert messages_of(asked) == stage.told(two, "Three")
            three = [*two, user("Three"), *stage.answer]
            ids = await call_ids_of(server)
            _, asked = await stage.ask(server, transport, message="Four", model="another")
            assert messages_of(asked) == stage.told(foreign(three, ids), "Four")
            of_another = (await call_ids_of(server))[len(ids) :]
            four = [*three, user("Four"), *foreign(stage.answer, of_another)]
            _, asked = await stage.ask(server, transport, message="Five")
            assert messages_of(asked) == stage.told(four, "Five")


@each_transport
@pytest.mark.parametrize("kind", ["deepseek", "gemini", "kimi"])
async def test_another_model_server_of_the_same_host_is_told_nothing_foreign(
    transport: Transport, kind: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"directory": tmp_path, "tools": REFERENCE, "model": "m"}
    async with FakeUpstream() as first, FakeUpstream() as second:
        stage = Stage(first, KINDS[kind])
        async with live_server(first.url, **settings) as server:
            await stage.ask(server, transport, message="One")
            before, ids = [user("One"), *stage.answer], await call_ids_of(server)
            session = json.loads((await request(server, "GET", "/chat/sessions/s")).body)
            answer = session["messages"][-1]["message_id"]
        addresses = [
            (first, first.url.replace("//", "//me:secret@") + "/?key=a", before),
            (first, f"{first.url}/other", foreign(before, ids)),
            (second, second.url, foreign(before, ids)),
        ]
        for upstream, url, told in addresses:
            async with live_server(url, **settings) as server:
                _, asked = await Stage(upstream, [said("Two")]).ask(server, transport, message="Two", parent_id=answer)
                assert messages_of(asked) == [[*told, user("Two")]]


HANGING = Turn(
    [
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "Look: "}),
        calling(call("fn:0", 1, 2, **SIGNED), {"id": "fn:1", "function": {"name": "hang", "arguments": "{}"}}),
    ],
    assistant(
        "Look: ",
        call("fn:0", 1, 2, **SIGNED),
        {"id": "fn:1", "type": "function", "function": {"name": "hang", "arguments": "{}"}},
        reasoning_content="hm",
    ),
    [result("fn:0", "3"), result("fn:1", INTERRUPTED_CALL), assistant(INTERRUPTED_TEXT)],
)


@each_transport
async def test_a_call_that_was_cancelled_is_told_with_its_turn(transport: Transport, tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, tools=REFERENCE, directory=tmp_path) as server:
        upstream.script(*HANGING.chunks, finish("tool_calls"), Done())
        with anyio.fail_after(SECONDS):
            reading = await transport.start(server, {"message": "One", "session_id": "s"})
            *_, added = map(json.loads, await reading.take(6))
            assert added["type"] == "tool_result"
            heard = monotonic()
            while (lasted := monotonic() - heard) < 0.005:
                await request(server, "GET", "/chat/sessions/s")
            await cancel(server, added["run_id"])
            *_, cut_off, last = map(json.loads, await documents_of(reading))
        assert last["finish_reason"] == "cancelled" and cut_off["duration_ms"] >= int(lasted * 1000)
        _, asked = await Stage(upstream, [said("Two")]).ask(server, transport, message="Two")
        assert messages_of(asked) == [[user("One"), HANGING.message, *HANGING.results, user("Two")]]


async def test_a_call_that_a_crash_cut_off_is_told_with_its_turn(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*HANGING.chunks, finish("tool_calls"), Done())
        async with ServerProcess(upstream.url, tmp_path, is_forked=True, tools=REFERENCE) as server:
            reading = await SSE.start(server, {"message": "One", "session_id": "s"})
            assert json.loads((await reading.take(6))[-1])["type"] == "tool_result"
            with anyio.fail_after(SECONDS), closing(sqlite3.connect(tmp_path / "chat.db")) as database:
                stored = "SELECT count(*) FROM messages WHERE parts LIKE '%\"result\":3%'"
                while not database.execute(stored).fetchone()[0]:  # noqa: ASYNC110 - a checkpoint tells nobody
                    await anyio.sleep(0.01)
            server.kill()
            await server.wait()
            reading.cut()
            await server.start()
            _, asked = await Stage(upstream, [said("Two")]).ask(server, SSE, message="Two")
            assert messages_of(asked) == [[user("One"), HANGING.message, *HANGING.results, user("Two")]]


@each_transport
async def test_no_client_sees_what_only_the_upstream_understands(transport: Transport) -> None:
    secret = {"google": {"thought_signature": "CANARY"}}
    turns = [
        Turn([calling(call("CANARY:0", 1, 2, extra_content=secret))], {}, [result("", "")]),
        Turn([chunk({"content": "Three", "extra_content": secret, "reasoning_details": [{"data": "CANARY"}]})], {}),
    ]
    async with FakeUpstream() as upstream, live_server(upstream.url, tools=REFERENCE) as server:
        for turn in turns:
            upstream.script(*turn.chunks, finish("tool_calls" if turn.results else "stop"), Done())
        documents = await documents_of(await transport.start(server, {"message": "One", "session_id": "s"}))
        session = await request(server, "GET", "/chat/sessions/s")
        assert "CANARY" not in b"".join(documents).decode() + session.body.decode()
        assert "CANARY" in upstream.requests[1].body.decode()


async def left_of(server: LiveServer, upstream: FakeUpstream, *chunks: Chunk) -> Message:
    """How a turn of one call is told to the turn after it."""
    upstream.script(*chunks, finish("tool_calls"), Done())
    upstream.script(chunk({"content": "Three"}), finish("stop"), Done())
    documents = await documents_of(await SSE.start(server, {"message": "One"}))
    assert json.loads(documents[-1])["type"] == "done"
    message: Message = upstream.requests[-1].json["messages"][1]
    return message


async def test_leavings_without_end_or_of_no_text_are_left_out_and_spoil_nothing() -> None:
    called = calling(call("c", 1, 2))
    detail = {"type": "reasoning.text", "text": "x" * 1000, "index": 0}
    half = Chunk({})
    half.data = b'data: {"choices":[{"delta":{"extra_content":{"a":"\\ud800"}}}]}\n\n'
    async with FakeUpstream() as upstream, live_server(upstream.url, tools=REFERENCE) as server:
        whole = await left_of(server, upstream, chunk({"reasoning_details": [detail] * 100}), called)
        assert whole["reasoning_details"] == [detail | {"text": "x" * 100_000}]
        endless = [chunk({"reasoning_details": [detail] * 100})] * (LEAVINGS_BYTES_LIMIT // 100_000 + 1)
        assert await left_of(server, upstream, *endless, called) == assistant(None, call("c", 1, 2))
        assert await left_of(server, upstream, half, called) == assistant(None, call("c", 1, 2))
        odd = [chunk({"extra_content": [1], "reasoning_details": ["x", None, 1]}), chunk({"reasoning_details": "x"})]
        assert (await left_of(server, upstream, *odd, called))["extra_content"] == [1]
