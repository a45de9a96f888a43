"""Metrics: what a scrape says after what has happened, and that nothing of a client becomes a label."""

import re
from collections.abc import Callable
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from prometheus_client import CollectorRegistry, Histogram

from chatserver.commands import ChatRequest
from chatserver.providers.chat_completions.turn_decoder import TurnDecoder
from chatserver.providers.turn import Turn
from chatserver.serving import lost_peers
from chatserver.serving.websocket_protocol import WebSocketProtocol
from chatserver.sessions import Begun
from chatserver.telemetry import GAP_SECONDS, Pace
from chatserver.telemetry.instruments import LIVING_STATES
from chatserver.telemetry.metrics import Metrics, observe_all
from tests.clients import TRANSPORTS, WS, SseReader, Transport, WsReader, cancel, documents_of, request
from tests.fake_upstream import (
    Cut,
    Done,
    FakeUpstream,
    Gate,
    body_of,
    call,
    finish,
    reasoning,
    refuse,
    say,
    token,
    usage,
)
from tests.live import LiveServer, ServerProcess, live_server
from tests.scrapes import OPENMETRICS, WAIT_SECONDS, Scrape, counted_up, scrape, until
from tests.users import guarded_server, of

pytestmark = pytest.mark.anyio

MODEL = "gpt-4o-mini"
NAMES = {"sse": ("http", "sse"), "ndjson": ("http", "ndjson"), "ws": ("websocket", "json")}


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
async def test_a_run_is_counted_from_its_beginning_to_its_end(transport: Transport) -> None:
    way, form = NAMES[repr(transport)]
    async with FakeUpstream() as upstream, live_server(upstream.url, retention_seconds=0.2) as server:
        gate = anyio.Event()
        upstream.script(token("Hello"), Gate(gate), token(" you"), finish(), usage(11, 7), Done())
        async with await transport.start(server, {"message": "Hi"}) as reading:
            await reading.take(2)
            going = await scrape(server)
            assert going("chatserver_connections", transport=way, format=form) == 1
            assert [going("chatserver_runs", state=state) for state in LIVING_STATES] == [1, 0, 0, 0, 0]
            assert going("chatserver_run_first_token_seconds_count") == 1
            assert going("chatserver_runs_ended_total") == 0
            gate.set()
            await documents_of(reading)
        over = await until(server, 0, "chatserver_connections", transport=way)
        assert over("chatserver_runs_ended_total", reason="stop") == over("chatserver_run_seconds_count") == 1
        assert over("chatserver_upstream_requests_total", model=MODEL) == 1
        assert over("chatserver_turn_seconds_count", model=MODEL) == 1
        assert over("chatserver_turn_first_token_seconds_count", model=MODEL) == 1
        assert over("chatserver_token_gap_seconds_count", model=MODEL) == 1
        assert over("chatserver_model_tokens_total", type="input") == 11
        assert over("chatserver_model_tokens_total", type="output") == 7
        assert over("chatserver_sql_commit_seconds_count") >= 2
        await until(server, 0, "chatserver_runs")  # Forgotten.


async def test_only_the_first_text_of_a_run_is_its_first() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(reasoning("Hm."), token("A"), reasoning("Hm."), token("B"), finish(), Done())
        await documents_of(await WS.start(server, {"message": "x"}))
        assert (await scrape(server))("chatserver_run_first_token_seconds_count") == 1


async def test_a_tool_call_and_two_turns_are_counted() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(*call("calculator", {"expression": "1/0"}))
        upstream.script(*call("no such tool", {}))
        upstream.script(*say("Nobody knows."))
        await documents_of(await WS.start(server, {"message": "x"}))
        found = await scrape(server)
    assert found("chatserver_tool_calls_total", tool="calculator", outcome="error") == 1
    assert found("chatserver_tool_call_seconds_count", tool="calculator") == 1
    assert found("chatserver_tool_calls_total") == 1  # What the model makes up is no tool.
    assert found("chatserver_turn_seconds_count") == 3


