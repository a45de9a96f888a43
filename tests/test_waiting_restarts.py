"""Runs that wait, when servers end: in peace, by a kill, one after the other and side by side on one database."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.call_checks import NO_TOOL
from tests.approved_tools import REFERENCE
from tests.clients import BOTH, SSE, WS, BrokenError, Transport, documents_of, get_run, request, types_of
from tests.fake_upstream import FakeUpstream, call, say
from tests.live import ServerProcess, live_server
from tests.pictures import attached, inline, text, told
from tests.program import until
from tests.proving import check_once
from tests.slow_tools import REFERENCE as OTHER_TOOLS
from tests.test_structured import CITY, format_of
from tests.test_waiting import SCREEN, answered, calling, done_by, events_of, has_begun, is_waiting, serving, waiting

pytestmark = pytest.mark.anyio

SECONDS = 120.0

each_of_both = pytest.mark.parametrize("transport", BOTH, ids=str)


@asynccontextmanager
async def processes(
    upstream: FakeUpstream, directory: Path, count: int = 1, **settings: Any
) -> AsyncIterator[list[ServerProcess]]:
    """Servers in processes of their own, on one database."""
    made = [ServerProcess(upstream.url, directory, is_forked=True, tools=REFERENCE, **settings) for _ in range(count)]
    with anyio.fail_after(SECONDS):
        for server in made:
            await server.start()
        try:
            yield made
        finally:
            for server in made:
                if server.is_running:
                    server.kill()
                    await server.wait()


@each_of_both
async def test_a_run_that_waits_survives_a_drain_and_goes_on_under_its_id(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """Its readers are sent away at once, without a terminal event; every cursor in the old part is served exactly."""
    upstream.always(calling(("book", {"table": 4}), ("book", {"table": 5})))
    async with serving(upstream, tmp_path, drain_seconds=30.0) as server:
        reading = await transport.start(server, {"message": "Book", "session_id": "s"})
        run_id = await waiting(reading, 2)
        await is_waiting(server, run_id)
        assert await answered(server, run_id, "c1", transport, approve=False) == 202
        before = [*reading.documents, *await reading.take(1)][:4]
        await is_waiting(server, run_id)
        with anyio.fail_after(10):  # Not after `drain_seconds`.
            server.begin_drain()
            if transport is WS:
                with pytest.raises(BrokenError, match="1012"):
                    await reading.next()
            else:
                assert await reading.next() is None
    async with serving(upstream, tmp_path) as server:
        run = await get_run(server, run_id)
        assert (run["status"], run["last_seq"], run["usage"]["input_tokens"]) == ("waiting", 4, 10)
        reading = await transport.attach(server, run_id, 0)
        assert await reading.take(4) == before
        inside = await transport.attach(server, run_id, 2)
        assert await answered(server, run_id, "c0", transport, approve=True) == 202
        documents = [*before, *await documents_of(reading)]
        assert await documents_of(inside) == documents[2:]
        check_once(documents)
        assert types_of(documents)[4:] == ["tool_result", "token", "done"] and done_by(ledger) == ["book 4"]
        (done,) = events_of(documents, "done")
        assert done["usage"] == {"input_tokens": 20, "output_tokens": 10, "estimated": False}
        assert (await get_run(server, run_id))["usage"] == done["usage"]
        assert "booked" in events_of(documents, "token")[0]["content"]
    told = upstream.requests[-1].json["messages"]
    assert [each["role"] for each in told] == ["user", "assistant", "tool", "tool"]
    assert [each["id"] for each in told[1]["tool_calls"]] == ["c0", "c1"]


@each_of_both
async def test_a_call_of_a_tool_that_is_gone_after_a_restart_takes_any_arguments_and_fails(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """Nobody can say what would fit, and the run must not wait for what never comes."""
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        reading = await transport.start(server, {"message": "Book"})
        run_id = await waiting(reading)
        await is_waiting(server, run_id)
        reading.cut()
    async with live_server(upstream.url, directory=tmp_path, tools=OTHER_TOOLS) as server:
        assert await answered(server, run_id, "c0", transport, approve=True, args={"table": "by the window"}) == 202
        documents = await documents_of(await transport.attach(server, run_id, 2))
        (result,) = events_of(documents, "tool_result")
        assert (result["result"], result["is_error"]) == (NO_TOOL, True) and done_by(ledger) == []


@each_of_both
async def test_a_run_that_waits_survives_a_kill(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with processes(upstream, tmp_path) as (server,):
        reading = await transport.start(server, {"message": "Book"})
        run_id = await waiting(reading)
        server.kill()  # Whoever is shown the call finds it stored.
        reading.cut()
        await server.wait()
        await server.start()
        assert (await get_run(server, run_id))["status"] == "waiting"
        assert await answered(server, run_id, "c0", transport, approve=True) == 202
        documents = await documents_of(await transport.attach(server, run_id, 0))
        check_once(documents)
        assert types_of(documents) == ["start", "tool_call", "tool_result", "token", "done"]
        assert done_by(ledger) == ["book 4"]


@each_of_both
async def test_of_a_call_that_a_kill_has_interrupted_nobody_knows_the_outcome_and_it_is_not_made_again(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("bake", {"seconds": 60})))
    async with processes(upstream, tmp_path) as (server,):
        reading = await transport.start(server, {"message": "Bake", "session_id": "s"})
        run_id = await waiting(reading)
        assert await answered(server, run_id, "c0", transport, approve=True) == 202
        await until(lambda: has_begun(ledger))
        server.kill()
        reading.cut()
        await server.wait()
        await server.start()
        documents = await documents_of(await transport.attach(server, run_id, 0))
        assert types_of(documents) == ["snapshot", "error"]
        snapshot, error = map(json.loads, documents)
        assert error["code"] == "interrupted"
        (part,) = snapshot["parts"]
        assert part["is_error"] and "not known" in part["result"]
        message = (await request(server, "GET", "/chat/sessions/s")).json["messages"][-1]
        assert message["parts"] == [part] and message["status"] == "partial"
        assert await answered(server, run_id, "c0", transport, approve=True) == (409, "already_answered")
        upstream.always(calling())
        await documents_of(await transport.start(server, {"message": "And?", "session_id": "s"}))
        assert done_by(ledger) == ["bake"], "it was made once"
    told = [each["content"] for each in upstream.requests[-1].json["messages"] if each["role"] == "tool"]
    assert "not known" in told[0]


@each_of_both
async def test_a_run_that_has_waited_shows_the_model_the_images_of_its_message_again(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    message = [text("A table with this view"), inline(), attached()]
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server, await transport.start(server, {"message": message}) as reading:
        await is_waiting(server, await waiting(reading))
    async with serving(upstream, tmp_path) as server:
        assert await answered(server, reading.run_id, "c0", transport, approve=True) == 202
        documents = await documents_of(await transport.attach(server, reading.run_id, 0))
        assert types_of(documents) == ["start", "tool_call", "tool_result", "token", "done"]
    first, again = (each.json["messages"] for each in upstream.requests)
    assert first == again[:1] == [{"role": "user", "content": [told(part) for part in message]}]


@each_of_both
async def test_a_run_that_has_waited_still_has_the_tools_of_its_client(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        upstream.script(*call("screen", {}))
    upstream.script(*say("done"))
    body = {"message": "Look", "tools": [SCREEN]}
    async with serving(upstream, tmp_path) as server, await transport.start(server, body) as reading:
        (first,) = events_of(await reading.take(2), "tool_call")
        await is_waiting(server, reading.run_id)
    async with serving(upstream, tmp_path) as server:
        assert await answered(server, reading.run_id, first["call_id"], transport, result=1) == 202
        reading = await transport.attach(server, reading.run_id, 2)
        (second,) = events_of(await reading.take(2), "tool_call")
        assert (second["tool"], second["executor"]) == ("screen", "client")
        assert await answered(server, reading.run_id, second["call_id"], transport, result=2) == 202
        assert types_of(await documents_of(reading)) == ["tool_result", "token", "done"]
    offered = [[each["function"]["name"] for each in asked.json["tools"]] for asked in upstream.requests]
    assert offered == [["book", "pay", "bake", "look", "knead", "screen"]] * 3


@each_of_both
@pytest.mark.parametrize(("said", "end"), [({"name": "Bergen"}, "done"), ({"name": 5}, "error")])
async def test_the_answer_of_a_run_that_has_waited_still_has_to_have_its_form(
    said: dict[str, Any], end: str, transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    wanted = format_of(CITY, strict=True)
    upstream.script(*call("book", {"table": 4}))
    upstream.script(*say(json.dumps(said)))
    body = {"message": "Where is it?", "response_format": wanted}
    async with serving(upstream, tmp_path) as server, await transport.start(server, body) as reading:
        call_id = events_of((await reading.take(2)), "tool_call")[0]["call_id"]
        await is_waiting(server, reading.run_id)
    async with serving(upstream, tmp_path) as server:
        assert await answered(server, reading.run_id, call_id, transport, approve=True) == 202
        documents = await documents_of(await transport.attach(server, reading.run_id, 0))
    assert (
        types_of(documents)[-1] == end and [each.json["response_format"] for each in upstream.requests] == [wanted] * 2
    )
    if end == "error":
        (error,) = events_of(documents, "error")
        assert error["code"] == "llm_error" and "$.name" in error["message"]


@each_of_both
async def test_a_parked_run_expires_though_nobody_asks_for_it(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path, approval_seconds=1.5) as server:
        reading = await transport.start(server, {"message": "Book"})
        run_id = await waiting(reading)
        await is_waiting(server, run_id)
        reading.cut()
    async with serving(upstream, tmp_path, approval_seconds=1.5) as server:
        await until(lambda: _is_over(server, run_id))
        documents = await documents_of(await transport.attach(server, run_id, 0))
        assert "in time" in events_of(documents, "tool_result")[0]["result"] and done_by(ledger) == []


async def _is_over(server: Any, run_id: str) -> bool:
    return (await get_run(server, run_id))["finished_at"] is not None


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_two_processes_on_one_database_share_what_waits(
    kind: str, upstream: FakeUpstream, ledger: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An answer at the other process is found by the owner's look; when the owner is gone, the other one takes over."""
    settings = {"database_url": request.getfixturevalue("postgres_url")} if kind == "postgres" else {}
    upstream.always(calling(("book", {"table": 4})))
    async with processes(upstream, tmp_path, 2, **settings) as (one, other):
        reading = await SSE.start(one, {"message": "Book"})
        run_id = await waiting(reading)
        await is_waiting(other, run_id)
        outcomes: list[Any] = []

        async def answer(server: ServerProcess) -> None:
            outcomes.append(await answered(server, run_id, "c0", approve=True))

        async with anyio.create_task_group() as devices:
            for server in (one, other, one, other):
                devices.start_soon(answer, server)
        assert sorted(map(str, outcomes)) == ["(409, 'already_answered')"] * 3 + ["202"]
        assert types_of(await documents_of(reading)) == ["tool_result", "token", "done"]
        reading = await SSE.start(one, {"message": "Book again"})
        run_id = await waiting(reading)
        await is_waiting(other, run_id)
        assert await answered(other, run_id, "c0", approve=True) == 202
        assert types_of(await documents_of(reading)) == ["tool_result", "token", "done"]
        async with await SSE.start(one, {"message": "Book once more"}) as reading:
            run_id = await waiting(reading)
            await is_waiting(other, run_id)
            one.kill()
            await one.wait()
        documents = await _when_taken(other, run_id)
        check_once(documents)
        assert types_of(documents) == ["start", "tool_call", "tool_result", "token", "done"]
        assert done_by(ledger) == ["book 4"] * 3


async def _when_taken(server: ServerProcess, run_id: str) -> list[bytes]:
    assert await answered(server, run_id, "c0", approve=True) == 202
    return await documents_of(await SSE.attach(server, run_id, 0))
