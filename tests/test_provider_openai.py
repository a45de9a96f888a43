"""The provider against an upstream that does everything real servers were seen doing, to the byte.

Whatever an upstream says, a turn is deltas and one ``Finish``, or deltas and one ``UpstreamError`` of the right code.
No other exception leaves the provider, no text of the upstream is quoted, and nothing stays open.
"""

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import repeat
from time import monotonic, thread_time
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chatserver.dialogue import Dialogue, Leavings, SystemText, ToolSpecification, UserMessage
from chatserver.errors import UpstreamError
from chatserver.events import Reasoning, Token, Usage
from chatserver.providers import (
    WANTED_CALLS_LIMIT,
    Delta,
    Finish,
    ModelRequest,
    ToolCallFragment,
    ToolCallRequest,
    tries,
    turn,
)
from chatserver.providers.chat_completions.turn_decoder import THOUGHTS, TurnDecoder
from chatserver.providers.faults import Fault
from chatserver.providers.provider import OpenAIProvider
from chatserver.upstream.encodings import UNPACKED_BYTES, Unpacker
from tests.fake_upstream import (
    JSON_BODY,
    Chunk,
    Cut,
    Done,
    FakeUpstream,
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
    Wire,
    body_of,
    call,
    chunk,
    counted,
    finish,
    reasoning,
    refuse,
    role,
    say,
    token,
    tool_call,
    tool_fragment,
    usage,
)
from tests.tcp_server import HOST, tcp_server
from tests.turns import ASK, IDLE_SECONDS, KEY, LEAK, PATIENCE_SECONDS, Said, ask, calls_of, fail, text_of, thoughts_of
from tests.virtual_time import Clock, leaping_time

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_certificates")]

HI = Token(content="Hi")
WRITING = ToolCallFragment("c", "f", "{")
STOP = Finish("stop", None)
SILENCE: tuple[Step, ...] = (Pause(IDLE_SECONDS + 1), Hang())
PATIENT_SECONDS = 10.0
SOON_SECONDS = 4.0
DEADLINE_SECONDS = 5.0
"""After so long a turn that cannot begin has failed (PROTOCOL.md)."""


@asynccontextmanager
async def provider_for(
    upstream: FakeUpstream | str, idle_seconds: float = PATIENT_SECONDS, api_key: str | None = KEY
) -> AsyncIterator[OpenAIProvider]:
    url = upstream if isinstance(upstream, str) else upstream.url
    async with OpenAIProvider(api_key=api_key, base_url=url, idle_seconds=idle_seconds) as provider:
        yield provider


@pytest.fixture
async def provider(upstream: FakeUpstream) -> AsyncIterator[OpenAIProvider]:
    async with provider_for(upstream) as provider:
        yield provider


@pytest.fixture
async def clock(upstream: FakeUpstream) -> AsyncIterator[Clock]:
    """The upstream's pauses are leaps of it."""
    with leaping_time(turn, tries) as clock:
        upstream.pause = clock.pause
        yield clock


@pytest.fixture
async def hasty(upstream: FakeUpstream, clock: Clock) -> AsyncIterator[OpenAIProvider]:
    """A provider that loses patience after ``IDLE_SECONDS``."""
    async with provider_for(upstream, IDLE_SECONDS) as provider:
        yield provider


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pauses between the tries of a turn."""
    monkeypatch.setattr(tries, "backoff", lambda: iter([0.0] * tries.RETRIES_LIMIT))


async def read_by_now() -> None:
    """Loopback delivers within the call that sends; a few turns of the loop later its reader has it."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def ignored(_: Delta) -> None:
    pass


async def leave(provider: OpenAIProvider) -> None:
    """A turn that is left at its first delta."""
    with anyio.CancelScope() as scope:
        await provider.stream(ASK, lambda _: scope.cancel())
    assert scope.cancelled_caught


