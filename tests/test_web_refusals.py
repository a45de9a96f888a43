"""The browser client where the server says no, or nobody is there: it asks again, says why it waits, or gives up."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import anyio
import pytest
from playwright.async_api import Browser

from tests.browser import open_chromium
from tests.chaos import Chaos, Fault
from tests.fake_upstream import Act, Done, Gate, Reply, Step, finish, role, token
from tests.users import SECRET
from tests.users import token as credential
from tests.web_client import CLIENT, harmed, told_by_node, wrong

each_transport = pytest.mark.parametrize("transport", ["sse", "ws", "auto"])
WORDS = 40
PATIENCE_SECONDS = 30.0
SHORT = [*[2] * 4, 600]
"""Seconds of tokens: one may be over before it is used, where the machine is busy; not all of them."""

JWT: dict[str, Any] = {"auth": "jwt", "jwt_secret": SECRET}


def held(gate: asyncio.Event) -> Act:
    """An answer that waits in its middle until the gate opens."""

    def steps(reply: Reply) -> list[Step]:
        words = [token(f"{number} ") for number in range(WORDS)]
        return [role(), *words[: WORDS // 2], Gate(gate), *words[WORDS // 2 :], finish(), Done()]

    return steps


def served(gate: asyncio.Event, files: Mapping[str, bytes] | None = None, **settings: Any) -> Any:
    """A server, calmer than that of other proofs: no connection is taken for dead because the machine is busy."""
    return harmed(held(gate), files, heartbeat_seconds=2, **settings)


async def reads(url: str, module: Path = CLIENT, **script: Any) -> Any:
    return await told_by_node(url, module, heartbeatMs=2000, connectMs=10_000, **script)


async def come_back_to(chaos: Chaos, gate: asyncio.Event, transport: str) -> None:
    """Open the gate of an answer when its client has come back."""
    if transport == "sse":
        await chaos.until_requested("GET /chat/runs")
    else:
        await chaos.until_requested("GET /chat/ws", 2)
    gate.set()


async def reads_past_an_expiry(chaos: Chaos, gate: asyncio.Event, transport: str, module: Path = CLIENT) -> Any:
    """An answer whose second half comes when its first token is over and the client has come back."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(come_back_to, chaos, gate, transport)
        told = await reads(chaos.url, module, transport=transport, messages=["go on"], secret=SECRET, lifetimes=SHORT)
        tasks.cancel_scope.cancel()
    return told


@each_transport
async def test_a_token_that_expires_in_mid_answer_is_asked_for_anew(transport: str) -> None:
    gate = asyncio.Event()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with served(gate, **JWT) as chaos:
            told = await reads_past_an_expiry(chaos, gate, transport)
            (answer,) = told["answers"]
            assert answer["error"] is None, answer["error"]
            assert answer["text"] == "".join(f"{number} " for number in range(WORDS))
            assert answer["events"] == answer["seq"] == WORDS + 2
            assert len(told["asked"]) >= 2


async def test_a_client_that_takes_an_expiry_for_final_is_found(tmp_path: Path) -> None:
    gate = asyncio.Event()
    module = wrong(tmp_path, ("code === 4401 && line.mayAskAgain()", "false"))
    with anyio.fail_after(PATIENCE_SECONDS):
        async with served(gate, **JWT) as chaos:
            (answer,) = (await reads_past_an_expiry(chaos, gate, "ws", module))["answers"]
            assert answer["refusal"][:2] == [401, "unauthenticated"]


@each_transport
async def test_a_stale_token_is_asked_for_once_more(transport: str) -> None:
    gate = asyncio.Event()
    gate.set()
    async with served(gate, **JWT) as chaos:
        told = await reads(chaos.url, transport=transport, messages=["a"], secret=SECRET, lifetimes=[-60, 600])
        assert told["answers"][0]["error"] is None
        assert told["asked"][:2] == [None, "unauthenticated"]
        told = await reads(chaos.url, transport=transport, messages=["a"], secret=SECRET, lifetimes=[-60])
        assert told["answers"][0]["refusal"] == [401, "unauthenticated", "a valid token is needed"]
        assert told["asked"] == [None, "unauthenticated"]


FOREIGN = "[::ffff:127.0.0.1]"
"""A name of this machine that the server does not know."""

REFUSED: list[tuple[dict[str, Any], str, str, list[Any]]] = [
    (JWT, "127.0.0.1", "a", [401, "unauthenticated", "a valid token is needed"]),
    ({}, "127.0.0.1", " ", [400, "bad_request", "`message` is blank"]),
    ({"max_message_bytes": 10}, "127.0.0.1", "a" * 11, [413, "too_large", "the text of `message` is over 10 bytes"]),
    ({}, FOREIGN, "a", [403, "forbidden", "this server does not answer for that host"]),
]


