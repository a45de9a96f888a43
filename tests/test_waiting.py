"""Calls that wait for an approval, or for the client that runs the tool: answered once, from anywhere, at any time."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.runs.runs import Runs
from chatserver.waiting import UNAPPROVED, UNRETURNED
from tests.approved_tools import REFERENCE
from tests.clients import (
    BOTH,
    SSE,
    WS,
    Reading,
    Response,
    Transport,
    WsReader,
    documents_of,
    get_run,
    request,
    types_of,
)
from tests.fake_upstream import Done, FakeUpstream, Reply, Step, finish, role, token, tool_call
from tests.live import LiveServer, live_server
from tests.program import until
from tests.proving import answer_of, cancelled_from, check_once

pytestmark = pytest.mark.anyio

SECONDS = 60.0
SCREEN = {
    "name": "screen",
    "description": "The size of the screen.",
    "parameters": {"type": "object", "properties": {"unit": {"type": "string"}}},
}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

each_of_both = pytest.mark.parametrize("transport", BOTH, ids=str)


def calling(*calls: tuple[str, dict[str, Any]]) -> Any:
    """A model that makes these calls at once, and then says what came of them."""

    def answer(reply: Reply) -> Iterable[Step]:
        messages = reply.request.json["messages"]
        yield role()
        if messages[-1]["role"] == "user":
            for index, (name, args) in enumerate(calls):
                yield from tool_call(name, args, id=f"c{index}", index=index)
            yield finish("tool_calls", USAGE)
        else:
            outputs = [each["content"] for each in messages if each["role"] == "tool"]
            yield token("so: " + "; ".join(outputs))
            yield finish("stop", USAGE)
        yield Done()

    return answer


@asynccontextmanager
async def serving(upstream: FakeUpstream, directory: Path, **settings: Any) -> AsyncIterator[LiveServer]:
    with anyio.fail_after(SECONDS):
        async with live_server(upstream.url, directory=directory, tools=REFERENCE, **settings) as server:
            yield server


async def waiting(reading: Reading, calls: int = 1) -> str:
    """The run of a reading, when its calls wait."""
    await reading.take(1 + calls)
    return reading.run_id


async def is_waiting(server: Any, run_id: str) -> None:
    await until(lambda: _has_status(server, run_id, "waiting"))


async def _has_status(server: Any, run_id: str, status: str) -> bool:
    return bool((await get_run(server, run_id))["status"] == status)


async def answered(server: Any, run_id: str, call_id: str, transport: Transport = SSE, **answer: Any) -> Any:
    """Answer a call, as a client of this transport does: the status, and the code of a refusal."""
    refused = await refusal_of(server, run_id, call_id, transport, **answer)
    return 202 if refused is None else (refused["status"], refused["code"])


async def refusal_of(server: Any, run_id: str, call_id: str, transport: Transport, **answer: Any) -> Any:
    """Answer a call, as a client of this transport does: the refusal, None: it was taken."""
    if transport is not WS:
        response: Response = await request(server, "POST", f"/chat/runs/{run_id}/tool_calls/{call_id}", answer)
        return None if response.status == 202 else response.json
    async with await WsReader.connect(server) as reader:
        reply = await reader.command(type="answer", run_id=run_id, call_id=call_id, **answer)
        return None if reply["type"] == "accepted" else reply


def done_by(ledger: Path) -> list[str]:
    """What the tools have done."""
    return ledger.read_text().splitlines()


async def has_begun(ledger: Path) -> bool:
    """Whether a tool has done something."""
    return bool(done_by(ledger))


def events_of(documents: Iterable[bytes], kind: str) -> list[dict[str, Any]]:
    return [each for each in map(json.loads, documents) if each["type"] == kind]


# ---- one server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "status"),
    [("answer", {"call_id": "c0", "approve": False}, "completed"), ("cancel", {}, "cancelled")],
    ids=["answer", "cancel"],
)
async def test_a_command_is_accepted_before_the_events_that_it_causes(
    name: str,
    fields: dict[str, Any],
    status: str,
    upstream: FakeUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = getattr(Runs, name)

    async def slow(runs: Runs, user: str, run_id: str, *rest: Any) -> Any:
        """Return only when the run is over: all its events could have been sent."""
        found = await original(runs, user, run_id, *rest)
        await until(lambda: _has_status(server, run_id, status))
        return found

    monkeypatch.setattr(Runs, name, slow)
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server, await WsReader.connect(server) as reader:
        run_id = await reader.run({"message": "Book"})
        await reader.until("tool_call")
        await is_waiting(server, run_id)
        await reader.command(type=name, run_id=run_id, **fields)
        await reader.until("done")
    types = [frame.message["type"] for frame in reader.frames]
    assert types[types.index("tool_call") + 1 :][:2] == ["accepted", "tool_result"]


@each_of_both
async def test_an_approved_call_is_made_once_and_the_run_goes_on(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Book"})
        run_id = await waiting(reading)
        await is_waiting(server, run_id)
        assert done_by(ledger) == []
        assert await answered(server, run_id, "c0", transport, approve=True) == 202
        documents = [*reading.documents[:2], *await documents_of(reading)]
        check_once(documents)
        assert types_of(documents) == ["start", "tool_call", "tool_result", "token", "done"]
        (call,), (result,) = events_of(documents, "tool_call"), events_of(documents, "tool_result")
        assert (call["needs_approval"], call["executor"]) == (True, "server")
        assert (result["result"], result["is_error"], "args" in result) == ("table 4 is booked", False, False)
        assert events_of(documents, "done")[0]["usage"] == {"input_tokens": 20, "output_tokens": 10, "estimated": False}
        assert done_by(ledger) == ["book 4"]
        assert await answered(server, run_id, "c0", transport, approve=False) == (409, "already_answered")
        assert await answered(server, run_id, "c9", transport, approve=True) == (404, "not_found")


@each_of_both
async def test_edited_arguments_are_told_and_stored(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Book", "session_id": "s"})
        run_id = await waiting(reading)
        assert await answered(server, run_id, "c0", transport, approve=True, args={"table": 5}) == 202
        documents = [*reading.documents[:2], *await documents_of(reading)]
        (result,) = events_of(documents, "tool_result")
        assert result["args"] == {"table": 5} and done_by(ledger) == ["book 5"]
        message = (await request(server, "GET", "/chat/sessions/s")).json["messages"][-1]
        assert message["parts"] == answer_of(documents)["parts"]
        assert message["parts"][0]["args"] == {"table": 5}
    (call,) = upstream.requests[-1].json["messages"][-2]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"table": 5}, "the model is told the arguments that were used"


@each_of_both
@pytest.mark.parametrize("is_parked", [False, True])
async def test_edited_arguments_that_do_not_fit_are_refused_and_the_call_waits_on(
    is_parked: bool, transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """Also where the run is nobody's any more: the answer that fits takes it."""
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path, retention_seconds=0.1 if is_parked else 60) as server:
        reading = await transport.start(server, {"message": "Book"})
        run_id = await waiting(reading)
        await is_waiting(server, run_id)
        if is_parked:
            reading.cut()
            await until(lambda: _is_parked(server, run_id))
        for args in ({"table": "by the window"}, {}, {"table": 4, "chair": 1}):
            refused = await refusal_of(server, run_id, "c0", transport, approve=True, args=args)
            (problem,) = refused["errors"]
            assert (refused["status"], refused["code"], problem["pointer"]) == (400, "bad_request", "/args")
            assert problem["detail"].startswith("the arguments do not fit: ")
        assert await _has_status(server, run_id, "waiting") and done_by(ledger) == []
        assert await answered(server, run_id, "c0", transport, approve=True, args={"table": 5}) == 202
        if is_parked:
            reading = await transport.attach(server, run_id, 1)
        (result,) = events_of(await documents_of(reading), "tool_result")
        assert result["args"] == {"table": 5} and done_by(ledger) == ["book 5"]