def ids(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Cases with their first column as their name."""
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


def small(delta: dict[str, Any], finish_reason: str | None = None) -> Chunk:
    """A chunk with nothing that is not needed."""
    return Chunk({"choices": [{"delta": delta} | ({"finish_reason": finish_reason} if finish_reason else {})]})


def other_choice(delta: dict[str, Any], finish_reason: str | None = None) -> Chunk:
    """A chunk of a second answer, which nobody has asked for."""
    return Chunk({"choices": [{"index": 1, "delta": delta, "finish_reason": finish_reason}]})


# ---- text that is taken at once -------------------------------------------------------------------------------------


EVERYDAY = {
    "openai": '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","service_tier":"default",'
    '"system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}],'
    '"usage":null,"obfuscation":"x"}',
    "vllm": '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    '{"content":"Hi","reasoning_content":null},"logprobs":null,"finish_reason":null,"token_ids":null}]}',
    "ollama": '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"fp_ollama",'
    '"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null}]}',
    "llama.cpp": '{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hi"}}],"created":1,"id":"c",'
    '"model":"m","system_fingerprint":"b1","object":"chat.completion.chunk"}',
}


@pytest.mark.parametrize("chunk", EVERYDAY.values(), ids=EVERYDAY)
def test_a_token_of_every_server_is_read_the_fast_way(chunk: str) -> None:
    found: list[Said] = []
    decoder = TurnDecoder(found.append)
    assert decoder._read_texts(chunk.encode()) and found == [Token(content="Hi")]
    for field in THOUGHTS:
        assert decoder._read_texts(
            chunk.replace('"content"', f'"{field}"').encode().replace(b',"reasoning_content":null', b"")
        )
    assert found[1:] == [Reasoning(content="Hi")] * len(THOUGHTS)


maybe_text = st.sampled_from([None, "", "Hi", "\0", "\N{GRINNING FACE}", "\ud83d", "\ude00"])
some_delta = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": maybe_text | st.just([{"text": "part"}]),
        "reasoning": maybe_text,
        "reasoning_content": maybe_text,
        "refusal": maybe_text,
        "tool_calls": st.sampled_from([None, [], [{"index": 0, "id": "1", "function": {"name": "f"}}]]),
        "function_call": st.sampled_from([None, {"name": "f"}]),
    },
)
some_choice = st.fixed_dictionaries(
    {},
    optional={
        "delta": some_delta | st.none(),
        "message": some_delta,
        "finish_reason": st.sampled_from([None, "stop", ""]),
        "index": st.sampled_from([None, 0, 1]),
    },
)
some_chunk = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(some_choice, max_size=2) | st.none(),
        "usage": st.sampled_from([None, {"prompt_tokens": 1, "completion_tokens": 2}]),
        "error": st.sampled_from([None, "broken", {}]),
        "object": st.sampled_from([None, "chat.completion.chunk", "error"]),
    },
)


class Slow(TurnDecoder):
    """Reads no chunk in the short way."""

    def _read_texts(self, data: bytes) -> bool:
        return False


@given(st.lists(some_chunk.map(json.dumps) | st.just("[DONE]"), min_size=1, max_size=3))
def test_the_fast_way_reads_what_the_chunk_means(documents: list[str]) -> None:
    one, other = list[Said](), list[Said]()
    decoder, slow = TurnDecoder(one.append), Slow(other.append)
    for document in documents:
        event = (b"", document.encode())
        assert failure_of(decoder, event) == failure_of(slow, event)
    assert one == other
    assert (decoder.pieces, decoder.has_finished, decoder.is_over) == (slow.pieces, slow.has_finished, slow.is_over)


def failure_of(decoder: TurnDecoder, event: tuple[bytes, bytes]) -> str | None:
    try:
        decoder.feed([event])
    except Fault as fault:
        return fault.error.code
    return None


async def test_a_delta_is_told_in_the_callback_of_the_socket_and_wakes_no_task(
    upstream: FakeUpstream, provider: OpenAIProvider
) -> None:
    gates, steps = [anyio.Event() for _ in range(3)], list[Step]()
    for text, gate in zip("abc", gates, strict=True):
        steps += [token(text), Gate(gate)]
    upstream.script(*steps, finish(), Done())
    tasks: list[object] = []

    def on_delta(_: Delta) -> None:
        tasks.append(asyncio.current_task())
        gates[len(tasks) - 1].set()

    with anyio.fail_after(PATIENCE_SECONDS):
        assert await provider.stream(ASK, on_delta) == STOP
    assert tasks[1:] == [None, None], "the first may have come with the head"


@pytest.mark.parametrize("count", [1, 2])
async def test_what_is_raised_at_a_delta_ends_the_turn_and_comes_out(
    upstream: FakeUpstream, provider: OpenAIProvider, count: int
) -> None:
    gate = anyio.Event()
    upstream.always(token("a"), Gate(gate), token("b"), Hang())
    left = count

    def on_delta(_: Delta) -> None:
        nonlocal left
        gate.set()
        left -= 1
        if not left:
            raise LookupError("enough")

    with anyio.fail_after(PATIENCE_SECONDS):
        with pytest.raises(LookupError, match="enough"):
            await provider.stream(ASK, on_delta)
        await upstream.closed(1)
    assert (left, len(upstream.requests)) == (0, 1)


# ---- an ordinary turn -----------------------------------------------------------------------------------------------


async def test_an_answer_is_its_text_and_one_finish_with_usage(
    upstream: FakeUpstream, provider: OpenAIProvider
) -> None:
    upstream.script(*say("Hello there!", 3))
    assert await ask(provider) == [
        Token(content="Hell"),
        Token(content="o th"),
        Token(content="ere!"),
        Finish("stop", Usage(7, 3)),
    ]


async def test_an_answer_is_what_was_said_before_it_ends(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    """Deltas come when the upstream sends them, not when it has finished."""
    gate = anyio.Event()
    upstream.script(token("Hi"), Gate(gate), finish(), Done())
    found: list[Said] = []

    def on_delta(delta: Delta) -> None:
        found.append(delta)
        gate.set()

    with anyio.fail_after(PATIENCE_SECONDS):
        assert await provider.stream(ASK, on_delta) == STOP
    assert found == [HI]


async def test_the_request_is_what_chat_completions_takes(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    tools = [ToolSpecification("clock", "Tell the time.", {"type": "object"})]
    asked: Dialogue = [SystemText("Be kind"), UserMessage("Grüße 👋 \u2028")]
    upstream.script(*say("Hi"))
    await ask(
        provider,
        ModelRequest(model="m/1", messages=asked, tools=tools, temperature=0.5, max_output_tokens=99),
    )
    request = await upstream.next_request()
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    body = request.json
    limit = {name: body.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in body}
    assert list(limit.values()) == [99]
    assert body == {
        "model": "m/1",
        "messages": [
            {"role": "system", "content": "Be kind"},
            {"role": "user", "content": "Grüße 👋 \u2028"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [
            {
                "type": "function",
                "function": {"name": "clock", "description": "Tell the time.", "parameters": {"type": "object"}},
            }
        ],
        "temperature": 0.5,
    }


async def test_what_is_not_asked_for_is_not_sent(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    """OpenAI refuses an empty list of tools, and many models any temperature."""
    upstream.script(*say("Hi"))
    await ask(provider)
    assert set(upstream.requests[0].json) == {"model", "messages", "stream", "stream_options"}


async def test_temperature_zero_is_sent(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(*say("Hi"))
    await ask(provider, ModelRequest(model="m", messages=[], temperature=0.0))
    assert upstream.requests[0].json["temperature"] == 0


async def test_a_server_without_keys_is_asked_without_one(upstream: FakeUpstream) -> None:
    upstream.script(*say("Hi"))
    async with provider_for(upstream, api_key=None) as provider:
        assert text_of(await ask(provider)) == "Hi"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_model_on_this_machine_is_asked_past_any_proxy(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5h://127.0.0.1:9")
    upstream.always(*say("Hi"))
    async with provider_for(upstream.url.replace("127.0.0.1", host)) as provider:
        assert text_of(await ask(provider)) == "Hi"


async def test_a_client_that_cannot_be_made_fails_turns_and_not_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://x")
    async with provider_for("https://no-such-host.invalid/v1") as provider:
        await provider.warm_up()
        assert "no model server can be asked" in caplog.text
        with pytest.raises(ValueError, match="nonsense"):
            await ask(provider)


async def test_turns_use_one_connection_one_after_the_other(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    """A new connection is a TLS handshake before the first token."""
    upstream.always(*say("Hi", 2))
    for _ in range(5):
        await ask(provider)
    assert upstream.connections_made == 1
    assert upstream.cuts == []


async def test_turns_run_beside_each_other_without_a_queue(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    count, gate, answers = 300, anyio.Event(), dict[int, str]()

    def echo(reply: Reply) -> list[Step]:
        return [token(reply.request.json["messages"][0]["content"]), Gate(gate), token("!"), finish(), Done()]

    async def one(number: int) -> None:
        answers[number] = text_of(await ask(provider, ModelRequest(model="m", messages=[UserMessage(str(number))])))

    upstream.always(echo)
    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
        await upstream.until(lambda: upstream.active == count)
        gate.set()
    assert answers == {number: f"{number}!" for number in range(count)}


async def test_a_long_answer_is_read_in_the_time_of_its_bytes(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(*[token("word ")] * 20_000, finish(), Done())
    began = thread_time()  # What a loaded machine has no part in.
    assert text_of(await ask(provider)) == "word " * 20_000
    assert thread_time() - began < 10


# ---- bytes to events ------------------------------------------------------------------------------------------------

FAMILY = "👩‍👩‍👧"
SPLIT_STEPS: list[Step] = [
    Raw(b": hello\n\n"),
    small({"role": "assistant", "content": ""}),
    small({"reasoning_content": "hm"}),
    small({"content": f"é{FAMILY}"}),
    *(
        Chunk({"choices": [{"delta": {"tool_calls": [{"index": 0, "id": id, "function": function}]}}]})
        for id, function in (("c", {"name": "f", "arguments": '{"a":'}), (None, {"arguments": '"€"}'}))
    ),
    small({}, "tool_calls"),
    Chunk({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
    Done(),
]
SPLIT_BODY = body_of(SPLIT_STEPS)
SPLIT_DELTAS: list[Said] = [
    Reasoning(content="hm"),
    Token(content=f"é{FAMILY}"),
    ToolCallFragment("c", "f", '{"a":'),
    ToolCallFragment("c", "f", '"€"}'),
    ToolCallRequest("c", "f", '{"a":"€"}'),
    Finish("tool_calls", Usage(1, 2)),
]


def finished(deltas: Sequence[Said], upstream: FakeUpstream, calls: int, **left: Any) -> list[Said]:
    """The deltas, where the last one says with how many calls the turn has finished, and what it has left."""
    *others, last = deltas
    assert isinstance(last, Finish)
    leavings = Leavings(f"chat_completions {upstream.url} test-model", {"message": left, "calls": [{}] * calls})
    return [*others, replace(last, leavings=leavings)]


LINE_ENDS = pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])


@LINE_ENDS
async def test_every_split_in_two_gives_the_same_deltas(
    upstream: FakeUpstream, provider: OpenAIProvider, line_end: bytes
) -> None:
    body = SPLIT_BODY.replace(b"\n", line_end)
    for at in range(1, len(body)):
        upstream.script(Pieces((body[:at], body[at:])))
        assert await ask(provider) == finished(SPLIT_DELTAS, upstream, 1, reasoning_content="hm"), f"split at byte {at}"


@LINE_ENDS
@pytest.mark.parametrize("close", [False, True], ids=["chunked", "close-delimited"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_a_reply_in_pieces_of_any_size_gives_the_same_deltas(
    upstream: FakeUpstream, provider: OpenAIProvider, line_end: bytes, close: bool, size: int
) -> None:
    body = SPLIT_BODY.replace(b"\n", line_end)
    upstream.script(
        Status(close=close), Pieces(tuple(body[start : start + size] for start in range(0, len(body), size)))
    )
    assert await ask(provider) == finished(SPLIT_DELTAS, upstream, 1, reasoning_content="hm")


HI_JSON = json.dumps(token("Hi").document).encode()
END = finish().data + Done().data


@pytest.mark.parametrize(
    "body",
    ids(
        [
            ("a-byte-order-mark", b"\xef\xbb\xbfdata: " + HI_JSON + b"\n\n" + END),
            ("comments-everywhere", b":\n: a\ndata: " + HI_JSON + b"\n: b\n\n:\n\n" + END),
            ("event-lines", b"event: message\ndata: " + HI_JSON + b"\n\n" + END),
            ("event-names-of-others", b"event: chunk\ndata: " + HI_JSON + b"\n\n" + END),
            ("id-and-retry", b"id: 7\nretry: 10\ndata: " + HI_JSON + b"\n\n" + END),
            ("no-space-after-the-colon", b"data:" + HI_JSON + b"\n\n" + END.replace(b"data: ", b"data:")),
            ("data-on-many-lines", b"data: " + HI_JSON.replace(b", ", b",\ndata: ") + b"\n\n" + END),
            ("unknown-fields", b"foo: bar\nfoo\ndata: " + HI_JSON + b"\n\n" + END),
            ("blank-lines", b"\n\n\n\ndata: " + HI_JSON + b"\n\n\n\n" + END),
            ("mixed-line-ends", b"data: " + HI_JSON + b"\r\n\ndata: " + HI_JSON[:0] + END[6:]),
            ("no-blank-line-at-the-end", b"data: " + HI_JSON + b"\n\n" + finish().data.rstrip(b"\n")),
            ("no-line-end-after-done", b"data: " + HI_JSON + b"\n\n" + END.rstrip(b"\n")),
            ("json-with-white-space", b"data:   " + HI_JSON + b"  \n\n" + END),
        ]
    ),
)
async def test_whatever_sse_allows_is_understood(upstream: FakeUpstream, provider: OpenAIProvider, body: bytes) -> None:
    upstream.script(Raw(body))
    assert await ask(provider) == [HI, STOP]


@pytest.mark.parametrize("content_type", ["text/event-stream; charset=utf-8", "Text/Event-Stream", None])
async def test_a_stream_is_a_stream_however_its_type_is_written(
    upstream: FakeUpstream, provider: OpenAIProvider, content_type: str | None
) -> None:
    headers = (("Content-Type", content_type),) if content_type else ()
    upstream.script(Status(200, headers), token("Hi"), finish(), Done())
    assert await ask(provider) == [HI, STOP]


async def test_half_a_megabyte_in_one_chunk_is_a_chunk(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(token("x" * 500_000), finish(), Done())
    assert len(text_of(await ask(provider))) == 500_000


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("identity", bytes),
        ("gzip", lambda body: b"".join([gzip.compress(body[at : at + 50]) for at in range(0, len(body), 50)])),
    ],
)
async def test_a_compressed_stream_is_read(
    upstream: FakeUpstream, provider: OpenAIProvider, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    packed = compress(body_of(say("x" * 300_000)))
    for size in (len(packed), max(1, len(packed) // 50)):
        pieces = Pieces(tuple(packed[at : at + size] for at in range(0, len(packed), size)))
        upstream.script(Status(200, (("Content-Encoding", encoding),)), pieces)
        assert text_of(await ask(provider)) == "x" * 300_000


def test_a_small_body_is_never_unpacked_to_a_large_one_at_once() -> None:
    body = bytes(10_000_000)
    pieces = list(Unpacker("gzip").feed(gzip.compress(body)))
    assert max(map(len, pieces)) == UNPACKED_BYTES and b"".join(pieces) == body


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "nonsense"])
async def test_an_encoding_that_is_not_read_is_named_and_not_tried_again(
    upstream: FakeUpstream, provider: OpenAIProvider, encoding: str
) -> None:
    upstream.always(Status(200, (("Content-Encoding", encoding),)), Raw(b"\x0b\x02\x80abc\x03"))
    _, error = await fail(provider)
    assert (error.code, error.retryable) == ("llm_error", False) and encoding in error.message
    assert len(upstream.requests) == 1
    await upstream.idle()


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "nonsense"])
async def test_a_stream_that_cannot_be_unpacked_is_an_upstream_error(
    upstream: FakeUpstream, provider: OpenAIProvider, encoding: str
) -> None:
    upstream.always(Status(200, (("Content-Encoding", encoding),)), Raw(b"\x00\x01nothing packed\n\n" * 9))
    await fail(provider)


# ---- text -----------------------------------------------------------------------------------------------------------


def escaped(text: str, field: str = "content") -> Raw:
    """A token whose text is written as it stands, escapes and all."""
    return Raw(b'data: {"choices":[{"delta":{"%s":"%s"}}]}\n\n' % (field.encode(), text.encode()))


@pytest.mark.parametrize(
    ("chunks", "expected"),
    ids(
        [
            ("a-pair", [r"a\ud83d\ude00b"], "a😀b"),
            ("a-pair-over-two-chunks", [r"a\ud83d", r"\ude00b"], "a😀b"),
            ("a-lone-high", [r"a\ud83db"], "a\ufffdb"),
            ("a-lone-low", [r"a\ude00b"], "a\ufffdb"),
            ("a-high-and-then-a-letter", [r"a\ud83d", "b"], "a\ufffdb"),
            ("a-high-at-the-end", [r"a\ud83d"], "a\ufffd"),
            ("two-highs", [r"\ud83d\ud83d\ude00"], "\ufffd😀"),
            ("low-before-high", [r"\ude00\ud83d"], "\ufffd\ufffd"),
            ("nul-that-postgresql-refuses", [r"a\u0000b"], "a\ufffdb"),
            ("line-separators", ["a\u2028\u2029\x85b"], "a\u2028\u2029\x85b"),
            ("joined-emoji-over-chunks", list(FAMILY), FAMILY),
            ("combining-marks-over-chunks", ["e", "\u0301"], "e\u0301"),
            ("a-line-end-in-the-text", [r"a\r\n\ndata: b"], "a\r\n\ndata: b"),
        ]
    ),
)
async def test_text_is_what_was_meant_and_always_utf8(
    upstream: FakeUpstream, provider: OpenAIProvider, chunks: list[str], expected: str
) -> None:
    upstream.script(*map(escaped, chunks), finish(), Done())
    deltas = await ask(provider)
    for delta in deltas:
        if isinstance(delta, Token):
            delta.content.encode()
    assert text_of(deltas) == expected


@pytest.mark.parametrize("where", ["reasoning_content", "name", "arguments"])
async def test_a_lone_surrogate_is_harmless_wherever_it_comes(
    upstream: FakeUpstream, provider: OpenAIProvider, where: str
) -> None:
    if where == "reasoning_content":
        upstream.script(escaped(r"a\ud83d", where), finish(), Done())
        deltas = await ask(provider)
        assert thoughts_of(deltas) == "a\ufffd"
        return
    function = json.dumps({"name": "f", "arguments": "{}"} | {where: "SURROGATE"}).replace("SURROGATE", r"a\udc00")
    upstream.script(
        Raw(
            b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":%s}]}}]}\n\n' % function.encode()
        ),
        finish("tool_calls"),
        Done(),
    )
    (made,) = calls_of(await ask(provider))
    assert "\ufffd" in getattr(made, where)


@pytest.mark.parametrize("where", ["id", "name"])
async def test_a_tool_call_holds_no_nul_either(upstream: FakeUpstream, provider: OpenAIProvider, where: str) -> None:
    upstream.script(
        tool_fragment(0, **({"id": "c", "name": "f"} | {where: "a\0b"}), arguments="{}"), finish("tool_calls"), Done()
    )
    (made,) = calls_of(await ask(provider))
    assert "\0" not in made.call_id + made.name


@pytest.mark.parametrize(
    "text",
    [b"a\xffb", b"a\xc3", b"a\xf0\x9f\x98", b"\xc0\xaf", b"\xed\xa0\xbd", b"a\x80b"],
    ids=["a-wrong-byte", "half-a-letter", "half-an-emoji", "overlong", "a-surrogate", "a-continuation"],
)
async def test_bytes_that_are_no_utf8_spoil_a_character_or_end_the_turn_cleanly(
    upstream: FakeUpstream, provider: OpenAIProvider, text: bytes
) -> None:
    upstream.script(Raw(b'data: {"choices":[{"delta":{"content":"' + text + b'"}}]}\n\n'), finish(), Done())
    try:
        found = text_of(await ask(provider))
    except UpstreamError as error:
        assert error.code == "llm_error"  # noqa: PT017 - either answer is right
    else:
        assert "\ufffd" in found


async def test_wrong_bytes_in_a_comment_do_not_matter(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(Raw(b": \xff\xfe\n\n"), token("Hi"), finish(), Done())
    assert await ask(provider) == [HI, STOP]


# ---- deltas of every shape ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    ids(
        [
            ("role", [role()]),
            ("no-choices", [Chunk({"choices": []})]),
            ("choices-null", [Chunk({"choices": None})]),
            ("no-choices-field", [Chunk({"id": "x"})]),
            ("empty-object", [Chunk({})]),
            ("delta-null", [chunk(None)]),
            ("no-delta", [Chunk({"choices": [{"index": 0}]})]),
            ("delta-empty", [chunk({})]),
            ("content-null", [token(None)]),
            ("content-empty", [token("")]),
            ("content-parts-empty", [chunk({"content": []})]),
            ("reasoning-null", [chunk({"reasoning": None, "reasoning_content": None})]),
            ("reasoning-empty", [reasoning("")]),
            ("tool-calls-null", [chunk({"tool_calls": None})]),
            ("tool-calls-empty", [chunk({"tool_calls": []})]),
            ("error-null", [Chunk({"error": None, "choices": []})]),
            ("error-empty", [Chunk({"error": "", "choices": []})]),
            ("error-empty-object", [Chunk({"error": {}, "choices": []})]),
            ("error-false", [Chunk({"error": False, "choices": []})]),
            ("reasoning-an-object", [chunk({"reasoning": {"effort": "low"}})]),
            ("azure-filter-results", [Chunk({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]})]),
            ("another-choice", [other_choice({"content": "No"})]),
            ("the-end-of-another-choice", [other_choice({}, "stop")]),
            ("not-a-number", [Raw(b'data: {"choices":[{"delta":{"content":""},"logprobs":NaN}]}\n\n')]),
            ("infinities", [Raw(b'data: {"choices":[],"usage":{"x":[Infinity,-Infinity]}}\n\n')]),
            ("nothing-but-not-a-number", [Raw(b"data: NaN\n\n")]),
            ("unknown-fields", [Chunk({"choices": [{"delta": {"x": [1]}, "y": {}}], "z": "obfuscation"})]),
        ]
    ),
)
async def test_chunks_that_say_nothing_are_passed_over(
    upstream: FakeUpstream, provider: OpenAIProvider, steps: list[Step]
) -> None:
    upstream.script(*steps, token("Hi"), *steps, finish(), Done())
    assert await ask(provider) == [HI, STOP]


async def test_of_several_choices_the_first_is_the_answer(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    both = [{"index": 1, "delta": {"content": "No"}}, {"index": 0, "delta": {"content": "Hi"}}]
    upstream.script(Chunk({"choices": both}), other_choice({"content": "No"}), finish(), Done())
    assert await ask(provider) == [HI, STOP]


async def test_text_beside_no_number_is_text(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(Raw(b'data: {"choices":[{"delta":{"content":"Hi"},"logprobs":NaN}]}\n\n'), finish(), Done())
    assert await ask(provider) == [HI, STOP]


async def test_content_in_parts_is_their_text(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    upstream.script(chunk({"content": parts}), finish(), Done())
    assert text_of(await ask(provider)) == "Hi"


async def test_thinking_among_the_parts_is_reasoning(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    upstream.script(chunk({"content": [thinking, {"type": "text", "text": "Hi"}]}), finish(), Done())
    assert await ask(provider) == [Reasoning(content="hm"), HI, STOP]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_comes_under_either_name(upstream: FakeUpstream, provider: OpenAIProvider, field: str) -> None:
    upstream.script(reasoning("Let me ", field), reasoning("think", field), token("Hi"), finish(), Done())
    assert await ask(provider) == [Reasoning(content="Let me "), Reasoning(content="think"), HI, STOP]


async def test_reasoning_under_both_names_comes_once(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(chunk({"reasoning": "hm", "reasoning_content": "hm"}), token("Hi"), finish(), Done())
    assert await ask(provider) == [Reasoning(content="hm"), HI, STOP]


async def test_reasoning_and_text_of_one_chunk_both_count(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(chunk({"reasoning": "hm", "content": "Hi"}), finish(), Done())
    assert await ask(provider) == [Reasoning(content="hm"), HI, STOP]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("eos", "stop"),
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("something_new", "stop"),
        ("STOP", "stop"),
        ("FinishReason.STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("max_output_tokens", "length"),
        ("model_length", "length"),
        ("model_context_window_exceeded", "length"),
        ("SAFETY", "content_filter"),
        ("content_filter: PROHIBITED_CONTENT", "content_filter"),
        ("sensitive", "content_filter"),
        ("RECITATION", "content_filter"),
        ("refusal", "content_filter"),
    ],
)
async def test_a_finish_reason_is_one_of_ours(
    upstream: FakeUpstream, provider: OpenAIProvider, said: str, reason: str
) -> None:
    upstream.script(token("Hi"), finish(said), Done())
    assert await ask(provider) == [HI, Finish(reason, None)]  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_an_answer_that_was_cut_short_calls_no_half_tool(
    upstream: FakeUpstream, provider: OpenAIProvider, reason: str
) -> None:
    upstream.script(token("Hi"), tool_fragment(0, "c", "clock", '{"zo'), finish(reason), Done())
    deltas = await ask(provider)
    assert deltas[-1] == Finish(reason, None)  # type: ignore[arg-type]
    assert calls_of(deltas) == []


async def test_the_finish_may_come_with_the_last_text(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(chunk({"content": "Hi"}, "stop"), Done())
    assert await ask(provider) == [HI, STOP]


@pytest.mark.parametrize(
    ("steps", "expected"),
    ids(
        [
            ("in-a-chunk-without-choices", [finish(), usage(3, 4)], Usage(3, 4)),
            ("in-the-last-chunk", [finish(usage=counted(3, 4))], Usage(3, 4)),
            ("before-the-finish", [usage(3, 4), finish()], Usage(3, 4)),
            (
                "in-every-chunk",
                [chunk({}, usage=counted(3, 1)), chunk({}, usage=counted(3, 2)), finish(), usage(3, 4)],
                Usage(3, 4),
            ),
            ("null-and-then-some", [chunk({}, usage=None), finish(usage=None), usage(3, 4)], Usage(3, 4)),
            ("some-and-then-null", [chunk({}, usage=counted(3, 4)), finish(), chunk({}, usage=None)], Usage(3, 4)),
            ("choices-null", [finish(), Chunk({"choices": None, "usage": counted(3, 4)})], Usage(3, 4)),
            ("no-choices-field", [finish(), Chunk({"usage": counted(3, 4)})], Usage(3, 4)),
            (
                "with-details",
                [finish(), Chunk({"choices": [], "usage": counted(3, 4) | {"prompt_tokens_details": {"cached": 1}}})],
                Usage(3, 4),
            ),
            ("zero", [finish(), usage(0, 0)], None),
            ("zero-behind-some", [finish(), usage(3, 4), usage(0, 0)], Usage(3, 4)),
            ("nothing-written", [finish(), usage(3, 0)], None),
            ("groq", [Chunk(finish().document | {"x_groq": {"id": "x", "usage": counted(3, 4)}})], Usage(3, 4)),
            ("of-the-choice", [Chunk({"choices": [{"delta": {}, "usage": counted(3, 4)}]}), finish()], Usage(3, 4)),
            ("other-names", [finish(), Chunk({"usage": {"input_tokens": 3, "output_tokens": 4}})], Usage(3, 4)),
            ("unbelievable", [finish(), usage(3, 10**30)], None),
            ("a-list", [finish(), Chunk({"choices": [], "usage": [1]})], None),
            ("missing", [finish()], None),
            ("null", [finish(usage=None)], None),
            ("empty", [finish(), Chunk({"choices": [], "usage": {}})], None),
            ("of-null", [finish(), Chunk({"choices": [], "usage": {"prompt_tokens": None}})], None),
            ("fractions", [finish(), Chunk({"choices": [], "usage": counted(3.0, 4.0)})], Usage(3, 4)),
            ("negative", [finish(), usage(-3, 4)], None),
            ("text", [finish(), Chunk({"choices": [], "usage": counted("3", "4")})], None),
        ]
    ),
)
async def test_usage_is_found_wherever_it_comes(
    upstream: FakeUpstream, provider: OpenAIProvider, steps: list[Step], expected: Usage | None
) -> None:
    upstream.script(token("Hi"), *steps, Done())
    assert await ask(provider) == [HI, Finish("stop", expected)]


# ---- tool calls -----------------------------------------------------------------------------------------------------

A = ("a", "clock", '{"zone":"UTC"}')
B = ("b", "sum", '{"x":[1,2]}')
ANONYMOUS: list[tuple[str | None, str, str]] = [(None, *A[1:]), (None, *B[1:])]


def fragments_of_old_kind() -> list[Step]:
    return [
        chunk({"function_call": {"name": "clock", "arguments": '{"zone":'}}),
        chunk({"function_call": {"arguments": '"UTC"}'}}),
        finish("function_call"),
    ]


TOOL_CASES: list[tuple[str, list[Step], list[tuple[str | None, str, str]]]] = [
    ("whole", [tool_fragment(0, *A)], [A]),
    ("in-fragments", [*tool_call(A[1], A[2], id="a", pieces=5)], [A]),
    (
        "one-after-the-other",
        [*tool_call(A[1], A[2], id="a"), *tool_call(B[1], B[2], id="b", index=1, pieces=3)],
        [A, B],
    ),
    (
        "interleaved",
        [
            tool_fragment(0, "a", "clock", ""),
            tool_fragment(1, "b", "sum", ""),
            tool_fragment(1, arguments='{"x":'),
            tool_fragment(0, arguments='{"zone":'),
            tool_fragment(1, arguments="[1,2]}"),
            tool_fragment(0, arguments='"UTC"}'),
        ],
        [A, B],
    ),
    (
        "both-in-one-chunk",
        [
            chunk(
                {
                    "tool_calls": [
                        {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": args}}
                        for index, (id, name, args) in enumerate((A, B))
                    ]
                }
            )
        ],
        [A, B],
    ),
    ("indexes-with-a-gap", [tool_fragment(2, *A), tool_fragment(7, *B)], [A, B]),
    ("indexes-backwards", [tool_fragment(1, *A), tool_fragment(0, *B)], [A, B]),
    ("both-with-index-0", [tool_fragment(0, *A), tool_fragment(0, *B)], [A, B]),
    (
        "without-index-by-id",
        [
            tool_fragment(None, "a", "clock", '{"zone":'),
            tool_fragment(None, "b", "sum", '{"x":'),
            tool_fragment(None, "a", arguments='"UTC"}'),
            tool_fragment(None, "b", arguments="[1,2]}"),
        ],
        [A, B],
    ),
    (
        "without-index-id-only-first",
        [
            tool_fragment(None, "a", "clock", '{"zone":'),
            tool_fragment(None, arguments='"UTC"}'),
            tool_fragment(None, "b", "sum", '{"x":'),
            tool_fragment(None, arguments="[1,2]}"),
        ],
        [A, B],
    ),
    ("without-id", [tool_fragment(0, None, *A[1:]), tool_fragment(1, None, *B[1:])], [(None, *A[1:]), (None, *B[1:])]),
    (
        "without-id-in-fragments",
        [
            tool_fragment(0, None, "clock", '{"zone":'),
            tool_fragment(1, None, "sum", '{"x":'),
            tool_fragment(0, arguments='"UTC"}'),
            tool_fragment(1, arguments="[1,2]}"),
        ],
        [(None, *A[1:]), (None, *B[1:])],
    ),
    (
        "without-index-and-id",
        [tool_fragment(None, None, *A[1:]), tool_fragment(None, None, *B[1:])],
        [(None, *A[1:]), (None, *B[1:])],
    ),
    (
        "the-same-without-index-and-id-twice",
        [tool_fragment(None, None, *A[1:]), tool_fragment(None, None, *A[1:])],
        [(None, *A[1:]), (None, *A[1:])],
    ),
    (
        "id-in-a-later-fragment",
        [tool_fragment(0, None, "clock", ""), tool_fragment(0, "a", arguments=A[2])],
        [(None, *A[1:])],
    ),
    (
        "id-and-name-in-every-fragment",
        [tool_fragment(0, "a", "clock", piece) for piece in ('{"zo', 'ne":', '"UTC"}')],
        [A],
    ),
    (
        "name-in-every-fragment",
        [tool_fragment(0, "a", "clock", '{"zo'), tool_fragment(0, None, "clock", 'ne":"UTC"}')],
        [A],
    ),
    (
        "name-in-pieces",
        [
            tool_fragment(0, "a", "clo", ""),
            tool_fragment(0, None, "ck", '{"zo'),
            tool_fragment(0, None, None, 'ne":"UTC"}'),
        ],
        [A],
    ),
    (
        "name-in-pieces-and-whole",
        [tool_fragment(0, "a", "clo", ""), tool_fragment(0, "a", "ck", ""), tool_fragment(0, "a", "clock", A[2])],
        [A],
    ),
    (
        "name-in-pieces-that-grow",
        [
            tool_fragment(0, "a", "clo", ""),
            tool_fragment(0, "a", "clock", ""),
            tool_fragment(0, "a", "clock", A[2]),
        ],
        [A],
    ),
    (
        "id-empty-in-later-fragments",
        [
            tool_fragment(0, "a", "clock", '{"zone":'),
            chunk({"tool_calls": [{"index": 0, "id": "", "function": {"name": "", "arguments": '"UTC"}'}}]}),
        ],
        [A],
    ),
    (
        "nulls-in-later-fragments",
        [
            tool_fragment(0, "a", "clock", '{"zone":'),
            chunk(
                {
                    "tool_calls": [
                        {"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": '"UTC"}'}}
                    ]
                }
            ),
        ],
        [A],
    ),
    ("without-id-both-with-index-0", [tool_fragment(0, None, *A[1:]), tool_fragment(0, None, *B[1:])], ANONYMOUS),
    ("id-empty-both-with-index-0", [tool_fragment(0, "", *A[1:]), tool_fragment(0, "", *B[1:])], ANONYMOUS),
    (
        "id-decides-where-an-index-is-missing",
        [
            tool_fragment(0, "a", "clock", '{"zone":'),
            tool_fragment(1, *B),
            tool_fragment(None, "a", arguments='"UTC"}'),
        ],
        [A, B],
    ),
    ("id-a-number", [tool_fragment(0, 7, *A[1:])], [("7", *A[1:])]),
    ("arguments-as-an-object", [tool_fragment(0, "a", "clock", {"zone": "UTC"})], [A]),
    ("arguments-null", [tool_fragment(0, "a", "clock", None)], [("a", "clock", "")]),
    ("arguments-broken", [tool_fragment(0, "a", "clock", '{"zone"')], [("a", "clock", '{"zone"')]),
    ("text-before", [token("Hi"), tool_fragment(0, *A)], [A]),
    ("text-after", [tool_fragment(0, *A), token("Hi")], [A]),
    (
        "the-same-id-twice-under-two-indexes",
        [tool_fragment(0, *A), tool_fragment(1, "a", *B[1:])],
        [("a", *A[1:]), (None, *B[1:])],
    ),
]


@pytest.mark.parametrize("reason", ["tool_calls", "stop", "function_call", "eos"])
@pytest.mark.parametrize(("steps", "expected"), ids(TOOL_CASES))
async def test_tool_calls_are_put_together(
    upstream: FakeUpstream,
    provider: OpenAIProvider,
    steps: list[Step],
    expected: list[tuple[str | None, str, str]],
    reason: str,
) -> None:
    upstream.script(role(), *steps, finish(reason), Done())
    deltas = await ask(provider)
    made = calls_of(deltas)
    assert [(each.name, _canonical(each.arguments)) for each in made] == [
        (name, _canonical(arguments)) for _, name, arguments in expected
    ]
    for each, (id, _, _) in zip(made, expected, strict=True):
        assert id in (None, each.call_id)
        assert 1 <= len(each.call_id) <= 64
        assert each.call_id.replace("-", "").replace("_", "").isalnum()
    assert len({each.call_id for each in made}) == len(made)
    assert deltas[-1:] == finished([Finish("tool_calls", None)], upstream, len(made))
    assert deltas[-1 - len(made) : -1] == made


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments))
    except ValueError:
        return arguments


async def test_a_function_call_of_the_old_kind_is_a_tool_call(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(*fragments_of_old_kind(), Done())
    deltas = await ask(provider)
    (made,) = calls_of(deltas)
    assert (made.name, made.arguments) == A[1:]
    assert made.call_id
    assert deltas[-1:] == finished([Finish("tool_calls", None)], upstream, 1)


async def test_arguments_cut_at_every_character_are_the_same(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    arguments = json.dumps({"text": 'a"\\\n€😀', "n": [1, {"b": None}]}, ensure_ascii=False)
    for at in range(len(arguments) + 1):
        upstream.script(
            tool_fragment(0, "c", "f", arguments[:at]), tool_fragment(0, arguments=arguments[at:]), finish("tool_calls")
        )
        assert calls_of(await ask(provider)) == [ToolCallRequest("c", "f", arguments)]


async def test_made_up_ids_differ_between_turns(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.always(tool_fragment(0, None, "clock", "{}"), finish("tool_calls"), Done())
    made = {calls_of(await ask(provider))[0].call_id for _ in range(5)}
    assert len(made) == 5


async def test_a_tool_finish_without_a_call_is_a_stop(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(token("Hi"), finish("tool_calls"), Done())
    assert await ask(provider) == [HI, STOP]


async def test_arguments_without_end_end_the_turn(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    piece = "x" * 100_000
    upstream.script(tool_fragment(0, "c", "f", '{"a":"'), *[tool_fragment(0, arguments=piece)] * 400, Hang())
    _, error = await fail(provider)
    assert error.code == "llm_error"


@pytest.mark.parametrize(
    "fragment", ids([("whole", ("f", "{}")), ("only-ids", (None, None)), ("long", ("f", '{"a":"' + "x" * 10_000))])
)
async def test_tool_calls_without_end_end_the_turn(
    upstream: FakeUpstream, provider: OpenAIProvider, fragment: tuple[str | None, str | None]
) -> None:
    calls = [tool_fragment(n, f"c{n}", *fragment) for n in range(WANTED_CALLS_LIMIT + 1)]
    upstream.script(*calls, Hang())
    _, error = await fail(provider)
    assert error.code == "llm_error"
    assert error.message.startswith("the model")


def test_as_many_tool_calls_as_may_be_wanted_are_told() -> None:
    found: list[Said] = []
    decoder = TurnDecoder(found.append)
    for n in range(WANTED_CALLS_LIMIT):
        decoder.feed([(b"", tool_fragment(n, f"c{n}", "f", "{}").data[6:-2])])
    assert found == []
    decoder.finish()
    assert len(calls_of(found)) == WANTED_CALLS_LIMIT


@pytest.mark.parametrize("has_finished", [False, True])
def test_a_turn_without_end_that_gives_nothing_to_send_is_left(
    monkeypatch: pytest.MonkeyPatch, has_finished: bool
) -> None:
    """The same name again, blanks behind thoughts: no silence, and no limit of the answer counts them."""
    monkeypatch.setattr("chatserver.providers.chat_completions.turn_decoder.PIECES_LIMIT", 100)
    found: list[Said] = []
    decoder, again = TurnDecoder(found.append), (b"", tool_fragment(0, "c", "f", None).data[6:-2])
    if has_finished:
        decoder.feed([(b"", finish("tool_calls").data[6:-2])])
    decoder.feed([again] * 100)
    is_over = [decoder.is_over]
    if not has_finished:
        with pytest.raises(Fault):
            decoder.feed([again])
    decoder.feed([again])
    is_over.append(decoder.is_over)
    assert (is_over, found) == ([False, True], [])


# ---- endings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    ids(
        [
            ("no-done", []),
            ("done-twice", [Done(), Done()]),
            ("data-after-done", [Done(), token("more"), finish("length")]),
            ("an-error-after-done", [Done(), Chunk({"error": {"message": LEAK}})]),
            ("nonsense-after-done", [Done(), Raw(b"data: {{{\n\n")]),
            ("cut-after-the-finish", [Cut()]),
            ("reset-after-the-finish", [Rst()]),
            ("cut-after-done", [Done(), Cut()]),
            ("half-a-line-after-the-finish", [Raw(b'data: {"cho'), Cut()]),
            ("comments-after-done", [Done(), Raw(b": bye\n\n")]),
        ]
    ),
)
@pytest.mark.parametrize("close", [False, True], ids=["chunked", "close-delimited"])
async def test_an_answer_with_its_finish_reason_is_whole(
    upstream: FakeUpstream, provider: OpenAIProvider, steps: list[Step], close: bool
) -> None:
    upstream.script(Status(close=close), token("Hi"), finish(), *steps)
    assert await ask(provider) == [HI, STOP]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "steps",
    ids(
        [
            ("silence", [*SILENCE]),
            ("silence-after-done", [Done(), *SILENCE]),
            ("comments-for-ever", [*[Raw(b": x\n\n"), Pause(0.5)] * 400]),
            ("half-a-line-for-ever", [*[Raw(b"x"), Pause(0.5)] * 400]),
        ]
    ),
)
async def test_an_answer_with_its_finish_reason_does_not_wait_for_ever(
    upstream: FakeUpstream, hasty: OpenAIProvider, clock: Clock, steps: list[Step]
) -> None:
    """Some servers never send usage or [DONE], and some keep the connection."""
    upstream.script(token("Hi"), finish(), *steps)
    began = clock.now()
    assert await ask(hasty) == [HI, STOP]
    assert clock.now() - began < 2 * IDLE_SECONDS
    await upstream.idle()


BEGINNINGS: list[tuple[str, list[Step], list[Said]]] = [
    ("a-token", [role(), token("Hi")], [HI]),
    ("reasoning", [role(), reasoning("hm")], [Reasoning(content="hm")]),
    ("a-tool-fragment", [role(), tool_fragment(0, "c", "f", "{")], [WRITING]),
    ("a-token-and-half-a-line", [token("Hi"), Raw(b'data: {"choices":[{"delta":{"con')], [HI]),
]
ENDINGS: list[tuple[str, bool, list[Step]]] = [
    ("end", False, []),
    ("end-close-delimited", True, []),
    ("cut", False, [Cut()]),
    ("reset", False, [Rst()]),
]


@pytest.mark.parametrize(("close", "ending"), ids(ENDINGS))
@pytest.mark.parametrize(("beginning", "deltas"), ids(BEGINNINGS))
async def test_an_end_without_finish_reason_is_a_truncated_answer_and_never_tried_again(
    upstream: FakeUpstream,
    provider: OpenAIProvider,
    beginning: list[Step],
    deltas: list[Said],
    close: bool,
    ending: list[Step],
) -> None:
    reached, gate = anyio.Event(), anyio.Event()
    upstream.always(Status(close=close), *beginning, Reached(reached), Gate(gate), *ending)

    async def end() -> None:
        await reached.wait()
        await read_by_now()
        gate.set()

    async with anyio.create_task_group() as group:
        group.start_soon(end)
        found, error = await fail(provider)
    assert found == deltas
    # Half a line that is ended, not cut, is a chunk that makes no sense: either name is right.
    is_ended_line = isinstance(beginning[-1], Raw) and not (ending and isinstance(ending[-1], Cut | Rst))
    assert error.code in {"upstream_truncated", *(["llm_error"] if is_ended_line else [])}
    assert len(upstream.requests) == 1


NOTHING_YET: list[tuple[str, list[Step]]] = [
    ("cut-before-the-head", [Cut()]),
    ("reset-before-the-head", [Rst()]),
    ("cut-in-the-head", [Wire(b"HTTP/1.1 200 OK\r\nContent-Ty"), Cut()]),
    ("cut-after-the-head", [Raw(b""), Cut()]),
    ("reset-after-the-head", [Status(), Pieces((b": x\n",)), Rst()]),
    ("end-after-the-head", [Raw(b"")]),
    ("cut-after-a-role", [role(), Cut()]),
    ("reset-after-a-comment", [Raw(b": x\n\n"), Rst()]),
    ("cut-in-the-first-line", [Raw(b'data: {"choi'), Cut()]),
    ("end-after-empty-chunks", [role(), Chunk({"choices": []}), token("")]),
    *((f"status-{status}", refuse(status, {"message": LEAK})) for status in (408, 409, 500, 502, 503, 504, 520, 529)),
    ("status-500-as-text", [Status(500, (("Content-Type", "text/plain"),)), Raw(LEAK.encode())]),
    ("status-502-as-html", [Status(502, (("Content-Type", "text/html"),)), Raw(b"<h1>Bad Gateway</h1>")]),
    ("status-503-with-retry-after", refuse(503, {"message": LEAK}, {"Retry-After": "0"})),
    ("an-error-in-the-stream", [role(), Chunk({"error": {"code": 503, "message": LEAK}}), Done()]),
    ("status-500-context-length", refuse(500, {"message": "maximum context length " + LEAK})),
]


@pytest.mark.parametrize("script", ids(NOTHING_YET))
async def test_before_the_first_token_a_turn_is_tried_three_times(
    upstream: FakeUpstream, provider: OpenAIProvider, hurried: None, script: list[Step]
) -> None:
    upstream.always(*script)
    deltas, error = await fail(provider)
    assert deltas == []
    assert error.code == "upstream_unavailable"
    assert error.retryable
    assert len(upstream.requests) == 3
    assert len({request.body for request in upstream.requests}) == 1
    await upstream.idle()


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("script", ids(NOTHING_YET[::3]))
async def test_a_try_that_succeeds_hides_those_before(
    upstream: FakeUpstream, provider: OpenAIProvider, hurried: None, script: list[Step], failures: int
) -> None:
    for _ in range(failures):
        upstream.script(*script)
    upstream.script(*say("Hi"))
    assert await ask(provider) == [HI, Finish("stop", Usage(7, 1))]
    assert len(upstream.requests) == failures + 1


async def test_waiting_between_tries_is_not_at_once(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.always(*refuse(500))
    await fail(provider)
    first, second, third = [reply.started_at for reply in upstream.replies]
    assert second - first >= 0.05
    assert third - second >= 0.05


async def test_no_try_begins_after_the_deadline(upstream: FakeUpstream, provider: OpenAIProvider, clock: Clock) -> None:
    upstream.always(Pause(0.6 * DEADLINE_SECONDS), *refuse(500))
    _, error = await fail(provider)
    assert (error.code, len(upstream.requests)) == ("upstream_unavailable", 2)


# ---- refusals -------------------------------------------------------------------------------------------------------


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("retry_after", "low", "high"),
    ids(
        [
            ("seconds", "2", 2, 2),
            ("an-hour", "3600", 3600, 3600),
            ("zero", "0", 0, 0),
            ("a-fraction", "1.5", 1.5, 1.5),
            ("white-space", " 7 ", 7, 7),
            ("date-to-come", http_date(100_000), 90_000, 100_001),
            ("date-gone", http_date(-600), 0, 0),
            ("garbage", "soon", None, None),
            ("empty", "", None, None),
            ("missing", None, None, None),
            ("negative", "-5", None, None),
            ("not-a-number", "nan", None, None),
            ("infinite", "inf", None, None),
            ("too-large-a-number", "9" * 400, None, None),
            ("no-digits", "²", None, None),
            ("many-dots", "1.2.3", None, None),
            ("no-date", "Wed, 99 Foo 2026 99:99:99 GMT", None, None),
            ("date-of-no-year", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None, None),
            ("date-without-zone", "Wed, 21 Oct 2015 07:28:00 -0000", None, 0),
        ]
    ),
)
async def test_a_busy_upstream_is_told_at_once_with_its_retry_after(
    upstream: FakeUpstream,
    provider: OpenAIProvider,
    retry_after: str | None,
    low: float | None,
    high: float | None,
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    upstream.always(*refuse(429, {"message": LEAK, "type": "requests", "code": "rate_limit_exceeded"}, headers))
    began = monotonic()
    _, error = await fail(provider)
    assert (error.code, error.retryable) == ("rate_limited", True)
    if low is None or high is None:
        assert error.retry_after in (None, high)
    else:
        assert error.retry_after is not None
        assert low <= error.retry_after <= high
    assert len(upstream.requests) == 1
    assert monotonic() - began < SOON_SECONDS


@pytest.mark.parametrize(
    "error",
    [
        {
            "message": f"You exceeded your current quota {LEAK}",
            "type": "insufficient_quota",
            "code": "insufficient_quota",
        },
        {"message": LEAK, "type": "requests", "code": "insufficient_quota"},
        {"message": LEAK, "type": "insufficient_quota", "code": None},
    ],
)
async def test_a_used_up_quota_is_not_worth_another_try(
    upstream: FakeUpstream, provider: OpenAIProvider, error: dict[str, Any]
) -> None:
    upstream.always(*refuse(429, error))
    _, failure = await fail(provider)
    assert (failure.code, failure.retryable) == ("rate_limited", False)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "body", [b"", b"slow down", b"<html>", b"[1]", b"null", b'{"error":"slow down"}', b'{"detail":"x"}', b"\xff\x00"]
)
async def test_a_429_of_any_form_is_rate_limited(upstream: FakeUpstream, provider: OpenAIProvider, body: bytes) -> None:
    upstream.always(*refuse(429, body))
    _, error = await fail(provider)
    assert (error.code, error.retryable) == ("rate_limited", True)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_told_at_once(upstream: FakeUpstream, provider: OpenAIProvider, status: int) -> None:
    words = f"Incorrect API key provided: {KEY}. {LEAK}"
    upstream.always(*refuse(status, {"message": words, "code": "invalid_api_key"}))
    _, error = await fail(provider)
    assert (error.code, error.retryable) == ("auth_failed", False)
    assert len(upstream.requests) == 1


async def test_a_refused_key_is_in_no_log(
    upstream: FakeUpstream, provider: OpenAIProvider, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.always(*refuse(401, {"message": LEAK}))
    with caplog.at_level(logging.DEBUG):
        await fail(provider)
    assert KEY not in caplog.text
    assert "Bearer" not in caplog.text


@pytest.mark.parametrize(
    "body",
    ids(
        [
            (
                "openai",
                {
                    "error": {
                        "message": "This model's maximum context length is 8192 tokens. However, your messages "
                        f"resulted in 9000 tokens. Please reduce the length of the messages. {LEAK}",
                        "type": "invalid_request_error",
                        "param": "messages",
                        "code": "context_length_exceeded",
                    }
                },
            ),
            ("openai-code-alone", {"error": {"message": LEAK, "code": "context_length_exceeded"}}),
            (
                "vllm-flat",
                {
                    "object": "error",
                    "message": "This model's maximum context length is 4096 tokens. However, you requested 5000",
                    "type": "BadRequestError",
                    "param": None,
                    "code": 400,
                },
            ),
            (
                "vllm-prompt",
                {
                    "error": {
                        "message": "The decoder prompt (length 5951) is longer than the maximum model length of "
                        "4096. Make sure that `max_model_len` is no smaller than the number of text tokens.",
                        "type": "BadRequestError",
                        "param": None,
                        "code": 400,
                    }
                },
            ),
            (
                "vllm-too-long",
                {
                    "object": "error",
                    "message": "The prompt (total length 25938) is too long to fit into the model "
                    "(context length 4096).",
                    "code": 400,
                },
            ),
            (
                "llama.cpp",
                {
                    "error": {
                        "code": 400,
                        "message": "request (9412 tokens) exceeds the available context size (8192 tokens), "
                        "try increasing it",
                        "type": "exceed_context_size_error",
                        "n_prompt_tokens": 9412,
                        "n_ctx": 8192,
                    }
                },
            ),
            ("anthropic", {"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}}),
        ]
    ),
)
async def test_a_dialogue_that_does_not_fit_is_told_as_that(
    upstream: FakeUpstream, provider: OpenAIProvider, body: dict[str, Any]
) -> None:
    upstream.always(*refuse(400, json.dumps(body).encode()))
    _, error = await fail(provider)
    assert (error.code, error.retryable) == ("context_length", False)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    ids(
        [
            *((str(status), status, {"error": {"message": LEAK}}) for status in (400, 402, 404, 405, 418, 422)),
            ("400-detail", 400, {"detail": LEAK}),
            ("400-fastapi", 422, {"detail": [{"loc": ["body"], "msg": LEAK}]}),
            ("400-string", 400, {"error": LEAK}),
            ("400-null", 400, {"error": None}),
            ("400-list", 400, [{"error": {"message": LEAK}}]),
            (
                "400-another-thing-too-long",
                400,
                {
                    "error": {
                        "message": "Invalid 'tools[0].function.name': string too long. Expected a string with maximum "
                        "length 64, but got a string with length 70 instead.",
                        "type": "invalid_request_error",
                        "param": "tools[0].function.name",
                        "code": "string_above_max_length",
                    }
                },
            ),
        ]
    ),
)
async def test_any_other_refusal_is_an_llm_error(
    upstream: FakeUpstream, provider: OpenAIProvider, status: int, body: Any
) -> None:
    upstream.always(*refuse(status, json.dumps(body).encode()))
    _, error = await fail(provider)
    assert (error.code, error.retryable) == ("llm_error", False)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "llm_error"), (401, "auth_failed"), (429, "rate_limited"), (503, "upstream_unavailable")],
)
@pytest.mark.parametrize(
    "body",
    ids(
        [
            ("text", [Status(0, ()), Raw(LEAK.encode())]),
            ("nothing", [Status(0, (), length=0)]),
            ("not-utf8", [Status(0, JSON_BODY), Raw(b"\xff\xfe{")]),
            ("cut", [Status(0, JSON_BODY, length=1000), Raw(b'{"error":'), Cut()]),
            ("reset", [Status(0, JSON_BODY), Raw(b'{"error":'), Rst()]),
            ("badly-packed", [Status(0, (("Content-Encoding", "gzip"),)), Raw(b"nothing packed")]),
            ("deeply-nested", [Status(0, JSON_BODY), Raw(b'{"error":' + b"[" * 100_000)]),
            ("silent", [Status(0, JSON_BODY), Raw(b'{"error":'), *SILENCE]),
        ]
    ),
)
async def test_a_refusal_counts_even_when_its_body_cannot_be_read(
    upstream: FakeUpstream, hasty: OpenAIProvider, hurried: None, status: int, code: str, body: list[Step]
) -> None:
    first = body[0]
    assert isinstance(first, Status)
    upstream.always(Status(status, first.headers, length=first.length), *body[1:])
    _, error = await fail(hasty)
    silent = isinstance(body[-1], Hang)
    assert error.code in ({code, "upstream_timeout"} if silent else {code})


@pytest.mark.parametrize(
    ("content_type", "body"),
    ids(
        [
            ("html", "text/html", b"<html><body>" + LEAK.encode()),
            ("html-charset", "text/html; charset=utf-8", b"<html>" + LEAK.encode()),
            ("an-error", "application/json; charset=utf-8", json.dumps({"error": {"message": LEAK}}).encode()),
            ("an-error-as-text", "text/plain", json.dumps({"error": {"message": LEAK}}).encode()),
            ("an-error-of-no-type", None, json.dumps({"error": {"message": LEAK}}).encode()),
            ("an-error-said-to-be-a-stream", "text/event-stream", json.dumps({"error": {"message": LEAK}}).encode()),
        ]
    ),
)
async def test_an_answer_that_is_no_stream_is_an_llm_error(
    upstream: FakeUpstream, provider: OpenAIProvider, content_type: str | None, body: bytes
) -> None:
    headers = (("Content-Type", content_type),) if content_type else ()
    upstream.always(Status(200, headers, length=len(body)), Raw(body))
    deltas, error = await fail(provider)
    assert deltas == []
    assert error.code == "llm_error"
    assert len(upstream.requests) == 1


# ---- connections ----------------------------------------------------------------------------------------------------


async def test_a_port_that_refuses_is_an_upstream_unavailable(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    await upstream.refuse_connections()
    began = monotonic()
    _, error = await fail(provider)
    assert (error.code, error.retryable) == ("upstream_unavailable", True)
    assert monotonic() - began <= DEADLINE_SECONDS


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/v1", "http://127.0.0.1:1/v1", "foo://x/v1"])
async def test_a_url_that_leads_nowhere_is_an_upstream_unavailable(url: str) -> None:
    began = monotonic()
    async with provider_for(url) as provider:
        _, error = await fail(provider)
    assert error.code == "upstream_unavailable"
    assert monotonic() - began <= DEADLINE_SECONDS


async def test_a_server_that_speaks_no_tls_is_an_upstream_unavailable() -> None:
    async def refuse_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\nplain HTTP only")

    async with tcp_server(refuse_tls) as port, provider_for(f"https://{HOST}:{port}/v1") as provider:
        _, error = await fail(provider)
    assert error.code == "upstream_unavailable"


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/9.9 what\r\n\r\n", b"\0" * 64, b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000],
    ids=["ssh", "no-status", "zeros", "endless-head"],
)
async def test_what_is_no_http_is_an_upstream_error(
    upstream: FakeUpstream, provider: OpenAIProvider, data: bytes
) -> None:
    upstream.always(Wire(data))
    _, error = await fail(provider)
    assert error.code in ("upstream_unavailable", "llm_error")


@pytest.mark.parametrize(
    "location", ["/v1/chat/completions", "http://[::1/", "http://x:99999999/", "ftp://x/", "\x80\xff", "", None]
)
async def test_a_redirect_that_leads_nowhere_is_an_upstream_error(
    upstream: FakeUpstream, provider: OpenAIProvider, location: str | None
) -> None:
    headers = () if location is None else (("Location", location),)
    upstream.always(Status(307, headers, length=0))
    _, error = await fail(provider)
    assert error.code in ("llm_error", "upstream_unavailable")


# ---- silence --------------------------------------------------------------------------------------------------------


def trickle(step: Step) -> list[Step]:
    """A few bytes for ever, never an event."""
    return [step, Pause(IDLE_SECONDS / 8)] * 400


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

SILENCES: list[tuple[str, list[Step], list[Said]]] = [
    ("before-the-head", [*SILENCE], []),
    ("in-the-head", [Wire(b"HTTP/1.1 200 OK\r\nConte"), *SILENCE], []),
    ("head-byte-by-byte", [Wire(b"HTTP/1.1 200 OK\r\nX: "), *trickle(Wire(b"x"))], []),
    ("before-the-first-token", [Status(), Raw(b"\n"), *SILENCE], []),
    ("after-a-role", [role(), *SILENCE], []),
    ("between-tokens", [token("Hi"), *SILENCE], [HI]),
    ("within-a-tool-call", [tool_fragment(0, "c", "f", "{"), *SILENCE], [WRITING]),
    ("within-a-line", [token("Hi"), Raw(b'data: {"choi'), *SILENCE], [HI]),
    ("half-a-line-for-ever", [Raw(b"data: "), *trickle(Raw(b"x"))], []),
    ("half-a-line-after-a-token", [token("Hi"), Raw(b"data: "), *trickle(Raw(b"x"))], [HI]),
    ("trailers-for-ever", [Wire(CHUNKED + b"0\r\n"), *trickle(Wire(b"a: b\r\n"))], []),
    ("a-chunk-extension-for-ever", [Wire(CHUNKED + b"5;a="), *trickle(Wire(b"x"))], []),
    ("a-chunk-size-for-ever", [Wire(CHUNKED), *trickle(Wire(b"0"))], []),
]


@pytest.mark.parametrize(("script", "expected"), ids(SILENCES))
async def test_silence_ends_the_turn_and_the_connection(
    upstream: FakeUpstream, hasty: OpenAIProvider, clock: Clock, script: list[Step], expected: list[Said]
) -> None:
    upstream.always(*script)
    began = clock.now()
    deltas, error = await fail(hasty)
    took = clock.now() - began
    assert deltas == expected
    assert (error.code, error.retryable) == ("upstream_timeout", True)
    assert IDLE_SECONDS * 0.8 <= took <= IDLE_SECONDS * 2
    assert len(upstream.requests) == 1
    await upstream.closed(1)


SIGNS_OF_LIFE = ids(
    [
        ("comments", b": keep-alive\n\n"),
        ("comment-lines", b": keep-alive\n"),
        ("blank-lines", b"\n"),
        ("empty-data", b"data: \n\n"),
        ("null", b"data: null\n\n"),
        ("no-choices", b'data: {"choices":[]}\n\n'),
        ("a-type", b'data: {"type":"ping"}\n\n'),
        ("a-comment-in-data", b"data: : keepalive\n\n"),
        ("a-word", b"data: ping\n\n"),
        ("a-named-event", b"event: keepalive\ndata: still here\n\n"),
        ("empty-text", b'data: {"choices":[{"delta":{"content":""}}]}\n\n'),
    ]
)


@pytest.mark.parametrize("beginning", [[], [token("H")]], ids=["queued", "in-mid-answer"])
@pytest.mark.parametrize("sign", SIGNS_OF_LIFE)
async def test_a_server_that_says_that_it_lives_is_waited_for(
    upstream: FakeUpstream, hasty: OpenAIProvider, sign: bytes, beginning: list[Step]
) -> None:
    signs: list[Step] = [Raw(sign), Pause(IDLE_SECONDS / 3)]
    upstream.script(*beginning, *signs * 5, token("Hi"[len(beginning) :]), finish(), Done())
    assert text_of(await ask(hasty)) == "Hi"


@pytest.mark.parametrize("sign", SIGNS_OF_LIFE)
async def test_a_server_that_says_only_that_it_lives_is_left_at_a_limit(
    upstream: FakeUpstream, hasty: OpenAIProvider, clock: Clock, monkeypatch: pytest.MonkeyPatch, sign: bytes
) -> None:
    monkeypatch.setattr(turn, "LIFE_LIMIT", 2)
    upstream.always(token("Hi"), *trickle(Raw(sign)))
    began = clock.now()
    deltas, error = await fail(hasty)
    assert (deltas, error.code, error.retryable) == ([HI], "upstream_timeout", True)
    assert 2 * IDLE_SECONDS <= clock.now() - began <= 3 * IDLE_SECONDS
    await upstream.closed(1)


async def test_a_slow_upstream_is_not_a_silent_one(upstream: FakeUpstream, hasty: OpenAIProvider) -> None:
    upstream.script(*(token("x"), Pause(IDLE_SECONDS / 2)) * 6, finish(), Done())
    assert text_of(await ask(hasty)) == "xxxxxx"


async def test_a_slow_consumer_does_not_make_the_upstream_silent(
    upstream: FakeUpstream, hasty: OpenAIProvider, clock: Clock
) -> None:
    """What the run does between two deltas is not the upstream's time."""
    upstream.script(token("a"), token("b"), Pause(0.05), Raw(b": x\n\n"), token("c"), finish(), Done())
    found: list[Said] = []

    def on_delta(delta: Delta) -> None:
        found.append(delta)
        clock.leap(IDLE_SECONDS * 1.3)

    with anyio.fail_after(50):
        await hasty.stream(ASK, on_delta)
    assert text_of(found) == "abc"


# ---- errors in the stream -------------------------------------------------------------------------------------------

ERROR_CHUNKS: list[tuple[str, bytes, str, bool]] = [
    ("an-object", b'{"error":{"message":"%s","type":"server_error","code":500}}', "upstream_unavailable", True),
    ("a-status-as-text", b'{"error":{"message":"%s","code":"502"}}', "upstream_unavailable", True),
    ("overloaded", b'{"error":{"message":"%s","type":"overloaded_error"}}', "upstream_unavailable", True),
    ("openrouter", b'{"error":{"code":429,"message":"%s","metadata":{"a":[]}},"choices":[]}', "rate_limited", True),
    ("a-rate-limit", b'{"error":{"message":"%s","code":"rate_limit_exceeded"}}', "rate_limited", True),
    ("google", b'[{"error":{"message":"%s","status":"RESOURCE_EXHAUSTED"}}]', "rate_limited", True),
    ("a-quota", b'{"error":{"message":"%s","code":"insufficient_quota"}}', "rate_limited", False),
    ("minimax", b'{"base_resp":{"status_code":1008,"status_msg":"insufficient balance %s"}}', "rate_limited", False),
    ("a-key", b'{"error":{"message":"%s","type":"authentication_error"}}', "auth_failed", False),
    ("a-key-by-number", b'{"error":{"message":"%s","code":401}}', "auth_failed", False),
    ("too-long", b'{"error":{"message":"%s","code":"context_length_exceeded"}}', "context_length", False),
    ("an-object-without-fields", b'{"error":{}}', "llm_error", False),
    ("a-string", b'{"error":"%s"}', "llm_error", False),
    ("a-string-with-kind", b'{"error":"%s","error_type":"overloaded"}', "upstream_unavailable", True),
    ("beside-choices", b'{"id":"x","choices":[],"error":{"message":"%s"}}', "llm_error", False),
    (
        "beside-a-finish",
        b'{"error":{"code":502,"message":"%s"},"choices":[{"delta":{"content":""},"finish_reason":"error"}]}',
        "upstream_unavailable",
        True,
    ),
    ("in-a-choice", b'{"choices":[{"delta":{},"error":{"code":502,"message":"%s"}}]}', "upstream_unavailable", True),
    ("code-and-message", b'{"code":500,"message":"%s"}', "upstream_unavailable", True),
    ("message-alone", b'{"message":"%s"}', "llm_error", False),
    ("detail", b'{"detail":"%s"}', "llm_error", False),
    (
        "vllm",
        b'{"object":"error","message":"%s","type":"InternalServerError","code":500}',
        "upstream_unavailable",
        True,
    ),
    ("vllm-object-alone", b'{"object":"error","x":"%s"}', "llm_error", False),
]
ERROR_EVENTS: list[tuple[str, bytes, str, bool]] = [
    *((name, b"data: " + data, code, retryable) for name, data, code, retryable in ERROR_CHUNKS),
    ("an-error-event", b'event: error\ndata: {"message":"%s"}', "llm_error", False),
    ("an-error-event-with-error", b'event: error\ndata: {"error":{"message":"%s"}}', "llm_error", False),
    ("an-error-event-of-text", b"event: error\ndata: %s", "llm_error", False),
    ("an-error-event-of-a-string", b'event: error\ndata: "%s"', "llm_error", False),
    ("an-error-event-that-looks-like-a-chunk", b'event: error\ndata: {"choices":[],"x":"%s"}', "llm_error", False),
    (
        "anthropic",
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"%s"}}',
        "upstream_unavailable",
        True,
    ),
    (
        "llama.cpp-an-error-field",
        b'error: {"code":500,"message":"%s","type":"server_error"}',
        "upstream_unavailable",
        True,
    ),
    ("a-bare-line-of-json", b'{"error":{"message":"%s"}}', "llm_error", False),
    ("a-bare-line-with-a-status", b'{"error":{"message":"%s","code":503}}', "upstream_unavailable", True),
    *(
        (f"finish-{reason}", b'data: {"choices":[{"delta":{},"finish_reason":"%b"}]}' % reason.encode(), code, True)
        for reason, code in (
            ("error", "llm_error"),
            ("malformed_function_call", "llm_error"),
            ("network_error", "upstream_unavailable"),
            ("insufficient_system_resource", "upstream_unavailable"),
            ("server_error", "upstream_unavailable"),
            ("timeout", "upstream_unavailable"),
            ("rate_limit", "rate_limited"),
        )
    ),
]
NONSENSE: list[tuple[str, bytes]] = [
    ("half-json", b'data: {"choices":[{"delta":{"content":"%s'),
    ("no-json", b"data: %s"),
    ("two-objects-and-a-half", b'data: {"choices":[]}{"choices":['),
    ("choices-an-object", b'data: {"choices":{"0":"%s"}}'),
    ("choices-of-strings", b'data: {"choices":["%s"]}'),
    ("delta-a-list", b'data: {"choices":[{"delta":["%s"]}]}'),
    ("delta-a-string", b'data: {"choices":[{"delta":"%s"}]}'),
    ("deeply-nested", b'data: {"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("deeply-nested-arguments", b'data: {"error":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"),
    ("a-number-of-many-digits", b'data: {"choices":[],"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}"),
    ("a-line-of-two-megabytes", b"data: " + b"x" * 2_100_000),
    ("an-event-of-many-lines", (b"data: " + b"x" * 1000 + b"\n") * 40_000),
]
BEFORE: list[tuple[str, list[Step], list[Said]]] = [
    ("at-once", [], []),
    ("after-a-role", [role()], []),
    ("after-a-token", [token("Hi")], [HI]),
    ("after-a-tool-fragment", [tool_fragment(0, "c", "f", "{")], [WRITING]),
]


@pytest.mark.parametrize(("beginning", "expected"), ids(BEFORE))
@pytest.mark.parametrize(("data", "code", "retryable"), ids(ERROR_EVENTS))
async def test_an_error_in_the_stream_is_what_its_own_words_say(
    upstream: FakeUpstream,
    provider: OpenAIProvider,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    code: str,
    retryable: bool,
    beginning: list[Step],
    expected: list[Said],
) -> None:
    """Before the first token it is tried again where an HTTP error of the kind would be, afterwards never."""
    monkeypatch.setattr("chatserver.providers.tries.backoff", lambda: iter([0.0, 0.0]))
    upstream.always(*beginning, Raw(data.replace(b"%s", LEAK.encode()) + b"\n\n"), finish(), Done())
    deltas, error = await fail(provider)
    assert deltas == expected
    assert (error.code, error.retryable) == (code, retryable)
    has_begun = len(beginning) == 1 and beginning[0] is not BEFORE[1][1][0]
    assert len(upstream.requests) == (3 if code == "upstream_unavailable" and not has_begun else 1)
    await upstream.idle()


@pytest.mark.parametrize(("beginning", "expected"), ids(BEFORE))
@pytest.mark.parametrize("data", ids(NONSENSE))
async def test_nonsense_in_the_stream_is_an_llm_error_and_never_tried_again(
    upstream: FakeUpstream, provider: OpenAIProvider, data: bytes, beginning: list[Step], expected: list[Said]
) -> None:
    upstream.always(*beginning, Raw(data.replace(b"%s", LEAK.encode()) + b"\n\n"), finish(), Done())
    deltas, error = await fail(provider)
    assert deltas == expected
    assert error.code == "llm_error"
    assert len(upstream.requests) == 1
    await upstream.idle()


ENDLESS = ids([
    ("a-line", b"data: ", b"x" * 65536),
    ("an-event", b"data: ", (b"data: " + b"x" * 1000 + b"\n") * 64),
    ("a-document-of-blank-lines", b"{\n", b"\n" * 65536),
])  # fmt: skip


@pytest.mark.parametrize(("start", "piece"), ENDLESS)
async def test_what_has_no_end_is_left_before_it_fills_the_memory(
    upstream: FakeUpstream, provider: OpenAIProvider, start: bytes, piece: bytes
) -> None:
    upstream.always(Raw(start), *[Raw(piece)] * 2000, Cut())
    _, error = await fail(provider)
    assert error.code == "llm_error"
    (reply,) = await upstream.closed(1)
    assert reply.bytes_written < 64_000_000


async def test_a_refusal_without_end_is_left_before_it_fills_the_memory(
    upstream: FakeUpstream, provider: OpenAIProvider
) -> None:
    upstream.always(Status(400, JSON_BODY), *[Raw(b"x" * 65536)] * 2000, Cut())
    _, error = await fail(provider)
    assert error.code == "llm_error"
    (reply,) = await upstream.closed(1)
    assert reply.bytes_written < 64_000_000


# ---- leaving --------------------------------------------------------------------------------------------------------

PLACES: list[tuple[str, list[Step], int]] = [
    ("before-the-head", [Hang()], 0),
    ("before-the-first-token", [Status(), Raw(b": x\n\n"), Hang()], 0),
    ("mid-answer", [token("a"), token("b"), Hang()], 2),
    ("mid-answer-unread", [token("a"), token("b"), token("c"), Hang()], 1),
    ("mid-line", [token("a"), Raw(b'data: {"cho'), Hang()], 1),
    ("mid-tool-call", [tool_fragment(0, "c", "f", "{"), Hang()], 0),
    ("after-the-finish", [token("a"), finish(), Hang()], 1),
    ("while-it-is-still-talking", [token("a"), lambda _: repeat(token("x" * 1000))], 1),
]


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize(("script", "count"), ids(PLACES))
async def test_a_cancel_while_waiting_closes_the_upstream_at_once(
    upstream: FakeUpstream, provider: OpenAIProvider, script: list[Step], count: int, failures: int
) -> None:
    """Also on a second try."""
    for _ in range(failures):
        upstream.script(*refuse(500))
    upstream.always(*script)
    left, taken = count, anyio.Event()

    def on_delta(_: Delta) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            taken.set()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(provider.stream, ASK, on_delta)
            if count:
                await taken.wait()
            await upstream.until(lambda: len(upstream.requests) == failures + 1 and upstream.active == 1)
            await read_by_now()
            left_at = monotonic()
            group.cancel_scope.cancel()
        (reply,) = await upstream.closed(1)
    assert reply.closed_at is not None
    assert reply.closed_at - left_at < SOON_SECONDS
    assert upstream.active == 0


async def test_leaving_while_waiting_for_another_try_asks_no_more(
    upstream: FakeUpstream, provider: OpenAIProvider
) -> None:
    upstream.always(*refuse(500))
    with anyio.move_on_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(provider.stream, ASK, ignored)
            await upstream.next_request()
            await upstream.idle()
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert len(upstream.requests) == 1


async def test_many_turns_left_leave_nothing_open(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.always(token("a"), Hang())
    with anyio.fail_after(PATIENCE_SECONDS):
        for _ in range(10):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(leave, provider)
        await upstream.closed(200)
        await upstream.until(lambda: upstream.connections == 0)


async def test_a_turn_after_one_that_was_left_is_its_own(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(token("old"), Hang())
    await leave(provider)
    upstream.script(*say("new"))
    assert text_of(await ask(provider)) == "new"


async def test_leaving_the_provider_closes_its_connections(upstream: FakeUpstream) -> None:
    upstream.always(*say("Hi"))
    async with provider_for(upstream) as provider:
        await ask(provider)
    with anyio.fail_after(SOON_SECONDS):
        await upstream.until(lambda: upstream.connections == 0)


async def test_warming_up_asks_nothing(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    await provider.warm_up()
    assert upstream.requests == []
    upstream.script(*call("clock", {}))
    assert calls_of(await ask(provider)) == [ToolCallRequest("call_1", "clock", "{}")]
