"""Nobody gets in without a good credential, and nobody gets at what is somebody else's: on every route and command.

The matrix is made from the routes that the program has and from its command registry. One that has no row here fails.
"""

import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from litestar.routes import HTTPRoute

from chatserver.commands import COMMAND_TAGS
from tests.clients import SSE, Headers, HttpReader, Response, WsReader, documents_of, request
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import LiveServer
from tests.users import OTHER_SECRET, bearer, guarded_server, of, unsigned
from tests.users import token as token_of

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 15.0
UNKNOWN = "an_id_that_nobody_has"
PAGE = ("/", "/web/chatserver.js")
SCHEMAS = ("/schema", "/schema/openapi.json", "/schema/events.json", "/schema/asyncapi.json")
PUBLIC = frozenset({"/livez", "/readyz", "/metrics", *SCHEMAS, *PAGE})
"""What the contract leaves open, and nothing else."""


@dataclass(frozen=True)
class Row:
    """How a route or command is used; ``{names}`` stand for the owner's ids, which are the ids of nobody else."""

    body: Any = None
    names: tuple[str, ...] = ()
    """The ids in it: with somebody else's, the answer is 404."""


ROUTES: Mapping[tuple[str, str], Row] = {
    ("POST", "/chat/stream"): Row({"regenerate": "{user_message_id}"}, ("user_message_id",)),
    ("POST", "/chat/runs"): Row({"regenerate": "{user_message_id}", "message": "x"}, ("user_message_id",)),
    ("GET", "/chat/runs/{run_id}"): Row(names=("run_id",)),
    ("GET", "/chat/runs/{run_id}/events"): Row(names=("run_id",)),
    ("POST", "/chat/runs/{run_id}/cancel"): Row(names=("run_id",)),
    ("POST", "/chat/runs/{run_id}/tool_calls/{call_id}"): Row({"result": "stolen"}, ("run_id",)),
    ("GET", "/chat/models"): Row(),
    ("GET", "/chat/sessions"): Row(),
    ("GET", "/chat/sessions/{session_id}"): Row(names=("session_id",)),
    ("PATCH", "/chat/sessions/{session_id}"): Row({"title": "stolen"}, ("session_id",)),
    ("DELETE", "/chat/sessions/{session_id}"): Row(names=("session_id",)),
    ("POST", "/chat/tickets"): Row(),
}
COMMANDS: Mapping[str, Row] = {
    "send": Row({"regenerate": "{user_message_id}", "message": "x"}, ("user_message_id",)),
    "attach": Row({"run_id": "{run_id}", "after": 0}, ("run_id",)),
    "detach": Row({"run_id": "{run_id}"}, ("run_id",)),
    "cancel": Row({"run_id": "{run_id}"}, ("run_id",)),
    "answer": Row({"run_id": "{run_id}", "call_id": "{call_id}", "result": "stolen"}, ("run_id",)),
    "ping": Row({}),
}

BAD: Mapping[str, Headers] = {
    "no token": {},
    "garbage": bearer("garbage"),
    "garbage in three parts": bearer("a.b.c"),
    "an empty token": bearer(""),
    "expired": bearer(token_of(seconds=-1)),
    "alg none": bearer(unsigned()),
    "alg None": bearer(unsigned(algorithm="None")),
    "another key": bearer(token_of(secret=OTHER_SECRET)),
    "no user": bearer(token_of(None)),
    "another scheme": {"Authorization": f"Basic {token_of()}"},
    "two tokens": [("Authorization", f"Bearer {token_of()}"), ("Authorization", f"Bearer {token_of('bob')}")],
    "an expired cookie": {"Cookie": f"chatserver_token={token_of(seconds=-1)}", "Origin": "{origin}"},
    "a cookie of another name": {"Cookie": f"token={token_of()}"},
}


def uncovered(routes: Iterable[tuple[str, str]], commands: Iterable[str]) -> set[object]:
    """What has no row."""
    open_ones = PUBLIC | {"/web/{file}"}
    missing = {route for route in routes if route not in ROUTES and route[1] not in open_ones}
    return {*missing, *(set(commands) - COMMANDS.keys())}


def routes_of(server: LiveServer) -> set[tuple[str, str]]:
    """Every route that the program has, in the OpenAPI document or not."""
    found = {("WEBSOCKET", "/chat/ws")}
    for route in server.app.routes:
        path = re.sub(r":\w+}", "}", route.path)
        if isinstance(route, HTTPRoute):
            found |= {(method, path) for method in route.methods if method not in ("OPTIONS", "HEAD")}
        else:
            found.add(("WEBSOCKET", path))
    return {each for each in found if not each[1].startswith("/schema/openapi") or each[1] in PUBLIC}


@dataclass
class Place:
    server: LiveServer
    ids: dict[str, str]
    """Of Ann's run, which goes on."""
    before: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, path: str, body: Any, headers: Headers, ids: Mapping[str, str]) -> Response:
        filled = {name: value.format(**ids) for name, value in body.items()} if isinstance(body, dict) else body
        given = [(name, (value or "").format(origin=self.server.url)) for name, value in dict(headers).items()]
        with anyio.fail_after(WAIT_SECONDS):
            if isinstance(headers, list):
                given = headers
            async with await HttpReader.open(self.server, method, path.format(**ids), filled, given) as reader:
                return Response(reader.status, reader.headers, await reader.read_all() if reader.status >= 400 else b"")

    async def seen(self) -> tuple[Any, ...]:
        """What Ann has, as far as nobody else may change it."""
        session = await request(
            self.server, "GET", f"/chat/sessions/{self.ids['session_id']}?branches=all", headers=of("ann")
        )
        run = await request(self.server, "GET", f"/chat/runs/{self.ids['run_id']}", headers=of("ann"))
        return (session.json["title"], len(session.json["messages"]), run.json["status"])


