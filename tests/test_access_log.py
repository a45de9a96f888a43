"""The access log: a line for each request and each WebSocket when it ends, and no secret in it."""

import re
from collections.abc import Iterator

import anyio
import pytest

from chatserver.serving.access_log import PATH_CHARS, AccessLine, logger
from tests.clients import SSE, WS, HttpReader, WsReader, documents_of, request
from tests.fake_upstream import FakeUpstream, Gate, Reached, say, token
from tests.live import live_server
from tests.users import bearer, guarded_server, of
from tests.users import token as token_of

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    before = logger.level
    yield
    logger.setLevel(before)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines so far, without their milliseconds."""
    found = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert all("\n" not in line and re.search(r" \d+ ms$", line) for line in found)
    return [line.rpartition(" ")[0].rpartition(" ")[0] for line in found]


async def test_every_request_is_a_line_without_its_query(caplog: pytest.LogCaptureFixture) -> None:
    async with guarded_server(None, access_log=True) as server:
        length = len((await request(server, "GET", "/livez?ticket=canary-4711")).body)
        refused = await request(
            server, "POST", "/chat/runs?ticket=canary-4711", {"message": "x"}, bearer("canary-4711")
        )
        assert refused.status == 401
        assert (await request(server, "GET", "/no%0Apath?x", headers={"Host": "evil.example"})).status == 403
        assert (await request(server, "DELETE", "/chat/sessions/x", headers=of("ann"))).status == 404
        assert (await request(server, "GET", f"/{'x' * 1000}")).status == 404
    first, second, third, fourth, fifth = lines(caplog)
    assert first == f"GET /livez 200 {length}"
    assert second.startswith("POST /chat/runs 401 ") and third.startswith("GET /no%0Apath 403 ")
    assert fourth.startswith("DELETE /chat/sessions/x 404 ")
    assert fifth.startswith(f"GET /{'x' * (PATH_CHARS - 1)}… 404 ")
    assert "canary-4711" not in caplog.text


def test_whatever_is_in_a_path_it_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    AccessLine({"method": "GET", "raw_path": b"/a\nb\r\x1b[2J\x85\xe9"}).over(is_whole=False)
    assert lines(caplog) == ["GET /a\\nb\\r\\x1b[2J\\x85\u00e9 - cut -"]


async def test_a_stream_is_a_line_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, access_log=True) as server:
        upstream.always(Gate(gate), *say("An answer.", pieces=5))
        with anyio.fail_after(WAIT_SECONDS):
            reading = await SSE.start(server, {"message": "x"})
            assert lines(caplog) == []
            gate.set()
            await documents_of(reading)
    assert lines(caplog) == ["POST /chat/stream 200 -"]


async def test_a_stream_that_its_reader_leaves_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    gate, reached = anyio.Event(), anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, access_log=True) as server:
        upstream.always(token("x"), Reached(reached), Gate(gate))
        with anyio.fail_after(WAIT_SECONDS):
            async with await HttpReader.post(server, "/chat/stream", {"message": "x"}):
                await reached.wait()
    assert lines(caplog) == ["POST /chat/stream 200 cut -"]


async def test_a_websocket_is_a_line_with_its_close_code(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeUpstream() as upstream, guarded_server(upstream.url, access_log=True) as server:
        upstream.always(*say("An answer."))
        with anyio.fail_after(WAIT_SECONDS):
            await documents_of(await WS.start(server, {"message": "x"}, headers=of("ann")))
            refused = await WsReader.connect(server, f"/chat/ws?token={token_of('canary')}")
            assert (await refused.closing()).code == 4401
    assert [re.sub(r"100[0156]", "1000", line) for line in sorted(lines(caplog))] == [
        "WS /chat/ws 1000 -",
        "WS /chat/ws 4401 -",
    ]


async def test_it_is_off_unless_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    async with live_server(None) as server:
        assert (await request(server, "GET", "/livez")).status == 200
    assert lines(caplog) == []
