"""From where one may talk to the server: `Origin` and `Host` on every route and on the handshake, and CORS."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from tests.clients import (
    SSE,
    HandshakeRefusedError,
    Headers,
    HttpReader,
    Response,
    Wire,
    WsReader,
    documents_of,
    request,
)
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.test_slow_requests import said, statuses

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 15.0
ALLOWED = "https://app.example"
"""In `place.open`, as are the two below, as people write them."""

CONFIGURED = (ALLOWED, "https://Mixed.Example/", "http://localhost:5173", "https://port.example:443")
EVIL = "https://evil.example"

ROUTES = (
    ("POST", "/chat/stream"),
    ("POST", "/chat/runs"),
    ("GET", "/chat/runs/{run_id}"),
    ("GET", "/chat/runs/{run_id}/events"),
    ("POST", "/chat/runs/{run_id}/cancel"),
    ("GET", "/chat/models"),
    ("GET", "/chat/sessions"),
    ("GET", "/chat/sessions/{session_id}"),
    ("PATCH", "/chat/sessions/{session_id}"),
    ("DELETE", "/chat/sessions/{session_id}"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/schema"),
    ("GET", "/schema/events.json"),
    ("GET", "/schema/asyncapi.json"),
)
PROBES = ("/livez", "/readyz")
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
OTHERS = (
    ("OPTIONS", "/chat/stream"),
    ("OPTIONS", "/chat/sessions/{session_id}"),
    ("OPTIONS", "/schema"),
    ("HEAD", "/livez"),
    ("PUT", "/chat/stream"),
    ("DELETE", "/chat/runs/{run_id}"),
    ("GET", "/chat/ws"),
    ("GET", "/nope"),
    ("POST", "/nope"),
    ("OPTIONS", "/nope"),
)
"""Methods that a route has not, and routes that are none."""


@dataclass(frozen=True)
class Place:
    server: LiveServer
    """Answers on 127.0.0.1 to its own origin alone."""
    open: LiveServer
    """The same, with origins and a host that are allowed besides."""
    upstream: FakeUpstream
    ids: Mapping[str, str]
    """Of a finished run that both servers have."""

    def path(self, template: str) -> str:
        return template.format(**self.ids)


@pytest.fixture(scope="module")
async def place(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    directory = tmp_path_factory.mktemp("origins")
    async with FakeUpstream() as upstream, live_server(upstream.url, directory=directory) as server:
        upstream.always(*say("An answer."))
        start = json.loads((await documents_of(await SSE.start(server, {"message": "Hi"})))[0])
        settings: dict[str, Any] = {"allowed_origins": CONFIGURED, "allowed_hosts": ("chat.example",)}
        async with live_server(upstream.url, directory=directory, **settings) as second:
            yield Place(server, second, upstream, start)


async def ask(server: LiveServer, method: str, path: str, headers: Headers = (), body: Any = None) -> Response:
    if body is None:
        body = {"POST": {"message": "x"}, "PATCH": {"title": "Changed"}}.get(method)
    with anyio.fail_after(WAIT_SECONDS):
        return await request(server, method, path, body, headers)


def assert_forbidden(response: Response, method: str = "GET") -> None:
    assert response.status == 403
    assert response.headers["content-type"] == "application/problem+json"
    assert "access-control-allow-origin" not in response.headers
    if method != "HEAD":
        said = response.json
        assert (said["status"], said["code"]) == (403, "forbidden")
        assert all(said[name] for name in ("type", "title", "detail"))


async def assert_handshake_is_forbidden(server: LiveServer, headers: Headers = (), origin: str | None = None) -> None:
    with anyio.fail_after(WAIT_SECONDS), pytest.raises(HandshakeRefusedError) as refused:
        await WsReader.connect(server, headers=headers, origin=origin)
    assert_forbidden(Response(refused.value.status or 0, refused.value.headers, refused.value.body))


async def assert_handshake_works(server: LiveServer, headers: Headers = (), origin: str | None = None) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(server, headers=headers, origin=origin) as reader:
            reader.send({"type": "ping"})
            await reader.until("pong")


# ---- origins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [EVIL, "null"])
@pytest.mark.parametrize(("method", "template"), [*ROUTES, *OTHERS])
async def test_a_foreign_origin_is_forbidden_on_every_method_of_every_route(
    place: Place, method: str, template: str, origin: str
) -> None:
    asked = len(place.upstream.requests)
    for server in (place.server, place.open):
        assert_forbidden(await ask(server, method, place.path(template), {"Origin": origin}), method)
    assert len(place.upstream.requests) == asked
    session = (await ask(place.server, "GET", place.path("/chat/sessions/{session_id}"))).json
    assert session["title"] != "Changed"


@pytest.mark.parametrize(
    "template",
    [
        EVIL,
        "null",
        "http://127.0.0.1",
        "http://localhost:{port}",
        "http://[::1]:{port}",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:1{port}",
        "http://127.0.0.1.evil.example:{port}",
        "http://evil.example:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}, https://evil.example",
        "https://evil.example, http://127.0.0.1:{port}",
        "http://127.0.0.1:{port} https://evil.example",
        "http://evil.example@127.0.0.1:{port}",
        "127.0.0.1:{port}",
        "file://",
        "chrome-extension://abcdefgh",
        "*",
        "undefined",
        "\xff",
        ALLOWED,
        "http://localhost:5173",
    ],
)
async def test_whatever_is_not_the_own_origin_is_foreign(place: Place, template: str) -> None:
    origin = template.format(port=place.server.port)
    for method, path in (("POST", "/chat/stream"), ("GET", "/chat/sessions")):
        assert_forbidden(await ask(place.server, method, path, {"Origin": origin}))
    await assert_handshake_is_forbidden(place.server, {"Origin": origin})


async def test_a_foreign_origin_beside_the_own_one_is_foreign(place: Place) -> None:
    own = f"http://127.0.0.1:{place.server.port}"
    for first, second in ((own, EVIL), (EVIL, own)):
        headers = [("Origin", first), ("Origin", second)]
        assert_forbidden(await ask(place.server, "POST", "/chat/stream", headers))


OWN = (
    (None, None),
    ("127.0.0.1:{port}", "http://127.0.0.1:{port}"),
    ("localhost:{port}", "http://localhost:{port}"),
    ("[::1]:{port}", "http://[::1]:{port}"),
    ("127.0.0.1", "http://127.0.0.1"),
    ("LOCALHOST:{port}", "http://localhost:{port}"),
)


@pytest.mark.parametrize(("host", "origin"), OWN)
async def test_the_own_origin_is_welcome_under_every_name_of_the_server(
    place: Place, host: str | None, origin: str | None
) -> None:
    for server in (place.server, place.open):
        given = {"Host": host or "127.0.0.1", "Origin": origin}
        headers = {name: value and value.format(port=server.port) for name, value in given.items()}
        for method, template in ROUTES:
            if method != "DELETE":
                response = await ask(server, method, place.path(template), headers)
                assert response.status in (200, 202), (method, template, response)
        await assert_handshake_works(server, headers)


async def test_behind_a_proxy_with_tls_the_own_origin_is_that_of_the_proxy(place: Place) -> None:
    secure = {"Host": "chat.example", "X-Forwarded-Proto": "https"}
    own, plain = secure | {"Origin": "https://chat.example"}, secure | {"Origin": "http://chat.example"}
    assert (await ask(place.open, "POST", "/chat/stream", own)).status == 200
    await assert_handshake_works(place.open, own)
    assert_forbidden(await ask(place.open, "POST", "/chat/stream", plain))
    await assert_handshake_is_forbidden(place.open, plain)


# ---- hosts ----------------------------------------------------------------------------------------------------------

FOREIGN_HOSTS = (
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "xlocalhost",
    "localhost.localdomain",
    "127.1",
    "2130706433",
    "0.0.0.0",
    "[::]",
    "[::2]:{port}",
    "169.254.169.254",
    "localhost@evil.example",
    "evil.example@localhost",
    "localhost, evil.example",
    "evil.example, localhost",
)


MALFORMED_HOSTS = ("", "[::1", "localhost evil.example", "localhost/evil.example", "localhost?a", "localhost#a", "\xff")


@pytest.mark.parametrize("host", MALFORMED_HOSTS)
async def test_a_host_that_is_none_is_refused(place: Place, host: str) -> None:
    response = await ask(place.server, "POST", "/chat/stream", {"Host": host})
    assert response.status in (400, 403)
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("template", FOREIGN_HOSTS)
async def test_a_host_that_is_not_ours_is_forbidden(place: Place, template: str) -> None:
    for server in (place.server, place.open):
        host = template.format(port=server.port)
        assert_forbidden(await ask(server, "POST", "/chat/stream", {"Host": host}))
        await assert_handshake_is_forbidden(server, {"Host": host})


@pytest.mark.parametrize(("method", "template"), [*ROUTES, *OTHERS])
async def test_a_rebound_name_is_forbidden_on_every_method_of_every_route(
    place: Place, method: str, template: str
) -> None:
    for origin in (None, "http://evil.example", ALLOWED):
        headers = {"Host": "evil.example", "Origin": origin}
        for server in (place.server, place.open):
            response = await ask(server, method, place.path(template), headers)
            if template in PROBES and (origin is None or (origin == ALLOWED and server is place.open)):
                assert response.status == 200
                continue
            assert response.status == 403
            if method != "HEAD":
                assert response.json["code"] == "forbidden"


@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize("host", [*FOREIGN_HOSTS, *MALFORMED_HOSTS, "10.0.0.7:8000", "evil.example", None])
async def test_a_probe_is_answered_under_any_host_or_none(place: Place, path: str, host: str | None) -> None:
    """A load balancer asks by an address or a name of its own; HAProxy's `httpchk` in HTTP/1.0, without any."""
    given = None if host is None else host.format(port=place.server.port)
    for method in ("GET", "HEAD"):
        assert (await ask(place.server, method, path, {"Host": given})).status == 200
    assert (await said(place.server, f"GET {path} HTTP/1.0\r\n\r\n".encode())).startswith(b"HTTP/1.1 200 ")


