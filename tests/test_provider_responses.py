"""A provider of the Responses API against an upstream that is exact to the byte.

Connection, tries, refusals and silence are those of each API: `test_provider_openai.py` has all their cases.
"""

import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import anyio
import pytest

from chatserver.content import data_url
from chatserver.dialogue import (
    AssistantTurn,
    Dialogue,
    Leavings,
    SystemText,
    ToolOutput,
    ToolSpecification,
    TurnCall,
    UserMessage,
    told_to,
)
from chatserver.events import Token, Usage
from chatserver.parts import FilePart, ImagePart, TextPart
from chatserver.providers import WANTED_CALLS_LIMIT, Delta, Finish, ModelRequest, ToolCallRequest, tries, turn
from chatserver.providers.api import ARGUMENTS_CHARS_LIMIT, PIECES_LIMIT
from chatserver.providers.faults import Fault, cut
from chatserver.providers.provider import OpenAIProvider
from chatserver.providers.responses.api import Responses
from chatserver.providers.responses.requests import input_of
from chatserver.providers.responses.turn_decoder import GAP, ResponsesDecoder
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
    Rst,
    Status,
    Step,
    body_of,
    refuse,
)
from tests.responses_events import (
    added,
    answer,
    arguments,
    call_item,
    completed,
    counted,
    created,
    done,
    event,
    failed,
    incomplete,
    message_item,
    reasoning_item,
    response,
    summary,
    thought,
    token,
    written,
)
from tests.turns import ASK, IDLE_SECONDS, KEY, LEAK, PATIENCE_SECONDS, Said, ask, calls_of, fail, text_of, thoughts_of
from tests.virtual_time import leaping_time

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_certificates")]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pauses between the tries of a turn."""
    monkeypatch.setattr(tries, "backoff", lambda: iter([0.0] * tries.RETRIES_LIMIT))


@pytest.fixture
async def provider(upstream: FakeUpstream) -> AsyncIterator[OpenAIProvider]:
    async with OpenAIProvider(api_key=KEY, base_url=upstream.url, idle_seconds=10, api=Responses) as provider:
        yield provider


def read(*steps: Step, size: int | None = None) -> tuple[list[Said], Finish]:
    """What a body means, read in memory: whole, or in parts of a size."""
    found: list[Said] = []
    reading, body = turn.Turn(ResponsesDecoder(found.append, "us"), 60), body_of(steps)
    for at in range(0, len(body), size or len(body)):
        reading.receive(body[at : at + (size or len(body))])
    return found, reading.end(None)


# ---- an ordinary turn -----------------------------------------------------------------------------------------------


async def test_an_answer_is_its_text_and_one_finish_with_usage(
    upstream: FakeUpstream, provider: OpenAIProvider
) -> None:
    gate = anyio.Event()
    upstream.script(*created(), token("Hel"), Gate(gate), token("lo"), completed(usage=counted(7, 3)))
    found: list[Said] = []

    def on_delta(delta: Delta) -> None:
        found.append(delta)
        gate.set()

    with anyio.fail_after(PATIENCE_SECONDS):
        finish = await provider.stream(ASK, on_delta)
    assert (found, finish) == ([Token(content="Hel"), Token(content="lo")], Finish("stop", Usage(7, 3)))


