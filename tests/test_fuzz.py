"""Whatever comes: no 5xx, no traceback, no stream disturbed, the process alive.

The server is a process of its own. Beside every test a run is read that must miss no event of it.
"""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatserver.commands import ChatRequest
from tests.clients import SSE, BrokenError, ClosedError, HttpReader, Reading, Wire, WsReader, request
from tests.conftest import Scale
from tests.fake_upstream import FakeUpstream, Reply, Step, say, token
from tests.live import CANARY, ServerProcess
from tests.test_bad_input import CONTINUATION, FRAME_SEEDS, SEEDS, TEXT, close_code, masked, mutated, parts
from tests.users import token as token_of
from tests.users import unsigned

pytestmark = [pytest.mark.anyio, pytest.mark.proof]

WAIT_SECONDS = 20.0
WORKERS = 6
FRAMES_PER_CONNECTION = 30
CLOSE_CODES = {1000, 1002, 1003, 1005, 1006, 1007, 1009, 4400, 4429}
"""1005 and 1006: the mutated frame was a close frame itself, or was never finished."""

METHODS = ("GET", "GET", "POST", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "PUT")
PATHS = (
    *("/chat/stream", "/chat/runs", "/chat/runs/{id}", "/chat/runs/{id}/events", "/chat/runs/{id}/cancel"),
    *("/chat/sessions", "/chat/sessions/{id}", "/chat/tickets", "/chat/ws", "/livez", "/schema", "/{id}"),
)
QUERIES = ("after=0", "after=17", "limit=20&cursor=WyIyMDI2LTExLTIyIiwiYSJd", "branches=all", "ticket=x", "a=b&a=c")
HEADERS = {
    "Accept": ("text/event-stream, application/x-ndjson;q=0.5", "*/*", "text/plain;q=0"),
    "Content-Type": ("application/json; charset=utf-8", "application/json"),
    "Content-Encoding": ("identity", "gzip"),
    "Last-Event-ID": ("17", "0"),
    "Origin": ("http://127.0.0.1", "null"),
    "Host": ("127.0.0.1:8000", "[::1]:80"),
    "Authorization": (f"Bearer {token_of()}", f"Bearer {unsigned()}", "Basic YTpi"),
    "Cookie": (f"chatserver_token={token_of()}; a=b", "a=b"),
    "Expect": ("100-continue",),
    "X-Forwarded-For": ("1.2.3.4, 5.6.7.8",),
    "X-Forwarded-Proto": ("https",),
    "Range": ("bytes=0-10",),
    "Connection": ("keep-alive", "close"),
}


@dataclass
class Place:
    server: ServerProcess
    bystander: Reading
    permits: anyio.Semaphore
    seq: int = 1

    async def undisturbed(self) -> None:
        """The bystander gets its next event, with the next number."""
        self.permits.release()
        self.seq += 1
        with anyio.fail_after(WAIT_SECONDS):
            (document,) = await self.bystander.take(1)
        assert json.loads(document)["seq"] == self.seq


@pytest.fixture(scope="module", params=["none", "jwt"])
async def place(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, request: Any) -> AsyncIterator[Place]:
    """With users too, where most is refused before it is read."""
    permits = anyio.Semaphore(0)

    async def permit(_: Reply) -> None:
        await permits.acquire()

    def script(_: Reply) -> Iterator[Step]:
        while True:
            yield permit
            yield token("still here")

    secret = {"auth": "jwt", "jwt_secret": "a secret of more than 32 bytes for tests"}
    many = {"max_runs": 1_000_000, "max_runs_per_user": 1_000_000, "max_requests_per_minute": 100_000_000}
    chosen: dict[str, Any] = (secret if request.param == "jwt" else {}) | many | {"upstream_idle_seconds": 3600.0}
    async with FakeUpstream() as upstream:
        upstream.script(script)
        upstream.always(*say("An answer."))
        directory = tmp_path_factory.mktemp("fuzz")
        async with ServerProcess(upstream.url, directory, is_forked=True, **chosen) as server:
            headers = {"Authorization": f"Bearer {token_of(seconds=86_400)}"}
            reading = await SSE.start(server, {"message": "go on"}, headers=headers)
            await reading.take(1)
            yield Place(server, reading, permits)
            reading.cut()


