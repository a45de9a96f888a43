"""The lab itself: a known delay comes out as that delay, a lossy peer is rejected, a quick run goes through."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from time import monotonic_ns

import pytest

from benchmarks import upstream
from benchmarks.bench import Bench, Seen
from benchmarks.conductor import contenders
from benchmarks.fleet import many_readers, resume, together
from benchmarks.processes import wakes
from benchmarks.proxy import Weather, distant
from benchmarks.readers import RunReader
from benchmarks.scenarios import SCENARIOS
from benchmarks.script import Script, content, delivered_us, index_of
from benchmarks.times import first_event, paced
from benchmarks.verify import Rejected, answer, check, sse_documents
from chatserver.bench import observations
from chatserver.bench.connections import TRANSPORTS, Document, Target, Transport, frames, text_frame
from chatserver.bench.schedule import NS, SPIN_NS, Schedule, poisson
from chatserver.bench.statistics import percentile
from tests.live import ROOT, live_server
from tests.tcp_server import HOST, tcp_server

DELAY_MS = 60.0
NO_PROCESS = 0
"""Server and load are one process here: its CPU time would say nothing, and it never settles."""


@asynccontextmanager
async def lab(transport: Transport, seed: int = 1) -> AsyncIterator[Bench]:
    """This server before the lab's model, in this loop."""
    schedule = Schedule()
    async with upstream.serving(schedule) as model, live_server(model.url, max_runs_per_user=1000) as server:
        target = Target(server.host, server.port)
        yield Bench(target, transport, NO_PROCESS, model, schedule, seed)


