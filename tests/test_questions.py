"""Questions of tools to the user: each waits as a call of the client does, and no model is told of it."""

import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from chatserver.call_checks import NO_TOOL
from chatserver.dialogue import INTERRUPTED_CALL
from chatserver.questions import check_form
from chatserver.sessions.waits import Waits
from chatserver.tools.context import Question, Reply, ToolContext
from chatserver.tools.execution import TimeLimit
from chatserver.tools.functions import tool
from chatserver.waiting import TOO_MANY_QUESTIONS, UNANSWERED, WITHDRAWN
from tests.asking_tools import ENOUGH, FORM, REFERENCE, order
from tests.clients import (
    SSE,
    TRANSPORTS,
    WS,
    RefusedError,
    Transport,
    WsReader,
    cancel,
    documents_of,
    get_run,
    request,
    types_of,
)
from tests.fake_upstream import Done, FakeUpstream, Gate, call, finish, role, say, token
from tests.live import LiveServer, live_server
from tests.merging import unmerged
from tests.program import until
from tests.proving import answer_of, check_once
from tests.test_waiting import answered, calling, events_of, is_waiting
from tests.virtual_time import leaping_time

pytestmark = pytest.mark.anyio

SECONDS = 60.0
SIZE = {"action": "accept", "content": {"size": 42}}

LISTS = {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}

each_transport = pytest.mark.parametrize("transport", TRANSPORTS, ids=str)


@asynccontextmanager
async def serving(upstream: FakeUpstream, directory: Path, **settings: Any) -> AsyncIterator[LiveServer]:
    with anyio.fail_after(SECONDS):
        async with live_server(upstream.url, directory=directory, tools=REFERENCE, **settings) as server:
            yield server


def question_in(documents: list[bytes], place: int = 0) -> dict[str, Any]:
    return [each for each in events_of(documents, "tool_call") if each["tool"] == "ask_user"][place]


def result_in(documents: list[bytes], name: str) -> tuple[Any, bool]:
    (result,) = (each for each in events_of(documents, "tool_result") if each["tool"] == name)
    return result["result"], result["is_error"]


