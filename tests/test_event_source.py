"""A browser's own `EventSource`: one `onerror` for a run that fails and for a connection that ends."""

from collections.abc import AsyncIterator

import anyio
import pytest
from playwright.async_api import Browser

from tests.browser import open_chromium
from tests.clients import request
from tests.fake_upstream import Cut, Done, FakeUpstream, Step, finish, role, token
from tests.live import live_server

pytestmark = [pytest.mark.anyio]

WAIT_SECONDS = 40.0
READS = """(path) => new Promise((resolve) => {
    const heard = [];
    const source = new EventSource(path);
    source.addEventListener("done", ({data}) => heard.push(["done", JSON.parse(data).finish_reason]));
    source.onerror = ({data}) => {
        heard.push([data ? JSON.parse(data).code : "no data", source.readyState]);
        if (source.readyState === EventSource.CLOSED) resolve(heard);
    };
})"""
CONNECTING, OPEN, CLOSED = range(3)


@pytest.fixture(scope="module")
async def chromium(anyio_backend: str) -> AsyncIterator[Browser]:
    async with open_chromium() as browser:
        yield browser


@pytest.mark.parametrize(
    ("steps", "end"),
    [
        ([role(), token("One"), Cut()], ["upstream_truncated", OPEN]),
        ([role(), token("One"), finish(), Done()], ["done", "stop"]),
    ],
    ids=["failed", "done"],
)
async def test_an_error_with_data_is_the_runs_and_one_without_is_a_connections(
    chromium: Browser, steps: list[Step], end: list[object]
) -> None:
    """Behind the terminal event it comes back, gets 204, and stays away."""
    with anyio.fail_after(WAIT_SECONDS):
        async with FakeUpstream() as upstream, live_server(upstream.url) as server:
            upstream.script(*steps)
            run = (await request(server, "POST", "/chat/runs", {"message": "x"})).json
            page = await chromium.new_page()
            await page.goto(f"{server.url}/livez")
            heard = await page.evaluate(READS, f"/chat/runs/{run['run_id']}/events")
            await page.close()
    assert heard == [end, ["no data", CONNECTING], ["no data", CLOSED]]
