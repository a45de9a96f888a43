"""MCP servers: a small one that is wrong in one way, and real ones that others wrote."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import types
from msgspec.structs import replace

from chatserver.dialogue import RESERVED
from chatserver.errors import SettingsError
from chatserver.events import ToolProgress
from chatserver.json_schema import SCHEMA_BYTES_LIMIT
from chatserver.settings.masks import masked
from chatserver.tools.context import Question, Reply, ToolContext
from chatserver.tools.mcp.configuration import Command, Endpoint, McpConfiguration, mcp_configurations
from chatserver.tools.mcp.listing import DESCRIPTION_CHARS_LIMIT, TOOLS_LIMIT, listed
from chatserver.tools.mcp.server import COMPLAINTS, backoff
from chatserver.tools.mcp.servers import McpServers, open_mcp_servers
from chatserver.tools.mcp.stdio import Lines, TooLong
from chatserver.tools.results import ToolFailed
from tests.clients import BOTH, SSE, Transport, cancel, documents_of, get_run, request, types_of
from tests.fake_upstream import FakeUpstream, call, say
from tests.live import LiveServer, live_server
from tests.program import START_SECONDS, free_port, until
from tests.test_waiting import answered

pytestmark = pytest.mark.anyio

SMALL = Path(__file__).with_name("small_mcp_server.py")
FOREIGN = Path(__file__).with_name("mcp") / "node_modules/@modelcontextprotocol"
EVERYTHING, FILES = (str(FOREIGN / f"server-{name}" / "dist/index.js") for name in ("everything", "filesystem"))
is_installed = pytest.mark.skipif(not FOREIGN.is_dir(), reason="the npm packages of tests/mcp are not installed")


def small(folder: Path, fault: str = "none") -> str:
    return shlex.join([sys.executable, "-S", str(SMALL), fault, str(folder)])


def started(*command: str, **environment: str) -> "subprocess.Popen[bytes]":
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, env=os.environ | environment, stdout=nowhere, stderr=nowhere)


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "journal"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def pids(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "pids").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def servers_of(*entries: str, approval: str = "never") -> AsyncIterator[McpServers]:
    with anyio.fail_after(START_SECONDS):
        async with open_mcp_servers(mcp_configurations(entries, os.environ), approval) as servers:
            yield servers


async def state(servers: McpServers, name: str, wanted: str) -> None:
    async def holds() -> bool:
        return servers.states[name] == wanted

    await until(holds)


# ---- configuration --------------------------------------------------------------------------------------------------


def test_entries_name_urls_commands_and_files(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    document = {
        "globalShortcut": "",
        "mcpServers": {
            "a": {"command": "npx", "args": ["-y", "${PACKAGE:-x}"], "env": {"KEY": "${KEY}"}, "icon": 1},
            "b": {"url": "https://b.test/mcp", "headers": {"Authorization": "Bearer ${KEY}"}, "type": "http"},
            "c": {"command": "never", "disabled": True},
        },
    }
    file.write_text(json.dumps(document))
    entries = ["https://u.test/mcp?a=b", "d=run 'two words' x=y", str(file)]
    assert mcp_configurations(entries, {"KEY": "k"}) == [
        McpConfiguration("", Endpoint("https://u.test/mcp?a=b")),
        McpConfiguration("d", Command(("run", "two words", "x=y"))),
        McpConfiguration("a", Command(("npx", "-y", "x"), {"KEY": "k"})),
        McpConfiguration("b", Endpoint("https://b.test/mcp", {"Authorization": "Bearer k"})),
    ]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["a=x", "a=y"], "two servers have the name `a`"),
        (["x", "y"], "only one may be without a name"),
        (["a='secret"], "entry 1: No closing quotation"),
        (["a=ftp://secret"], "entry 1: is no http:// or https:// URL"),
        (["nowhere.json"], "entry 1: nowhere.json cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_entry_is_refused_without_its_secrets(entries: list[str], words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        mcp_configurations(entries, {})
    assert words in str(refused.value) and "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"command": "x", "args": ["${GONE}"]}, "there is no variable GONE in the environment"),
        ({"command": "x", "url": "http://y"}, "needs either `command` or `url`"),
        ({"url": "http://y", "type": "sse"}, "`sse` is not understood"),
        ({"url": "http://y", "headers": {"a b": "secret"}}, "the header 'a b' cannot be sent"),
        ({"url": "http://y", "headers": {"a": "secret\nb: c"}}, "the header 'a' cannot be sent"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, server: dict[str, Any], words: str) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"s": server}}))
    with pytest.raises(SettingsError) as refused:
        mcp_configurations([str(file)], {})
    assert "server 's'" in str(refused.value)
    assert words in str(refused.value) and "secret" not in str(refused.value)


def test_what_may_be_secret_is_masked() -> None:
    entries = ["a=npx -y x --key s3", "b=https://u:s3@h.test:8/mcp/s3?k=s3", "https://h.test?k=s3", "f.json"]
    assert masked("mcp", entries) == ["a=npx ***", "b=https://h.test:8/***", "https://h.test", "f.json"]


# ---- cores ----------------------------------------------------------------------------------------------------------


def tool_of(name: str, schema: dict[str, Any] | None = None, **more: Any) -> types.Tool:
    return types.Tool(name=name, input_schema={"type": "object"} if schema is None else schema, **more)


def test_names_become_valid_and_stay_different() -> None:
    names = ["a", "a.b", "a/b", "<script>", "é" * 100, "é" * 101]
    found, complaints = listed(map(tool_of, names), "s")
    ids = [each.id for each in found]
    assert ids[:2] == ["s__a", "s__a_b"] and ids[3] == "s___script_" and complaints == []
    assert len(set(ids)) == len(names) and max(map(len, ids)) == 64
    assert [each.name for each in found] == names


def test_what_cannot_be_offered_is_left_out() -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}}
    wrong: dict[str, dict[str, Any]] = {
        "array": {"type": "array"},
        "invalid": {"type": "object", "properties": 3},
        "fetched": {"type": "object", "$ref": "http://127.0.0.1:9/x"},
        "dangling": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}},
        "long": {"type": "object", "title": "x" * SCHEMA_BYTES_LIMIT},
        "deep": deep,
    }
    found, complaints = listed([tool_of(name, schema) for name, schema in wrong.items()], "")
    assert found == [] and len(complaints) == len(wrong)
    found, complaints = listed([tool_of("a"), tool_of("a"), tool_of("")], "")
    assert len(found) == 1 and len(complaints) == 2
    found, complaints = listed(map(tool_of, ["ask_user", "ask user", "ask"]), "")
    assert [each.id for each in found] == ["ask"]
    assert [complaint.partition(": ")[2] for complaint in complaints] == [RESERVED] * 2
    assert [each.id for each in listed([tool_of("ask_user")], "s")[0]] == ["s__ask_user"]
    found, complaints = listed([tool_of(f"t{number}") for number in range(TOOLS_LIMIT + 1)], "")
    assert len(found) == TOOLS_LIMIT and len(complaints) == 1
    assert len(listed([tool_of("a", description="x" * 9999)], "")[0][0].description) == DESCRIPTION_CHARS_LIMIT


def test_a_tool_that_says_nothing_of_itself_may_destroy() -> None:
    said = [None, {}, {"readOnlyHint": True}, {"destructiveHint": False}, {"destructiveHint": True}]
    tools = [tool_of(f"t{number}", annotations=each) for number, each in enumerate(said)]
    assert [each.is_destructive for each in listed(tools, "")[0]] == [True, True, False, False, True]


def test_lines_are_cut_whatever_their_pieces() -> None:
    text = b"one\n\ntwo two\nthree"
    for size in range(1, len(text)):
        lines = Lines(7)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert [line for piece in pieces for line in lines.cut(piece)] == [b"one", b"", b"two two"]
    with pytest.raises(TooLong):
        list(Lines(7).cut(b"12345678"))


def test_tries_come_later_and_later() -> None:
    delays = [delay for delay, _ in zip(backoff(), range(2000), strict=False)]
    assert 0.5 <= delays[0] <= 1 and min(delays[6:]) >= 30 and max(delays) <= 60


# ---- a small server -------------------------------------------------------------------------------------------------


async def test_tools_are_listed_called_and_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    told: list[ToolProgress] = []
    context = ToolContext(report=told.append)
    async with servers_of(f"s={small(tmp_path, 'banner')}") as servers:
        await state(servers, "s", "ready")
        tools: Any = servers.tools
        assert await tools["s__add"].call({"a": 1, "b": 2}, context) == "3"
        environment = await tools["s__environment"].call({}, context)
        assert environment["HOME"] == os.environ["HOME"] and "sk-secret" not in environment.values()
        assert await tools["s__work"].call({}, context) == "worked"
        assert [(each.message, each.progress, each.total) for each in told] == [("step 1", 1, 2), ("step 2", 2, 2)]
        blocks = await tools["s__blocks"].call({}, context)
        assert blocks[1] == {"type": "image", "mime_type": "image/png", "bytes": 3} and "AAAA" not in str(blocks)
        with pytest.raises(ToolFailed, match="no such file"):
            await tools["s__fail"].call({}, context)
        with pytest.raises(ToolFailed, match=r"\Athe disk is full\Z"):
            await tools["s__refuse"].call({}, context)
        with pytest.raises(ToolFailed, match="makes no sense"):
            await tools["s__lie"].call({}, context)
        assert await tools["s__grow"].call({}, context) == "grown"

        await until(lambda: _has_grown(servers))


async def _has_grown(servers: McpServers) -> bool:
    return any(name.startswith("s__grown") for name in servers.tools)


async def test_a_call_that_is_cancelled_is_told_and_disturbs_no_other(tmp_path: Path) -> None:
    async with servers_of(small(tmp_path)) as servers:
        await state(servers, Path(sys.executable).name, "ready")
        hang: Any = servers.tools["hang"]
        first, second = (asyncio.ensure_future(hang.call({}, ToolContext())) for _ in range(2))

        def sent(method: str) -> list[Any]:
            return [each for each in journal(tmp_path) if each.get("method") == method]

        async def are_called() -> bool:
            return len(sent("tools/call")) == 2

        async def is_told() -> bool:
            return bool(sent("notifications/cancelled"))

        await until(are_called)
        first.cancel()
        await asyncio.wait([first])
        await until(is_told)
        assert [each["params"]["requestId"] for each in sent("notifications/cancelled")] == [
            sent("tools/call")[0]["id"]
        ]
        assert not second.done()
        add: Any = servers.tools["add"]
        assert await add.call({"a": 1, "b": 1}, ToolContext()) == "2"
        second.cancel()
        await asyncio.wait([second])


async def test_a_server_that_dies_costs_its_calls_and_is_started_anew(tmp_path: Path) -> None:
    async with servers_of(f"s={small(tmp_path)}") as servers:
        await state(servers, "s", "ready")
        tools: Any = servers.tools
        for fault in ("die", "huge"):
            with pytest.raises(ToolFailed, match="whether the call had an effect is not known"):
                await tools[f"s__{fault}"].call({}, ToolContext())
            assert await tools["s__add"].call({"a": 1, "b": 2}, ToolContext()) == "3"
        assert len(pids(tmp_path)) == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [("exit", "ended with status 2: no such port"), ("endless", "a message is over"), ("mute", "no answer within")],
)
async def test_a_server_that_never_comes_prevents_nothing(
    tmp_path: Path, fault: str, words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "mute":
        monkeypatch.setattr("chatserver.tools.mcp.server.HANDSHAKE_SECONDS", 0.5)
    async with servers_of(f"s={small(tmp_path, fault)}") as servers:
        assert servers.tools == {}

        async def is_told() -> bool:
            return words in caplog.text

        await until(is_told)
    assert not any(map(is_alive, pids(tmp_path)))


async def test_a_list_without_end_is_cut(tmp_path: Path) -> None:
    async with servers_of(f"s={small(tmp_path, 'many')}") as servers:
        await state(servers, "s", "ready")
        assert len(servers.tools) == TOOLS_LIMIT


async def test_what_is_no_tool_costs_no_other_tool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Among the tools of a server that is connected, and of one that lists its tools anew."""
    async with servers_of(f"s={small(tmp_path, 'odd')}") as servers:
        await state(servers, "s", "ready")
        tools: Any = servers.tools
        assert await tools["s__add"].call({"a": 1, "b": 2}, ToolContext()) == "3"
        odd = {"s__none", "s__text", "s__array", "s__number", "s__dangling", "s__result", "s__wordy"}
        assert odd.isdisjoint(tools)
        assert await tools["s__grow"].call({}, ToolContext()) == "grown"
        await until(lambda: _has_grown(servers))
    assert caplog.text.count("leaves out the tool") == COMPLAINTS