async def test_a_refusal_of_the_model_server_is_counted_by_its_code_and_a_retry_too() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(*refuse(500))
        upstream.script(*say("Now."))
        upstream.script(*refuse(429))
        for _ in range(2):
            await documents_of(await WS.start(server, {"message": "x"}))
        found = await scrape(server)
    assert found("chatserver_upstream_requests_total") == 3
    assert found("chatserver_upstream_failures_total", code="upstream_unavailable") == 1
    assert found("chatserver_upstream_retries_total", code="upstream_unavailable") == 1
    assert found("chatserver_upstream_failures_total", code="rate_limited") == 1
    assert found("chatserver_upstream_retries_total") == 1
    assert found("chatserver_runs_ended_total", reason="rate_limited") == 1
    assert found("chatserver_runs_ended_total", reason="stop") == 1


async def test_a_cancelled_run_has_ended_as_cancelled() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(token("Hello"), Gate(anyio.Event()))
        async with await WS.start(server, {"message": "Hi"}) as reading:
            await reading.take(2)
            await cancel(server, reading.run_id)
            await documents_of(reading)
        found = await until(server, 1, "chatserver_turn_seconds_count")
    assert found("chatserver_runs_ended_total", reason="cancelled") == 1
    assert found("chatserver_runs", state="kept") == found("chatserver_runs") == 1


