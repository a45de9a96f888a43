"""The server as a plugin: it is whole below its path, and leaves the rest of the application as it was."""

import json
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from litestar import Litestar, Request, Response, get
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.params import FromPath
from litestar.types import ASGIApp, Receive, Scope, Send

from chatserver import ChatPlugin, Settings, SettingsError, create_app
from chatserver.settings.loading import load
from tests.clients import BOTH, SSE, ClosedError, Transport, WsReader, documents_of, request, text_of, types_of
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import LiveServer, live_server
from tests.merging import unmerged

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
FOLDER = "/assistant"
Connection = ASGIConnection[Any, Any, Any, Any]


@get("/")
async def home() -> str:
    return "Mine"


@get("/livez")
async def livez() -> str:
    return "mine too"


@get("/assistants/{name:str}")
async def assistants(name: FromPath[str]) -> str:
    return f"the assistant {name}"


@get("/assistant/about")
async def about() -> str:
    return "about the assistant"


@get("/broken")
async def broken() -> None:
    raise KeyError("mine")


def of_host(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    return Response(f"host: {type(error).__name__}", status_code=418, media_type="text/plain")


class Session(ASGIMiddleware):
    """What an application has that knows its users: it puts them into the scope."""

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        cookies = Connection(scope).cookies
        scope["session"] = {"user": cookies["who"]} if "who" in cookies else {}
        await next_app(scope, receive, send)


def user_of_session(connection: Connection) -> str | None:
    user: str | None = connection.session.get("user")
    return user


def host(
    settings: Settings,
    user: Callable[[Connection], Any] | None = None,
    more: tuple[ChatPlugin, ...] = (),
    **config: Any,
) -> Litestar:
    return Litestar(
        [home, livez, assistants, about, broken],
        plugins=[ChatPlugin(FOLDER, settings, user=user), *more],
        exception_handlers={KeyError: of_host, 404: of_host},
        logging_config=None,  # Litestar's own would tell every later test's log what libraries say.
        **config,
    )


def guarded(settings: Settings) -> Litestar:
    return host(settings, user_of_session, middleware=[Session()])


def in_host(upstream: FakeUpstream | None, make_app: Callable[[Settings], Litestar] = host, **settings: Any) -> Any:
    return live_server(None if upstream is None else upstream.url, make_app=make_app, prefix=FOLDER, **settings)


async def outside(server: LiveServer, path: str, **headers: str) -> tuple[int, str]:
    """The host's response at a path of its own."""
    answer = await request(LiveServer(server.server, server.settings, server.listening), "GET", path, headers=headers)
    return answer.status, answer.body.decode()


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_a_run_streams_and_resumes_below_the_path(transport: Transport) -> None:
    async with FakeUpstream() as upstream, in_host(upstream) as server:
        upstream.script(*say("An answer for you.", 3))
        with anyio.fail_after(WAIT_SECONDS):
            reading = await transport.start(server, {"message": "Hi"})
            documents = await documents_of(reading)
            rest = await documents_of(await transport.attach(server, reading.run_id, 2))
            assert unmerged(rest, documents) == documents[2:]
        assert text_of(documents) == "An answer for you." and types_of(documents)[-1] == "done"


async def test_locations_and_the_files_of_the_page_are_below_the_path() -> None:
    async with FakeUpstream() as upstream, in_host(upstream) as server:
        upstream.script(*say("Hi."))
        started = await request(server, "POST", "/chat/runs", {"message": "Hi"})
        assert started.headers["location"] == f"{FOLDER}/chat/runs/{started.json['run_id']}"
        page = await request(server, "GET", "/")
        assert page.status == 200 and 'href="web/page/page.css"' in page.body.decode()
        assert (await request(server, "GET", "/web/page/page.css")).status == 200
        bare = await request(server, "GET", "")
        assert (bare.status, bare.headers["location"]) == (307, "./assistant/")
        paths = (await request(server, "GET", "/schema")).json["paths"]
        assert "/chat/stream" in paths and "/assistants/{name}" not in paths


async def test_the_host_is_as_it_was() -> None:
    async with in_host(None) as server:
        assert await outside(server, "/") == (200, "Mine")
        assert await outside(server, "/livez") == (200, "mine too")
        assert await outside(server, "/assistants/ann") == (200, "the assistant ann")
        assert await outside(server, "/assistant/about") == (200, "about the assistant")
        assert await outside(server, "/broken") == (418, "host: KeyError")
        assert await outside(server, "/nowhere") == (418, "host: NotFoundException")
        assert await outside(server, "/readyz") == (418, "host: NotFoundException")
        status, document = await outside(server, "/schema/openapi.json")
        assert status == 200 and set(json.loads(document)["paths"]) == {
            *("/", "/livez", "/broken", "/assistant/about", "/assistants/{name}")
        }


async def test_the_gate_is_below_the_path_alone() -> None:
    evil = {"Host": "evil.example"}
    async with in_host(None) as server:
        assert await outside(server, "/", **evil) == (200, "Mine")
        refused = await request(server, "GET", "/chat/sessions", headers=evil)
        assert (refused.status, refused.json["code"]) == (403, "forbidden")
        assert (await request(server, "GET", "/livez", headers=evil)).json == {"status": "ok"}
        foreign = await request(server, "GET", "/chat/sessions", headers={"Origin": "http://evil.example"})
        assert (foreign.status, foreign.json["code"]) == (403, "forbidden")
        for method, path, code in (("GET", "/nowhere", "not_found"), ("GET", "/chat/stream", "method_not_allowed")):
            refused = await request(server, method, path)
            assert refused.json["code"] == code
            assert refused.headers["content-type"] == "application/problem+json"


async def test_users_are_those_of_the_host() -> None:
    ann, bob = {"Cookie": "who=ann"}, {"Cookie": "who=bob"}
    async with FakeUpstream() as upstream, in_host(upstream, guarded) as server:
        upstream.always(*say("Hi."))
        refused = await request(server, "GET", "/chat/sessions")
        assert (refused.status, refused.json["code"]) == (401, "unauthenticated")
        with anyio.fail_after(WAIT_SECONDS), pytest.raises(ClosedError) as closed:
            async with await WsReader.connect(server) as nobody:
                await nobody.frame()
        assert closed.value.code == 4401
        for transport in BOTH:
            with anyio.fail_after(WAIT_SECONDS):
                reading = await transport.start(server, {"message": "Hi"}, headers=ann)
                await documents_of(reading)
            of_bob = await request(server, "GET", f"/chat/runs/{reading.run_id}", headers=bob)
            assert of_bob.status == 404
            ticket = (await request(server, "POST", "/chat/tickets", {}, headers=ann)).json["ticket"]
            events = await request(server, "GET", f"/chat/runs/{reading.run_id}/events?ticket={ticket}")
            assert events.status == 200


async def told_later(connection: Connection) -> str | None:
    await anyio.lowlevel.checkpoint()
    return connection.headers.get("x-user")


def refusing(connection: Connection) -> str:
    raise NotAuthorizedException("no such session")


@pytest.mark.parametrize(
    ("user", "status", "code"),
    [
        (told_later, 200, None),
        (lambda _: "ann", 200, None),
        (lambda _: None, 401, "unauthenticated"),
        (refusing, 401, "unauthorized"),
        (lambda _: "", 401, "unauthenticated"),
        (lambda _: "local", 401, "unauthenticated"),
        (lambda _: "x" * 256, 401, "unauthenticated"),
        (lambda _: "x" * 255, 200, None),
        (lambda _: 5, 500, "internal"),
        (lambda _: 1 / 0, 500, "internal"),
    ],
)
async def test_whoever_tells_of_users(user: Callable[[Connection], Any], status: int, code: str | None) -> None:
    async with live_server(None, make_app=lambda settings: create_app(settings, user=user)) as server:
        answer = await request(server, "GET", "/chat/sessions", headers={"X-User": "ann"})
        assert answer.status == status
        assert code is None or answer.json["code"] == code
        if code == "unauthenticated":
            async with await WsReader.connect(server) as reader:
                assert (await reader.closing()).code == 4401
        assert (await request(server, "GET", "/livez")).status == 200


async def test_a_guard_of_the_host_guards_what_is_below_the_path() -> None:
    async def guard(connection: Connection, _: BaseRouteHandler) -> None:
        if "x-key" not in connection.headers:
            raise KeyError

    async with in_host(None, lambda settings: host(settings, guards=[guard])) as server:
        assert (await request(server, "GET", "/livez")).status == 418
        assert (await request(server, "GET", "/livez", headers={"X-Key": "1"})).json == {"status": "ok"}


async def test_several_plugins_are_several_servers(tmp_path: Any) -> None:
    def make_app(settings: Settings) -> Litestar:
        other = Settings(database_url=f"sqlite:///{tmp_path}/other.db", openai_base_url=settings.openai_base_url)
        return host(settings, more=(ChatPlugin("/support", other),))

    async with FakeUpstream() as upstream, in_host(upstream, make_app) as server:
        upstream.always(*say("Hi."))
        support = LiveServer(server.server, server.settings, server.listening, "/support")
        with anyio.fail_after(WAIT_SECONDS):
            await documents_of(await SSE.start(server, {"message": "Hi", "session_id": "here"}))
        assert (await request(server, "GET", "/chat/sessions/here")).status == 200
        assert (await request(support, "GET", "/chat/sessions/here")).status == 404
        with anyio.fail_after(WAIT_SECONDS):
            await documents_of(await SSE.start(support, {"message": "Hi"}))


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_our_own_server_drains_the_plugins_of_an_application(transport: Transport) -> None:
    async with FakeUpstream() as upstream, in_host(upstream, drain_seconds=0.1) as server:
        upstream.script(token("An"), Gate(anyio.Event()))
        with anyio.fail_after(WAIT_SECONDS):
            reading = await transport.start(server, {"message": "Hi"})
            await reading.take(2)
            server.begin_drain()
            last = json.loads((await documents_of(reading))[-1])
        assert (last["type"], last["code"]) == ("error", "interrupted")


@pytest.mark.parametrize("path", ["/", "", "/{name:str}"])
def test_a_plugin_needs_a_path_of_its_own(path: str) -> None:
    with pytest.raises(SettingsError, match="ChatPlugin"):
        ChatPlugin(path, Settings())


def test_users_are_told_in_one_way() -> None:
    for settings, user in (
        (Settings(auth="function"), None),
        (Settings(auth="jwt", jwt_secret="x" * 32), user_of_session),
    ):
        with pytest.raises(SettingsError, match="CHATSERVER_AUTH"):
            create_app(settings, user=user)


@pytest.mark.parametrize(("given", "limit"), [({}, 100), ({"max_connections_per_user": 7}, 7)])
def test_a_user_that_a_function_names_has_the_connections_of_one_user(given: dict[str, int], limit: int) -> None:
    app = create_app(load(flags=given), user=user_of_session)
    assert app.state.settings.max_connections_per_user == limit
