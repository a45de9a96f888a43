"""Calls that an agent of one's own gives up, as by a timeout: each gets a result at once, and takes no answer."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest

from chatserver import AgentContext, Dialogue, Yielded, create_app, tool
from chatserver.dialogue import INTERRUPTED_CALL
from chatserver.sessions.waits import Waits
from chatserver.waiting import GIVEN_UP, LEFT
from tests.approved_tools import book
from tests.clients import BOTH, Transport, documents_of, get_run, request, types_of
from tests.live import LiveServer, live_server
from tests.proving import answer_of, check_once, held
from tests.test_waiting import SCREEN, answered, done_by, events_of, is_waiting

pytestmark = pytest.mark.anyio

SECONDS = 20.0

each_transport = pytest.mark.parametrize("transport", BOTH, ids=str)


async def hang() -> None:
    """Never come back."""
    await asyncio.Event().wait()


class Impatient:
    """An agent that gives its first call up when that ``is_enough``, and goes on when it may (``goes_on``)."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.is_enough, self.goes_on = threading.Event(), threading.Event()

    async def __call__(self, _: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
        asked = []
        for number, name in enumerate(self.names):
            asked.append(asyncio.ensure_future(context.call(name, {"table": number} if name == "book" else {})))
        await asyncio.to_thread(self.is_enough.wait)
        asked[0].cancel()
        await asyncio.wait(asked[:1])
        await asyncio.to_thread(self.goes_on.wait)
        yield "; ".join(["gone", *[str(await each) for each in asked[1:]]])


@asynccontextmanager
async def serving(agent: Impatient, directory: Path) -> AsyncIterator[LiveServer]:
    tools: list[Any] = [tool(book, needs_approval=True), hang]
    with anyio.fail_after(SECONDS):
        async with live_server(
            None, directory=directory, make_app=lambda each: create_app(each, agent=agent.__call__, tools=tools)
        ) as server:
            try:
                yield server
            finally:  # No thread of the agent stays.
                agent.is_enough.set()
                agent.goes_on.set()


@each_transport
@pytest.mark.parametrize(("name", "words"), [("book", GIVEN_UP), ("screen", LEFT), ("hang", INTERRUPTED_CALL)])
async def test_a_call_that_is_given_up_has_its_result_at_once_and_takes_no_answer(
    name: str, words: str, transport: Transport, ledger: Path, tmp_path: Path
) -> None:
    agent = Impatient(name)
    async with serving(agent, tmp_path) as server:
        reading = await transport.start(server, {"message": "Hi", "session_id": "s", "tools": [SCREEN]})
        documents = await reading.take(2)
        assert (await get_run(server, reading.run_id))["status"] == ("running" if name == "hang" else "waiting")
        heard = monotonic()
        while (lasted := monotonic() - heard) < 0.005:
            await get_run(server, reading.run_id)
        agent.is_enough.set()
        documents += await reading.take(1)
        (result,) = events_of(documents, "tool_result")
        assert (result["result"], result["is_error"]) == (words, True)
        assert result["duration_ms"] >= int(lasted * 1000)
        assert (await get_run(server, reading.run_id))["status"] == "running"
        answer = {"result": 1} if name == "screen" else {"approve": True}
        late = await answered(server, reading.run_id, result["call_id"], transport, **answer)
        assert late == (409, "already_answered")
        agent.goes_on.set()
        documents += await documents_of(reading)
        check_once(documents)
        assert types_of(documents)[3:] == ["token", "done"] and done_by(ledger) == []
        message = (await request(server, "GET", "/chat/sessions/s")).json["messages"][-1]
        assert (message["status"], message["parts"]) == ("complete", answer_of(documents)["parts"])


@each_transport
@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_call_that_is_given_up_while_it_is_stored_takes_no_answer(
    is_committed: bool, transport: Transport, ledger: Path, tmp_path: Path
) -> None:
    agent = Impatient("book")
    async with serving(agent, tmp_path) as server:
        with held(Waits, "store", done=is_committed) as hold:
            reading = await transport.start(server, {"message": "Hi"})
            await hold.come.wait()
            agent.is_enough.set()
            documents = await reading.take(3)
        assert types_of(documents) == ["start", "tool_call", "tool_result"]
        call_id = events_of(documents, "tool_call")[0]["call_id"]
        assert (await get_run(server, reading.run_id))["status"] == "running"
        assert await answered(server, reading.run_id, call_id, transport, approve=True) == (409, "already_answered")
        agent.goes_on.set()
        check_once([*documents, *await documents_of(reading)])
        assert done_by(ledger) == []


@each_transport
async def test_beside_a_call_that_is_given_up_another_one_waits_on(
    transport: Transport, ledger: Path, tmp_path: Path
) -> None:
    agent = Impatient("book", "book")
    async with serving(agent, tmp_path) as server:
        reading = await transport.start(server, {"message": "Hi"})
        documents = await reading.take(3)
        first, second = (each["call_id"] for each in events_of(documents, "tool_call"))
        agent.is_enough.set()
        documents += await reading.take(1)
        assert events_of(documents, "tool_result")[0]["call_id"] == first
        await is_waiting(server, reading.run_id)
        agent.goes_on.set()
        assert await answered(server, reading.run_id, second, transport, approve=True) == 202
        documents += await documents_of(reading)
        check_once(documents)
        assert answer_of(documents)["content"] == "gone; table 1 is booked" and done_by(ledger) == ["book 1"]