@each_of_both
async def test_a_refused_call_is_not_made_and_the_model_is_told_why(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Book"})
        run_id = await waiting(reading)
        assert await answered(server, run_id, "c0", transport, approve=False, reason="too loud") == 202
        documents = await documents_of(reading)
        (result,) = events_of(documents, "tool_result")
        assert result["is_error"] and "too loud" in result["result"]
        assert types_of(documents)[-1] == "done" and done_by(ledger) == []
    assert "too loud" in upstream.requests[-1].json["messages"][-1]["content"]


@each_of_both
async def test_a_tool_of_the_client_is_run_by_the_client(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("screen", {"unit": "px"})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Look", "tools": [SCREEN]})
        run_id = await waiting(reading)
        (call,) = events_of(reading.documents, "tool_call")
        assert (call["executor"], call["needs_approval"], call["args"]) == ("client", False, {"unit": "px"})
        for unfit in ({"approve": True}, {"result": 1, "args": {}}, {"result": 1, "reason": "why"}, {"is_error": True}):
            assert await answered(server, run_id, "c0", transport, **unfit) == (400, "bad_request")
        assert await answered(server, run_id, "c0", transport, result={"width": 800}) == 202
        (result,) = events_of(await documents_of(reading), "tool_result")
        assert (result["result"], result["is_error"]) == ({"width": 800}, False)
    assert [each["function"]["name"] for each in upstream.requests[0].json["tools"]][-1] == "screen"
    assert json.loads(upstream.requests[-1].json["messages"][-1]["content"]) == {"width": 800}


@each_of_both
@pytest.mark.parametrize("args", [{"unit": 5}, "inches"], ids=str)
async def test_a_call_that_does_not_fit_a_tool_of_the_client_is_not_handed_to_the_client(
    args: Any, transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("screen", args)))
    async with serving(upstream, tmp_path) as server:
        documents = await documents_of(await transport.start(server, {"message": "Look", "tools": [SCREEN]}))
        check_once(documents)
        assert types_of(documents) == ["start", "tool_call", "tool_result", "token", "done"]
        (call,), (result,) = events_of(documents, "tool_call"), events_of(documents, "tool_result")
        assert call["executor"] == "server", "a client that begins with the `tool_call` begins nothing"
        assert result["is_error"] and "the arguments" in result["result"]
    assert upstream.requests[-1].json["messages"][-1]["content"] == result["result"]


@each_of_both
async def test_the_result_of_a_tool_of_the_client_is_cut_as_that_of_any_tool(
    transport: Transport, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.always(calling(("screen", {})))
    async with serving(upstream, tmp_path, max_tool_result_bytes=64) as server:
        reading = await transport.start(server, {"message": "Look", "tools": [SCREEN]})
        run_id = await waiting(reading)
        assert await answered(server, run_id, "c0", transport, result=["pixel"] * 100) == 202
        (result,) = events_of(await documents_of(reading), "tool_result")
        assert result["truncated"] and len(result["result"]) <= 64 and result["result"].startswith('["pixel",')


@each_of_both
async def test_calls_of_one_turn_are_answered_one_at_a_time_in_any_order(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """An approval, a tool of the client, and a tool that a rule lets pass or not."""
    calls: list[tuple[str, dict[str, Any]]] = [
        ("book", {"table": 1}),
        ("screen", {}),
        ("look", {"at": "flowers"}),
        ("look", {"at": "secrets"}),
    ]
    upstream.always(calling(*calls, ("look", {"at": "nothing"})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "All", "tools": [SCREEN]})
        await reading.take(1 + 5 + 1)
        needs = [each["needs_approval"] for each in events_of(reading.documents, "tool_call")]
        assert needs == [True, False, False, True, True], "a rule that fails asks"
        order: list[tuple[str, dict[str, Any]]] = [
            ("c1", {"result": [1], "is_error": True}),
            ("c4", {"approve": False}),
            ("c0", {"approve": True}),
        ]
        for call_id, answer in order:
            await is_waiting(server, reading.run_id)
            assert await answered(server, reading.run_id, call_id, transport, **answer) == 202
            (result,) = events_of(await reading.take(1), "tool_result")
            assert result["call_id"] == call_id
        assert await answered(server, reading.run_id, "c3", transport, approve=True) == 202
        documents = await documents_of(reading)
        assert types_of(documents) == ["tool_result", "token", "done"] and done_by(ledger) == ["book 1"]


@each_of_both
async def test_of_two_devices_that_answer_at_once_one_wins(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Book"})
        run_id = await waiting(reading)
        await is_waiting(server, run_id)
        outcomes: list[Any] = []

        async def answer(approve: bool) -> None:
            outcomes.append(await answered(server, run_id, "c0", transport, approve=approve))

        async with anyio.create_task_group() as devices:
            for number in range(8):
                devices.start_soon(answer, number % 2 == 0)
        assert sorted(map(str, outcomes)) == ["(409, 'already_answered')"] * 7 + ["202"]
        assert len(events_of(await documents_of(reading), "tool_result")) == 1 and len(done_by(ledger)) <= 1


@each_of_both
async def test_a_call_that_nobody_answers_expires_into_a_refusal(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4}), ("screen", {})))
    async with serving(upstream, tmp_path, approval_seconds=0.5) as server:
        reading = await transport.start(server, {"message": "Book", "tools": [SCREEN]})
        documents = await documents_of(reading)
        results = events_of(documents, "tool_result")
        assert [each["is_error"] for each in results] == [True, True] and "in time" in results[0]["result"]
        assert types_of(documents)[-1] == "done" and done_by(ledger) == []
        assert await answered(server, reading.run_id, "c0", transport, approve=True) == (409, "already_answered")
    assert "in time" in upstream.requests[-1].json["messages"][-1]["content"]


@each_of_both
async def test_a_waiting_run_outlives_its_readers_and_shows_what_it_waits_for(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path, grace_seconds=0.2, retention_seconds=0.5) as server:
        reading = await transport.start(server, {"message": "Book", "session_id": "s"})
        run_id = await waiting(reading)
        reading.cut()
        await until(lambda: _is_parked(server, run_id))
        run = await get_run(server, run_id)
        assert (run["status"], run["last_seq"], run["finished_at"]) == ("waiting", 2, None)
        session = (await request(server, "GET", "/chat/sessions/s")).json
        (part,) = session["messages"][-1]["parts"]
        assert session["active_run_id"] == run_id and session["messages"][-1]["status"] == "streaming"
        assert (part["needs_approval"], part["result"], part["is_error"]) == (True, None, None)
        busy = await request(server, "POST", "/chat/runs", {"message": "More", "session_id": "s"})
        assert (busy.status, busy.json["run_id"]) == (409, run_id)
        reading = await transport.attach(server, run_id, 1)
        assert types_of(await reading.take(1)) == ["tool_call"]
        assert await answered(server, run_id, "c0", transport, approve=True) == 202
        documents = [*reading.documents[:1], *await documents_of(reading)]
        assert types_of(documents) == ["tool_call", "tool_result", "token", "done"] and done_by(ledger) == ["book 4"]
        assert [each["seq"] for each in map(json.loads, documents)] == [2, 3, 4, 5]


async def _is_parked(server: LiveServer, run_id: str) -> bool:
    return run_id not in server.runs._lives.lives


@each_of_both
@pytest.mark.parametrize("is_parked", [False, True])
@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_a_waiting_run_is_cancelled_and_deleted(
    how: str, is_parked: bool, transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4}), ("screen", {})))
    async with serving(upstream, tmp_path, retention_seconds=0.1 if is_parked else 60) as server:
        reading = await transport.start(server, {"message": "Book", "session_id": "s", "tools": [SCREEN]})
        run_id = await waiting(reading, calls=2)
        await is_waiting(server, run_id)
        if is_parked:
            reading.cut()
            await until(lambda: _is_parked(server, run_id))
        if how == "cancel":
            await cancelled_from(server, transport, run_id)
            await until(lambda: _has_status(server, run_id, "cancelled"))
            assert await answered(server, run_id, "c0", approve=True) == (409, "already_answered")
        else:
            assert (await request(server, "DELETE", "/chat/sessions/s")).status == 204
            assert await answered(server, run_id, "c0", approve=True) == (404, "not_found")
        assert done_by(ledger) == []
        if not is_parked:
            assert events_of(await documents_of(reading), "done")[0]["finish_reason"] == "cancelled"


