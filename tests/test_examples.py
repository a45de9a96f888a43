"""The examples of agents: short, streamed token by token, and cancelled with their runs."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import anyio
import pytest

from chatserver import create_app
from tests.clients import BOTH, SSE, WS, Transport, cancel, documents_of, text_of, types_of
from tests.fake_upstream import FakeUpstream, Gate, call, say, token
from tests.live import live_server

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parents[1] / "clients" / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))
WAIT_SECONDS = 30.0


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_says_what_it_is(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert text.startswith('"""') and len(text.splitlines()) <= 40
    assert f"clients/examples/{name}.py" in (FOLDER.parents[1] / "README.md").read_text()


@pytest.mark.timeout(120)  # The libraries of agents take seconds to import.
@pytest.mark.parametrize(("name", "transport"), [("with_pydantic_ai", SSE), ("with_langgraph", WS)], ids=str)
async def test_a_library_streams_token_by_token_and_is_cancelled_with_its_run(
    name: str, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = [anyio.Event(), anyio.Event()]
    async with FakeUpstream() as upstream:
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-an-example")
        agent = loaded(name).agent
        async with live_server(upstream.url, make_app=lambda chosen: create_app(chosen, agent=agent)) as server:
            with anyio.fail_after(WAIT_SECONDS):
                upstream.script(token("An"), Gate(gates[0]), *say(" answer", 2))
                reading = await transport.start(server, {"message": "Hi", "session_id": "s"})
                begun = await reading.take(2)
                assert types_of(begun) == ["start", "token"]
                gates[0].set()
                documents = [*begun, *await documents_of(reading)]
                assert text_of(documents) == "An answer" and types_of(documents)[-1] == "done"
                upstream.script(token("An"), Gate(gates[1]))
                reading = await transport.start(server, {"message": "More", "session_id": "s"})
                await reading.take(2)
                await cancel(server, reading.run_id)
                assert json.loads((await documents_of(reading))[-1])["finish_reason"] == "cancelled"
                await upstream.until(lambda: upstream.replies[-1].state == "cut")
            asked = [(each["role"], each["content"]) for each in upstream.requests[-1].json["messages"]]
            assert [each for each in asked if each[0] != "system"] == [
                ("user", "Hi"),
                ("assistant", "An answer"),
                ("user", "More"),
            ]


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_an_agent_needs_no_model(transport: Transport) -> None:
    agent = loaded("no_model").agent
    async with live_server(None, make_app=lambda chosen: create_app(chosen, agent=agent)) as server:
        with anyio.fail_after(WAIT_SECONDS):
            documents = await documents_of(await transport.start(server, {"message": "one two"}))
            assert text_of(documents) == "local said: one two" and types_of(documents).count("token") == 3
            reading = await transport.start(server, {"message": "word " * 5000})
            await reading.take(3)
            await cancel(server, reading.run_id)
            assert json.loads((await documents_of(reading))[-1])["finish_reason"] == "cancelled"


async def test_tools_of_ones_own_are_called() -> None:
    own = loaded("own_tools")
    async with (
        FakeUpstream() as upstream,
        live_server(upstream.url, make_app=lambda chosen: create_app(chosen, tools=[own.stock, own.order])) as server,
    ):
        upstream.script(*call("order", {"fruit": "pears", "count": 3}))
        upstream.script(*say("Done."))
        with anyio.fail_after(WAIT_SECONDS):
            events = [json.loads(each) for each in await documents_of(await SSE.start(server, {"message": "Hi"}))]
        assert [event["result"] for event in events if event["type"] == "tool_result"] == ["3 pears are ordered"]
        assert own.STOCK["pears"] == 3
