"""A web page of somebody else, in a real browser, against a server on its reader's machine: it reaches nothing.

The page is served from the same host on another port, so that the browser sends it every cookie that it has.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from playwright.async_api import Browser, Page

from tests.browser import open_chromium
from tests.clients import request
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.tcp_server import HOST, tcp_server
from tests.users import SECRET, of, token

pytestmark = [pytest.mark.anyio, pytest.mark.proof]

PATIENCE_SECONDS = 40.0
REBOUND = "rebound.example"
"""A name of the attacker's that now means this machine."""

ATTACKS = {
    "a form": """new Promise(done => {
        const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), {name: "f"}));
        const form = document.body.appendChild(document.createElement("form"));
        Object.assign(form, {action: SERVER + "/chat/runs", method: "POST", target: "f", enctype: "text/plain"});
        const json = {name: '{"message":"evil","system":"', value: '"}'};
        form.appendChild(Object.assign(document.createElement("input"), json));
        frame.onload = () => done("loaded");
        form.submit();
    })""",
    "a simple request": """fetch(SERVER + "/chat/runs", {method: "POST", mode: "no-cors", credentials: "include",
        body: '{"message": "evil"}'}).then(answer => answer.type)""",
    "a request that says it is JSON": """fetch(SERVER + "/chat/runs", {method: "POST", credentials: "include",
        headers: {"Content-Type": "application/json"}, body: '{"message": "evil"}'}).then(answer => answer.status)""",
    "a beacon": """Promise.resolve(navigator.sendBeacon(SERVER + "/chat/runs", '{"message": "evil"}'))""",
    "reading": """fetch(SERVER + "/chat/sessions", {credentials: "include"}).then(answer => answer.text())""",
    "a ticket": """fetch(SERVER + "/chat/tickets", {method: "POST", credentials: "include"}).then(a => a.text())""",
    "events": """new Promise(done => {
        const events = new EventSource(SERVER + "/chat/runs/" + RUN + "/events", {withCredentials: true});
        events.onerror = () => done("refused");
        events.addEventListener("start", event => done(event.data));
    })""",
    "a script": """new Promise(done => {
        const script = Object.assign(document.createElement("script"), {src: SERVER + "/chat/sessions"});
        script.onload = () => done("loaded");
        script.onerror = () => done("refused");
        document.body.appendChild(script);
    })""",
    "a WebSocket": """new Promise(done => {
        const socket = new WebSocket(SERVER.replace("http", "ws") + "/chat/ws", ["chatserver.v1"]);
        socket.onopen = () => { socket.send('{"type": "send", "message": "evil"}'); done("opened"); };
        socket.onclose = () => done("refused");
    })""",
}
HARMLESS = {"refused", "opaque", "loaded", True, "TypeError"}
"""What the page may come to know: that something was answered, never what. A form's frame loads a refusal too."""


@dataclass
class Stage:
    server: LiveServer
    upstream: FakeUpstream
    page: Page
    run_id: str

    async def do(self, script: str) -> Any:
        """What a script in the page comes to; the name of the error that it ends with."""
        prelude = f"const SERVER = '{self.server.url}', RUN = '{self.run_id}';"
        return await self.page.evaluate(
            f"async () => {{ {prelude} try {{ return await {script}; }} catch (e) {{ return e.name; }} }}"
        )


@pytest.fixture(scope="module")
async def chromium(anyio_backend: str) -> AsyncIterator[Browser]:
    async with open_chromium(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as browser:
        yield browser


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = b"<!doctype html><title>elsewhere</title><body></body>"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)


@asynccontextmanager
async def staged(chromium: Browser, **settings: Any) -> AsyncIterator[Stage]:
    """A browser with the cookie of a user, on the page of somebody else."""
    async with (
        tcp_server(_serve) as elsewhere,
        FakeUpstream() as upstream,
        live_server(upstream.url, **settings) as server,
    ):
        upstream.always(*say("An answer."))
        run = await request(server, "POST", "/chat/runs", {"message": "Mine"}, of("ann"))
        context = await chromium.new_context()
        await context.add_cookies([{"name": "chatserver_token", "value": token(), "url": server.url}])
        try:
            with anyio.fail_after(PATIENCE_SECONDS):
                page = await context.new_page()
                await page.goto(f"http://{HOST}:{elsewhere}/")
                yield Stage(server, upstream, page, run.json["run_id"])
        finally:
            with anyio.CancelScope(shield=True):
                await context.close()


USERS = {"none": {}, "jwt": {"auth": "jwt", "jwt_secret": SECRET}}


@pytest.mark.parametrize("auth", USERS)
async def test_a_page_of_another_origin_reaches_nothing(chromium: Browser, auth: str) -> None:
    async with staged(chromium, **USERS[auth]) as stage:
        came_to = {name: await stage.do(script) for name, script in ATTACKS.items()}
        assert {name: value for name, value in came_to.items() if value not in HARMLESS} == {}
        assert came_to["a WebSocket"] == came_to["events"] == "refused"
        sessions = (await request(stage.server, "GET", "/chat/sessions", headers=of("ann"))).json["sessions"]
        assert [each["title"] for each in sessions] == ["Mine"]
        assert all(b"evil" not in each.body for each in stage.upstream.requests)


@pytest.mark.parametrize("auth", USERS)
async def test_a_page_of_the_own_origin_reaches_everything(chromium: Browser, auth: str) -> None:
    """Or the proof above would prove nothing."""
    async with staged(chromium, **USERS[auth]) as stage:
        await stage.page.goto(f"{stage.server.url}/livez")
        assert await stage.do(ATTACKS["a request that says it is JSON"]) == 202
        assert "Mine" in await stage.do(ATTACKS["reading"])
        assert '"type":"start"' in await stage.do(ATTACKS["events"])
        assert await stage.do(ATTACKS["a WebSocket"]) == "opened"
        ticket = """fetch("/chat/tickets", {method: "POST"}).then(answer => answer.json())
            .then(({ticket}) => fetch("/chat/runs/" + RUN + "/events?ticket=" + ticket, {credentials: "omit"}))
            .then(answer => answer.status)"""
        assert await stage.do(ticket) == 200


async def test_a_name_that_was_pointed_at_this_machine_is_refused(chromium: Browser) -> None:
    """DNS rebinding: to the browser it is the page's own origin."""
    async with staged(chromium) as stage:
        answer = await stage.page.goto(f"http://{REBOUND}:{stage.server.port}/chat/sessions")
        assert answer is not None and answer.status == 403
        stolen = await stage.do('fetch("/chat/sessions").then(answer => answer.text())')
        assert "forbidden" in stolen and "Mine" not in stolen
        script = ATTACKS["a WebSocket"].replace("SERVER.replace", "location.origin.replace")
        assert await stage.do(script) == "refused"