@pytest.fixture(scope="module")
async def place(anyio_backend: str) -> AsyncIterator[Place]:
    async with FakeUpstream() as upstream, guarded_server(upstream.url) as server:
        upstream.script(token("Ann's"), Gate(anyio.Event()))
        upstream.always(*say("An answer."))
        reading = await SSE.start(server, {"message": "Hi"}, headers=of("ann"))
        place = Place(server, json.loads((await reading.take(2))[0]) | {"call_id": "call_0"})
        place.before = await place.seen()
        yield place
        assert await place.seen() == place.before, "also what takes its time has not happened"
        reading.cut()


async def test_every_route_and_command_has_a_row(place: Place) -> None:
    found = routes_of(place.server)
    assert uncovered(found - {("WEBSOCKET", "/chat/ws")}, COMMAND_TAGS) == set()
    assert found >= ROUTES.keys() and COMMANDS.keys() == COMMAND_TAGS
    documented = {
        (method.upper(), path)
        for path, operations in (await request(place.server, "GET", "/schema")).json["paths"].items()
        for method in operations
    }
    assert {each for each in documented if each[1] not in PUBLIC} == ROUTES.keys()


def test_a_route_or_command_without_a_row_is_found() -> None:
    assert uncovered([("GET", "/chat/secrets"), ("GET", "/livez")], ["send", "steal"]) == {
        ("GET", "/chat/secrets"),
        "steal",
    }


@pytest.mark.parametrize("credential", BAD)
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_no_route_answers_without_a_good_credential(
    place: Place, method: str, path: str, credential: str
) -> None:
    row = ROUTES[method, path]
    answer = await place.ask(method, path, row.body, BAD[credential], place.ids)
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    unknown = await place.ask(method, path, row.body, BAD[credential], dict.fromkeys(place.ids, UNKNOWN))
    assert (unknown.status, unknown.body) == (answer.status, answer.body)
    assert await place.seen() == place.before


@pytest.mark.parametrize("credential", [name for name, headers in BAD.items() if isinstance(headers, dict)])
async def test_no_command_is_obeyed_without_a_good_credential(place: Place, credential: str) -> None:
    headers = {name: (value or "").format(origin=place.server.url) for name, value in dict(BAD[credential]).items()}
    for name, row in COMMANDS.items():
        with anyio.fail_after(WAIT_SECONDS):
            reader = await WsReader.connect(place.server, headers=headers)
            reader.send({"type": name} | {key: str(value).format(**place.ids) for key, value in row.body.items()})
            closed = await reader.closing()
        assert (closed.code, reader.frames) == (4401, [])
    assert await place.seen() == place.before


@pytest.mark.parametrize(("method", "path"), [key for key, row in ROUTES.items() if row.names])
async def test_what_is_somebody_elses_is_not_found_as_if_there_were_none(place: Place, method: str, path: str) -> None:
    row = ROUTES[method, path]
    foreign = await place.ask(method, path, row.body, of("bob"), place.ids)
    unknown = await place.ask(method, path, row.body, of("bob"), dict.fromkeys(place.ids, UNKNOWN))
    assert (foreign.status, foreign.json["code"]) == (404, "not_found")
    assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
    assert [name for name in foreign.headers if name != "date"] == [name for name in unknown.headers if name != "date"]
    assert await place.seen() == place.before


@pytest.mark.parametrize("name", [name for name, row in COMMANDS.items() if row.names])
async def test_no_command_reaches_what_is_somebody_elses(place: Place, name: str) -> None:
    async def answer(ids: Mapping[str, str]) -> dict[str, Any]:
        body = {
            key: str(value).format(**ids) if isinstance(value, str) else value
            for key, value in COMMANDS[name].body.items()
        }
        return await reader.command(type=name, **body)

    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(place.server, headers=of("bob")) as reader:
            foreign, unknown = await answer(place.ids), await answer(dict.fromkeys(place.ids, UNKNOWN))
    foreign.pop("run_id", None), unknown.pop("run_id", None)  # What was asked for comes back.
    assert (foreign["type"], foreign["status"], foreign["code"]) == ("rejected", 404, "not_found")
    assert foreign == unknown
    assert await place.seen() == place.before


async def test_lists_hold_only_what_is_ones_own(place: Place) -> None:
    theirs = await request(place.server, "GET", "/chat/sessions", headers=of("nobody yet"))
    assert theirs.json == {"sessions": [], "cursor": None}


async def test_the_same_session_id_of_two_users_is_two_sessions(place: Place) -> None:
    body = {"message": "Mine", "session_id": place.ids["session_id"]}
    documents = await documents_of(await SSE.start(place.server, body, headers=of("carl")))
    assert json.loads(documents[0])["session_id"] == place.ids["session_id"]
    mine = await request(place.server, "GET", f"/chat/sessions/{place.ids['session_id']}", headers=of("carl"))
    assert (mine.json["title"], len(mine.json["messages"])) == ("Mine", 2)
    assert await place.seen() == place.before


async def test_the_same_idempotency_key_of_two_users_is_two_runs(place: Place) -> None:
    body = {"message": "Once", "idempotency_key": "a key"}
    runs = [await request(place.server, "POST", "/chat/runs", body, of(user)) for user in ("dora", "emil", "dora")]
    assert runs[0].json["run_id"] == runs[2].json["run_id"] != runs[1].json["run_id"]


@pytest.mark.parametrize("path", sorted(PUBLIC))
async def test_what_is_open_needs_no_token(place: Place, path: str) -> None:
    for headers in ({}, bearer("garbage")):
        assert (await request(place.server, "GET", path, headers=headers)).status == 200