@pytest.mark.parametrize(("settings", "host", "message", "refusal"), REFUSED, ids=[each[3][1] for each in REFUSED])
async def test_one_refusal_is_one_code_over_both_transports(
    settings: dict[str, Any], host: str, message: str, refusal: list[Any]
) -> None:
    async with served(asyncio.Event(), **settings) as chaos:
        for transport in ("sse", "ws"):
            told = await reads(f"http://{host}:{chaos.port}", transport=transport, messages=[message])
            assert told["answers"][0]["refusal"] == refusal, transport


@each_transport
async def test_a_run_that_waits_for_its_turn_says_so(transport: str) -> None:
    """One answer at a time: the second waits, and says why, until the first is over."""
    gate = asyncio.Event()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with served(gate, **JWT, max_runs_per_user=1) as chaos, anyio.create_task_group() as tasks:

            async def go_on() -> None:
                await chaos.until_requested("GET /livez?too_many")
                gate.set()

            tasks.start_soon(go_on)
            told = await reads(chaos.url, transport=transport, messages=["a", "b"], secret=SECRET, lifetimes=[600])
            assert [answer["error"] for answer in told["answers"]] == [None, None]
            assert told["waits"] == ["too_many"] and told["states"]["waiting"] >= 1


@pytest.mark.parametrize(
    ("transport", "options"), [("sse", {"giveUpMs": 300}), ("ws", {"maxTries": 2}), ("auto", {"maxTries": 2})]
)
async def test_a_server_that_is_not_there_is_given_up(transport: str, options: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    told = await reads(url, transport=transport, messages=["a"], **options)
    assert told["answers"][0]["refusal"] == [0, "unreachable", f"no server answers at {url}"]


@pytest.mark.parametrize("transport", ["sse", "ws"])
async def test_an_address_with_something_else_behind_it_is_given_up_or_said(transport: str) -> None:
    """A gateway that knows no chat answers every request."""
    async with served(asyncio.Event()) as chaos:
        chaos.faults = repeat(Fault("502"))
        told = await reads(chaos.url, transport=transport, messages=["a"], maxTries=3)
        assert told["answers"][0]["refusal"][:2] == [502, "http_502"]


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


SAYS = """async ({url, transport, options, isPatient}) => {
    const { connect } = await import("./chatserver.js");
    const chat = connect(url, {transport, token: window.sign, backoff: () => 50, ...options});
    const run = chat.send("tell me");
    const why = new Promise((done) => chat.on("state", (state, {reason}) => reason && done([state, reason.code])));
    const text = (async () => {
        for await (const event of run) if (event.type === "done") return ["open", run.text];
    })().catch((error) => ["thrown", error.code]);
    const said = await (isPatient ? text : Promise.race([why, text]));
    chat.close();
    return said;
}"""


@each_transport
async def test_a_page_learns_why_it_does_not_get_in(chromium: Browser, transport: str) -> None:
    """From another origin every refusal looks like the weather; that there is a server can be found out."""
    gate = asyncio.Event()
    gate.set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    files = {"page.html": b"<!doctype html>", "chatserver.js": CLIENT.read_bytes()}
    async with (
        served(gate, files) as page_server,
        served(gate) as stranger,
        served(gate, allowed_origins=(page_server.url,)) as friend,
    ):
        page = await chromium.new_page()
        await page.goto(f"{page_server.url}/web/page.html")

        async def says(url: str, is_patient: bool = False, **options: Any) -> Any:
            facts = {"url": url, "transport": transport, "options": options, "isPatient": is_patient}
            with anyio.fail_after(PATIENCE_SECONDS):
                return await page.evaluate(SAYS, facts)

        assert await says(stranger.url) == ["waiting", "forbidden"]
        assert await says(stranger.url, True, maxTries=2) == ["thrown", "forbidden"]
        assert await says(nobody) == ["waiting", "unreachable"]
        assert await says(friend.url) == ["open", "".join(f"{number} " for number in range(WORDS))]
        await page.close()


@pytest.mark.parametrize("transport", ["sse", "ws"])
async def test_a_page_outlives_its_token(chromium: Browser, transport: str) -> None:
    gate = asyncio.Event()
    files = {"page.html": b"<!doctype html>", "chatserver.js": CLIENT.read_bytes()}
    async with served(gate, files, **JWT) as chaos, anyio.create_task_group() as tasks:
        page, lifetimes = await chromium.new_page(), chain(SHORT, repeat(SHORT[-1]))
        await page.expose_function("sign", lambda refusal: credential(seconds=next(lifetimes)))
        await page.goto(f"{chaos.url}/web/page.html")
        tasks.start_soon(come_back_to, chaos, gate, transport)
        facts = {"url": chaos.url, "transport": transport, "isPatient": True}
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await page.evaluate(SAYS, facts) == ["open", "".join(f"{number} " for number in range(WORDS))]
        await page.close()