async def test_of_a_target_that_names_a_host_that_one_counts(place: Place) -> None:
    """RFC 9112, 3.2.2: whatever `Host` says."""
    port = place.server.port
    for target, host, status in (
        ("http://evil.example/schema", "localhost", 403),
        ("http://localhost@evil.example/schema", "localhost", 403),
        (f"http://localhost:{port}/schema", "evil.example", 200),
        (f"HTTP://127.0.0.1:{port}/schema?x=/", "evil.example", 200),
        (f"http://[::1]:{port}/schema", "evil.example", 200),
        (f"http://u:p@127.0.0.1:{port}/nowhere", "evil.example", 404),
        (f"http://127.0.0.1:{port}", "evil.example", 200),
        ("http://evil.example/livez", "localhost", 200),
        ("http:///schema", "localhost", 403),
        ("http://[::1/schema", "localhost", 400),
        ("/schema?of=http://evil.example/", "localhost", 200),
        (
            "//localhost/schema?of=http://localhost/",
            "evil.example",
            403,
        ),  # A path: a page of a rebound name may ask so.
    ):
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert statuses(await said(place.server, head.encode())) == [status], target
    foreign = "GET ws://evil.example/chat/ws HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE
    assert statuses(await said(place.server, foreign.encode())) == [403]
    own = f"GET ws://localhost:{port}/chat/ws HTTP/1.1\r\nHost: evil.example\r\n" + UPGRADE
    wire = await Wire.open(place.server)
    wire.write(own.encode())
    assert (await wire.read()).startswith(b"HTTP/1.1 101 ")
    wire.cut()


