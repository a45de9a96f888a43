"""Calls that wait beside one that goes on, when their server ends: they wait on, and the other is told as unknown."""

from pathlib import Path
from typing import Any

import pytest

from chatserver.answer import Answer
from chatserver.calls import Calls
from chatserver.dialogue import INTERRUPTED_CALL
from chatserver.events import ToolResult
from chatserver.parts import ToolCallPart
from chatserver.telemetry import UNOBSERVED_RUN
from chatserver.tools.context import ToolContext
from chatserver.waiting import Approved, Refused, Resulted
from tests.clients import BOTH, WS, BrokenError, Reading, Transport, documents_of, get_run, text_of, types_of
from tests.fake_upstream import FakeUpstream
from tests.live import ServerProcess
from tests.merging import numbers_of
from tests.program import until
from tests.proving import check_once
from tests.scripted_model import Unanswered, toolbox
from tests.test_waiting import SCREEN, answered, calling, done_by, events_of, has_begun, serving, waiting
from tests.test_waiting_restarts import processes

pytestmark = pytest.mark.anyio

each_of_both = pytest.mark.parametrize("transport", BOTH, ids=str)

BESIDE = calling(("knead", {"seconds": 60}), ("book", {"table": 4}))


async def killed(server: ServerProcess, reading: Reading) -> list[bytes]:
    """Kill a server and start it again; what its reader has seen."""
    server.kill()
    await _until_broken(reading)
    await server.wait()
    await server.start()
    return reading.documents


async def _until_broken(reading: Reading) -> None:
    """Take all that has been sent."""
    try:
        while await reading.next() is not None:
            pass
    except (BrokenError, ConnectionError):
        pass
    finally:
        reading.cut()


async def _has_come_to(server: Any, run_id: str, status: str, last_seq: int) -> bool:
    run = await get_run(server, run_id)
    return (run["status"], run["last_seq"]) == (status, last_seq)


def told_to(upstream: FakeUpstream) -> list[str]:
    """The outputs of tools, as the model was told last."""
    return [each["content"] for each in upstream.requests[-1].json["messages"] if each["role"] == "tool"]


@each_of_both
async def test_beside_a_call_that_a_kill_has_interrupted_another_one_waits_on(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(BESIDE)
    async with processes(upstream, tmp_path) as (server,):
        reading = await transport.start(server, {"message": "Bake"})
        run_id = await waiting(reading, 2)
        await until(lambda: has_begun(ledger))
        documents = await killed(server, reading)
        await until(lambda: _has_come_to(server, run_id, "waiting", 4))  # Though nobody asks for the run.
        reading = await transport.attach(server, run_id, 3)
        documents = [*documents, *await reading.take(1)]
        (result,) = events_of(documents, "tool_result")
        assert (result["call_id"], result["is_error"], result["result"]) == ("c0", True, INTERRUPTED_CALL)
        assert await answered(server, run_id, "c1", transport, approve=True) == 202
        documents += await documents_of(reading)
        check_once(documents)
        assert types_of(documents)[4:] == ["tool_result", "token", "done"]
    assert told_to(upstream) == [INTERRUPTED_CALL, "table 4 is booked"]
    assert done_by(ledger) == ["knead", "book 4"]


@each_of_both
async def test_beside_a_call_that_waits_a_result_that_was_sent_outlives_a_kill(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("knead", {"seconds": 0}), ("book", {"table": 4})))
    async with processes(upstream, tmp_path) as (server,):
        reading = await transport.start(server, {"message": "Bake"})
        run_id = await waiting(reading, 3)
        documents = await killed(server, reading)
        assert types_of(documents) == ["start", "tool_call", "tool_call", "tool_result"]
        assert await answered(server, run_id, "c1", transport, approve=True) == 202
        documents += await documents_of(await transport.attach(server, run_id, 4))
        check_once(documents)
    assert told_to(upstream) == ["kneaded", "table 4 is booked"]
    assert done_by(ledger) == ["knead", "book 4"]