async def test_what_a_killed_server_has_left_is_counted_when_it_starts_again(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, ServerProcess(upstream.url, tmp_path, is_forked=True) as server:
        for transport in TRANSPORTS:
            upstream.script(token("Hello"), Gate(anyio.Event()))
            async with await transport.start(server, {"message": "Hi", "on_disconnect": "continue"}) as reading:
                await reading.take(2)
        server.kill()
        await server.wait()
        await server.start()
        found = await until(server, len(TRANSPORTS), "chatserver_runs_ended_total")
    assert found("chatserver_runs_ended_total", reason="interrupted") == len(TRANSPORTS)


async def test_refusals_are_counted_by_their_codes_over_all_ways_in() -> None:
    async with guarded_server(None) as server:
        await request(server, "GET", "/chat/models")
        await request(server, "GET", "/livez", headers={"Host": "evil.example", "Origin": "https://evil.example"})
        await request(server, "DELETE", "/chat/sessions/none", headers=of("ann"))
        await request(server, "PUT", "/livez")
        await request(server, "GET", "/chat/ws")
        await request(server, "G\0T", "/livez")
        async with await WsReader.connect(server, headers=of("ann")) as reader:
            reader.send({"type": "cancel", "run_id": "none"})
            await reader.answer()
        async with await WsReader.connect(server) as reader:
            assert (await reader.closing()).code == 4401
        found = await until(server, 1, "chatserver_websocket_closes_total", code="4401")
    counts = {each.labels["code"]: each.value for each in found.of("chatserver_refusals_total", {})}
    assert counts == {
        "unauthenticated": 2,
        "forbidden": 1,
        "not_found": 2,
        "method_not_allowed": 1,
        "upgrade_required": 1,
        "bad_http": 1,
    }
    assert found("chatserver_http_responses_total", status="404") == 1


async def test_websockets_end_with_codes_and_one_that_a_client_makes_up_is_no_label() -> None:
    async with live_server(None) as server:
        for code in (1000, 3456):
            async with await WsReader.connect(server) as reader:
                reader.close(code)
                await reader.closing()
        reader = await WsReader.connect(server)
        reader.reset()
        found = await until(server, 3, "chatserver_websocket_closes_total")
    assert {each.labels["code"] for each in found.of("chatserver_websocket_closes_total", {})} == {
        "1000",
        "1006",
        "other",
    }


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
@pytest.mark.parametrize("who", ["clock", "kernel"])
async def test_a_peer_that_takes_nothing_is_counted_once_whoever_drops_it(
    who: str, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our clock sees that bytes wait here; the kernel sees that bytes wait there, and may be the first to see it."""
    watch, seconds = lost_peers.watch, {"clock": (0.2, 30.0), "kernel": (30.0, 0.2)}[who]
    monkeypatch.setattr(lost_peers, "watch", lambda listening, _: watch(listening, seconds[1]))
    async with FakeUpstream() as upstream, live_server(upstream.url, send_timeout_seconds=seconds[0]) as server:
        upstream.script(*say("x" * 4_000_000, pieces=400))
        run_id = (await request(server, "POST", "/chat/runs", {"message": "x"})).json["run_id"]
        reading = await transport.attach(server, run_id, 0, receive_bytes=4096)
        reading.stop()
        found = await until(server, 1, "chatserver_peers_dropped_total")
        assert found("chatserver_peers_dropped_total", reason="send_timeout") == 1
        found = await until(server, 0, "chatserver_connections", format=NAMES[repr(transport)][1])
        assert found("chatserver_peers_dropped_total") == 1
        reading.reset()


async def test_a_peer_that_clock_and_kernel_drop_at_the_same_time_is_counted_once() -> None:
    async with live_server(None) as server:
        async with await WsReader.connect(server):
            (peer,) = (each for each in server.server.server_state.connections if isinstance(each, WebSocketProtocol))
            transport: Any = peer.transport
            transport._force_close(TimeoutError())  # What the kernel tells is heard of in the next turn of the loop.
            peer._observer.peer_dropped("send_timeout")
            peer.abort()
            await until(server, 1, "chatserver_websocket_closes_total")
        assert (await scrape(server))("chatserver_peers_dropped_total") == 1


async def test_a_peer_whose_token_expires_is_counted() -> None:
    async with FakeUpstream() as upstream, guarded_server(upstream.url, heartbeat_seconds=0.2) as server:
        upstream.script(token("Hello"), Gate(anyio.Event()))
        reader = await SseReader.open(server, "POST", "/chat/stream", {"message": "x"}, of("ann", 1))
        await until(server, 1, "chatserver_peers_dropped_total", reason="expired")
        reader.cut()


async def test_a_peer_that_is_lost_and_one_whose_program_is_stuck_are_counted() -> None:
    async with live_server(None) as server:
        peers: Any = server.server.server_state.connections
        for reason in ("lost", "no_pong"):
            async with await WsReader.connect(server):
                (peer,) = (each for each in peers if isinstance(each, WebSocketProtocol))
                peer._decoder.has_pong, peer._pinged_at = False, -inf
                with patch.object(lost_peers, "is_lost", lambda _, is_lost=reason == "lost": is_lost):
                    peers._check_on(iter([peer]))
                await until(server, 1, "chatserver_peers_dropped_total", reason=reason)


async def test_a_scrape_can_be_had_in_both_formats() -> None:
    async with live_server(None) as server:
        plain = await request(server, "GET", "/metrics")
        assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        response = await request(server, "GET", "/metrics", headers={"Accept": OPENMETRICS})
        assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert response.headers["cache-control"] == "no-store"
        opened = Scrape(response.body.decode(), is_open=True)
        head = await request(server, "HEAD", "/metrics")
        assert (head.status, head.body) == (200, b"")
    assert opened("chatserver_build_info") == 1 and opened("process_open_fds") > 3
    assert {each.name for each in opened.samples} >= {each.name for each in Scrape(plain.body.decode()).samples}


async def test_names_and_units_follow_the_conventions() -> None:
    async with live_server(None) as server:
        found = await scrape(server)
    ours = [family for family in found.families if family.name.startswith("chatserver_")]
    assert len(ours) > 20
    for family in ours:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", family.name) and family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_events"))
        elif family.type == "counter":  # The parser has taken it off.
            assert f"{family.name}_total" in found.text
        else:
            assert family.type == "gauge" and not family.name.endswith(("_total", "_seconds", "_count"))


async def test_nothing_that_a_client_chooses_becomes_a_label() -> None:
    odd = "canary-4711"
    async with FakeUpstream() as upstream, guarded_server(upstream.url, retention_seconds=0) as server:
        upstream.always(*call(odd, {odd: odd}))
        body = {"message": odd, "model": odd, "session_id": odd, "system": odd, "idempotency_key": odd}
        run = await request(server, "POST", "/chat/runs", body, of(odd))
        assert run.status == 202
        for method, path in (("GET", f"/{odd}"), (odd, "/livez"), ("GET", f"/chat/runs/{odd}?after={odd}")):
            await request(server, method, path, headers=of(odd) | {odd: odd, "Accept": odd})
        async with await WsReader.connect(server, headers=of(odd)) as reader:
            for text in (
                {"type": odd},
                {"type": "attach", "run_id": odd},
                {"type": "send", "message": odd, "ref": odd},
            ):
                reader.send(text)
                await reader.answer()
        found = await until(server, 2, "chatserver_runs_ended_total", reason="turn_limit")
    assert odd not in found.text
    assert found("chatserver_upstream_requests_total", model="other") == 10


async def test_nothing_is_counted_per_token() -> None:
    """A thousand further tokens change no more than the buckets that their gaps fall into."""
    async with FakeUpstream() as upstream, live_server(upstream.url, retention_seconds=100) as server:
        changes = [await _changes(upstream, server, tokens) for tokens in (20, 20, 1020)]
    assert changes[2] - changes[1] <= len(GAP_SECONDS) + 1


async def _changes(upstream: FakeUpstream, server: LiveServer, tokens: int) -> int:
    gate = anyio.Event()
    upstream.script(Gate(gate), *say("x" * tokens, pieces=tokens))
    with counted_up() as changes:
        reading = await WS.start(server, {"message": "x"})
        await reading.take(1)  # The run is on disk: from here on it counts.
        gate.set()
        await documents_of(reading)
        with anyio.fail_after(WAIT_SECONDS):
            while server.connections:  # A scrape would be counted.
                await anyio.wait_all_tasks_blocked()
    return len(changes)


def test_a_pace_counts_gaps_and_no_first_token() -> None:
    pace = Pace()
    pace.fold()
    assert (pace.first_at, sum(pace.gaps)) == (None, 0)
    pace.moments += [10.0, 10.0005, 10.0205, 10.0205, 15.0]
    pace.fold()
    assert (pace.first_at, pace.moments) == (10.0, [15.0])
    assert pace.gaps[0] == 2 and pace.gaps[GAP_SECONDS.index(0.025)] == 1 and pace.gaps[-1] == 1
    assert sum(pace.gaps) == 4


def test_gaps_that_are_counted_already_are_observed_as_if_one_by_one() -> None:
    """Also those between two folds, and those that are exactly as long as a bound."""
    registry, pace, random = CollectorRegistry(), Pace(), Random(1)
    single, whole = (Histogram(name, "x", registry=registry, buckets=GAP_SECONDS) for name in ("single", "whole"))
    moments = [0.0, 0.001, 0.003, 0.5, 0.5, 3.0, *(3.0 + random.expovariate(1 / n) for n in range(1, 300))]
    for now in sorted(moments):
        pace.moments.append(now)
        if random.random() < 0.1:
            pace.fold()
    pace.fold()
    for before, now in pairwise(sorted(moments)):
        single.observe(now - before)
    observe_all(whole, pace.gaps, pace.moments[-1])
    values = [[each.value for each in _samples(registry, name)] for name in ("single", "whole")]
    assert values[0] == pytest.approx(values[1]) and sum(values[0]) > len(moments)


async def test_a_turn_of_many_reads_keeps_few_of_their_moments() -> None:
    turn, tokens = Turn(TurnDecoder(lambda _: None), 60.0), 3 * Pace.MOMENTS
    for _ in range(tokens):
        turn.receive(body_of([token("x")]))
        assert len(turn.pace.moments) <= Pace.MOMENTS
    turn.pace.fold()
    assert sum(turn.pace.gaps) == tokens - 1


def _samples(registry: CollectorRegistry, name: str) -> list[Any]:
    return [sample for family in registry.collect() if family.name == name for sample in family.samples]


def test_a_server_has_metrics_of_its_own() -> None:
    one, other = Metrics((MODEL,)), Metrics((MODEL,))
    one.refused("forbidden")
    assert b'refusals_total{code="forbidden"} 1.0' in one.scrape("")[0]
    assert b'refusals_total{code="forbidden"}' not in other.scrape("")[0]


async def test_a_run_that_never_came_to_the_disk_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(token("Hello"), Cut())
        sessions = server.app.state.components.sessions

        async def failing(user: str, request: ChatRequest, run_id: str, on_begun: Callable[[Begun], None]) -> None:
            on_begun(await begin(user, request, run_id))
            await until(server, 1, "chatserver_turn_seconds_count")  # The run would have spoken and failed by now.
            raise RuntimeError("the disk is gone")

        begin = sessions.begin
        monkeypatch.setattr(sessions, "begin", failing)
        assert (await request(server, "POST", "/chat/runs", {"message": "x"})).status == 500
        found = await scrape(server)
    assert [each.value for each in found.of("chatserver_runs", {})] == [0] * len(LIVING_STATES)
    assert found("chatserver_runs_ended_total") == 0
    assert found("chatserver_run_first_token_seconds_count") == 0
    assert found("chatserver_refusals_total", code="internal") == 1
