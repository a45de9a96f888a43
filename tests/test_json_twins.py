"""One document, two transports: an HTTP body and a WebSocket frame are refused with the same status, code and words."""

import json
import logging
import random
from collections.abc import AsyncIterator
from functools import partial

import anyio
import pytest

from chatserver.commands import ChatRequest
from tests.clients import WsReader, request
from tests.conftest import Scale
from tests.fake_upstream import FakeUpstream
from tests.json_fuzz import document
from tests.live import LiveServer, live_server
from tests.test_bad_input import TEXT, masked
from tests.test_strict_json import BAD_JSON, REF, framed, outcome, request_of

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30.0
WORKERS = 4


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[LiveServer]:
    async with FakeUpstream() as upstream, live_server(upstream.url, max_frame_bytes=1_000_000) as server:
        yield server


class Twins:
    """Asks the same over both transports."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._reader: WsReader | None = None

    async def ask(self, body: bytes) -> None:
        with anyio.fail_after(WAIT_SECONDS):
            answer = await request(self._server, "POST", "/chat/runs", body)
            problem = answer.json
            assert answer.status == problem["status"] == 400, (body, problem)
            assert problem["code"] in ("bad_json", "bad_request")
            try:
                text = body.decode()
            except UnicodeDecodeError:
                return await self._closes(body)
            said = await self._said(framed(text))
        assert (said["type"], said["status"], said["code"]) == ("rejected", 400, problem["code"]), body
        if problem["code"] == "bad_json":
            assert said.keys() == {"type", "status", "code", "message"}, "nothing of it was read"
        if framed(text) != text:
            assert (said["message"], said.get("errors")) == (problem["detail"], problem.get("errors")), body
            assert said.get("ref") == (REF if problem["code"] == "bad_request" else None), body

    async def _said(self, text: str) -> dict[str, object]:
        """The answer to a frame; the ping behind it says that the connection lives, and that the next is no tenth."""
        if self._reader is None or len(self._reader.frames) > 500:
            self.leave()
            self._reader = await WsReader.connect(self._server)
        self._reader.send_text(text)
        said = await self._reader.answer()
        self._reader.send({"type": "ping"})
        await self._reader.until("pong")
        return said

    async def _closes(self, body: bytes) -> None:
        reader = await WsReader.connect(self._server)
        reader.send_wire(masked(TEXT, body))
        assert (await reader.closing()).code == 1007, body

    def leave(self) -> None:
        if self._reader is not None:
            self._reader.close()


@pytest.mark.parametrize("body", BAD_JSON, ids=lambda body: str(body[:20]))
async def test_what_is_no_json_is_none_on_both(
    server: LiveServer, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    twins = Twins(server)
    await twins.ask(body)
    twins.leave()
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []


@pytest.mark.proof
async def test_whatever_is_refused_is_refused_alike(
    server: LiveServer, scale: Scale, caplog: pytest.LogCaptureFixture
) -> None:
    """What is taken starts a run: `test_fuzz` asks for those."""
    left = iter(range(scale(300, 200_000)))

    async def work(seed: int) -> None:
        rng, twins = random.Random(seed), Twins(server)
        for _ in left:
            body = document(rng)
            while isinstance(outcome(partial(request_of, body)), ChatRequest):
                body = document(rng)
            await twins.ask(body)
        twins.leave()

    async with anyio.create_task_group() as tasks:
        for seed in range(WORKERS):
            tasks.start_soon(work, seed)
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []


@pytest.mark.parametrize("ref", ["", "x" * 256, "x" * 257, "🦜", "\0", "a\r\nb", "\x7f\u2028", '"\\'])
async def test_a_reference_comes_back_as_it_was_sent(server: LiveServer, ref: str) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(server) as reader:
            for rest in ({"message": 5}, {"message": "x", "nope": 1}, {"run_id": ["x"]}):
                reader.send({"type": "send", "ref": ref} | rest)
                assert (await reader.answer())["ref"] == ref
            twice = '{"type":"cancel","run_id":"r","run_id":"s","ref":"a","ref":'
            reader.send_text(twice + json.dumps(ref) + "}")
            said = await reader.answer()
            assert (said["status"], said["ref"], said["run_id"]) == (400, ref, "s")