@each_transport
async def test_a_question_waits_for_its_answer_and_no_model_hears_of_it(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """The time of the call stands still: the question is open for longer than the call may take."""
    upstream.always(calling(("order", {})))
    async with serving(upstream, tmp_path, tool_timeout_seconds=0.2) as server:
        reading = await transport.start(server, {"message": "Shoes", "session_id": "s"})
        before = await reading.take(3)
        question = question_in(before)
        assert question["executor"] == "client" and not question["needs_approval"]
        assert question["args"] == {"message": "Which size?", "schema": FORM}
        await is_waiting(server, reading.run_id)
        await anyio.sleep(0.3)
        assert await answered(server, reading.run_id, question["call_id"], transport, result=SIZE) == 202
        documents = [*before, *await documents_of(reading)]
        check_once(documents)
        assert types_of(documents) == ["start", "tool_call", "tool_call", "tool_result", "tool_result", "token", "done"]
        assert result_in(documents, "ask_user") == (SIZE, False) == result_in(documents, "order")
        assert await answered(server, reading.run_id, question["call_id"], result=SIZE) == (409, "already_answered")
        message = (await request(server, "GET", "/chat/sessions/s")).json["messages"][-1]
        assert message["parts"] == answer_of(documents)["parts"]
        upstream.script(*say("You're welcome."))
        await documents_of(await transport.start(server, {"message": "Thanks", "session_id": "s"}))
    for asked in upstream.requests[1:]:
        (call,) = (each for message in asked.json["messages"] for each in message.get("tool_calls", []))
        assert call["function"]["name"] == "order"
        assert len([each for each in asked.json["messages"] if each["role"] == "tool"]) == 1


@each_transport
async def test_no_tool_may_have_the_name_of_questions(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """A client's own is refused. A call that a model makes up is told to the model, as that of any unknown tool."""
    ask_user = {"name": "ask_user", "description": "", "parameters": {"type": "object"}}
    upstream.always(calling(("ask_user", {"message": "Well?"})))
    async with serving(upstream, tmp_path) as server:
        with pytest.raises(RefusedError) as refusal:
            await transport.start(server, {"message": "Hi", "tools": [ask_user]})
        assert (refusal.value.status, refusal.value.problem["code"]) == (400, "bad_request")
        assert "reserved" in str(refusal.value.problem)
        documents = await documents_of(await transport.start(server, {"message": "Hi", "session_id": "s"}))
        assert types_of(documents) == ["start", "tool_call", "tool_result", "token", "done"]
        assert result_in(documents, "ask_user") == (NO_TOOL, True)
        await documents_of(await transport.start(server, {"message": "And?", "session_id": "s"}))
    told = [each["role"] for each in upstream.requests[-2].json["messages"]]
    assert told == ["user", "assistant", "tool", "assistant", "user"]


@each_transport
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param({"result": {"action": "decline"}}, ({"action": "decline", "content": {}}, False), id="declined"),
        pytest.param(
            {"result": {"action": "cancel", "content": None}}, ({"action": "cancel", "content": {}}, False), id="null"
        ),
        pytest.param({"result": "?", "is_error": True}, ({"action": "cancel", "content": {}}, False), id="failed"),
    ],
)
async def test_what_the_user_does_is_told_to_the_tool(
    answer: Any, told: tuple[Any, bool], transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("order", {})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Shoes"})
        question = question_in(await reading.take(3))
        assert await answered(server, reading.run_id, question["call_id"], transport, **answer) == 202
        documents = await documents_of(reading)
        assert types_of(documents)[-1] == "done" and result_in(documents, "order") == told


UNFIT: dict[str, tuple[Any, str]] = {
    "unfit": ({"action": "accept", "content": {"size": 99}}, "question: at $.size it breaks `maximum`"),
    "empty": ({"action": "accept"}, "question: at $ it breaks `required`"),
    "senseless": (42, "no reply to a question"),
    "unheard of": ({"action": "agree"}, "no reply to a question"),
    "nested": ({"action": "accept", "content": {"size": 7, "more": {"a": 1}}}, "no reply to a question"),
}


@each_transport
async def test_an_answer_that_does_not_fit_is_refused_and_the_question_stays_open(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("order", {})))
    """Also at another process, which learns from the database what was asked."""
    settings = {"max_tool_result_bytes": 1024}
    async with serving(upstream, tmp_path, **settings) as server, serving(upstream, tmp_path, **settings) as other:
        reading = await transport.start(server, {"message": "Shoes"})
        call_id = question_in(await reading.take(3))["call_id"]
        for at, (result, words) in product((server, other), UNFIT.values()):
            refusal = await refused(at, reading.run_id, call_id, transport, result=result)
            assert (refusal["status"], refusal["code"]) == (400, "bad_request") and words in str(refusal), result
        long = {"action": "accept", "content": {"size": 7, "more": "x" * 1024}}
        assert (await refused(server, reading.run_id, call_id, transport, result=long))["status"] == 413
        assert (await get_run(server, reading.run_id))["status"] == "waiting"
        assert await answered(server, reading.run_id, call_id, transport, result=SIZE) == 202
        assert result_in(await documents_of(reading), "order") == (SIZE, False)


async def refused(server: Any, run_id: str, call_id: str, transport: Transport, **answer: Any) -> dict[str, Any]:
    """What is said to an answer, as a client of this transport gives it."""
    if transport is not WS:
        response = await request(server, "POST", f"/chat/runs/{run_id}/tool_calls/{call_id}", answer)
        return dict(response.json)
    async with await WsReader.connect(server) as reader:
        return await reader.command(type="answer", run_id=run_id, call_id=call_id, **answer)


