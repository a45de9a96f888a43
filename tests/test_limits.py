"""How much one may have of everything: each limit, its answer on each transport; the next user notices nothing."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import anyio
import pytest

from chatserver import limits
from chatserver.answer import Answer
from chatserver.dialogue import UserMessage, estimated_tokens
from chatserver.errors import TooMany
from chatserver.events import Done as DoneEvent
from chatserver.events import Terminal, ToolResult, Usage
from chatserver.limits import RateLimiter, TokenBucket
from chatserver.log.memory import MemoryLog
from chatserver.meter import Day, Meter
from chatserver.parts import ToolCallPart
from chatserver.providers import ModelRequest
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.life import Life
from chatserver.runs.run import Run
from chatserver.serving import websocket_decoder
from chatserver.sessions import Sessions
from chatserver.transports.admission import OPEN_CONNECTIONS
from tests.clients import SSE, TRANSPORTS, WS, HttpReader, RefusedError, Transport, WsReader, documents_of, request
from tests.counting import calls_of
from tests.fake_upstream import Done, FakeUpstream, Gate, Step, counted, finish, reasoning, role, say, token, tool_call
from tests.live import LiveServer, live_server
from tests.merging import unmerged
from tests.proving import answer_of
from tests.scripted_model import RESOURCE, ScriptedModel, Unanswered, agent, asking, steps_of, stop, toolbox, wants
from tests.users import guarded_server, of

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
TEN = "ten words that are no more than just that, ok? "
"""About twelve tokens, by the rule of thumb."""


def last(documents: Sequence[bytes]) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(documents[-1])
    return event


# ---- requests -------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "monotonic", clock)
    return clock


def test_a_bucket_is_emptied_and_fills_again(clock: Clock) -> None:
    bucket = TokenBucket(3, 2)
    assert [bucket.draw() for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.5
    assert [bucket.draw(), bucket.draw()] == [0, 0.5]
    clock.now += 1000
    assert bucket.is_full and [bucket.draw() for _ in range(4)] == [0, 0, 0, 0.5]


def test_requests_are_counted_of_each_user(clock: Clock) -> None:
    requests = RateLimiter(60)
    for user in ("ann", "bob"):
        for _ in range(60):
            requests.count(user)
        with pytest.raises(TooMany) as refused:
            requests.count(user)
        assert refused.value.retry_after == 1
    clock.now += 1
    requests.count("ann")


def test_users_who_ask_for_nothing_are_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "USERS_LIMIT", 10)
    requests = RateLimiter(60)
    for number in range(1000):
        clock.now += 1
        requests.count(f"user {number}")
    assert len(requests._buckets) <= 11


def test_users_who_all_ask_for_much_are_not_looked_through_for_each_new_one(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "USERS_LIMIT", 100)
    costs: list[int] = []

    def come(requests: RateLimiter, count: int) -> None:
        for number in range(count):
            requests.count(f"user {number}")

    for count in (1000, 2000, 4000):
        requests = RateLimiter(60)
        costs.append(calls_of(partial(come, requests, count)))
        assert len(requests._buckets) == count
    assert costs[2] < 2.2 * costs[1] < 2.2**2 * costs[0]


async def test_too_many_requests_are_refused_on_both_transports_until_the_time_to_wait_is_over() -> None:
    async with guarded_server(None, max_requests_per_minute=5) as live:
        async with await WsReader.connect(live, headers=of("ann")) as reader:  # the first
            answers = [await reader.command(type="cancel", run_id="unknown", ref=str(n)) for n in range(2)]
            assert [each["status"] for each in answers] == [404, 404]
            statuses = [(await request(live, "GET", "/chat/sessions", headers=of("ann"))).status for _ in range(2)]
            assert statuses == [200, 200]
            refused = await request(live, "GET", "/chat/sessions", headers=of("ann"))
            assert (refused.status, refused.json["code"]) == (429, "too_many")
            assert 1 <= int(refused.headers["retry-after"]) == refused.json["retry_after"] <= 12
            said = await reader.command(type="send", message="x", ref="a")
            assert (said["type"], said["status"], said["code"], said["ref"]) == ("rejected", 429, "too_many", "a")
            assert said["retry_after"] >= 1
            reader.send({"type": "ping"})  # No request: it keeps a connection alive.
            await reader.until("pong")
        late = await WsReader.connect(live, headers=of("ann"))
        assert (await late.closing()).code == 4429
        assert (await request(live, "GET", "/chat/sessions", headers=of("bob"))).status == 200
        assert (await request(live, "GET", "/livez")).status == 200


async def test_where_all_are_one_user_requests_are_not_counted() -> None:
    async with live_server(None, max_requests_per_minute=1) as live:
        assert [(await request(live, "GET", "/chat/sessions")).status for _ in range(5)] == [200] * 5


async def test_where_all_are_one_user_only_the_runs_of_all_are_counted() -> None:
    """Twenty people, one machine: each gets an answer."""
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, max_runs_per_user=1, max_runs=20) as live:
        upstream.always(Gate(gate), *say("x"))
        with anyio.fail_after(WAIT_SECONDS):
            readings = [await transport.start(live, {"message": "x"}) for transport in (SSE, WS) for _ in range(10)]
            refused = await request(live, "POST", "/chat/runs", {"message": "x"})
            assert (refused.status, refused.json["code"]) == (429, "too_many")
            gate.set()
            assert [last(await documents_of(each))["type"] for each in readings] == ["done"] * 20


# ---- connections, runs, frames --------------------------------------------------------------------------------------


async def test_connections_and_runs_are_counted_of_each_user() -> None:
    gate = anyio.Event()
    async with (
        FakeUpstream() as upstream,
        guarded_server(upstream.url, max_connections_per_user=2, max_runs_per_user=1, max_runs=2) as live,
    ):
        upstream.always(Gate(gate), *say("x"))
        with anyio.fail_after(WAIT_SECONDS):
            first = await SSE.start(live, {"message": "x"}, headers=of("ann"))
            other = await WsReader.connect(live, headers=of("ann"))
            assert (await request(live, "POST", "/chat/runs", {"message": "x"}, of("ann"))).status == 429
            assert (await request(live, "GET", f"/chat/runs/{first.run_id}/events", headers=of("ann"))).status == 429
            assert (await (await WsReader.connect(live, headers=of("ann"))).closing()).code == 4429
            assert (await other.command(type="send", message="x"))["status"] == 429
            second = await SSE.start(live, {"message": "x"}, headers=of("bob"))
            refused = await request(live, "POST", "/chat/runs", {"message": "x"}, of("carl"))
            assert (refused.status, refused.json["code"]) == (429, "too_many")
            gate.set()
            for reading in (first, second):
                assert last(await documents_of(reading))["type"] == "done"
            other.close()
            again = await SSE.start(live, {"message": "x"}, headers=of("ann"))
            await documents_of(again)
        assert live.runs._places.held == {} and live.app.state.components.admissions.open[OPEN_CONNECTIONS] == {}


async def test_over_the_limit_of_connections_one_is_told_so_and_others_go_on() -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, max_connections=3) as live:
        upstream.script(Gate(gate), *say("x"))
        with anyio.fail_after(WAIT_SECONDS):
            reading = await SSE.start(live, {"message": "x"})
            readers = [await WsReader.connect(live) for _ in range(2)]
            for method, path, headers in (("GET", "/livez", {}), ("GET", "/chat/ws", UPGRADE)):
                refused = await request(live, method, path, headers=headers)
                assert (refused.status, refused.json["code"]) == (503, "overloaded")
                assert refused.headers["content-type"] == "application/problem+json"
                assert int(refused.headers["retry-after"]) >= 1
            readers.pop().close()
            while (await request(live, "GET", "/livez")).status != 200:
                pass  # The server has not noticed yet.
            gate.set()
            await documents_of(reading)
        readers.pop().close()


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

PING = b'{"type":"ping"}'
FLOODS = {
    "commands": bytes([0x81, 0x80 | len(PING)]) + bytes(4) + PING,
    "pings": bytes([0x89, 0x80]) + bytes(4),
    "pongs": bytes([0x8A, 0x80]) + bytes(4),
    "empty fragments": bytes([0x00, 0x80]) + bytes(4),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_frames_of_whatever_kind_is_shut_off(kind: str) -> None:
    async with live_server(None) as live:
        with anyio.fail_after(WAIT_SECONDS):
            reader = await WsReader.connect(live)
            if kind == "empty fragments":
                reader.send_wire(bytes([0x01, 0x80]) + bytes(4))
            for _ in range(30):
                reader.send_wire(FLOODS[kind] * 1000)
            assert (await reader.closing()).code == 4429
            async with await WsReader.connect(live) as another:
                another.send({"type": "ping"})
                await another.until("pong")


async def test_as_many_frames_as_are_allowed_at_once_are_taken() -> None:
    async with live_server(None) as live, await WsReader.connect(live) as reader:
        with anyio.fail_after(WAIT_SECONDS):
            reader.send_wire(FLOODS["commands"] * (websocket_decoder.FRAMES_AT_ONCE_LIMIT - 1))
            for _ in range(websocket_decoder.FRAMES_AT_ONCE_LIMIT - 1):
                await reader.until("pong")


# ---- tokens and tool calls ------------------------------------------------------------------------------------------


async def test_calls_over_the_limit_of_an_answer_are_refused_and_it_goes_on() -> None:
    calls = [("c", "add", '{"a": 1, "b": 1}')] * 3
    model = ScriptedModel(wants(*calls), wants(*calls), wants(*calls))
    steps = await steps_of(agent(model, calls_limit=4, turns_limit=3))
    results = [step for step in steps if isinstance(step, ToolResult)]
    assert [each.is_error for each in results].count(True) == 5
    assert not any(each.is_error for each in results[:3]) and "at most 4 calls" in str(results[-1].result)


ASKED = ModelRequest(model="m", messages=[UserMessage("x" * 364)])
"""About a hundred tokens."""


def test_a_meter_knows_when_the_run_or_the_day_is_spent() -> None:
    day = Day("2026-11-22", 1000, spent=600)
    ann, bob = Meter(290, day), Meter(10_000, day)
    ann.begin_turn(ASKED)
    before = ann.spent
    assert 90 < before < 110 and not ann.is_spent()
    ann.add_text("x" * 800)
    assert ann.spent == before + 200 and ann.is_spent() and not bob.is_spent()
    bob.end_turn(Usage(50, 60))
    assert bob.is_spent(), "of both together"
    ann.end_turn(Usage(100, 1))
    assert (ann.spent, bob.is_spent()) == (101, False)
    assert day.spent == 600 + 101 + 110


@pytest.mark.parametrize("text", ["word", "日本語です", "naïve", "🦜" * 50, "", "\0\n"])
def test_what_is_said_is_estimated_as_what_is_asked_is(text: str) -> None:
    meter = Meter()
    meter.begin_turn(ASKED)
    before = meter.spent
    meter.add_text(text)
    meter.add_arguments(text)
    assert meter.spent - before == meter.usage().output_tokens == estimated_tokens(text + text)


def test_whether_a_day_is_spent_costs_the_same_with_any_number_of_runs() -> None:
    day, chance = Day("2026-11-22", 10**9, spent=5), Random(1)
    meters = [Meter(day=day) for _ in range(1000)]
    for _ in range(3000):
        meter = chance.choice(meters)
        match chance.randrange(4):
            case 0:
                meter.begin_turn(ASKED)
            case 1:
                meter.add_text("x" * chance.randrange(100))
            case 2:
                meter.add_arguments("{}")
            case _:
                meter.end_turn(chance.choice([None, Usage(7, 9)]))
    assert day.spent == 5 + sum(meter.spent for meter in meters)
    assert calls_of(meters[0].is_spent) <= 4


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_an_answer_over_its_bytes_is_cut_there_and_ends_with_length(transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, max_answer_bytes=1000) as live:
        upstream.script(role(), reasoning("é" * 100), *[token("日本")] * 1000, Gate(anyio.Event()))
        with anyio.fail_after(WAIT_SECONDS):
            documents = await documents_of(await transport.start(live, {"message": "Talk"}))
            session = await request(live, "GET", f"/chat/sessions/{last(documents)['session_id']}")
        assert (last(documents)["type"], last(documents)["finish_reason"]) == ("done", "length")
        said = answer_of(documents)
        assert (said["parts"][0]["text"], said["content"]) == ("é" * 100, ("日本" * 1000)[: 800 // 3])
        assert session.json["messages"][1]["content"] == said["content"]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_finished_runs_over_the_bytes_of_all_are_read_from_the_store(transport: Transport) -> None:
    """No client sees a difference."""
    text = "x" * 1000
    async with FakeUpstream() as upstream, live_server(upstream.url, max_logs_bytes=3_000) as live:
        upstream.always(*say(text, 100))
        with anyio.fail_after(WAIT_SECONDS):
            first, second = [await documents_of(await transport.start(live, {"message": "Talk"})) for _ in range(2)]
            of_first, of_second = await _read(live, transport, first), await _read(live, transport, second)
            run_ids = {json.loads(each[0])["run_id"] for each in (first, second)}
            assert run_ids.difference(live.app.state.components.runs._lives.lives) == {json.loads(first[0])["run_id"]}
        for whole, found in ((first, of_first), (second, of_second)):
            assert unmerged(found, whole) == whole and len(found) == 3


async def _read(live: LiveServer, transport: Transport, documents: Sequence[bytes]) -> list[bytes]:
    return await documents_of(await transport.attach(live, json.loads(documents[0])["run_id"]))


async def test_calls_that_are_refused_together_are_stored_together() -> None:
    """Storing an answer takes as long as it is: once for each call would be quadratic."""
    stored: list[int] = []

    class Counting:
        async def checkpoint(self, answers: Mapping[str, Answer]) -> None:
            parts = answers["run"].parts
            stored.append(sum(isinstance(part, ToolCallPart) and part.is_error is not None for part in parts))

        async def finish(self, run_id: str, ending: Terminal, **_: object) -> None:
            assert isinstance(ending, DoneEvent)

    sessions = cast(Sessions, Counting())
    checkpoints = Checkpoints(sessions)
    life = Life("ann", Run(RESOURCE, MemoryLog("run"), Meter(), None, 0.0), sessions, checkpoints, toolbox())
    life.hold = lambda life: Unanswered(life.say)
    calls = wants(*((f"c{n}", "nothing", "{}") for n in range(200)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(checkpoints.store_forever)
        checkpoints.add(life.run)
        life.settle()
        await life.live(agent(ScriptedModel(calls, [stop()])).answer, asking())
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert stored == [200]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_a_run_that_has_spent_its_tokens_ends_with_length(transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, max_tokens_per_run=200) as live:
        upstream.script(role(), *[token(TEN)] * 100, Gate(anyio.Event()))
        with anyio.fail_after(WAIT_SECONDS):
            documents = await documents_of(await transport.start(live, {"message": "Talk"}))
        done = last(documents)
        assert (done["type"], done["finish_reason"]) == ("done", "length")
        assert 200 <= done["total_tokens"] <= 200 + 13, "never over by more than one step"


async def test_a_run_that_has_spent_its_tokens_asks_no_more() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, max_tokens_per_run=200) as live:
        upstream.always(
            role(), *tool_call("calculator", {"expression": "1 + 1"}), finish("tool_calls", counted(250, 5)), Done()
        )
        with anyio.fail_after(WAIT_SECONDS):
            done = last(await documents_of(await SSE.start(live, {"message": "Talk"})))
        assert (done["finish_reason"], len(upstream.requests)) == ("length", 1)


def spends(tokens: int) -> list[Step]:
    return [role(), token("x"), finish("stop", counted(tokens - 10, 10)), Done()]


async def test_a_day_that_is_spent_is_over_whatever_is_deleted_or_started_again(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    settings = {"max_tokens_per_day": 1000, "directory": tmp_path}
    upstream.always(*spends(600))
    with anyio.fail_after(WAIT_SECONDS):
        async with guarded_server(upstream.url, **settings) as live:
            for _ in range(2):
                start = json.loads((await documents_of(await SSE.start(live, {"message": "x"}, headers=of("ann"))))[0])
                path = f"/chat/sessions/{start['session_id']}"
                assert (await request(live, "DELETE", path, headers=of("ann"))).status == 204
            await _spent(live)
        async with guarded_server(upstream.url, **settings) as live:
            await _spent(live)
            assert (
                last(await documents_of(await SSE.start(live, {"message": "x"}, headers=of("bob"))))["type"] == "done"
            )


async def _spent(live: LiveServer) -> None:
    refused = await request(live, "POST", "/chat/runs", {"message": "x"}, of("ann"))
    assert (refused.status, refused.json["code"]) == (429, "too_many")
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    with pytest.raises(RefusedError) as rejected:
        async with await WsReader.connect(live, headers=of("ann")) as reader:
            await reader.run({"message": "x"})
    assert rejected.value.status == 429


async def test_the_last_tokens_of_a_day_are_spent_once_by_all_runs_together(upstream: FakeUpstream) -> None:
    """Whoever starts many at once gets no more than one after the other, but for a step of each."""
    gate = anyio.Event()
    upstream.always(role(), token("x"), Gate(gate), *[token(TEN)] * 200, Gate(anyio.Event()))
    async with guarded_server(upstream.url, max_tokens_per_day=1000, max_tokens_per_run=100_000) as live:
        with anyio.fail_after(WAIT_SECONDS):
            readings = [await SSE.start(live, {"message": "x"}, headers=of("ann")) for _ in range(4)]
            gate.set()
            ends = [last(await documents_of(reading)) for reading in readings]
        assert {each["finish_reason"] for each in ends} == {"length"}
        assert 1000 <= sum(each["total_tokens"] for each in ends) <= 1000 + 4 * 13
        assert live.runs._places._days._days == {}, "nobody runs any more: the database knows"
        await _spent(live)


async def test_a_repeated_request_is_answered_on_a_spent_day_too(upstream: FakeUpstream) -> None:
    upstream.always(*spends(1000))
    body = {"message": "x", "idempotency_key": "k"}
    async with guarded_server(upstream.url, max_tokens_per_day=1000) as live:
        with anyio.fail_after(WAIT_SECONDS):
            first = await documents_of(await SSE.start(live, body, headers=of("ann")))
            assert await documents_of(await SSE.start(live, body, headers=of("ann"))) == first


# ---- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/livez?" + "x" * 40_000, []),
        ("/livez", [("X-Long", "x" * 40_000)]),
        ("/livez", [(f"X-{n}", "x") for n in range(101)]),
        ("/chat/ws", [*UPGRADE.items(), ("X-Long", "x" * 40_000)]),
        ("/chat/ws", [*UPGRADE.items(), *((f"X-{n}", "x") for n in range(101))]),
        ("/livez", [(f"X-{n}", "x" * 4000) for n in range(500)]),
    ],
    ids=["url", "header", "headers", "handshake", "handshake with many", "two megabytes"],
)
async def test_a_head_over_its_limit_is_refused_in_words(path: str, headers: list[tuple[str, str]]) -> None:
    async with live_server(None) as live:
        with anyio.fail_after(WAIT_SECONDS):
            async with await HttpReader.open(live, "GET", path, None, headers) as reader:
                assert reader.status == 431
                assert json.loads(await reader.read_all())["code"] == "head_too_large"
            assert (await request(live, "GET", "/livez", headers={"X-Long": "x" * 30_000})).status == 200
