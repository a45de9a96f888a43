"""Keys, tokens, tickets and what users say go through every error path, and come out of none."""

import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from chatserver.auth import Gate, Identity
from chatserver.commands import ChatRequest, Send
from chatserver.dialogue import UserMessage
from chatserver.providers import ModelRequest
from chatserver.runs.runs import Runs
from chatserver.sessions import Sessions
from chatserver.settings import Settings
from tests.clients import (
    SSE,
    WS,
    HandshakeRefusedError,
    Headers,
    HttpReader,
    Transport,
    WsReader,
    documents_of,
    request,
)
from tests.fake_upstream import Cut, Done, FakeUpstream, Fin, Raw, Rst, Status, Step, call, say, token
from tests.live import CANARY as KEY
from tests.live import LiveServer
from tests.users import SECRET, bearer, guarded_server
from tests.users import token as token_of

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
PROMPT = "prompt-canary-4711"
UPSTREAM = f"upstream-canary, {KEY}, {PROMPT}"
"""What a model server says when it fails: it quotes all that it was given."""

PASSWORD = "password-canary"
TOKEN = token_of("ann", claim="token-canary")
BAD_TOKEN = "token-canary." + "A" * 40
EXPIRED = token_of("ann", -5)
BODY = {"message": PROMPT, "system": PROMPT}


@dataclass
class Place:
    server: LiveServer
    upstream: FakeUpstream
    records: list[logging.LogRecord]
    tickets: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """All that the server answered where it refused, and all `error` events."""

    def leaks(self) -> list[tuple[str, str]]:
        """Each secret that came out, and where."""
        secrets = [
            KEY,
            PROMPT,
            PASSWORD,
            SECRET,
            "token-canary",
            TOKEN,
            BAD_TOKEN,
            EXPIRED,
            *self.tickets,
        ]
        formatter = logging.Formatter()  # With the traceback, as a log has it.
        texts = [formatter.format(each) + repr(each.args) for each in self.records] + self.said
        # The log may have the words of an upstream, since it must say why; no answer may.
        told = [("upstream-canary", text) for text in self.said if "upstream-canary" in text]
        return told + [(secret, text) for secret in secrets for text in texts if secret in text]

    async def ask(self, method: str, path: str, body: Any = None, headers: Headers = ()) -> int:
        with anyio.fail_after(WAIT_SECONDS):
            answer = await request(self.server, method, path, body, headers)
        if answer.status >= 400:
            self.said.append(answer.body.decode() + repr(answer.headers))
        return answer.status

    async def ticket(self) -> str:
        answer = await request(self.server, "POST", "/chat/tickets", headers=bearer(TOKEN))
        self.tickets.append(answer.json["ticket"])
        return self.tickets[-1]


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """All that is logged, by ourselves at every level and by others from INFO on."""
    kept: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    handler, root, ours = Keep(), logging.getLogger(), logging.getLogger("chatserver")
    levels = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    ours.setLevel(logging.DEBUG)
    yield kept
    root.removeHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
async def place(records: list[logging.LogRecord]) -> AsyncIterator[Place]:
    async with FakeUpstream() as upstream, guarded_server(upstream.url) as server:
        upstream.always(*say("An answer."))
        yield Place(server, upstream, records)


async def test_no_refusal_quotes_a_credential(place: Place) -> None:
    for credential in (BAD_TOKEN, EXPIRED, f"{TOKEN}x", TOKEN[:-5]):
        assert await place.ask("GET", "/chat/sessions", headers=bearer(credential)) == 401
        assert await place.ask("GET", f"/chat/sessions?token={credential}") == 401
        assert await place.ask("GET", "/chat/sessions", headers={"Cookie": f"chatserver_token={credential}"}) == 401
        reader = await WsReader.connect(place.server, headers=bearer(credential))
        place.said.append(str(await reader.closing()))
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert await place.ask("POST", "/chat/runs", BODY, bearer(TOKEN) | headers) == 403
        with pytest.raises(HandshakeRefusedError) as refused:
            await WsReader.connect(place.server, headers=bearer(TOKEN) | headers)
        place.said.append(refused.value.body.decode())
    assert await place.ask("GET", f"/nope?token={TOKEN}", headers=bearer(TOKEN)) == 404
    assert await place.ask("GET", "/livez", headers=bearer(TOKEN) | {"X-Long": "x" * 40_000}) == 431
    assert place.leaks() == []


