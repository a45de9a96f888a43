"""Agents that people bring: they stream as the built-in one, and a wrong one fails its own run, in words."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from chatserver import (
    AgentContext,
    Dialogue,
    Reasoning,
    SettingsError,
    Token,
    ToolCall,
    ToolError,
    ToolResult,
    Usage,
    UserMessage,
    Yielded,
    create_app,
)
from chatserver.function_agent import agent_threads, load_agent
from chatserver.settings import AGENT_MODEL, DEMO_MODEL
from tests.approved_tools import LEDGER, REFERENCE
from tests.clients import BOTH, Transport, cancel, documents_of, get_run, request, text_of, types_of
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import LiveServer, live_server
from tests.merging import unmerged
from tests.proving import check_once
from tests.test_structured import CITY, format_of
from tests.test_waiting import SCREEN, answered, is_waiting

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30.0
each_transport = pytest.mark.parametrize("transport", BOTH, ids=repr)


def add(a: int, b: int) -> int:
    """Add."""
    if a < 0:
        raise ValueError("too little")
    return a + b


def serving(agent: Any, upstream: FakeUpstream | None = None, **settings: Any) -> Any:
    return live_server(
        upstream.url if upstream else None,
        make_app=lambda chosen: create_app(chosen, agent=agent, tools=[add]),
        **settings,
    )


async def events_of(server: LiveServer, transport: Transport, message: str = "Hi", **body: Any) -> list[dict[str, Any]]:
    with anyio.fail_after(WAIT_SECONDS):
        documents = await documents_of(await transport.start(server, {"message": message} | body))
    return [json.loads(each) for each in documents]


def said(events: list[dict[str, Any]]) -> str:
    return "".join(event["content"] for event in events if event["type"] == "token")


async def words(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    yield Reasoning(content="Hm.")
    for word in ("An", " answer", " for ", context.user):
        yield word
        await asyncio.sleep(0)
    yield ""
    yield Usage(3, 4)


@each_transport
async def test_it_streams_resumes_and_is_stored(transport: Transport) -> None:
    async with serving(words) as server:
        with anyio.fail_after(WAIT_SECONDS):
            reading = await transport.start(server, {"message": "Hi"})
            documents = await documents_of(reading)
            rest = await documents_of(await transport.attach(server, reading.run_id, 3))
        assert unmerged(rest, documents) == documents[3:]
        assert types_of(documents) == ["start", "reasoning", *["token"] * 4, "done"]
        assert text_of(documents) == "An answer for local"
        usage = {"input_tokens": 3, "output_tokens": 4, "estimated": False}
        assert json.loads(documents[-1])["usage"] == (await get_run(server, reading.run_id))["usage"] == usage


async def relaying(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    async for piece in context.complete(dialogue):
        yield piece


@each_transport
async def test_the_configured_model_answers_and_its_usage_counts(transport: Transport) -> None:
    async with FakeUpstream() as upstream, serving(relaying, upstream) as server:
        upstream.script(*say("An answer.", 3))
        events = await events_of(server, transport)
        assert said(events) == "An answer." and not events[-1]["usage"]["estimated"]
        assert "tools" not in upstream.requests[0].json


@each_transport
async def test_a_cancel_closes_the_models_connection(transport: Transport) -> None:
    async with FakeUpstream() as upstream, serving(relaying, upstream) as server:
        upstream.script(token("An"), Gate(anyio.Event()))
        with anyio.fail_after(WAIT_SECONDS):
            reading = await transport.start(server, {"message": "Hi"})
            await reading.take(2)
            await cancel(server, reading.run_id)
            last = json.loads((await documents_of(reading))[-1])
            await upstream.until(lambda: [each.state for each in upstream.replies] == ["cut"])
        assert last["finish_reason"] == "cancelled"


async def test_a_failure_of_the_model_is_told_as_ever() -> None:
    async with FakeUpstream() as upstream, serving(relaying, upstream) as server:
        upstream.script(token("An"))
        assert (await events_of(server, BOTH[0]))[-1]["code"] == "upstream_truncated"


async def calling(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    assert [each.name for each in context.tools] == ["add"]
    yield "Let me add. "
    yield f"{await context.call('add', {'a': 2, 'b': 3})}"
    for name, args in (("add", {"a": -1, "b": 1}), ("nothing", {})):
        try:
            await context.call(name, args)
        except ToolError as error:
            yield f" ({error.result})"


@each_transport
async def test_tools_are_called_between_the_words(transport: Transport) -> None:
    async with serving(calling) as server:
        events = await events_of(server, transport)
    kinds = [event["type"] for event in events]
    once = ["tool_call", "tool_result", "token"]
    assert kinds == ["start", "token", *once * 3, "done"]
    assert said(events) == "Let me add. 5 (too little) (there is no such tool)"


async def swallowing(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    yield "An"
    WAITS.set()
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        """It goes on."""
    try:
        await asyncio.sleep(3600)
    finally:
        ENDED.set()


WAITS, ENDED = threading.Event(), threading.Event()


@each_transport
async def test_an_agent_that_swallows_a_cancel_is_cancelled_again(transport: Transport) -> None:
    WAITS.clear()
    ENDED.clear()
    async with serving(swallowing) as server:
        with anyio.fail_after(WAIT_SECONDS):
            reading = await transport.start(server, {"message": "Hi"})
            await anyio.to_thread.run_sync(WAITS.wait)
            await cancel(server, reading.run_id)
            documents = await documents_of(reading)
            assert json.loads(documents[-1])["finish_reason"] == "cancelled" and text_of(documents) == "An"
            await anyio.to_thread.run_sync(ENDED.wait)


async def wrong(dialogue: Any, context: AgentContext) -> AsyncIterator[Any]:
    match dialogue[-1].content:
        case "result":
            yield ToolResult(call_id="a", tool="add", result=1, is_error=False, truncated=False, duration_ms=0)
        case "raise":
            raise RuntimeError("canary-4711")
        case "exit":
            raise SystemExit(1)
        case "type":
            yield 5
        case "fields":
            yield Token(content=5)  # type: ignore[arg-type]
        case "args":
            yield ToolCall(call_id="a", tool="add", args={"x": "\ud800"})
        case "approval":
            yield ToolCall(call_id="a", tool="add", args={}, needs_approval=True)
        case "client":
            yield ToolCall(call_id="a", tool="add", args={}, executor="client")
        case "usage":
            yield "x"
            yield Usage(10**30, 4)
        case "negative usage":
            yield Usage(5, -1)
        case "silent":
            await asyncio.sleep(3600)
        case "cancels itself":
            raise asyncio.CancelledError
        case "leaks":
            context.leaked = asyncio.create_task(asyncio.sleep(3600))  # type: ignore[attr-defined]
            yield "Leaky."
        case "huge":
            for _ in range(100):
                yield "x" * 100_000
        case "endless":
            while True:
                yield "x"
        case _:
            yield "Well."


WRONG = {
    "result": "broke the rules",
    "raise": "the agent failed",
    "exit": "the agent failed",
    "type": "yielded a `int`",
    "fields": "yielded a `Token` with wrong fields",
    "args": "yielded a `ToolCall` with wrong fields",
    "approval": "only `context.call` makes such a call",
    "client": "only `context.call` makes such a call",
    "usage": "yielded a `Usage` with wrong fields",
    "negative usage": "yielded a `Usage` with wrong fields",
    "silent": "said nothing for 0.5 seconds",
    "cancels itself": "the agent failed",
}


async def test_a_wrong_agent_fails_its_own_run_in_words() -> None:
    async with serving(wrong, agent_idle_seconds=0.5, max_answer_bytes=2000) as server:
        for number, (message, sentence) in enumerate(WRONG.items()):
            last = (await events_of(server, BOTH[number % 2], message))[-1]
            assert (last["type"], last["code"]) == ("error", "internal"), message
            assert sentence in last["message"] and "canary" not in last["message"]
            stored = await get_run(server, last["run_id"])
            assert (stored["error"]["message"], stored["last_seq"]) == (last["message"], last["seq"])
            assert said(await events_of(server, BOTH[number % 2], "ok")) == "Well."
        for message in ("huge", "endless"):
            assert (await events_of(server, BOTH[0], message))[-1]["finish_reason"] == "length"
        assert (await events_of(server, BOTH[0], "leaks"))[-1]["type"] == "done"


async def no_generator(dialogue: Dialogue, context: AgentContext) -> str:
    return "Hi"


def hidden(dialogue: Dialogue, context: AgentContext) -> Any:
    return no_generator(dialogue, context)


async def test_what_is_no_generator_is_told_as_early_as_it_is_seen() -> None:
    with pytest.raises(SettingsError, match="yield"):
        create_app(agent=no_generator)  # type: ignore[arg-type]
    async with serving(hidden) as server:
        assert "no async generator" in (await events_of(server, BOTH[0]))[-1]["message"]


@each_transport
async def test_nobody_is_told_that_the_demo_model_answers(transport: Transport) -> None:
    """No model server is named, and the demo model would be asked only if the agent asked for a model."""

    async def agent(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[str]:
        yield "Hi"

    async with serving(agent, model=DEMO_MODEL) as server:
        ready = (await request(server, "GET", "/readyz")).json
        assert (ready["is_demo"], ready["model"]) == (False, AGENT_MODEL)
        models = (await request(server, "GET", "/chat/models")).json["models"]
        assert models == [{"model": AGENT_MODEL, "is_default": True}]
        assert (await events_of(server, transport))[0]["model"] == AGENT_MODEL


@each_transport
async def test_an_agent_that_blocks_fails_and_new_runs_go_on(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_threads, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(agent_threads, "BEGIN_SECONDS", 0.2)
    monkeypatch.setattr(agent_threads, "BLOCKED_SECONDS", 0.5)
    blocked, let_go = threading.Event(), threading.Event()

    async def blocking(dialogue: Any, context: AgentContext) -> AsyncIterator[str]:
        if dialogue[-1].content == "block":
            yield "I sleep."
            blocked.set()
            while not let_go.is_set():
                time.sleep(0.01)  # noqa: ASYNC251 - that is what is wrong with it
        yield "Well."

    try:
        async with serving(blocking) as server:
            with anyio.fail_after(WAIT_SECONDS):
                reading = await transport.start(server, {"message": "block"})
                await anyio.to_thread.run_sync(blocked.wait)
                assert said(await events_of(server, transport, "ok")) == "Well."
                last = json.loads((await documents_of(reading))[-1])
            assert (last["type"], last["code"]) == ("error", "internal") and "blocked" in last["message"]
            let_go.set()
    finally:
        let_go.set()


def test_a_setting_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brought.py").write_text("async def mine(dialogue, context):\n    yield 'Hi'\nnot_mine = 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_agent(None) is None
    mine = load_agent("brought:mine")
    assert mine is not None and mine.__name__ == "mine"
    with pytest.raises(SettingsError, match=r"\ACHATSERVER_AGENT: brought:not_mine: "):
        load_agent("brought:not_mine")


async def looking(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    try:
        await context.call("screen", {"unit": 5})
    except ToolError as error:
        yield f"{error.result}"


@each_transport
async def test_a_call_that_does_not_fit_a_tool_of_the_client_is_told_to_the_agent(transport: Transport) -> None:
    async with serving(looking) as server:
        events = await events_of(server, transport, tools=[SCREEN])
    assert [event["type"] for event in events] == ["start", "tool_call", "tool_result", "token", "done"]
    assert said(events) == "the arguments do not fit: at $.unit it breaks `type`"


async def formal(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    """Answers in the form that is wanted, or as the user says."""
    assert context.response_format == (None if asked(dialogue) == "any" else format_of(CITY))
    yield "I add. "
    await context.call("add", {"a": 2, "b": 3})
    yield '{"name": '
    yield "5}" if asked(dialogue) == "wrong" else '"Oslo"}'


def asked(dialogue: Dialogue) -> Any:
    return cast(UserMessage, dialogue[-1]).content


@each_transport
async def test_an_answer_of_another_form_fails_its_run(transport: Transport) -> None:
    async with serving(formal) as server:
        assert (await events_of(server, transport, "any"))[-1]["type"] == "done"
        right = await events_of(server, transport, "right", response_format=format_of(CITY))
        wrong = await events_of(server, transport, "wrong", response_format=format_of(CITY))
    assert (right[-1]["type"], said(right)) == ("done", 'I add. {"name": "Oslo"}')
    assert (wrong[-1]["type"], wrong[-1]["code"]) == ("error", "llm_error")
    assert "at $.name it breaks `type`" in wrong[-1]["message"] and said(wrong) == 'I add. {"name": 5}'


async def booking(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    if not context.is_resumed:
        yield "I book. "
    for table in (4, 5):
        yield f"{await context.call('book', {'table': table})}. "


async def chatting(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    """Speaks while its call waits, as soon as the first user asks for it."""
    call = asyncio.ensure_future(context.call("book", {"table": 4}))
    if not context.is_resumed:
        await anyio.to_thread.run_sync(SPEAK.wait)
        yield "Shall I? "
        yield "I shall wait. "
    yield f"{await call}."


SPEAK = threading.Event()


@each_transport
async def test_what_an_agent_says_while_its_call_waits_is_stored(
    transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who takes the run over would give its readers other events with the same numbers."""
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    SPEAK.clear()

    def living() -> Any:
        return live_server(
            None, directory=tmp_path, make_app=lambda chosen: create_app(chosen, agent=chatting), tools=REFERENCE
        )

    with anyio.fail_after(2 * WAIT_SECONDS):
        try:
            async with living() as server:
                reading = await transport.start(server, {"message": "Book"})
                call_id = json.loads((await reading.take(2))[-1])["call_id"]
                await is_waiting(server, reading.run_id)
                SPEAK.set()
                await reading.take(2)
                before = list(reading.documents)
                reading.cut()
        finally:
            SPEAK.set()
        async with living() as server:
            reader = await transport.attach(server, reading.run_id, 4)
            assert await answered(server, reading.run_id, call_id, approve=True) == 202
            documents = [*before, *await documents_of(reader)]
    check_once(documents)
    assert types_of(documents) == ["start", "tool_call", "token", "token", "tool_result", "token", "done"]


@each_transport
async def test_after_a_restart_an_agent_gets_the_recorded_results(
    transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger"
    monkeypatch.setenv(LEDGER, str(ledger))

    def living() -> Any:
        return live_server(
            None, directory=tmp_path, make_app=lambda chosen: create_app(chosen, agent=booking), tools=REFERENCE
        )

    with anyio.fail_after(2 * WAIT_SECONDS):
        async with living() as server:
            reading = await transport.start(server, {"message": "Book"})
            call_id = json.loads((await reading.take(3))[-1])["call_id"]
            await is_waiting(server, reading.run_id)
            reading.cut()
        async with living() as server:
            assert await answered(server, reading.run_id, call_id, approve=True, args={"table": 6}) == 202
            reader = await transport.attach(server, reading.run_id, 3)
            result, word, call = [json.loads(each) for each in await reader.take(3)]
            assert (result["result"], word["content"]) == ("table 6 is booked", "table 6 is booked. ")
            await is_waiting(server, reading.run_id)
            assert await answered(server, reading.run_id, call["call_id"], approve=False, reason="No.") == 202
            assert json.loads((await documents_of(reader))[-1])["code"] == "internal", "it does not catch the refusal"
    assert ledger.read_text() == "book 6\n"