async def test_the_request_is_what_responses_takes(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.always(*answer(message_item("Hi")))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    image, page = ImagePart(data="aGk=", media_type="image/png"), FilePart(name="a.pdf", url="https://a/b.pdf")
    file = FilePart(name="b.pdf", data="aGk=", media_type="application/pdf")
    everything = ModelRequest(
        model="test-model",
        messages=[SystemText("Be brief."), UserMessage((TextPart("Look"), image, page, file))],
        tools=[ToolSpecification("add", "Adds.", schema)],
        temperature=0.0,
        max_output_tokens=5,
    )
    await ask(provider, everything)
    await ask(provider)
    first, second = upstream.requests
    assert (first.method, first.path, first.headers["authorization"]) == ("POST", "/v1/responses", f"Bearer {KEY}")
    always = {"store": False, "include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}}
    parts = [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": data_url(image), "detail": "auto"},
        {"type": "input_file", "file_url": "https://a/b.pdf"},
        {"type": "input_file", "filename": "b.pdf", "file_data": data_url(file)},
    ]
    assert first.json == always | {
        "model": "test-model",
        "stream": True,
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": parts}],
        "tools": [
            {"type": "function", "name": "add", "description": "Adds.", "parameters": schema, "strict": False},
        ],
        "temperature": 0.0,
        "max_output_tokens": 16,
    }
    assert second.json == always | {"model": "test-model", "stream": True, "input": [{"role": "user", "content": "Hi"}]}


WHOLE = [
    *created(),
    *written(reasoning_item(summary=[{"type": "summary_text", "text": each} for each in ("First", "Then…")]), 0),
    *written(message_item("Söme text: \N{GRINNING FACE}"), 1, 5),
    *written(call_item("add", {"a": 1}, "c1"), 2, 4),
    *written(call_item("add", {"a": "é"}, "c2"), 3, 4),
    completed(usage=counted(7, 3)),
]


def test_cut_at_any_byte_the_deltas_are_the_same() -> None:
    found, finish = read(*WHOLE)
    assert thoughts_of(found) == f"First{GAP}Then…"
    assert text_of(found) == "Söme text: \N{GRINNING FACE}"
    assert calls_of(found) == [ToolCallRequest("c1", "add", '{"a":1}'), ToolCallRequest("c2", "add", r'{"a":"\u00e9"}')]
    assert (finish.reason, finish.usage) == ("tool_calls", Usage(7, 3))
    random = Random(0)
    for size in (1, 2, 3, 7, 64, *(random.randrange(1, 500) for _ in range(20))):
        assert read(*WHOLE, size=size) == (found, finish)


def test_a_body_that_is_cut_at_any_byte_is_whole_or_truncated() -> None:
    body = body_of([*created(), token("Hi"), completed()])
    for size in range(len(body) + 1):
        found: list[Said] = []
        reading = turn.Turn(ResponsesDecoder(found.append), 60)
        reading.receive(body[:size])
        lost = cut(reading.has_begun)
        if size == len(body):
            assert reading.end(lost).reason == "stop"
        else:
            with pytest.raises(Fault) as fault:
                reading.end(lost)
            assert fault.value is lost
            assert lost.error.code == ("upstream_truncated" if found else "upstream_unavailable")


async def test_parts_over_a_socket_are_put_together(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    body = body_of(WHOLE)
    upstream.script(Status(), Pieces(tuple(body[at : at + 37] for at in range(0, len(body), 37))))
    *found, _ = await ask(provider)
    assert found == read(*WHOLE)[0]


@pytest.mark.parametrize(
    ("steps", "thoughts"),
    [
        ([summary("a"), summary("b"), summary("c", part=1), summary("d", index=1)], f"ab{GAP}c{GAP}d"),
        ([thought("a"), thought("b")], "ab"),
        ([summary("a"), thought("xyz"), summary("b")], "ab"),
        ([done(reasoning_item(summary=[{"text": "a"}, {"text": "b"}]))], f"a{GAP}b"),
        ([done(reasoning_item(content=[{"type": "reasoning_text", "text": "a"}]))], "a"),
        ([summary("a"), done(reasoning_item(summary=[{"text": "a"}]))], "a"),
        ([token("<think>a"), token("</think>\n\n", 0)], "a"),
    ],
)
def test_reasoning_comes_as_it_is_summed_up_or_thought(steps: list[Chunk], thoughts: str) -> None:
    found, finish = read(*steps, token("Hi", 5), completed())
    assert (thoughts_of(found), text_of(found), finish.reason) == (thoughts, "Hi", "stop")


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([token("a"), token("b"), token("c", 1)], f"ab{GAP}c"),
        ([event("response.refusal.delta", delta="I cannot", output_index=0)], "I cannot"),
        ([done(message_item("whole"))], "whole"),
        ([token("a"), done(message_item("a"))], "a"),
        ([token(None), token(""), token("a")], "a"),
        ([event("response.new_thing.delta", delta="x"), token("a"), event("keepalive")], "a"),
        ([Raw(b": ping\n\n"), token("a"), Raw(b"event: ping\ndata: {}\n\n")], "a"),
        ([Raw(b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n')], "a"),
        ([Raw(b'data: {"type":"response.output_text.delta","delta":"a"}\r\n\r\n')], "a"),
        ([Raw(b'data: {"delta":"\\ud83d","type":"response.output_text.delta"}\n\n'), token("x")], "\ufffdx"),
        ([Raw(b'data: {"delta":"a\\u0000","type":"response.output_text.delta"}\n\n')], "a\ufffd"),
    ],
)
def test_text_is_told_once_however_it_comes(steps: list[Step], text: str) -> None:
    assert text_of(read(*steps, completed())[0]) == text


@pytest.mark.parametrize("is_typed", [False, True])
def test_a_server_that_does_not_stream_is_read_all_the_same(is_typed: bool) -> None:
    document = response([reasoning_item(), message_item("Hi"), call_item("add", {})], usage=counted(5, 4))
    whole = event("response.completed", response=document) if is_typed else Raw(json.dumps(document).encode())
    found, finish = read(whole)
    assert (text_of(found), calls_of(found)) == ("Hi", [ToolCallRequest("call_1", "add", "{}")])
    assert (finish.reason, finish.usage) == ("tool_calls", Usage(5, 4))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (completed(), "stop"),
        (Done(), "stop"),
        (incomplete(), "length"),
        (incomplete(None), "length"),
        (incomplete("content_filter"), "content_filter"),
        (Raw(json.dumps({"type": "response.completed", "response": None}).encode() + b"\n\n"), None),
    ],
)
def test_an_end_is_one_of_ours(end: Step, reason: str | None) -> None:
    if reason is None:
        with pytest.raises(Fault, match="no sense"):
            read(token("Hi"), end)
    else:
        assert read(token("Hi"), *written(call_item("add", {}), 1), end)[1].reason == (
            "tool_calls" if reason == "stop" else reason
        )
        assert bool(calls_of(read(token("Hi"), *written(call_item("add", {}), 1), end)[0])) is (reason == "stop")


def test_calls_are_put_together_with_the_ids_they_have() -> None:
    one, two = call_item("add", {"a": 1}, "c1"), call_item("add", {"a": 2}, "c1")
    nameless = [arguments('{"x":', 4), arguments("1}", 4)]
    steps = [added(one | {"arguments": ""}, 0), added(two | {"arguments": ""}, 1)]
    steps += [arguments('{"a"', 0), arguments('{"a":2', 1), arguments(":1}", 0), arguments("}", 1)]
    found, _ = read(*steps, *nameless, completed())
    first, second, nameless_one = calls_of(found)
    whole = ToolCallRequest("c1", "add", '{"a":1}')
    assert first == whole
    assert second.call_id.startswith("call_") and (second.name, second.arguments) == ("add", '{"a":2}')
    assert (nameless_one.name, nameless_one.arguments) == ("", '{"x":1}')
    assert calls_of(read(done(one), completed())[0]) == [whole]
    assert calls_of(read(*steps[:1], arguments('{"wrong'), done(one), completed())[0]) == [whole]


def test_what_follows_the_end_spoils_nothing() -> None:
    noise: list[Step] = [
        token("more"),
        failed("server_error"),
        Raw(b"data: {{{\n\n"),
        event("error", message="x"),
        Done(),
    ]
    assert read(token("Hi"), completed(usage=counted(1, 1)), *noise) == (
        [Token(content="Hi")],
        Finish("stop", Usage(1, 1)),
    )


# ---- what goes wrong ------------------------------------------------------------------------------------------------


ERRORS: list[tuple[Step, str, bool]] = [
    (failed("server_error", LEAK), "upstream_unavailable", True),
    (failed("rate_limit_exceeded", LEAK), "rate_limited", True),
    (failed("invalid_prompt", LEAK), "llm_error", False),
    (failed("invalid_image", LEAK), "llm_error", False),
    (event("response.failed", response=response((), "failed")), "llm_error", True),
    (event("error", code="context_length_exceeded", message=LEAK), "context_length", False),
    (event("error", code="insufficient_quota", message=LEAK), "rate_limited", False),
    (event("error", error={"type": "server_error", "message": LEAK}), "upstream_unavailable", True),
    (Raw(b"event: error\ndata: " + LEAK.encode() + b"\n\n"), "llm_error", False),
    (event("response.new", error={"code": 503, "message": LEAK}), "upstream_unavailable", True),
    (Raw(json.dumps(response((), "failed", error={"code": "server_error"})).encode()), "upstream_unavailable", True),
    (Raw(b"data: {{{\n\n"), "llm_error", False),
    (Raw(b"event: response.output_text.delta\ndata: {{{\n\n"), "llm_error", False),
    (event("response.output_text.delta", delta={"x": 1}), "llm_error", False),
    (event("response.output_item.done", item="x"), "llm_error", False),
    (Raw(b"data: " + b"[" * 100_000 + b"\n\n"), "llm_error", False),
]


@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize(("step", "code", "retryable"), ERRORS)
async def test_an_error_in_the_stream_is_what_its_own_words_say(
    upstream: FakeUpstream, provider: OpenAIProvider, step: Step, code: str, retryable: bool, has_begun: bool
) -> None:
    if has_begun and isinstance(step, Raw) and step.data.startswith(b'{"id"'):
        return  # A document is no part of a stream.
    upstream.always(*([token("Hi")] if has_begun else []), step)
    found, error = await fail(provider)
    assert (error.code, error.retryable, text_of(found)) == (code, retryable, "Hi" if has_begun else "")
    assert len(upstream.requests) == (3 if code == "upstream_unavailable" and not has_begun else 1)


@pytest.mark.parametrize(
    "step", [failed("bio_policy"), failed("image_content_policy_violation"), incomplete("content_filter")]
)
async def test_a_filter_is_an_end(upstream: FakeUpstream, provider: OpenAIProvider, step: Step) -> None:
    upstream.always(step)
    assert await ask(provider) == [Finish("content_filter", None)]


@pytest.mark.parametrize("ending", [(), (Cut(),), (Rst(),)], ids=["end", "cut", "reset"])
async def test_an_end_before_the_answers_end_is_tried_again_only_before_it_begins(
    upstream: FakeUpstream, provider: OpenAIProvider, ending: tuple[Step, ...]
) -> None:
    upstream.always(*created(), *ending)
    assert (await fail(provider))[1].code == "upstream_unavailable"
    assert len(upstream.requests) == 3
    upstream.always(*created(), token("Hi"), *ending)
    found, error = await fail(provider)
    assert (text_of(found), error.code, len(upstream.requests)) == ("Hi", "upstream_truncated", 4)


async def test_silence_ends_the_turn_and_what_says_only_that_it_lives_at_last_too(upstream: FakeUpstream) -> None:
    with leaping_time(turn, tries) as clock:
        upstream.pause = clock.pause
        async with OpenAIProvider(
            api_key=KEY, base_url=upstream.url, idle_seconds=IDLE_SECONDS, api=Responses
        ) as provider:
            upstream.script(token("Hi"), Pause(IDLE_SECONDS + 1), Hang())
            assert (await fail(provider))[1].code == "upstream_timeout"
            living: list[Step] = [each for _ in range(5) for each in (Pause(IDLE_SECONDS - 1), event("keepalive"))]
            upstream.script(*created(), *living, token("Hi"), completed())
            assert text_of(await ask(provider)) == "Hi"
            upstream.script(*living * 3, Hang())
            assert (await fail(provider))[1].code == "upstream_timeout"


REFUSALS: list[tuple[int, Any, str, int]] = [
    (429, {"message": LEAK, "code": "rate_limit_exceeded"}, "rate_limited", 1),
    (500, {"message": LEAK}, "upstream_unavailable", 3),
    (401, {"message": f"Incorrect API key provided: {KEY}"}, "auth_failed", 1),
    (400, {"message": LEAK, "code": "context_length_exceeded"}, "context_length", 1),
    (404, {"message": "Not Found"}, "llm_error", 1),
]


@pytest.mark.parametrize(("status", "body", "code", "requests"), REFUSALS)
async def test_a_refusal_is_told_as_over_chat_completions(
    upstream: FakeUpstream,
    provider: OpenAIProvider,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: Any,
    code: str,
    requests: int,
) -> None:
    upstream.always(*refuse(status, body))
    _, error = await fail(provider)
    assert (error.code, len(upstream.requests)) == (code, requests)
    assert KEY not in caplog.text
    if status == 404:
        assert "CHATSERVER_UPSTREAM_API" in error.message


@pytest.mark.parametrize(
    ("message", "parameter"),
    [
        ({"message": "Encrypted content is not supported with this model.", "param": "include"}, "include"),
        ({"message": "Unsupported parameter: 'reasoning.summary' is not supported with this model."}, "reasoning"),
        ({"message": "Your organization must be verified to generate reasoning summaries."}, "reasoning"),
        ({"message": "Unknown parameter: 'store'."}, "store"),
        ({"message": "Unsupported parameter: 'temperature' is not supported with this model."}, "temperature"),
        ({"message": "Unsupported parameter: max_output_tokens"}, "max_output_tokens"),
        ({"message": "registry.ollama.ai/library/gemma does not support tools"}, "tools"),
        ({"message": "Your organization must be verified to stream this model."}, "stream"),
    ],
)
async def test_what_a_server_refuses_is_left_out_from_then_on(
    upstream: FakeUpstream, provider: OpenAIProvider, message: dict[str, str], parameter: str
) -> None:
    request = ModelRequest(
        model="test-model",
        messages=ASK.messages,
        tools=[ToolSpecification("f", "", {})],
        temperature=1,
        max_output_tokens=99,
    )
    upstream.script(*refuse(400, message))
    document = json.dumps(response([message_item("Hi")])).encode()
    upstream.always(*([Status(200, JSON_BODY), Raw(document)] if parameter == "stream" else answer(message_item("Hi"))))
    for _ in range(2):
        assert text_of(await ask(provider, request)) == "Hi"
    first, *others = [each.json for each in upstream.requests]
    if parameter == "stream":
        assert [each["stream"] for each in (first, *others)] == [True, False, False]
    else:
        assert [set(first) - set(each) for each in others] == [{parameter}] * 2


async def test_parameters_are_left_out_that_settings_name(upstream: FakeUpstream) -> None:
    upstream.always(*answer(message_item("Hi")))
    omitted = ("store", "include", "reasoning")
    async with OpenAIProvider(
        api_key=None, base_url=upstream.url, idle_seconds=9, omitted=omitted, api=Responses
    ) as provider:
        await ask(provider)
    assert set(upstream.requests[0].json) == {"model", "input", "stream"}


def test_what_has_no_end_is_left_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [added(call_item("f", {}, f"c{number}"), number) for number in range(WANTED_CALLS_LIMIT + 1)]
    assert len(calls_of(read(*many[:-1], completed())[0])) == WANTED_CALLS_LIMIT
    piece = arguments("x" * 100_000)
    cases: list[list[Chunk]] = [many, [piece] * (ARGUMENTS_CHARS_LIMIT // 100_000 + 1)]
    for steps in cases:
        with pytest.raises(Fault, match=r"at once|no end"):
            read(*steps, completed())
    decoder = ResponsesDecoder(lambda _: None)
    decoder.pieces = PIECES_LIMIT
    with pytest.raises(Fault, match="no end"):
        decoder.feed([(b"", token("x").data.partition(b"data: ")[2])])


async def test_a_cancel_closes_the_upstream_at_once(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.script(*created(), token("Hi"), Hang())
    with anyio.fail_after(PATIENCE_SECONDS):
        with anyio.CancelScope() as scope:
            await provider.stream(ASK, lambda _: scope.cancel())
        assert scope.cancelled_caught
        await upstream.closed(1)


async def test_turns_use_one_connection(upstream: FakeUpstream, provider: OpenAIProvider) -> None:
    upstream.always(*answer(message_item("Hi")))
    for _ in range(3):
        await ask(provider)
    assert upstream.connections_made == 1


def test_every_event_of_openai_is_read_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the long way is what this module does not know."""
    monkeypatch.setattr(ResponsesDecoder, "_read_other", lambda _, kind, data: slow.append(kind))
    slow: list[bytes] = []
    read(*WHOLE)
    known = {b"response.created", b"response.in_progress", b"response.content_part.added"}
    assert set(slow) == known | {b"response.output_text.done", b"response.content_part.done"}


def test_the_calls_of_another_maker_have_the_ids_of_the_run() -> None:
    call, output = TurnCall("call_1", "f", {}, "functions.f:0"), ToolOutput("call_1", "f", "3", "functions.f:0")
    asked: Dialogue = [UserMessage("Hi"), AssistantTurn("", (call,), Leavings("maker", [])), output]
    own, foreign = [input_of(told_to(maker, asked), is_left_out=False)[1:] for maker in ("maker", "another")]
    assert [each["call_id"] for each in own] == ["functions.f:0"] * 2
    assert [each["call_id"] for each in foreign] == ["call_1"] * 2