@each_of_both
async def test_beside_calls_with_an_answer_another_one_waits_on_and_what_was_answered_is_told(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """The approved one is being made with arguments that a user has edited."""
    upstream.always(calling(("bake", {"seconds": 60}), ("book", {"table": 4}), ("screen", {})))
    async with processes(upstream, tmp_path) as (server,):
        reading = await transport.start(server, {"message": "Bake", "tools": [SCREEN]})
        run_id = await waiting(reading, 3)
        assert await answered(server, run_id, "c0", transport, approve=True, args={"seconds": 61}) == 202
        assert await answered(server, run_id, "c2", transport, result=[5, 4]) == 202
        await until(lambda: has_begun(ledger))
        documents = await killed(server, reading)
        reading = await transport.attach(server, run_id, len(documents))
        documents = [*documents, *await reading.take(6 - len(documents))]
        results = {each["call_id"]: each for each in events_of(documents, "tool_result")}
        assert (results["c0"]["result"], results["c0"]["args"]) == (INTERRUPTED_CALL, {"seconds": 61})
        assert (results["c2"]["result"], results["c2"]["is_error"]) == ([5, 4], False)
        for call_id in ("c0", "c2"):
            refused = await answered(server, run_id, call_id, transport, approve=True)
            assert refused == (409, "already_answered")
        assert await answered(server, run_id, "c1", transport, approve=True) == 202
        documents += await documents_of(reading)
        check_once(documents)
    assert told_to(upstream) == [INTERRUPTED_CALL, "table 4 is booked", "[5,4]"]
    assert done_by(ledger) == ["bake", "book 4"], "each was made once"


@pytest.mark.parametrize(
    ("resolution", "told"),
    [
        (None, (INTERRUPTED_CALL, True)),
        (Approved(), (INTERRUPTED_CALL, True)),
        (Refused("no"), ("no", True)),
        (Resulted(5), (5, False)),
        (Resulted("no", is_error=True), ("no", True)),
    ],
)
async def test_of_a_call_that_was_answered_before_a_crash_is_told_what_is_known(
    resolution: Any, told: tuple[Any, bool]
) -> None:
    heard: list[Any] = []
    calls = Calls(toolbox(), heard.append, pytest.fail, UNOBSERVED_RUN, ToolContext(), Unanswered(heard.append))
    left = Answer((ToolCallPart(call_id="c", tool="book", args={}),))
    await calls.resume(left, (), {"d": Refused("other")} | ({"c": resolution} if resolution else {}))
    (result,) = heard
    assert isinstance(result, ToolResult) and (result.result, result.is_error) == told


@each_of_both
async def test_a_drain_leaves_a_call_that_waits_beside_one_that_does_not_end(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(BESIDE)
    async with serving(upstream, tmp_path, drain_seconds=0.2) as server:
        reading = await transport.start(server, {"message": "Bake"})
        run_id = await waiting(reading, 2)
        await until(lambda: has_begun(ledger))
        server.begin_drain()
        if transport is WS:
            with pytest.raises(BrokenError, match="1012"):
                await reading.next()
        else:
            assert await reading.next() is None
    async with serving(upstream, tmp_path) as server:
        assert await answered(server, run_id, "c1", transport, approve=True) == 202
        documents = [*reading.documents, *await documents_of(await transport.attach(server, run_id, 3))]
        check_once(documents)
    assert told_to(upstream) == [INTERRUPTED_CALL, "table 4 is booked"]
    assert done_by(ledger) == ["knead", "book 4"]


@each_of_both
async def test_what_an_agent_has_said_beside_a_call_that_waits_outlives_a_kill(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """Else the next process would give the same numbers to other words."""
    async with processes(upstream, tmp_path, agent="tests.busy_agents:talking") as (server,):
        reading = await transport.start(server, {"message": "Talk"})
        run_id = await waiting(reading, 20)
        documents = await killed(server, reading)
        (call,) = events_of(documents, "tool_call")
        said = [seq for document in documents for seq in numbers_of(document)]
        assert said == list(range(1, len(said) + 1))
        beside = await transport.attach(server, run_id, len(said))
        assert await answered(server, run_id, call["call_id"], transport, approve=True) == 202
        again = await documents_of(await transport.attach(server, run_id, 0))
        check_once(again)
        check_once([*documents, *await documents_of(beside)])
    assert text_of(again).startswith(text_of(documents)) and text_of(again).endswith("table 4 is booked")
    assert done_by(ledger) == ["book 4"]


@each_of_both
async def test_a_call_that_an_agent_makes_beside_one_that_waits_is_not_made_again(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """The agent is called anew, and is told that nobody knows what became of its call."""
    async with processes(upstream, tmp_path, agent="tests.busy_agents:kneading") as (server,):
        reading = await transport.start(server, {"message": "Bake"})
        run_id = await waiting(reading)
        await until(lambda: has_begun(ledger))
        documents = await killed(server, reading)
        (book, *_) = events_of(documents, "tool_call")
        assert await answered(server, run_id, book["call_id"], transport, approve=True) == 202
        again = await documents_of(await transport.attach(server, run_id, 0))
        check_once(again)
    assert types_of(again) == ["start", "tool_call", "token", "tool_call", *["tool_result"] * 2, "token", "done"]
    assert "not known" in text_of(again) and text_of(again).endswith("table 4 is booked")
    assert done_by(ledger) == ["knead", "book 4"]