@pytest.fixture(autouse=True)
async def alive(place: Place) -> AsyncIterator[None]:
    said = len(place.server.stderr)
    await place.undisturbed()
    yield
    await place.undisturbed()
    assert (await request(place.server, "GET", "/livez")).status == 200
    assert place.server.stderr[said:] == [] and CANARY not in place.server.output


def text(rng: random.Random, seed: str) -> str:
    """A mutated text that ends no line of a head: what then follows would be another header."""
    return re.sub(r"[\r\n]", "~", mutated(rng, seed.encode()).decode("latin-1"))


def structured(rng: random.Random) -> tuple[str, str, bytes | None, list[tuple[str, str]]]:
    """A request of sound framing, everything else mutated."""
    method = rng.choice(METHODS)
    path = rng.choice(PATHS).replace("{id}", re.sub(r"[ ?#]", "_", text(rng, "qW3_rT-abc")))
    if rng.random() < 0.5:
        path += "?" + re.sub(r"[ #]", "+", text(rng, rng.choice(QUERIES)))
    names = rng.sample(sorted(HEADERS), rng.randint(0, 4))
    headers = [(name, text(rng, rng.choice(HEADERS[name]))) for name in names]
    has_body = method in ("POST", "PATCH", "PUT")
    return method, path, mutated(rng, rng.choice(SEEDS)) if has_body else None, headers