NO_FORMS: dict[str, Any] = {
    "is the JSON Schema of an object": {"type": "string"},
    "is no JSON Schema: at $.properties it breaks `type`": {"type": "object", "properties": 3},
    "the field `at` of": {"type": "object", "properties": {"a": {"type": "string"}, "at": {"type": "object"}}},
    "the field `lists` of": {"type": "object", "properties": {"lists": LISTS}},
    "the field `any` of": {"type": "object", "properties": {"any": True}},
    "the field `pick` of": {"type": "object", "properties": {"pick": {"enum": ["a", {"b": 1}]}}},
    "the field `ref` of": {"type": "object", "properties": {"ref": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}},
    "the field `either` of": {"type": "object", "properties": {"either": {"anyOf": [{"type": "null"}, LISTS]}}},
    "requires `gone`, and has no such field": {"type": "object", "required": ["gone"]},
}


@pytest.mark.parametrize("words", NO_FORMS)
async def test_a_question_whose_form_is_no_flat_object_is_refused_to_its_tool(
    words: str, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("fill", {"form": NO_FORMS[words]})))
    async with serving(upstream, tmp_path) as server:
        documents = await documents_of(await SSE.start(server, {"message": "Fill"}))
    assert types_of(documents) == ["start", "tool_call", "tool_result", "token", "done"]
    result, is_error = result_in(documents, "fill")
    assert is_error and words in result


def test_every_form_of_mcp_can_be_asked() -> None:
    titled = [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]
    fields: dict[str, Any] = {
        "text": {"type": "string", "title": "T", "minLength": 1, "maxLength": 9, "format": "email", "default": "a@b"},
        "number": {"type": "number", "minimum": 0, "maximum": 1.5},
        "integer": {"type": "integer", "description": "whole"},
        "boolean": {"type": "boolean", "default": False},
        "choice": {"type": "string", "enum": ["a", "b"], "enumNames": ["A", "B"]},
        "titled": {"type": "string", "oneOf": titled},
        "several": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
        "titled several": {"type": "array", "items": {"anyOf": titled}},
        "optional": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        "nullable": {"type": ["string", "null"]},
        "texts": {"type": "array", "items": {"type": "string"}},
    }
    check_form({"type": "object", "properties": fields, "required": ["text", "several"]})
    for name, each in fields.items():
        check_form({"type": "object", "properties": {name: each}})


@each_transport
async def test_a_question_without_a_form_is_a_mere_yes_or_no(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("agree", {})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Sure?"})
        question = question_in(await reading.take(3))
        assert question["args"] == {"message": "Really?", "schema": {"type": "object", "properties": {}}}
        await answered(server, reading.run_id, question["call_id"], transport, result={"action": "accept"})
        assert result_in(await documents_of(reading), "agree") == ("accept", False)


@each_transport
async def test_a_question_that_nobody_answers_expires(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("agree", {})))
    async with serving(upstream, tmp_path, approval_seconds=0.2) as server:
        documents = await documents_of(await transport.start(server, {"message": "Sure?"}))
        assert result_in(documents, "ask_user") == (UNANSWERED, True)
        assert result_in(documents, "agree") == ("cancel", False) and types_of(documents)[-1] == "done"


@each_transport
async def test_a_tool_that_does_not_wait_for_its_question_has_a_time_limit_when_the_question_has_expired(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("linger", {})))
    async with serving(upstream, tmp_path, approval_seconds=0.2, tool_timeout_seconds=0.1) as server:
        documents = await documents_of(await transport.start(server, {"message": "Sure?"}))
        assert result_in(documents, "ask_user") == (UNANSWERED, True)
        assert result_in(documents, "linger") == ("no answer within 0.1 seconds", True)


