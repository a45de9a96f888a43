"""The demo model shows what waits and what goes on: an approval, a tool of the client, progress."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.providers import demo
from chatserver.tools import demo as demo_tools
from tests.clients import BOTH, Reading, Transport, documents_of, get_run, request
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.program import until

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30.0
SCREEN = {"name": "screen_size", "description": "The size of the screen.", "parameters": {"type": "object"}}
each_of_both = pytest.mark.parametrize("transport", BOTH, ids=repr)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches the words come."""
    monkeypatch.setattr(demo, "TOKEN_SECONDS", 0.0)
    monkeypatch.setattr(demo_tools, "STEP_SECONDS", 0.5)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with live_server(None, directory=tmp_path_factory.mktemp("demo")) as server:
        yield server


async def called(reading: Reading) -> dict[str, Any]:
    """The call that comes next."""
    while True:
        (document,) = await reading.take(1)
        event: dict[str, Any] = json.loads(document)
        if event["type"] == "tool_call":
            return event


async def answer(server: LiveServer, call: dict[str, Any], **given: Any) -> None:
    path = f"/chat/runs/{call['run_id']}/tool_calls/{call['call_id']}"
    assert (await request(server, "POST", path, given)).status == 202


async def is_waiting(server: LiveServer, call: dict[str, Any]) -> bool:
    return bool((await get_run(server, call["run_id"]))["status"] == "waiting")


async def said(reading: Reading) -> str:
    """What is said behind the call, to the end."""
    events = [json.loads(each) for each in await documents_of(reading)]
    assert events[-1]["type"] == "done"
    return "".join(each["content"] for each in events if each["type"] == "token")


@each_of_both
async def test_a_table_is_booked_as_it_was_approved(server: LiveServer, transport: Transport) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        reading = await transport.start(server, {"message": "Book a table for 4 at 19:30"})
        call = await called(reading)
        assert (call["tool"], call["needs_approval"]) == ("book_table", True)
        assert call["args"] == {"people": 4, "time": "19:30"}
        await answer(server, call, approve=True, args={"people": 5, "time": "20:00"})
        assert "A table for **5** at **20:00** is booked, under **T-" in await said(reading)


@each_of_both
async def test_a_refusal_is_told_with_its_reason(server: LiveServer, transport: Transport) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        reading = await transport.start(server, {"message": "Book a table"})
        await answer(server, await called(reading), approve=False, reason="too late")
        words = await said(reading)
    assert words.startswith("I have no table for you:") and "too late" in words


async def test_an_approval_is_given_after_a_restart(tmp_path: Path) -> None:
    transport = BOTH[0]
    with anyio.fail_after(2 * WAIT_SECONDS):
        async with live_server(None, directory=tmp_path) as server:
            reading = await transport.start(server, {"message": "Book a table for 3"})
            call = await called(reading)
            await until(lambda: is_waiting(server, call))
            reading.cut()
        async with live_server(None, directory=tmp_path) as server:
            reading = await transport.attach(server, call["run_id"], call["seq"])
            await answer(server, call, approve=True)
            assert "A table for **3** at **19:00** is booked" in await said(reading)


@each_of_both
async def test_the_client_is_asked_for_its_screen(server: LiveServer, transport: Transport) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        reading = await transport.start(server, {"message": "What is my screen size?", "tools": [SCREEN]})
        call = await called(reading)
        assert (call["tool"], call["executor"]) == ("screen_size", "client")
        await answer(server, call, result={"screen": {"width": 800, "height": 600}})
        assert await said(reading) == "Your screen has **800 × 600** pixels."
        reading = await transport.start(server, {"message": "What is my screen size?"})
        assert "your client offers no tool" in await said(reading)


@each_of_both
async def test_work_tells_how_far_it_is(server: LiveServer, transport: Transport) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        reading = await transport.start(server, {"message": "Work for 1 s"})
        events = [json.loads(each) for each in await documents_of(reading)]
    told = [each for each in events if each["type"] == "tool_progress"]
    assert told and told[-1] | {"seq": 0, "run_id": "", "call_id": ""} == {
        "type": "tool_progress",
        "run_id": "",
        "seq": 0,
        "call_id": "",
        "message": "step 2 of 2",
        "progress": 1.0,
        "total": 1,
    }
    assert "".join(each["content"] for each in events if each["type"] == "token").endswith("I have worked for **1** s.")


async def test_a_real_model_is_offered_none_of_it(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, directory=tmp_path) as server:
        upstream.script(*say("Hi"))
        await request(server, "POST", "/chat/stream", {"message": "Book a table"})
        offered = [each["function"]["name"] for each in upstream.requests[0].json["tools"]]
    assert offered == ["clock", "calculator"]
