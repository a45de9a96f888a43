"""The examples of agents: short, streamed token by token, and cancelled with their runs."""

import asyncio
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import anyio
import pytest

from chatserver import create_app
from tests.approved_tools import LEDGER, REFERENCE
from tests.clients import BOTH, SSE, WS, Address, Transport, cancel, documents_of, text_of, types_of
from tests.fake_upstream import FakeUpstream, Gate, call, say, token
from tests.live import ROOT, ServerProcess, live_server
from tests.test_waiting import answered, done_by, is_waiting

pytestmark = pytest.mark.anyio

FOLDER = ROOT / "clients" / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))
OF_AGENTS_SDK = ROOT / ".venv" / "openai-agents" / "bin" / "python"
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
    assert f"clients/examples/{name}.py" in (ROOT / "README.md").read_text()


async def check_stream(server: Address, upstream: FakeUpstream, transport: Transport) -> None:
    """Three runs of a session: one streams and is remembered, two are cancelled, and so cut upstream.

    The third is cancelled while its agent is ahead of the server: it waits for the server and not for the model then.
    """
    gates = [anyio.Event(), anyio.Event()]
    session = {"session_id": f"s-{transport.name}"}
    upstream.script(token("An"), Gate(gates[0]), *say(" answer", 2))
    reading = await transport.start(server, {"message": "Hi"} | session)
    begun = await reading.take(2)
    assert types_of(begun) == ["start", "token"]
    gates[0].set()
    documents = [*begun, *await documents_of(reading)]
    assert text_of(documents) == "An answer" and types_of(documents)[-1] == "done"
    for tokens, seq in ((1, 2), (1000, 300)):
        upstream.script(*[token("An")] * tokens, Gate(gates[1]))
        reading = await transport.start(server, {"message": "More"} | session)
        while json.loads((await reading.take(1))[0])["seq"] < seq:  # Of many tokens, some may come merged.
            pass
        await cancel(server, reading.run_id)
        assert json.loads((await documents_of(reading))[-1])["finish_reason"] == "cancelled"
        await upstream.until(lambda: upstream.replies[-1].state == "cut")
    asked = [(each["role"], each["content"]) for each in upstream.requests[-2].json["messages"]]
    assert [each for each in asked if each[0] != "system"] == [
        ("user", "Hi"),
        ("assistant", "An answer"),
        ("user", "More"),
    ]


@pytest.mark.timeout(120)  # The libraries of agents take seconds to import.
@pytest.mark.parametrize(("name", "transport"), [("with_pydantic_ai", SSE), ("with_langgraph", WS)], ids=str)
async def test_a_library_streams_token_by_token_and_is_cancelled_with_its_run(
    name: str, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeUpstream() as upstream:
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-an-example")
        agent = loaded(name).agent
        async with live_server(upstream.url, make_app=lambda chosen: create_app(chosen, agent=agent)) as server:
            with anyio.fail_after(WAIT_SECONDS):
                await check_stream(server, upstream, transport)


@pytest.mark.skipif(not OF_AGENTS_SDK.exists(), reason="its environment is not there: `just test` makes it")
@pytest.mark.timeout(120)
async def test_the_agents_sdk_streams_calls_the_tools_of_the_server_and_phones_nobody(tmp_path: Path) -> None:
    """As a program in the environment of its lock, and so with the oldest `websockets` that the server takes."""
    callers: list[asyncio.StreamWriter] = []
    async with (
        FakeUpstream() as upstream,
        await asyncio.start_server(lambda _, caller: callers.append(caller), "127.0.0.1", 0) as proxy,
        ServerProcess(
            upstream.url,
            tmp_path,
            python=OF_AGENTS_SDK,
            start=[str(FOLDER / "with_openai_agents.py")],
            environment={
                "CHATSERVER_PORT": "0",
                "HTTPS_PROXY": f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
            },
        ) as server,
    ):
        with anyio.fail_after(2 * WAIT_SECONDS):
            for transport in BOTH:
                await check_stream(server, upstream, transport)
            upstream.script(*call("calculator", {"expression": "6*7"}))
            upstream.script(*say("It is 42."))
            documents = await documents_of(await SSE.start(server, {"message": "How much is it?"}))
            assert types_of(documents) == ["start", "tool_call", "tool_result", "token", "done"]
            result, end = json.loads(documents[2]), json.loads(documents[-1])
            assert (result["tool"], result["result"], end["usage"]["input_tokens"]) == ("calculator", 42, 14)
            assert upstream.requests[-1].json["messages"][-1]["content"] == "42"
            server.terminate()
            assert (await server.wait(), server.stderr) == (0, [])  # At its end the SDK would send what it has traced.
    assert callers == []


@pytest.mark.skipif(not OF_AGENTS_SDK.exists(), reason="its environment is not there: `just test` makes it")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_the_agents_sdk_goes_on_after_a_restart_with_the_result_of_a_call_that_waited(
    transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    start = [str(FOLDER / "with_openai_agents.py")]
    async with (
        FakeUpstream() as upstream,
        ServerProcess(
            upstream.url,
            tmp_path,
            python=OF_AGENTS_SDK,
            start=start,
            environment={"CHATSERVER_PORT": "0"},
            tools=REFERENCE,
        ) as server,
    ):
        with anyio.fail_after(3 * WAIT_SECONDS):
            upstream.script(token("I book. "), *call("book", {"table": 4}))
            reading = await transport.start(server, {"message": "Book"})
            before = await reading.take(3)
            await is_waiting(server, reading.run_id)
            server.kill()
            reading.cut()
            await server.wait()
            await server.start()
            upstream.script(token("I am booking. "), *call("book", {"table": 4}))  # A model never says it twice alike.
            upstream.script(*say("Booked."))
            reader = await transport.attach(server, reading.run_id, 3)
            assert await answered(server, reading.run_id, json.loads(before[2])["call_id"], approve=True) == 202
            documents = [*before, *await documents_of(reader)]
    assert types_of(documents) == ["start", "token", "tool_call", "tool_result", "token", "done"]
    assert text_of(documents) == "I book. Booked." and done_by(tmp_path / "ledger") == ["book 4"]
    first, again, last = [[each["role"] for each in asked.json["messages"]] for asked in upstream.requests]
    assert first == again == ["user"] and last == ["user", "assistant", "tool"]


def test_the_environment_of_the_agents_sdk_is_otherwise_that_of_all_tests() -> None:
    def versions(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z][\w.-]*)==(\S+)", path.read_text(), re.MULTILINE))

    own = versions(FOLDER / "with_openai_agents.lock")
    other = own.items() - versions(ROOT / "requirements-dev.lock").items()
    assert {name for name, _ in other} <= {"openai-agents", "websockets"}


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