async def test_a_server_that_floods_is_listed_no_faster(tmp_path: Path) -> None:
    async with servers_of(f"s={small(tmp_path, 'flood')}") as servers:
        await state(servers, "s", "ready")
        await anyio.sleep(1.0)  # The time in which a flood would be felt is what is measured here.
        assert len([each for each in journal(tmp_path) if each["method"] == "tools/list"]) <= 3


async def test_processes_end_with_the_server_even_those_that_refuse(tmp_path: Path) -> None:
    async with servers_of(f"s={small(tmp_path, 'immortal')}") as servers:
        await state(servers, "s", "ready")
        assert len(pids(tmp_path)) == 2 and all(map(is_alive, pids(tmp_path)))

    async def are_gone() -> bool:
        return not any(map(is_alive, pids(tmp_path)))

    await until(are_gone)


KILLED = """
import anyio, sys
from chatserver.tools.mcp.configuration import mcp_configurations
from chatserver.tools.mcp.servers import open_mcp_servers

async def main():
    async with open_mcp_servers(mcp_configurations(sys.argv[1:], {}), "never"):
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_processes_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    program = started(sys.executable, "-c", KILLED, small(tmp_path, "immortal"))

    async def are_started() -> bool:
        return (tmp_path / "pids").exists() and len(pids(tmp_path)) == 2 and bool(journal(tmp_path))

    async def are_gone() -> bool:
        return not any(map(is_alive, pids(tmp_path)))

    try:
        await until(are_started)
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
    await until(are_gone)


@pytest.mark.parametrize(("approval", "needed"), [("never", ""), ("destructive", "hang"), ("always", "add hang work")])
async def test_the_operator_says_which_calls_need_an_approval(tmp_path: Path, approval: str, needed: str) -> None:
    async with servers_of(small(tmp_path), approval=approval) as servers:
        await state(servers, Path(sys.executable).name, "ready")
        names = ("add", "hang", "work")
        assert [name for name in names if getattr(servers.tools[name], "needs_approval", None)] == needed.split()


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_a_dead_server_costs_an_error_result_not_the_run(tmp_path: Path, transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, mcp=(f"s={small(tmp_path)}",)) as server:
        await is_ready(server)
        upstream.script(*call("s__die", {}))
        upstream.script(*call("s__add", {"a": 1, "b": "two"}))
        upstream.script(*call("s__add", {"a": 1, "b": 2}))
        upstream.script(*say("three"))
        documents = await documents_of(await transport.start(server, {"message": "Hi"}))
        results = [json.loads(each) for each in documents if b'"tool_result"' in each]
        assert [each["is_error"] for each in results] == [True, True, False] and results[2]["result"] == "3"
        assert types_of(documents)[-1] == "done"


# ---- questions ------------------------------------------------------------------------------------------------------


ACCEPTED = Reply("accept", {"size": 42})


def answering(reply: Reply, asked: list[Question]) -> ToolContext:
    """A context with a user who answers each question so."""

    def put(question: Question) -> "Future[Reply]":
        asked.append(question)
        future: Future[Reply] = Future()
        future.set_result(reply)
        return future

    return ToolContext(put=put)


async def asking(servers: McpServers, name: str, context: ToolContext) -> Any:
    await state(servers, "s", "ready")
    called: Any = servers.tools[f"s__{name}"]
    return await called.call({}, context)


@pytest.mark.parametrize("reply", [ACCEPTED, Reply("decline"), Reply("cancel")], ids=lambda each: each.action)
async def test_a_server_asks_the_user_in_mid_call(tmp_path: Path, reply: Reply) -> None:
    asked: list[Question] = []
    async with servers_of(f"s={small(tmp_path)}") as servers:
        told = json.loads(await asking(servers, "ask", answering(reply, asked)))
        assert told == {"action": reply.action} | ({"content": reply.content} if reply.content else {})
        (question,) = asked
        assert question.message == "Which size?" and list(question.schema["properties"]) == ["size"]


async def test_an_address_is_shown_to_the_user(tmp_path: Path) -> None:
    asked: list[Question] = []
    async with servers_of(f"s={small(tmp_path)}") as servers:
        assert json.loads(await asking(servers, "open", answering(Reply("accept"), asked))) == {"action": "accept"}
        assert [each.message for each in asked] == ["Sign in\n\nhttps://example.org/"]


async def test_a_server_that_wants_the_call_again_gets_the_answers(tmp_path: Path) -> None:
    async with servers_of(f"s={small(tmp_path, 'modern')}") as servers:
        told = json.loads(await asking(servers, "ask_again", answering(ACCEPTED, [])))
        assert told == ["by heart", {"size": {"action": "accept", "content": {"size": 42}}}]


async def test_a_question_that_may_be_of_another_call_is_put_to_nobody(tmp_path: Path) -> None:
    """Calls of two users go on in one session, and over pipes a question does not say whose it is."""
    asked: list[Question] = []
    async with servers_of(f"s={small(tmp_path)}") as servers, anyio.create_task_group() as tasks:
        tasks.start_soon(asking, servers, "hang", ToolContext())

        async def hangs() -> bool:
            return any(each.get("params", {}).get("name") == "hang" for each in journal(tmp_path))

        await until(hangs)
        assert "not clear" in await asking(servers, "ask", answering(ACCEPTED, asked))
        assert not asked
        tasks.cancel_scope.cancel()


async def test_a_question_of_a_call_that_was_given_up_is_put_to_nobody_else(tmp_path: Path) -> None:
    """The server may still be at work on that call: over pipes its question would be taken for one of the next call."""
    asked: list[Question] = []
    async with servers_of(f"s={small(tmp_path)}") as servers:
        with anyio.move_on_after(0.2):
            await asking(servers, "hang", ToolContext(user="Ada"))
        assert "not clear" in await asking(servers, "ask", replace(answering(ACCEPTED, asked), user="Bob"))
        assert not asked
        assert "accept" in await asking(servers, "ask", replace(answering(ACCEPTED, asked), user="Ada"))


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_a_run_that_is_cancelled_while_it_asks_costs_no_other_call(tmp_path: Path, transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, mcp=(f"s={small(tmp_path)}",)) as server:
        await is_ready(server)
        upstream.script(*call("s__ask", {}))
        upstream.script(*call("s__hang", {}))
        asks = await transport.start(server, {"message": "ask"})
        await asks.take(3)
        async with await transport.start(server, {"message": "hang"}) as hangs:
            await hangs.take(2)
            await cancel(server, asks.run_id)
            await documents_of(asks)
            upstream.script(*call("s__add", {"a": 1, "b": 2}))
            upstream.script(*say("three"))
            documents = await documents_of(await transport.start(server, {"message": "add"}))
            results = [json.loads(each) for each in documents if b'"tool_result"' in each]
            assert [(each["result"], each["is_error"]) for each in results] == [("3", False)]
            assert (await get_run(server, hangs.run_id))["status"] == "running"
    assert [each.get("method") for each in journal(tmp_path)].count("initialize") == 1


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_an_answer_that_does_not_fit_costs_no_call_of_the_server(tmp_path: Path, transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, mcp=(f"s={small(tmp_path)}",)) as server:
        await is_ready(server)
        upstream.script(*call("s__ask", {}))
        upstream.script(*say("done"))
        reading = await transport.start(server, {"message": "ask"})
        call_id = json.loads((await reading.take(3))[2])["call_id"]
        unfit = {"result": {"action": "accept", "content": {"size": "large"}}}
        assert await answered(server, reading.run_id, call_id, transport, **unfit) == (400, "bad_request")
        fit = {"result": {"action": "accept", "content": {"size": 42}}}
        assert await answered(server, reading.run_id, call_id, transport, **fit) == 202
        results = [json.loads(each) for each in await documents_of(reading) if b'"tool_result"' in each]
        assert [json.loads(each["result"]) for each in results if each["tool"] == "s__ask"] == [fit["result"]]


async def test_a_server_that_wants_the_call_again_and_again_is_stopped(tmp_path: Path) -> None:
    asked: list[Question] = []
    async with servers_of(f"s={small(tmp_path, 'modern')}") as servers:
        with pytest.raises(ToolFailed, match="over 10 times again"):
            await asking(servers, "insist", answering(ACCEPTED, asked))
    assert len(asked) == 10 and sum(each.get("method") == "tools/call" for each in journal(tmp_path)) == 11


async def test_a_question_that_cannot_be_put_costs_its_call_alone(tmp_path: Path) -> None:
    def put(_: Question) -> "Future[Reply]":
        raise ToolFailed("there were too many")

    async with servers_of(f"s={small(tmp_path, 'modern')}") as servers:
        with pytest.raises(ToolFailed, match="too many"):
            await asking(servers, "ask_again", ToolContext(put=put))
        assert "size" in await asking(servers, "ask_again", answering(ACCEPTED, []))
    async with servers_of(f"s={small(tmp_path)}") as servers:
        assert "too many" in await asking(servers, "ask", ToolContext(put=put))
        assert json.loads(await asking(servers, "ask", answering(ACCEPTED, [])))["action"] == "accept"


# ---- servers that others wrote --------------------------------------------------------------------------------------


@is_installed
@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_real_servers_over_pipes(tmp_path: Path, transport: Transport) -> None:
    (tmp_path / "a.txt").write_text("hello")
    entries = (f"every=node {EVERYTHING} stdio", f"files=node {FILES} {tmp_path}")
    async with FakeUpstream() as upstream, live_server(upstream.url, mcp=entries) as server:
        await is_ready(server)
        upstream.script(*call("every__get-sum", {"a": 1, "b": 2}))
        upstream.script(*call("files__read_text_file", {"path": str(tmp_path / "a.txt")}))
        upstream.script(*call("files__read_text_file", {"path": "/etc/passwd"}))
        upstream.script(*call("every__trigger-long-running-operation", {"duration": 0.2, "steps": 2}))
        upstream.script(*say("done"))
        documents = await documents_of(await transport.start(server, {"message": "Hi"}))
        results = [json.loads(each) for each in documents if b'"type":"tool_result"' in each]
        assert [each["is_error"] for each in results] == [False, False, True, False]
        assert results[0]["result"] == "The sum of 1 and 2 is 3." and results[1]["result"] == {"content": "hello"}
        assert "tool_progress" in types_of(documents)


@is_installed
async def test_a_real_server_over_http_dies_and_comes_back() -> None:
    port = free_port()

    def start() -> "subprocess.Popen[bytes]":
        return started("node", EVERYTHING, "streamableHttp", PORT=str(port))

    program = start()
    try:
        async with servers_of(f"h=http://127.0.0.1:{port}/mcp") as servers:
            await state(servers, "h", "ready")
            echo: Any = servers.tools["h__echo"]
            assert await echo.call({"message": "one"}, ToolContext()) == "Echo: one"
            program.kill()
            program.wait()
            with pytest.raises(ToolFailed, match="cannot be reached"):
                await echo.call({"message": "two"}, ToolContext())
            program = start()
            await state(servers, "h", "ready")
            assert await echo.call({"message": "three"}, ToolContext()) == "Echo: three"
    finally:
        program.kill()
        program.wait()


@is_installed
@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_a_real_server_asks_the_user_over_pipes(transport: Transport) -> None:
    entry = f"every=node {EVERYTHING} stdio"
    async with FakeUpstream() as upstream, live_server(upstream.url, mcp=(entry,)) as server:
        await is_ready(server)
        upstream.script(*call("every__trigger-elicitation-request", {}))
        upstream.script(*say("done"))
        assert "- Name: Ada" in await tells_its_name(server, transport, "Ada")


@is_installed
async def test_a_real_server_over_http_asks_the_user_whose_call_it_is() -> None:
    """Two users are asked at once, in one session with the server."""
    port = free_port()
    program = started("node", EVERYTHING, "streamableHttp", PORT=str(port))
    names = ("Ada", "Bob")
    told: dict[str, str] = {}
    try:
        async with FakeUpstream() as upstream, live_server(upstream.url, mcp=(f"h=http://127.0.0.1:{port}/mcp",)) as it:
            await is_ready(it)
            for _ in names:
                upstream.script(*call("h__trigger-elicitation-request", {}))
            for _ in names:
                upstream.script(*say("done"))
            are_asked = [anyio.Event() for _ in names]

            async def tells(number: int) -> None:
                told[names[number]] = await tells_its_name(it, SSE, names[number], are_asked, number)

            async with anyio.create_task_group() as users:
                for number in range(len(names)):
                    users.start_soon(tells, number)
        assert all(f"- Name: {name}" in said for name, said in told.items()) and len(told) == 2
    finally:
        program.kill()
        program.wait()


async def is_ready(server: LiveServer) -> None:
    async def are_ready() -> bool:
        return set((await request(server, "GET", "/readyz")).json["mcp"].values()) == {"ready"}

    await until(are_ready)


async def tells_its_name(
    server: LiveServer, transport: Transport, name: str, are_asked: Sequence[anyio.Event] = (), number: int = 0
) -> str:
    """What a server says that has asked the user for a name, which is told as soon as all are asked."""
    reading = await transport.start(server, {"message": f"I am {name}"})
    documents = [json.loads(each) for each in await reading.take(3)]
    question = documents[2]
    assert question["tool"] == "ask_user" and "name" in question["args"]["schema"]["properties"]
    if are_asked:
        are_asked[number].set()
        for each in are_asked:
            await each.wait()
    content = {"name": name, "check": True}
    answer = {"result": {"action": "accept", "content": content}}
    assert await answered(server, reading.run_id, question["call_id"], transport, **answer) == 202
    documents = [json.loads(each) for each in await documents_of(reading)]
    (said,) = (each["result"] for each in documents if each["type"] == "tool_result" and each["tool"] != "ask_user")
    return str(said)