def raw(rng: random.Random) -> bytes:
    method, path, body, headers = structured(rng)
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers)]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body or b'')}"]
    return mutated(rng, "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))


async def statuses_of_raw(server: ServerProcess, data: bytes) -> list[int]:
    answer = b""
    wire = await Wire.open(server)
    try:
        wire.write(data)
        wire.writer.write_eof()
        while more := await wire.read():
            answer += more
    except (ConnectionError, OSError):
        pass
    wire.cut()
    return [int(each) for each in re.findall(rb"^HTTP/1\.1 (\d{3})", answer)]


async def statuses_of(server: ServerProcess, rng: random.Random) -> list[int]:
    if rng.random() < 0.3:
        return await statuses_of_raw(server, raw(rng))
    method, path, body, headers = structured(rng)
    try:
        async with await HttpReader.open(server, method, path, body, headers) as reader:
            if "event-stream" not in reader.headers.get("content-type", "") and reader.status >= 400:
                await reader.read_all()
            return [reader.status]
    except BrokenError:
        return []


async def test_no_mutated_request_makes_the_server_fail(place: Place, scale: Scale) -> None:
    """Bodies, queries, headers, ids, methods; three in ten mutated below their framing too."""
    left, seen = iter(range(scale(1000, 50_000))), Counter[int]()

    async def work(seed: int) -> None:
        rng = random.Random(seed)
        for number in left:
            with anyio.fail_after(WAIT_SECONDS):
                seen.update(await statuses_of(place.server, rng))
            if number % 1000 == 0:
                await place.undisturbed()

    async with anyio.create_task_group() as tasks:
        for seed in range(WORKERS):
            tasks.start_soon(work, seed)
    assert all(status < 500 for status in seen), seen
    assert {400, 404} & seen.keys() or 401 in seen, seen


async def test_no_mutated_frame_makes_the_server_fail(place: Place, scale: Scale) -> None:
    left, seen, codes = iter(range(scale(1500, 50_000) // FRAMES_PER_CONNECTION)), Counter[int](), Counter[int]()
    headers = {"Authorization": f"Bearer {token_of(seconds=86_400)}"}

    async def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in left:
            with anyio.fail_after(WAIT_SECONDS):
                reader = await WsReader.connect(place.server, headers=headers)
                try:
                    for _ in range(FRAMES_PER_CONNECTION - 1):
                        reader.send_text(_frame(rng))
                        reader.send({"type": "ping"})
                        await reader.until("pong")
                    reader.send_wire(mutated(rng, masked(TEXT, rng.choice(FRAME_SEEDS))))
                    reader.wire.writer.write_eof()  # It may have broken off in the middle of a frame.
                    codes[close_code(b"".join([part async for part in parts(reader.wire)])) or 1006] += 1
                except ClosedError as closed:
                    codes[closed.code] += 1
                seen.update(each.message["status"] for each in reader.frames if each.type == "rejected")
                reader.cut()

    async with anyio.create_task_group() as tasks:
        for seed in range(WORKERS):
            tasks.start_soon(work, seed)
    assert codes.keys() <= CLOSE_CODES, codes
    assert all(400 <= status < 500 for status in seen), seen


def _frame(rng: random.Random) -> bytes:
    data = mutated(rng, rng.choice(FRAME_SEEDS))
    return data if rng.random() < 0.01 else data.decode(errors="ignore").encode()


async def test_no_mutated_framing_makes_the_server_fail(place: Place, scale: Scale) -> None:
    """Fragments, control frames between them, and accidents in their heads."""
    rng = random.Random(5)
    lines = ["GET /chat/ws HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Authorization: Bearer {token_of()}", "Sec-WebSocket-Version: 13"]
    head = "\r\n".join([*lines, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""])
    for _ in range(scale(100, 5000)):
        payload, at = rng.choice(FRAME_SEEDS), rng.randint(0, 12)
        frames = masked(TEXT, payload[:at], fin=False) + masked(rng.choice((8, 9, 10)), payload[:20])
        frames += masked(CONTINUATION, payload[at:])
        with anyio.fail_after(WAIT_SECONDS):
            wire = await Wire.open(place.server)
            wire.write(head.encode())
            assert (await wire.read()).startswith(b"HTTP/1.1 101")
            wire.write(mutated(rng, frames))
            wire.writer.write_eof()
            try:
                while await wire.read():
                    pass
            except ConnectionError:
                pass
            wire.cut()


NAMES = st.sampled_from(sorted({*ChatRequest.__struct_fields__, "type", "ref", "run_id", "after", "title"}))
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["send", "attach", "cancel"]),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(NAMES | st.text(max_size=3), below, max_size=6),
    max_leaves=12,
)


async def test_no_json_makes_the_server_fail(place: Place, scale: Scale) -> None:
    headers = {"Authorization": f"Bearer {token_of(seconds=86_400)}"}
    found: list[Any] = []

    @settings(max_examples=scale(150, 5000), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(TREES)
    def collect(tree: Any) -> None:
        found.append(tree)

    collect()
    with anyio.fail_after(WAIT_SECONDS * 100):
        reader = await WsReader.connect(place.server, headers=headers)
        for tree in found:
            body = json.dumps(tree)
            for path in ("/chat/runs", "/chat/stream"):
                assert (await request(place.server, "POST", path, body, headers)).status < 500
            reader.send_text(body.encode(errors="surrogatepass").decode(errors="replace"))
            reader.send({"type": "ping"})
            await reader.until("pong")
            if len(reader.frames) > 1000:
                reader.close()
                reader = await WsReader.connect(place.server, headers=headers)
        reader.close()


@pytest.mark.parametrize("place", ["jwt"], indirect=True)
async def test_the_server_is_as_its_openapi_document_says(place: Place, scale: Scale, tmp_path: Path) -> None:
    """schemathesis: cases from the served document, and answers held against it."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    count = ["--max-examples", str(scale(3, 300))]
    count += ["--header", f"Authorization: Bearer {token_of(seconds=86_400)}"]
    tool = Path(sys.executable).with_name("schemathesis")
    command = [
        str(tool),
        "run",
        f"{place.server.url}/schema",
        "--checks",
        checks,
        "--phases",
        "coverage,fuzzing",
        *count,
    ]
    result = await anyio.run_process([*command, "--no-color", "--seed", "1"], check=False, cwd=tmp_path, stderr=STDOUT)
    assert result.returncode == 0, result.stdout.decode()