async def test_a_request_without_a_host_or_with_two_is_refused(place: Place) -> None:
    for headers in (
        [("Host", None)],
        [("Host", "localhost"), ("Host", "evil.example")],
        [("Host", "evil.example")] * 2,
    ):
        given: Any = dict(headers) if headers[0][1] is None else headers
        response = await ask(place.server, "POST", "/chat/stream", given)
        assert response.status in (400, 403)
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("host", ["localhost", "LocalHost:{port}", "127.0.0.1", "127.0.0.1:{port}", "[::1]", "[::1]:1"])
async def test_every_loopback_name_is_ours_on_any_port(place: Place, host: str) -> None:
    headers = {"Host": host.format(port=place.server.port)}
    assert (await ask(place.server, "GET", "/livez", headers)).status == 200
    await assert_handshake_works(place.server, headers)


@pytest.mark.parametrize("host", ["chat.example", "chat.example:8443", "CHAT.example", "localhost", "127.0.0.1"])
async def test_a_host_that_is_configured_is_ours_beside_the_loopback_names(place: Place, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host.lower()}"}
    assert (await ask(place.open, "POST", "/chat/stream", headers)).status == 200
    await assert_handshake_works(place.open, headers)


@pytest.mark.parametrize("host", ["chat.example", "chat.example:8443"])
async def test_a_host_that_is_configured_elsewhere_is_not_ours(place: Place, host: str) -> None:
    assert_forbidden(await ask(place.server, "GET", "/schema", {"Host": host}))


@pytest.mark.parametrize("bound", ["127.0.0.2", "0.0.0.0"])
async def test_the_bound_address_is_ours_and_foreign_names_are_not(bound: str) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, host=bound, insecure=True) as server:
        for host, is_ours in (
            (f"127.0.0.2:{server.port}", True),
            (f"127.0.0.1:{server.port}", True),
            (f"localhost:{server.port}", True),
            (f"192.0.2.1:{server.port}", bound == "0.0.0.0"),  # an address cannot be rebound
            (f"127.0.0.2.evil.example:{server.port}", False),
            ("evil.example", False),
        ):
            response = await ask(server, "GET", "/livez", {"Host": host, "Origin": f"http://{host}"})
            assert response.status == (200 if is_ours else 403), host
            assert_forbidden(await ask(server, "GET", "/livez", {"Host": host, "Origin": EVIL}))