def documents(indices: list[int], kinds: str = "start done", first_seq: int = 1) -> list[bytes]:
    start, done = kinds.split()
    events = [{"type": start}, *[{"type": "token", "content": content(each)} for each in indices], {"type": done}]
    return [json.dumps(event | {"seq": first_seq + seq}).encode() for seq, event in enumerate(events)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_known_delay_comes_out_as_that_delay(transport: Transport) -> None:
    params = {"streams": 4, "rate": 20.0, "seconds": 0.6, "ramp_seconds": 0.2}
    async with lab(transport) as bench:
        near = await paced(bench, **params)  # type: ignore[arg-type]
        async with distant(bench.target, Weather(delay_seconds=DELAY_MS / 1000)) as target:
            there = Bench(target, transport, bench.pid, bench.upstream, bench.schedule, bench.seed)
            far = await paced(there, **params)  # type: ignore[arg-type]
    added_ms = (_quickest(far) - _quickest(near)) / 1000
    assert added_ms == pytest.approx(DELAY_MS, abs=DELAY_MS / 3)
    assert _quickest(far) >= DELAY_MS * 1000
    assert near.refusal is None and far.refusal is None and near.values["lost_events"] == 0


def _quickest(seen: Seen) -> int:
    """In µs: a machine that does other things adds to all others."""
    return min(seen.samples["delivery_us"])


async def test_a_stall_of_the_network_stands_in_the_tail() -> None:
    async with lab("SSE") as bench:
        weather = Weather(stall_seconds=0.3, stall_every_seconds=0.6)
        async with distant(bench.target, weather) as target:
            there = Bench(target, "SSE", bench.pid, bench.upstream, bench.schedule, 1)
            seen = await paced(there, streams=4, rate=50.0, seconds=1.2, ramp_seconds=0.1)
    assert percentile(seen.samples["delivery_us"], 98) > 200_000
    assert (seen.values["lost_events"], seen.values["doubled_events"]) == (0, 0)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_coming_back_loses_and_doubles_nothing(transport: Transport) -> None:
    async with lab(transport) as bench:
        seen = await resume(bench, drops=2)
    assert seen.refusal is None and (seen.values["lost_events"], seen.values["doubled_events"]) == (0, 0)
    assert len(seen.samples["drop_at_ms"]) == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_all_readers_get_all(transport: Transport) -> None:
    async with lab(transport) as bench:
        seen = await many_readers(bench, readers=3, rate=50, seconds=0.2)
        first = await first_event(bench, requests=2, rate=50)
        shared = [await together(bench, readers=3, tokens=32, pace=pace) for pace in ("closed", "16closed")]
    assert seen.refusal is None and seen.values["lost_events"] == 0
    assert [(each.refusal, each.values["tokens"]) for each in shared] == [(None, 31 * 3), (None, 16 * 3)]
    assert all(len(samples) == 2 for samples in first.samples.values())


def test_a_whole_answer_passes() -> None:
    check(documents([0, 1, 2]), 3)


def merged(first_seq: int, seq: int, text: str) -> Document:
    return Document("token", seq=seq, first_seq=first_seq, content=text)


def test_each_token_of_a_merged_event_counts_from_when_it_was_due() -> None:
    """One event for three tokens: the oldest has waited longest, and no number of the run is missing or doubled."""
    reader = RunReader()
    reader.document(merged(2, 4, content(0, 1000) + content(1, 2000) + content(2, 3000)), 4_000_000)
    reader.document(merged(0, 5, content(3, 4000)), 5_000_000)
    assert [latency for _, latency, _ in reader.arrivals] == [3000, 2000, 1000, 1000]
    assert reader.lost_and_doubled(4) == (0, 0) and reader.last_seq == 5 and reader.problem is None


def test_an_event_that_stands_for_more_or_less_than_its_text_is_told() -> None:
    reader = RunReader()
    reader.document(merged(2, 5, content(0) + content(1)), 0)
    assert reader.problem == "2 tokens came as the events range(2, 6)"


def test_a_whole_answer_passes_merged_too() -> None:
    events = [
        {"type": "start", "seq": 1},
        {"type": "token", "first_seq": 2, "seq": 3, "content": content(0) + content(1)},
        {"type": "token", "seq": 4, "content": content(2)},
        {"type": "done", "seq": 5},
    ]
    check([json.dumps(each).encode() for each in events], 3)
    events[1]["first_seq"] = 1
    with pytest.raises(Rejected, match="not numbered"):
        check([json.dumps(each).encode() for each in events], 3)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (documents([0, 2]), "1 tokens lost, 0 doubled"),
        (documents([0, 1, 1, 2]), "0 tokens lost, 1 doubled"),
        (documents([0, 2, 1]), "out of order"),
        (documents([0, 1, 2], "start error"), "the events are"),
        (documents([0, 1, 2])[:-1], "the events are"),
        (documents([0, 1, 2], first_seq=2), "not numbered"),
        ([*documents([0, 1]), b"{"], "no JSON object"),
    ],
)
def test_a_lossy_peer_is_rejected(broken: list[bytes], reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        check(broken, 3)


@pytest.mark.parametrize(("indices", "is_whole"), [([0, 1, 2], True), ([0, 2], False), ([0, 1, 1, 2], False)])
async def test_a_server_is_rejected_for_what_it_loses_or_doubles(indices: list[int], is_whole: bool) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for document in documents(indices):
            event = json.loads(document)
            writer.write(b"id: %d\nevent: %b\ndata: %b\n\n" % (event["seq"], event["type"].encode(), document))

    async with tcp_server(peer) as port:
        target = Target(HOST, port)
        answered = await asyncio.to_thread(answer, target, "SSE", Script(3))
        with nullcontext() if is_whole else pytest.raises(Rejected):
            check(answered, 3)


@pytest.mark.parametrize(
    "text", ['id: 2\nevent: token\ndata: {"type":"token","seq":1}\n\n', "data: {}\ndata: {}\n\n", "data: 1\n\n"]
)
def test_an_event_stream_that_contradicts_itself_is_rejected(text: str) -> None:
    with pytest.raises(Rejected):
        sse_documents(text)


def test_a_stamp_tells_how_late_a_token_came_and_left() -> None:
    text = content(17, planned_us=5_000_000_123, late_us=42)
    assert index_of(text) == 17 and delivered_us(text, 5_000_001_123) == (1000, 42)
    assert delivered_us(content(0, planned_us=999_999_999), 1_000_000_009)[0] == 10  # over the modulus


@pytest.mark.parametrize(
    "script", [Script(5, "bulk"), Script(7, "20.5", 3, 1.5), Script(1, "16closed"), Script(2, "closed")]
)
def test_a_script_passes_through_a_message(script: Script) -> None:
    assert Script.parse(f"lab:1,bulk,0,0 … {script.message}") == script
    assert (script.burst, script.rate) == {"bulk": (0, 0), "20.5": (0, 20.5), "16closed": (16, 0), "closed": (1, 0)}[
        script.pace
    ]


def test_frames_are_found_wherever_a_read_cuts_them() -> None:
    sent = [b"x" * size for size in (0, 5, 125, 126, 70_000)]
    data = b"".join(_server_frame(each) for each in sent)
    for cut in (1, 2, 3, 7, 1000, len(data)):
        got: list[tuple[int, bool, bytes]] = []
        take: Callable[[int, bool, bytes], None] = lambda *frame: got.append(frame)  # noqa: E731, B023
        rest = b""
        for start in range(0, len(data), cut):
            rest = frames(rest + data[start : start + cut], take)
        assert got == [(1, False, each) for each in sent] and rest == b""


def _server_frame(payload: bytes) -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    return b"\x81" + length + payload


def test_a_clients_frame_is_masked() -> None:
    assert text_frame(b"hi") == b"\x81\x82\0\0\0\0hi"


async def test_a_schedule_keeps_its_order_and_notes_its_lateness() -> None:
    schedule, done = Schedule(), asyncio.Event()
    ran: list[int] = []
    now = asyncio.get_running_loop().time()
    base = int(now * NS)
    for delay_ms in (30, 10, 20):
        schedule.at(base + delay_ms * 1_000_000, ran.append)
    schedule.at(base + 40_000_000, lambda _: done.set())
    await asyncio.wait_for(done.wait(), 5)
    assert ran == [base + each * 1_000_000 for each in (10, 20, 30)]
    assert len(schedule.lateness_ns) == 4 and min(schedule.lateness_ns) >= 0


async def test_a_schedule_that_polls_lets_others_use_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, done, yields = Schedule(), asyncio.Event(), list[None]()
    monkeypatch.setattr("os.sched_yield", lambda: yields.append(None))
    schedule.at(monotonic_ns() + SPIN_NS // 2, lambda _: done.set())
    await asyncio.wait_for(done.wait(), 5)
    assert yields


def test_the_same_seed_makes_the_same_arrivals_at_the_wanted_rate() -> None:
    first, again, other = poisson(50, 7), poisson(50, 7), poisson(50, 8)
    arrivals = [next(first) for _ in range(2000)]
    assert arrivals == [next(again) for _ in range(2000)] != [next(other) for _ in range(2000)]
    assert arrivals[-1] == pytest.approx(2000 / 50, rel=0.1)


def test_an_older_commit_takes_part_where_this_server_does() -> None:
    for scenario in SCENARIOS:
        fit = contenders(scenario, with_before=True)
        older = {each.transport for each in fit if each.name == "before"}
        this = set(scenario.transports) if "chatserver" in scenario.contenders else set()
        assert older == {each.transport for each in fit if each.name == "chatserver"} == this
        assert [each for each in fit if each.name != "before"] == contenders(scenario, with_before=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the lab reads the kernel's account of processes")
def test_a_process_that_sleeps_is_counted_each_time() -> None:
    told = "import time\nfor _ in range(50): time.sleep(0.001)\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", told]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        assert 50 <= wakes(process.pid) <= 100
        process.stdin.write("\n")


@pytest.mark.skipif(sys.platform != "linux", reason="the lab reads the kernel's account of processes")
def test_a_quick_run_goes_through(tmp_path: Path) -> None:
    """A part of `just bench-quick`, in a process as there; its times are not looked at."""
    scenarios = ["long", "far", "resume", "idle"]
    command = [sys.executable, "-m", "benchmarks", "run", "--quick", "--json", "--out", str(tmp_path)]
    command += [part for name in scenarios for part in ("--only", name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rejected" not in done.stderr and list(tmp_path.glob("quick-*.html"))
    assert {each["scenario"] for each in json.loads(done.stdout)["chapters"]} == set(scenarios)
    recording = observations.read(next(tmp_path.glob("quick-*.jsonl.gz")))
    for scenario in SCENARIOS:
        if scenario.name in scenarios:
            seen = recording.of(scenario.name)
            assert {each.transport for each in seen} == set(scenario.transports)
            for metric in scenario.chapter.metrics:
                # Two drops are one for each way back, and a busy machine may have its times refused.
                assert all(metric.of(each) is not None or each.latency_refusal for each in seen), metric
