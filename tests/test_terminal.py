"""`chatserver chat` and `chatserver doctor`: against a real server, through a network that cuts, in a real terminal."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import pytest
from anyio import to_thread
from click.testing import CliRunner, Result

from chatserver.cli import main
from chatserver.events import Event, Token
from chatserver.terminal import client as terminal_client
from chatserver.terminal.client import Client, Refused, Transport, Unreachable
from tests.asking_tools import REFERENCE
from tests.fake_upstream import FakeUpstream, call, say
from tests.gateway import Gateway, Way
from tests.life import in_time
from tests.live import ROOT, LiveServer, live_server
from tests.tcp_server import tcp_server

pytestmark = pytest.mark.anyio

NOBODY = "http://127.0.0.1:1"

each_transport = pytest.mark.parametrize("transport", ["sse", "ws"])


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LiveServer]:
    """The demo model answers."""
    async with live_server(None, directory=tmp_path) as server:
        yield server


async def run(*arguments: str, stdin: str = "") -> Result:
    """A command, in a thread beside the server's loop. Nobody sits before it."""
    return await to_thread.run_sync(lambda: CliRunner().invoke(main, arguments, input=stdin))


def seqs_of(event: Event) -> range:
    """The numbers that an event stands for: several where texts were merged."""
    first = getattr(event, "first_seq", None) or event.seq
    return range(first, event.seq + 1)


class Terminal:
    """A command before which somebody sits."""

    def __init__(self, *arguments: str) -> None:
        self.output = ""
        self._near, far = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "chatserver", *arguments],  # So that Ctrl-C is a signal.
            stdin=far,
            stdout=far,
            stderr=far,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"},
        )
        os.close(far)
        self._came = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._near, self._read)

    def _read(self) -> None:
        try:
            self.output += os.read(self._near, 65536).decode(errors="replace")
        except OSError:  # The far end is closed: there is no more.
            asyncio.get_running_loop().remove_reader(self._near)
        self._came.set()

    async def shows(self, text: str) -> None:
        """Wait until this has come, and forget what came before it."""
        while text not in self.output:
            self._came.clear()
            await self._came.wait()
        self.output = self.output.partition(text)[2]

    def enter(self, text: str) -> None:
        os.write(self._near, text.encode())

    async def status(self) -> int:
        return await to_thread.run_sync(self._process.wait)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._near)
        self._process.kill()
        self._process.wait()
        os.close(self._near)


# ---- the client -----------------------------------------------------------------------------------------------------


@each_transport
@in_time
async def test_each_event_comes_once_through_cuts(
    transport: Transport, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_client, "WAIT_LIMIT_SECONDS", 0.0)
    async with Gateway(server) as gateway, Client(f"http://{gateway.host}:{gateway.port}", transport) as client:
        events = []
        async for event in client.ask({"message": "Count to 60"}):
            events.append(event)
            if event.seq in (1, 20, 40):
                gateway.reset()
    assert [seq for event in events for seq in seqs_of(event)] == list(range(1, events[-1].seq + 1))
    text = "".join(event.content for event in events if isinstance(event, Token))
    assert text == " ".join(map(str, range(1, 61)))


@each_transport
@in_time
async def test_a_run_that_is_over_has_nothing_more(transport: Transport, server: LiveServer) -> None:
    async with Client(server.url, transport) as client:
        *_, done = [event async for event in client.ask({"message": "Count to 3"})]
        assert [event async for event in client.attach(done.run_id, done.seq)] == []
        with pytest.raises(Refused, match="nothing with this id"):
            [event async for event in client.attach("nobody", 0)]


@each_transport
@in_time
async def test_a_server_that_is_gone_for_good_is_told(
    transport: Transport, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_client, "WAIT_LIMIT_SECONDS", 0.0)
    async with Gateway(server) as gateway, Client(f"http://{gateway.host}:{gateway.port}", transport) as client:
        events = client.ask({"message": "Count to 500"})
        await anext(events)
        gateway.cut()
        with pytest.raises(Unreachable):
            [event async for event in events]