@each_transport
@pytest.mark.parametrize("name", ["hurry", "forget"])
async def test_a_question_whose_tool_waits_no_more_is_withdrawn(
    name: str, transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    ENOUGH.clear()
    goes_on = anyio.Event()
    upstream.script(*call(name, {}))
    upstream.script(role(), Gate(goes_on), token("Well"), finish(), Done())
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Now"})
        documents = await reading.take(3)
        await is_waiting(server, reading.run_id)
        ENOUGH.set()
        documents += await reading.take(2)
        assert (await get_run(server, reading.run_id))["status"] == "running"
        goes_on.set()
        documents += await documents_of(reading)
        check_once(documents)
        assert types_of(documents) == ["start", "tool_call", "tool_call", "tool_result", "tool_result", "token", "done"]
        assert result_in(documents, "ask_user") == (WITHDRAWN, True)
        assert result_in(documents, name) == ("cancelled" if name == "hurry" else "gone", False)
        call_id = question_in(documents)["call_id"]
        assert await answered(server, reading.run_id, call_id, transport, result=SIZE) == (409, "already_answered")


@each_transport
async def test_a_run_that_asks_can_be_cancelled(transport: Transport, upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.always(calling(("order", {})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Shoes"})
        call_id = question_in(await reading.take(3))["call_id"]
        await is_waiting(server, reading.run_id)
        await cancel(server, reading.run_id)
        documents = await documents_of(reading)
        assert events_of(documents, "done")[0]["finish_reason"] == "cancelled"
        assert result_in(documents, "ask_user") == (WITHDRAWN, True)
        assert result_in(documents, "order") == (INTERRUPTED_CALL, True), "the tool was at work"
        assert await answered(server, reading.run_id, call_id, result=SIZE) == (409, "already_answered")


@each_transport
@pytest.mark.parametrize("comes", ["to read", "to answer"])
async def test_after_a_restart_the_run_goes_on_without_the_tool(
    comes: str, transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """What the call has done nobody knows, and nobody waits for the answer: whoever comes takes the run along."""
    upstream.always(calling(("order", {})))
    async with (
        serving(upstream, tmp_path) as server,
        await transport.start(server, {"message": "Shoes"}) as reading,
    ):
        before = await reading.take(3)
        await is_waiting(server, reading.run_id)
    call_id = question_in(before)["call_id"]
    async with serving(upstream, tmp_path) as server:
        assert (await get_run(server, reading.run_id))["status"] == "waiting"
        if comes == "to answer":
            refused = await answered(server, reading.run_id, call_id, transport, result=SIZE)
            assert refused == (409, "already_answered")
        documents = [*before, *await documents_of(await transport.attach(server, reading.run_id, 3))]
        check_once(documents)
        assert result_in(documents, "order") == (INTERRUPTED_CALL, True)
        assert result_in(documents, "ask_user") == (WITHDRAWN, True)
        assert types_of(documents)[-1] == "done"
    async with serving(upstream, tmp_path) as server:
        again = await documents_of(await transport.attach(server, reading.run_id, 0))
        assert unmerged(again, documents) == documents
    told = upstream.requests[-1].json["messages"]
    assert [each["role"] for each in told] == ["user", "assistant", "tool"]


@each_transport
async def test_a_question_that_is_withdrawn_twice_is_withdrawn_once(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """The tool ends, and then cancels what it has asked, while the withdrawal is on its way to the disk."""
    ENOUGH.clear()
    begun, goes_on, answer = anyio.Event(), anyio.Event(), Waits.answer

    async def slow(self: Waits, *args: Any) -> Any:
        begun.set()
        await anyio.sleep(0.05)
        return await answer(self, *args)

    upstream.script(*call("regret", {}))
    upstream.script(role(), Gate(goes_on), token("Well"), finish(), Done())
    with patch.object(Waits, "answer", slow):
        async with serving(upstream, tmp_path) as server:
            reading = await transport.start(server, {"message": "Now"})
            documents = await reading.take(3)
            await is_waiting(server, reading.run_id)
            ENOUGH.set()
            await begun.wait()
            documents += await reading.take(2)
            assert (await get_run(server, reading.run_id))["status"] == "running"
            goes_on.set()
            assert types_of(await documents_of(reading))[-1] == "done"
            assert result_in(documents, "ask_user") == (WITHDRAWN, True)


@each_transport
async def test_questions_of_a_process_have_a_limit(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """A run that asks is kept in memory with its tool: so they are no more than runs at a time."""
    upstream.always(calling(("order", {})))
    async with serving(upstream, tmp_path, max_runs=2) as server:
        readings = []
        for number in range(2):
            readings.append(await transport.start(server, {"message": f"{number}"}))
            await readings[-1].take(3)
            await is_waiting(server, readings[-1].run_id)
        documents = await documents_of(await transport.start(server, {"message": "One more"}))
        assert result_in(documents, "ask_user") == (TOO_MANY_QUESTIONS, True)
        assert result_in(documents, "order") == ({"action": "cancel", "content": {}}, False)
        await cancel(server, readings[0].run_id)
        await documents_of(readings[0])
        last = await transport.start(server, {"message": "Now"})
        await last.take(3)
        await is_waiting(server, last.run_id)
        for each in (readings[1], last):
            async with each:
                await cancel(server, each.run_id)


@each_transport
async def test_a_run_that_asks_is_not_let_go_of_while_the_server_runs(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    """Or else the call of its tool would end. Nobody reads it for longer than waiting runs stay in memory."""
    upstream.always(calling(("order", {})))
    async with serving(upstream, tmp_path, retention_seconds=0.1) as server:
        async with await transport.start(server, {"message": "Shoes", "on_disconnect": "continue"}) as reading:
            call_id = question_in(await reading.take(3))["call_id"]
            await is_waiting(server, reading.run_id)
        await anyio.sleep(0.4)
        assert await answered(server, reading.run_id, call_id, transport, result=SIZE) == 202

        async def is_over() -> bool:
            return bool((await get_run(server, reading.run_id))["status"] == "completed")

        await until(is_over)
        parts = (await request(server, "GET", f"/chat/sessions/{json.loads(reading.documents[0])['session_id']}")).json
        assert SIZE in [each.get("result") for each in parts["messages"][-1]["parts"] if each.get("tool") == "order"]


@each_transport
@pytest.mark.parametrize(
    ("length", "times", "calls_limit", "words"),
    [(40_000, 1, 100, "the question is over 32768 bytes"), (1, 5, 4, "at most 4 calls and questions in one answer")],
    ids=["long", "many"],
)
async def test_questions_have_limits(
    length: int, times: int, calls_limit: int, words: str, transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("pester", {"length": length, "times": times})))
    async with serving(upstream, tmp_path, max_tool_calls_per_run=calls_limit, approval_seconds=0.2) as server:
        documents = await documents_of(await transport.start(server, {"message": "Hi"}))
        assert words in result_in(documents, "pester")[0] and types_of(documents)[-1] == "done"


async def test_in_a_test_a_tool_is_answered_without_a_server() -> None:
    made = tool(order)
    assert await made.call({}, ToolContext()) == {"action": "cancel", "content": {}}
    asked: list[Question] = []

    def put(question: Question) -> "Future[Reply]":
        asked.append(question)
        future: Future[Reply] = Future()
        future.set_result(Reply("accept", {"size": 7}))
        return future

    assert (await made.call({}, ToolContext(put=put)))["content"] == {"size": 7}
    assert asked == [Question("Which size?", FORM)]


async def test_time_stands_still_until_the_last_question_is_answered() -> None:
    reached: list[int] = []
    with leaping_time() as clock:

        async def call(limit: TimeLimit) -> None:
            with limit.running():
                await clock.pause(6)
                with limit.stopped():
                    await clock.pause(50)
                    with limit.stopped():
                        await clock.pause(50)
                    await clock.pause(50)
                await clock.pause(3)
                reached.append(1)
                await clock.pause(2)
                reached.append(2)

        with pytest.raises(TimeoutError):
            await call(TimeLimit(10))
    assert reached == [1]


async def test_a_question_does_not_undo_that_the_time_is_over() -> None:
    limit = TimeLimit(0)

    async def call() -> None:
        with limit.running():
            try:
                await anyio.sleep_forever()
            finally:
                with limit.stopped():
                    pass

    with pytest.raises(TimeoutError):
        await call()