async def test_no_refusal_quotes_a_ticket(place: Place) -> None:
    for _ in range(2):
        ticket = await place.ticket()
        for path in (
            f"/chat/runs/x/events?ticket={ticket}",
            f"/chat/sessions?ticket={ticket}",
            f"/nope?ticket={ticket}",
        ):
            assert await place.ask("GET", path) in (401, 404)
        assert await place.ask("GET", f"/chat/runs/x/events?ticket={ticket}") == 401
        reader = await WsReader.connect(place.server, f"/chat/ws?ticket={ticket}")
        place.said.append(str(await reader.closing()))
        async with await WsReader.connect(place.server, f"/chat/ws?ticket={await place.ticket()}") as good:
            good.send({"type": "ping"})
            await good.until("pong")
    wire = f"GET /chat/runs/x/events?ticket={await place.ticket()} HTTP/9.9\r\n\r\n".encode()
    async with await HttpReader.open(place.server, "GET", "/livez") as reader_:
        await reader_.read_all()
        reader_.wire.write(wire)
    assert place.leaks() == []


BROKEN = [f'{{"message": "{PROMPT}', f'{{"message": 5, "system": "{PROMPT}"}}', f'["{PROMPT}"]', f'"{PROMPT}"']
BROKEN += [
    f'{{"message": "{PROMPT}\\u0000"}}',
    f'{{"message": "{PROMPT}\\ud800"}}',
    f'{{"message": "{PROMPT}", "message": "b"}}',
]
BROKEN += [json.dumps({"message": PROMPT * 3000}), json.dumps({"message": PROMPT, "temperature": PROMPT})]
BROKEN += [json.dumps({"message": PROMPT, "on_disconnect": PROMPT}), json.dumps({"message": PROMPT, "model": " "})]


async def test_no_refusal_quotes_what_a_user_says(place: Place) -> None:
    async with await WsReader.connect(place.server, headers=bearer(TOKEN)) as reader:
        for text in BROKEN:
            for path in ("/chat/runs", "/chat/stream"):
                assert 400 <= await place.ask("POST", path, text, bearer(TOKEN)) < 500
            assert await place.ask("POST", "/chat/runs", text, bearer(TOKEN) | {"Content-Type": "text/plain"}) == 415
            reader.send_text(text.replace("{", '{"type": "send", ', 1))
            place.said.append(json.dumps(await reader.answer()))
            reader.send({"type": "ping"})
            await reader.until("pong")
    for method, path in (("GET", f"/chat/runs/{PROMPT} x"), ("GET", f"/chat/sessions/{PROMPT}"), ("PUT", f"/{PROMPT}")):
        assert 400 <= await place.ask(method, path.replace(" ", "%20"), headers=bearer(TOKEN)) < 500
    for query in ("limit", "cursor"):
        assert await place.ask("GET", f"/chat/sessions?{query}={PROMPT}", headers=bearer(TOKEN)) == 400
    body = {"message": PROMPT, "idempotency_key": "k"}
    assert await place.ask("POST", "/chat/runs", body, bearer(TOKEN)) == 202
    assert await place.ask("POST", "/chat/runs", body | {"system": PROMPT}, bearer(TOKEN)) == 422
    assert place.leaks() == []


def quoted(code: int) -> list[Step]:
    return [Status(code), Raw(json.dumps({"error": {"message": UPSTREAM, "code": UPSTREAM}}).encode())]


