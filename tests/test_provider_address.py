"""Where the provider sends a dialogue and its key: to the address that the operator wrote, and nowhere else."""

import json
import os
import ssl
from collections.abc import AsyncIterator

import anyio
import httpx2
import openai
import pytest

from chatserver.dialogue import UserMessage
from chatserver.errors import UpstreamError
from chatserver.events import Token
from chatserver.providers import Delta, ModelRequest
from chatserver.providers.client import OPENAI_URL, REDIRECTS_LIMIT, ModelServer
from chatserver.providers.provider import OpenAIProvider
from chatserver.settings import Settings
from chatserver.settings.loading import load
from tests.clients import SSE, WS, Transport, documents_of
from tests.fake_upstream import FakeUpstream, Status, Step, refuse, say
from tests.live import live_server

pytestmark = pytest.mark.anyio

KEY = "sk-test-canary"
DIALOGUE = "dialogue-canary"
ASK = ModelRequest(model="m", messages=[UserMessage(DIALOGUE)])
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, no_certificates: None) -> None:
    """No proxy, no certificates, nothing that the SDK reads by itself."""
    for name in (*PROXIES, *map(str.lower, PROXIES), "OPENAI_BASE_URL", *SDK_HEADERS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        server.always(*say("Hi"))
        yield server


async def answer(base_url: str | None) -> str:
    """The text of a turn."""
    async with OpenAIProvider(api_key=KEY, base_url=base_url, idle_seconds=10) as provider:
        with anyio.fail_after(20):
            found: list[Delta] = []
            await provider.stream(ASK, found.append)
            return "".join([delta.content for delta in found if isinstance(delta, Token)])


# ---- the address ----------------------------------------------------------------------------------------------------

HOSTS = [
    "http://model.test",
    "https://model.test",
    "http://model.test:8080",
    "https://model.test:443",
    "HTTP://Model.TEST",
    "http://127.0.0.1:8001",
    "http://[::1]",
    "http://[2001:db8::1]:8001",
    "http://me@model.test",
    "http://me:pass%40word@model.test:8080",
    "http://bücher.test",
]
FOLDERS = ["", "/", "/v1", "/v1/", "/openai/deployments/gpt-4o", "/a//b//", "/a b/ü", "/a%20b/%2F/", "/v1.0/~x;y=1,2"]
QUERIES = ["?api-version=2024-10-21", "?a=b&c=d&a=e", "?path=/x/y", "?q=a+b%20c%26", "?", "?a=b?c=d"]


async def sdk_asks(base_url: str) -> str:
    """The address that the SDK itself asks."""
    asked: list[str] = []

    def reply(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(200, json={})

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(reply)) as http:
        client = openai.AsyncOpenAI(api_key=KEY, base_url=base_url, http_client=http, max_retries=0)
        await client.chat.completions.create(model="m", messages=[])
    return asked[0]


def ours(base_url: str | None) -> str:
    return str(ModelServer(api_key=KEY, base_url=base_url, idle_seconds=1).address("chat/completions"))


async def test_a_path_is_joined_to_a_base_as_the_sdk_joins_them() -> None:
    bases = [host + folder for host in HOSTS for folder in FOLDERS]
    assert [(base, ours(base)) for base in bases] == [(base, await sdk_asks(base)) for base in bases]


async def test_the_query_of_a_base_stays_behind_the_path() -> None:
    for host in HOSTS:
        for folder in FOLDERS:
            plain = await sdk_asks(host + folder)
            for query in QUERIES:
                found = httpx2.URL(ours(host + folder + query))
                assert str(found.copy_with(query=None)) == plain, query
                assert found.query == httpx2.URL(f"http://x/{query}").query, (host, folder)


@pytest.mark.parametrize(
    ("tail", "path"),
    [
        ("", "/chat/completions"),
        ("/", "/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("?api-version=2024-10-21", "/chat/completions?api-version=2024-10-21"),
        ("/openai/v1/?api-version=preview&x=1", "/openai/v1/chat/completions?api-version=preview&x=1"),
    ],
)
async def test_a_server_is_asked_at_the_address_it_has(upstream: FakeUpstream, tail: str, path: str) -> None:
    base = f"http://127.0.0.1:{upstream.port}{tail}"
    assert await answer(base) == "Hi"
    assert [request.path for request in upstream.requests] == [path]
    assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("transport", [SSE, WS], ids=str)
async def test_a_base_without_a_path_gives_users_their_answers(upstream: FakeUpstream, transport: Transport) -> None:
    async with live_server(f"http://127.0.0.1:{upstream.port}") as server:
        with anyio.fail_after(20):
            documents = await documents_of(await transport.start(server, {"message": "Hi"}))
    assert json.loads(documents[-1])["type"] == "done"


async def test_a_proxy_is_asked_for_the_host_that_was_written(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{upstream.port}")
    assert await answer("http://model.test") == "Hi"
    assert await answer("http://model.test:81?a=b") == "Hi"
    assert [request.path for request in upstream.requests] == [
        "http://model.test/chat/completions",
        "http://model.test:81/chat/completions?a=b",
    ]
    assert [request.headers["host"] for request in upstream.requests] == ["model.test", "model.test:81"]


async def test_a_proxy_is_asked_for_a_tunnel_to_the_host_that_was_written(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{upstream.port}")
    upstream.always(*refuse(403))
    with pytest.raises(UpstreamError):
        await answer("https://model.test")
    assert {(request.method, request.path) for request in upstream.requests} == {("CONNECT", "model.test:443")}
    assert KEY not in repr(upstream.requests) and DIALOGUE not in repr(upstream.requests)


@pytest.mark.parametrize(
    ("base_url", "times"),
    [
        ("http://model.test", 0),
        ("HTTP://model.test", 0),
        ("https://model.test", 1),
        ("HTTPS://model.test", 1),
        (None, 1),
    ],
)
def test_certificates_are_read_where_the_server_has_one(
    base_url: str | None, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[ssl.SSLContext] = []

    def create() -> ssl.SSLContext:
        read.append(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return read[-1]

    monkeypatch.setattr(httpx2, "create_ssl_context", create)
    ModelServer(api_key=KEY, base_url=base_url, idle_seconds=1)
    assert len(read) == times


async def test_without_an_address_it_is_openai_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable is an unset one; the SDK would take it for an address."""
    for text in ("", "http://evil.test"):
        monkeypatch.setenv("OPENAI_BASE_URL", text)
        assert ours(None) == "https://api.openai.com/v1/chat/completions"
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert str(openai.AsyncOpenAI(api_key=KEY).base_url) == f"{OPENAI_URL}/"


# ---- the headers ----------------------------------------------------------------------------------------------------

SDK_HEADERS = {
    "OPENAI_ORG_ID": "org-1",
    "OPENAI_PROJECT_ID": "proj_2",
    "OPENAI_CUSTOM_HEADERS": "HTTP-Referer: https://a.example\n\n no header \n X-Title :  a: b \r\nuser-agent:mine",
}


async def headers_of_a_turn(upstream: FakeUpstream, settings: Settings) -> dict[str, str]:
    headers, key = settings.upstream_headers, settings.openai_api_key
    async with OpenAIProvider(api_key=key, base_url=upstream.url, idle_seconds=10, headers=headers) as provider:
        with anyio.fail_after(20):
            await provider.stream(ASK, lambda _: None)
    return upstream.requests[-1].headers


async def headers_of_the_sdk(upstream: FakeUpstream) -> dict[str, str]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=upstream.url, max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        async for _ in stream:
            pass
    return upstream.requests[-1].headers


@pytest.mark.parametrize("where", ["environment", ".env"])
async def test_headers_are_those_that_the_sdk_finds_in_the_environment(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for name, value in SDK_HEADERS.items():
        monkeypatch.setenv(name, value)
    expected = await headers_of_the_sdk(upstream)
    if where == ".env":
        for name in SDK_HEADERS:
            monkeypatch.delenv(name)
    file = SDK_HEADERS if where == ".env" else {}
    found = await headers_of_a_turn(upstream, load(file, os.environ, {"OPENAI_API_KEY": KEY}))
    names = ["authorization", "openai-organization", "openai-project", "http-referer", "x-title", "user-agent"]
    assert [found.get(name) for name in names] == [expected[name] for name in names]
    assert found["x-title"] == "a: b"


async def test_an_empty_variable_is_no_header(upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SDK_HEADERS:
        monkeypatch.setenv(name, " ")
    found = await headers_of_a_turn(upstream, load({"OPENAI_API_KEY": KEY}, os.environ))
    assert not found.keys() & {"openai-organization", "openai-project"}


async def test_a_key_in_a_header_of_ones_own_takes_the_place_of_the_key(upstream: FakeUpstream) -> None:
    found = await headers_of_a_turn(upstream, load({"OPENAI_CUSTOM_HEADERS": "authorization: Bearer mine"}))
    assert found["authorization"] == "Bearer mine"


async def test_a_key_with_a_line_end_behind_it_is_good(upstream: FakeUpstream) -> None:
    found = await headers_of_a_turn(upstream, load({"OPENAI_API_KEY": f" {KEY}\r\n"}))
    assert found["authorization"] == f"Bearer {KEY}"


# ---- redirects ------------------------------------------------------------------------------------------------------

REDIRECTS = [301, 302, 303, 307, 308]


def redirect(status: int, location: str) -> list[Step]:
    return [Status(status, (("Location", location),), length=0)]


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", f"me:{KEY}@127.0.0.1"])
async def test_a_redirect_to_another_server_is_not_followed(
    upstream: FakeUpstream, status: int, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeUpstream() as other:
        other.always(*say("Hi"))
        upstream.always(*redirect(status, f"http://{host}:{other.port}/v1/chat/completions?token={KEY}"))
        with pytest.raises(UpstreamError, match=r"OPENAI_BASE_URL") as refused:
            await answer(upstream.url)
        assert (refused.value.code, refused.value.retryable) == ("llm_error", False)
        assert (other.connections_made, len(upstream.requests)) == (0, 1)
        await upstream.idle()
    assert str(other.port) in caplog.text and KEY not in caplog.text


@pytest.mark.parametrize("status", REDIRECTS)
async def test_another_name_or_scheme_is_another_server(upstream: FakeUpstream, status: int) -> None:
    for scheme, host in (("https", "127.0.0.1"), ("http", "localhost"), ("http", "[::1]")):
        upstream.always(*redirect(status, f"{scheme}://{host}:{upstream.port}/v1/chat/completions"))
        asked = len(upstream.requests)
        with pytest.raises(UpstreamError, match=r"OPENAI_BASE_URL"):
            await answer(upstream.url)
        assert len(upstream.requests) == asked + 1


@pytest.mark.parametrize("status", REDIRECTS)
@pytest.mark.parametrize("location", ["/v2/x?a=b", "http://127.0.0.1:{port}/v2/x?a=b", "//127.0.0.1:{port}/v2/x?a=b"])
async def test_a_redirect_within_the_server_is_followed(upstream: FakeUpstream, status: int, location: str) -> None:
    upstream.script(*redirect(status, location.format(port=upstream.port)))
    assert await answer(upstream.url) == "Hi"
    first, second = upstream.requests
    assert second.path == "/v2/x?a=b" and second.headers["authorization"] == f"Bearer {KEY}"
    assert (second.method, second.body) == (("POST", first.body) if status >= 307 else ("GET", b""))


async def test_redirects_in_a_circle_are_left_soon_and_not_tried_again(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.always(*redirect(307, "/v1/chat/completions"))
    with pytest.raises(UpstreamError, match=r"OPENAI_BASE_URL") as refused:
        await answer(upstream.url)
    assert (refused.value.code, refused.value.retryable) == ("llm_error", False)
    assert len(upstream.requests) == 1 + REDIRECTS_LIMIT
    assert "redirects over 3 times" in caplog.text
    await upstream.idle()


async def test_as_many_redirects_as_may_be_needed_are_followed(upstream: FakeUpstream) -> None:
    for number in range(REDIRECTS_LIMIT):
        upstream.script(*redirect(307, f"/v1/{number}"))
    assert await answer(upstream.url) == "Hi"


async def test_a_redirect_leads_nowhere_else_by_a_detour_either(upstream: FakeUpstream) -> None:
    async with FakeUpstream() as other:
        upstream.script(*redirect(307, "/v1/there"))
        upstream.script(*redirect(307, other.url))
        with pytest.raises(UpstreamError, match=r"OPENAI_BASE_URL"):
            await answer(upstream.url)
        assert (other.connections_made, len(upstream.requests)) == (0, 2)


@pytest.mark.parametrize("status", REDIRECTS)
async def test_a_proxy_is_not_asked_for_another_server(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{upstream.port}")
    upstream.always(*redirect(status, "http://evil.test/v1/chat/completions"))
    with pytest.raises(UpstreamError, match=r"OPENAI_BASE_URL"):
        await answer("http://model.test/v1")
    assert [request.path for request in upstream.requests] == ["http://model.test/v1/chat/completions"]


@pytest.mark.parametrize("transport", [SSE, WS], ids=str)
async def test_a_user_is_told_what_an_operator_can_do(upstream: FakeUpstream, transport: Transport) -> None:
    async with FakeUpstream() as other, live_server(upstream.url) as server:
        upstream.always(*redirect(307, other.url))
        with anyio.fail_after(20):
            documents = await documents_of(await transport.start(server, {"message": "Hi"}))
        assert other.connections_made == 0
    error = json.loads(documents[-1])
    assert (error["type"], error["code"]) == ("error", "llm_error") and "OPENAI_BASE_URL" in error["message"]