# ---- CORS -----------------------------------------------------------------------------------------------------------


def assert_shared(response: Response, origin: str) -> None:
    """A script of this origin may read the answer, and no cache gives it to another one."""
    headers = response.headers
    assert headers.get("access-control-allow-origin") == origin
    assert headers.get("access-control-allow-credentials") == "true"
    assert "origin" in [each.strip().lower() for each in headers.get("vary", "").split(",")]


@pytest.mark.parametrize("origin", [ALLOWED, "https://mixed.example", "http://localhost:5173", "https://port.example"])
async def test_an_allowed_origin_may_read_every_answer(place: Place, origin: str) -> None:
    for method, template in ROUTES:
        if method != "DELETE":
            response = await ask(place.open, method, place.path(template), {"Origin": origin})
            assert response.status in (200, 202)
            assert_shared(response, origin)
    await assert_handshake_works(place.open, origin=origin)


REFUSED_CALLS: dict[int, tuple[str, str, Any, dict[str, str]]] = {
    400: ("POST", "/chat/stream", {"message": ""}, {}),
    404: ("GET", "/chat/runs/unknown", None, {}),
    405: ("PUT", "/chat/stream", None, {}),
    406: ("POST", "/chat/stream", {"message": "x"}, {"Accept": "image/png"}),
    413: ("POST", "/chat/stream", {"message": "x" * 40_000}, {}),
    415: ("POST", "/chat/stream", {"message": "x"}, {"Content-Type": "text/plain"}),
}


@pytest.mark.parametrize("status", REFUSED_CALLS)
async def test_an_allowed_origin_may_read_refusals_too(place: Place, status: int) -> None:
    method, path, body, headers = REFUSED_CALLS[status]
    response = await ask(place.open, method, path, headers | {"Origin": ALLOWED}, body)
    assert response.status == status
    assert response.headers["content-type"] == "application/problem+json"
    assert_shared(response, ALLOWED)


async def test_an_unknown_route_may_be_read_as_such(place: Place) -> None:
    response = await ask(place.open, "GET", "/nope", {"Origin": ALLOWED})
    assert response.status == 404
    assert_shared(response, ALLOWED)


async def test_what_one_origin_may_read_is_never_said_to_another(place: Place) -> None:
    run_id = place.ids["run_id"]
    last_seq = (await ask(place.open, "GET", f"/chat/runs/{run_id}")).json["last_seq"]
    for _ in range(2):
        for after, status in ((last_seq, 204), (0, 200)):
            path = f"/chat/runs/{run_id}/events?after={after}"
            for origin in (ALLOWED, "http://localhost:5173"):
                with anyio.fail_after(WAIT_SECONDS):
                    reader = await HttpReader.get(place.open, path, {"Origin": origin})
                    await reader.read_all()
                assert reader.status == status
                names = [name.lower() for name, _ in reader.header_lines]
                assert len(names) == len(set(names))
                assert_shared(Response(status, reader.headers, b""), origin)
            for server in (place.open, place.server):
                response = await ask(server, "GET", path)
                assert response.status == status
                assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("template", ["/chat/stream", "/chat/runs/{run_id}/events", "/chat/sessions/{session_id}"])
async def test_a_preflight_of_an_allowed_origin_names_methods_and_headers(
    place: Place, template: str, method: str
) -> None:
    wanted = ("content-type", "last-event-id", "authorization")
    headers = {
        "Origin": ALLOWED,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": ",".join(wanted),
    }
    response = await ask(place.open, "OPTIONS", place.path(template), headers)
    assert response.status in (200, 204)
    assert_shared(response, ALLOWED)
    # With credentials `*` is a name like any other.
    assert method in [each.strip() for each in response.headers["access-control-allow-methods"].split(",")]
    named = {each.strip().lower() for each in response.headers["access-control-allow-headers"].split(",")}
    assert named >= set(wanted)


@pytest.mark.parametrize(
    "origin",
    [
        EVIL,
        "null",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://evil-app.example",
        "https://sub.app.example",
        "https://appxexample",
        "https://app.example/",
        "https://app.example, https://evil.example",
        "http://localhost:51730",
        "https://*",
    ],
)
async def test_an_origin_that_resembles_an_allowed_one_is_foreign(place: Place, origin: str) -> None:
    for method in ("GET", "OPTIONS"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert_forbidden(await ask(place.open, method, "/chat/sessions", headers))
    await assert_handshake_is_forbidden(place.open, {"Origin": origin})


async def test_a_preflight_to_a_rebound_name_is_forbidden(place: Place) -> None:
    headers = {"Origin": ALLOWED, "Host": "evil.example", "Access-Control-Request-Method": "POST"}
    assert (await ask(place.open, "OPTIONS", "/chat/stream", headers)).status == 403