FAILURES: dict[str, list[Step]] = {
    **{str(code): quoted(code) for code in (400, 401, 403, 404, 413, 422, 429, 500, 503, 529)},
    "no JSON": [Raw(f"data: {UPSTREAM}\n\n".encode())],
    "an error in mid answer": [token("x"), Raw(f'data: {{"error": {{"message": "{UPSTREAM}"}}}}\n\n'.encode())],
    "an error of text": [Raw(f'data: {{"error": "{UPSTREAM}"}}\n\n'.encode())],
    "a page": [Raw(f"<html>{UPSTREAM}</html>".encode())],
    "cut": [token("x"), Cut()],
    "reset": [token("x"), Rst()],
    "no end": [token("x"), Fin()],
}


@pytest.mark.parametrize("transport", [SSE, WS], ids=str)
async def test_no_failure_of_the_upstream_quotes_what_it_said(place: Place, transport: Transport) -> None:
    for steps in FAILURES.values():
        place.upstream.always(*steps)
        with anyio.fail_after(WAIT_SECONDS):
            documents = await documents_of(await transport.start(place.server, BODY, headers=bearer(TOKEN)))
        assert json.loads(documents[-1])["type"] == "error", steps
        place.said.append(documents[-1].decode())
    assert place.leaks() == []


async def test_no_failure_of_our_own_quotes_anything(place: Place) -> None:
    """A database that fails with the statement in its words, a tool, a bug in a route, a bug in a run."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    with patch.object(Runs, "resource", fail):
        assert await place.ask("GET", "/chat/runs/x", headers=bearer(TOKEN)) == 500
    place.upstream.script(*call("calculator", {"expression": PROMPT}))
    place.upstream.always(*say("An answer."))
    with anyio.fail_after(WAIT_SECONDS):
        await documents_of(await SSE.start(place.server, BODY, headers=bearer(TOKEN)))
    file = place.server.settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TRIGGER no BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'full'); END")
    with anyio.fail_after(WAIT_SECONDS):
        documents = await documents_of(await SSE.start(place.server, BODY, headers=bearer(TOKEN)))
    place.said.append(documents[-1].decode())
    assert json.loads(documents[-1])["code"] == "internal"
    assert any("could not be stored" in each.getMessage() for each in place.records)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TRIGGER no")
    place.upstream.always(token("x"), Done())
    with patch.object(Sessions, "begin", fail):
        assert await place.ask("POST", "/chat/runs", BODY, bearer(TOKEN)) == 500
    with anyio.fail_after(WAIT_SECONDS):
        async with await HttpReader.post(place.server, "/chat/stream", BODY, bearer(TOKEN)) as reader:
            await reader.read_all()
    assert place.leaks() == []


async def test_no_repr_shows_a_secret(place: Place) -> None:
    urls: dict[str, Any] = {
        "database_url": f"postgresql://me:{PASSWORD}@db/chat",
        "jwks_url": f"https://me:{PASSWORD}@issuer/keys",
    }
    settings = Settings(openai_api_key=KEY, jwt_secret=SECRET, openai_base_url=f"https://x/?key={PASSWORD}", **urls)
    gate = Gate(Settings(auth="jwt", jwt_secret=SECRET))
    ticket = await gate.tickets.issue(Identity("ann"))
    place.tickets.append(ticket.ticket)
    reading = await SSE.start(place.server, BODY, headers=bearer(TOKEN))
    parts = place.server.app.state.components
    asked = ChatRequest(message=PROMPT, system=PROMPT)
    message = UserMessage(PROMPT)
    things = [settings, gate, gate.tickets, gate._tokens, ticket, parts, parts.settings, asked, Send(message=PROMPT)]
    things += [
        ModelRequest(model="m", messages=[message]),
        *parts.runs._lives.lives.values(),
        parts.runs._lives._agent.__self__.provider,
    ]
    things += [(await parts.runs.session("ann", json.loads((await reading.take(1))[0])["session_id"], True, 10, None))]
    session = things.pop()
    place.said += [repr(thing) + str(thing) for thing in things] + [repr(session.messages)]
    reading.cut()
    assert place.leaks() == []


async def test_a_leak_would_be_found(place: Place) -> None:
    logging.getLogger("chatserver.test").debug("the token was %s", TOKEN)
    assert place.leaks() != []