@each_transport
@in_time
async def test_a_connection_that_says_nothing_is_left(
    transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        live_server(None, directory=tmp_path, heartbeat_seconds=0.1) as server,
        Gateway(server) as gateway,
        Client(f"http://{gateway.host}:{gateway.port}", transport) as client,
    ):

        def heal(*_: float) -> float:
            gateway.heal()
            return 0.0

        monkeypatch.setattr("random.uniform", heal)  # The client asks when it has left a connection.
        seen = list[int]()
        async for event in client.ask({"message": "Count to 30"}):
            seen += seqs_of(event)
            if event.seq == 3:
                gateway.lose("replies")
        assert seen == list(range(1, len(seen) + 1))


FOREIGN = {
    "301": (b"HTTP/1.1 301 Moved\r\nLocation: https://x/\r\nContent-Length: 0\r\n\r\n", Refused, "to https://x/"),
    "502": (b"HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\nnope", Unreachable, "502.*nope"),
    "no JSON": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata: {\n\n", Unreachable, "JSON|truncated"),
    "new type": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\n" + b'data: {"type":"new","seq":1}\n\n ', Unreachable, "cut",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("response", "error", "words"), FOREIGN.values(), ids=FOREIGN)
@in_time
async def test_what_no_chatserver_says_is_told(response: bytes, error: type[Exception], words: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()
        writer.close()

    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(tcp_server(answer))
        client = await stack.enter_async_context(Client(f"http://127.0.0.1:{port}", "sse"))
        with pytest.raises(error, match=words):
            [event async for event in client.ask({"message": "Hi"})]
        if error is not Unreachable:
            with pytest.raises(error, match=words):
                await client.cancel("r")


# ---- chat -----------------------------------------------------------------------------------------------------------


@each_transport
@in_time
async def test_the_answer_alone_goes_to_stdout(transport: Transport, server: LiveServer) -> None:
    done = await run("chat", server.url, "--transport", transport, "--message", "What is 17 * 23?")
    assert (done.exit_code, done.stdout) == (0, "Let me look that up. The tools answered: **391**.\n")
    assert 'calculator {"expression":"17 * 23"}' in done.stderr and "calculator = 391" in done.stderr


@in_time
async def test_each_line_of_the_input_is_a_message_of_one_session(server: LiveServer) -> None:
    done = await run("chat", server.url, stdin="Count to 2\n\nCount to 3\n")
    assert done.exit_code == 0
    async with Client(server.url, "sse") as client:
        (session,) = (await client.http.get("/chat/sessions")).json()["sessions"]
        messages = (await client.http.get(f"/chat/sessions/{session['session_id']}")).json()["messages"]
    assert [each["content"] for each in messages if each["role"] == "user"] == ["Count to 2", "Count to 3"]


@in_time
async def test_events_are_printed_for_programs(server: LiveServer) -> None:
    done = await run("chat", server.url, "--json", "--message", "Count to 3")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["seq"] for each in events] == list(range(1, len(events) + 1))
    assert (events[0]["type"], events[-1]["type"]) == ("start", "done")


@in_time
async def test_a_call_that_nobody_can_approve_is_refused(server: LiveServer) -> None:
    done = await run("chat", server.url, "--message", "Book a table for 4 at 19:30")
    assert done.exit_code == 0 and "book_table = the user refused this call" in done.stderr


@pytest.mark.parametrize(
    ("url", "message", "words"),
    [
        (None, "Fail with 401", "auth_failed"),
        (None, " ", "blank"),
        (NOBODY, "Hi", f"{NOBODY} cannot be reached"),
        ("ftp://127.0.0.1", "Hi", "is not the URL of a server"),
        ("http://127.0.0.1:99999", "Hi", "is not the URL of a server"),
        ("127.0.0.1:1/?a=1", "Hi", "is not the URL of a server"),
    ],
)
@in_time
async def test_what_fails_is_told_in_a_line(url: str | None, message: str, words: str, server: LiveServer) -> None:
    done = await run("chat", url or server.url, "--message", message)
    assert done.exit_code == 1 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1


@in_time
async def test_a_model_cannot_write_to_the_terminal_itself(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, directory=tmp_path) as server:
        upstream.script(*say("a\x1b]0;owned\x07b\x9bc\r\nd\u200d"))
        done = await run("chat", server.url, "--message", "Hi")
    assert done.stdout == "a]0;ownedbc\nd\u200d\n"


@in_time
async def test_somebody_approves_cancels_and_goes_on(server: LiveServer) -> None:
    async with Terminal("chat", server.url) as terminal:
        await terminal.shows("> ")
        terminal.enter("Book a table for 4 at 19:30\n")
        await terminal.shows("Call book_table? [y/N]")
        terminal.enter("y\n")
        await terminal.shows("book_table = ")
        await terminal.shows("> ")
        terminal.enter("Count to 500\n")
        await terminal.shows(" 12")
        terminal.enter("\x03")
        await terminal.shows("cancelled")
        await terminal.shows("> ")
        terminal.enter("Count to 2\n")
        await terminal.shows("1 2")
        await terminal.shows("> ")
        terminal.enter("\x04")
        assert await terminal.status() == 0
    async with Client(server.url, "sse") as client:
        (session,) = (await client.http.get("/chat/sessions")).json()["sessions"]
        messages = (await client.http.get(f"/chat/sessions/{session['session_id']}")).json()["messages"]
    assert [each["status"] for each in messages if each["role"] == "assistant"] == ["complete", "partial", "complete"]


@in_time
async def test_somebody_fills_in_a_form(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as upstream,
        live_server(upstream.url, directory=tmp_path, tools=REFERENCE) as server,
        Terminal("chat", server.url, "--message", "Shoes") as terminal,
    ):
        upstream.script(*call("order", {}))
        upstream.script(*say("Thanks."))
        await terminal.shows("Which size? Answer? [y/N]")
        terminal.enter("y\n")
        await terminal.shows("size")
        terminal.enter("99\n")
        await terminal.shows("maximum")  # What does not fit is refused, and asked again.
        await terminal.shows("Answer? [y/N]")
        terminal.enter("y\n")
        await terminal.shows("size")
        terminal.enter("42\n")
        await terminal.shows("Thanks.")
        assert await terminal.status() == 0


# ---- doctor ---------------------------------------------------------------------------------------------------------


class BufferingProxy(Gateway):
    """A proxy that hands a response on when the response is whole."""

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if way == "requests":
            return await super()._pump(way, reader, writer)
        held = b""
        while data := await reader.read(65536):
            held += data
            if b"event-stream" not in held or b"event: done" in held:
                writer.write(held)
                held = b""
        writer.write_eof()


@asynccontextmanager
async def network(gateway: Gateway) -> AsyncIterator[str]:
    async with gateway:
        yield f"http://{gateway.host}:{gateway.port}"


@in_time
async def test_a_server_whose_streams_get_through_is_well(server: LiveServer) -> None:
    done = await run("doctor", server.url)
    assert done.exit_code == 0
    assert [line.partition(":")[0].split(maxsplit=1) for line in done.stdout.splitlines()] == [
        ["good", subject] for subject in ("server", "SSE", "SSE, come back", "WebSocket", "WebSocket, come back")
    ]


@in_time
async def test_a_proxy_that_holds_events_back_is_found(server: LiveServer) -> None:
    async with network(BufferingProxy(server)) as url:
        done = await run("doctor", url)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert done.exit_code == 1 and len(wrong) == 1 and "SSE:" in wrong[0] and "buffering" in wrong[0]


@in_time
async def test_nodes_that_do_not_know_each_other_are_found(server: LiveServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with live_server(None, directory=tmp_path / "other") as other, network(Gateway(server, other)) as url:
        done = await run("doctor", url, "--message", "Count to 3")
    wrong = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert done.exit_code == 1 and len(wrong) == 2 and all("CHATSERVER_REDIS_URL" in line for line in wrong)


@in_time
async def test_a_model_that_fails_is_found(server: LiveServer) -> None:
    done = await run("doctor", server.url, "--message", "Fail with 401")
    assert done.exit_code == 1 and done.stdout.count("auth_failed") == 2


@pytest.mark.parametrize(("url", "words"), [(NOBODY, "Does it run"), ("/elsewhere", "the path of the server")])
@in_time
async def test_a_server_that_is_not_there_is_told(url: str, words: str, server: LiveServer) -> None:
    done = await run("doctor", f"{server.url}{url}" if url.startswith("/") else url)
    assert done.exit_code == 1 and words in done.stdout