@each_of_both
async def test_calls_that_wait_when_their_run_is_cancelled_were_not_made_and_all_are_told_so(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """A reader, the session and the model: none is left with a call that has no result."""
    upstream.always(calling(("book", {"table": 4}), ("screen", {}), ("look", {"at": "flowers"})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Book", "session_id": "s", "tools": [SCREEN]})
        documents = await reading.take(5)
        await is_waiting(server, reading.run_id)
        await cancelled_from(server, transport, reading.run_id)
        documents += await documents_of(reading)
        check_once(documents)
        assert types_of(documents)[4:] == ["tool_result", "tool_result", "tool_result", "done"]
        results = {each["tool"]: each for each in events_of(documents, "tool_result")}
        assert (results["book"]["result"], results["screen"]["result"]) == (UNAPPROVED, UNRETURNED)
        assert [results[each]["is_error"] for each in ("book", "screen", "look")] == [True, True, False]
        message = (await request(server, "GET", "/chat/sessions/s")).json["messages"][-1]
        assert (message["status"], message["parts"]) == ("partial", answer_of(documents)["parts"])
        assert done_by(ledger) == []
        upstream.script(role(), token("Well."), finish(), Done())
        await documents_of(await transport.start(server, {"message": "And now?", "session_id": "s"}))
    told = {
        each["tool_call_id"]: each["content"]
        for each in upstream.requests[-1].json["messages"]
        if "tool_call_id" in each
    }
    assert told == {"c0": UNAPPROVED, "c1": UNRETURNED, "c2": "flowers is fine"}
