"""Who may scrape: programs of the server's own machine and whoever has a token, and nobody through a proxy."""

from collections.abc import Mapping
from typing import Any

import pytest

from chatserver.auth.origins import is_from_own_machine
from tests.clients import request
from tests.live import live_server
from tests.proxies import PROXIES, running
from tests.users import bearer, guarded_server, of

pytestmark = [pytest.mark.anyio]

BY_PROXY = [
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-Proto": "https"},
    {"X-Forwarded-Host": "127.0.0.1"},
    {"X-Real-IP": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"},
    {"Via": "1.1 proxy"},
    {"Host": "chat.example.org"},
]
PUBLIC_NAME = ("chat.example.org",)


def scope(client: Any = ("127.0.0.1", 5), host: str = "127.0.0.1:8000", version: str = "1.1") -> dict[str, Any]:
    return {"client": client, "headers": [(b"host", host.encode())], "http_version": version}


@pytest.mark.parametrize(
    ("asked", "is_inside"),
    [
        (scope(), True),
        (scope(("::1", 5), "[::1]:8000"), True),
        (scope(("127.8.8.8", 5), "localhost"), True),
        (scope(host="LOCALHOST:8000"), True),
        (scope(("10.0.0.7", 5)), False),
        (scope(("fe80::1", 5), "localhost"), False),
        (scope(None), False),  # A UNIX socket: whoever is behind it.
        (scope(("/run/proxy.sock", None)), False),
        (scope((None, None)), False),
        (scope(host="10.0.0.1"), False),
        (scope(host="localhost.example.org"), False),
        (scope(host="127.0.0.1, 127.0.0.1"), False),
        (scope(host=""), False),
        (scope(version="1.0"), False),
    ],
)
def test_a_program_of_this_machine_is_told_from_others(asked: Mapping[str, Any], is_inside: bool) -> None:
    assert is_from_own_machine(asked) is is_inside


@pytest.mark.parametrize("headers", BY_PROXY, ids=str)
async def test_what_comes_through_a_proxy_needs_a_token(headers: dict[str, str]) -> None:
    async with guarded_server(None, allowed_hosts=PUBLIC_NAME) as server:
        assert (await request(server, "GET", "/metrics")).status == 200
        refused = await request(server, "GET", "/metrics", headers=headers)
        assert (refused.status, refused.json["code"]) == (401, "unauthenticated")
        assert (await request(server, "GET", "/metrics", headers=headers | bearer("wrong"))).status == 401
        assert (await request(server, "GET", "/metrics", headers=headers | of("ann"))).status == 200


@pytest.mark.parametrize("headers", BY_PROXY, ids=str)
async def test_without_users_there_is_no_token_to_have(headers: dict[str, str]) -> None:
    async with live_server(None, allowed_hosts=PUBLIC_NAME) as server:
        assert (await request(server, "GET", "/metrics")).status == 200
        for token in ({}, of("ann")):
            assert (await request(server, "GET", "/metrics", headers=headers | token)).status == 401


async def test_a_scraper_with_a_token_may_ask_as_often_as_a_user() -> None:
    headers = {"X-Forwarded-For": "10.0.0.7"} | of("ann")
    async with guarded_server(None, max_requests_per_minute=2) as server:
        statuses = [(await request(server, "GET", "/metrics", headers=headers)).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert [(await request(server, "GET", "/metrics")).status for _ in range(5)] == [200] * 5


async def test_a_foreign_page_cannot_read_metrics() -> None:
    async with live_server(None) as server:
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
            assert (await request(server, "GET", "/metrics", headers=headers)).status == 403


@pytest.mark.parametrize("program", PROXIES)
async def test_the_proxies_of_deploy_let_nobody_scrape(program: str) -> None:
    async with live_server(None) as server, running(program, server) as proxy:
        for host in (f"127.0.0.1:{proxy.port}", "localhost"):
            response = await request(proxy, "GET", "/metrics", headers={"Host": host})
            # Caddy answers by itself, with nothing, under a name that it does not know.
            assert response.status == 401 or (program, response.body) == ("caddy", b"")


async def test_nginx_that_is_told_nothing_lets_nobody_scrape() -> None:
    bare = "server { listen 443 ssl http2; location / { proxy_pass http://127.0.0.1:8000; } }"
    async with live_server(None) as server, running("nginx", server, change=lambda _: bare) as proxy:
        assert (await request(proxy, "GET", "/livez")).status == 200
        assert (await request(proxy, "GET", "/metrics")).status == 401


async def test_metrics_are_told_while_the_server_drains() -> None:
    async with live_server(None) as server:
        server.runs.is_draining = True
        assert (await request(server, "GET", "/readyz")).status == 503
        assert (await request(server, "GET", "/metrics")).status == 200
