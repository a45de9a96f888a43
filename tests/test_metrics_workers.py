"""Metrics of several workers of one machine: a scrape of any worker answers for all, and for those that have died."""

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from chatserver.telemetry.dead_workers import KINDS, files_at_rest, merge_dead
from chatserver.telemetry.workers import WORKERS_VARIABLE, shared_metrics, worker_died, worker_pids
from tests.clients import WS, documents_of
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import ServerProcess
from tests.scrapes import OPENMETRICS, scrape, until

pytestmark = pytest.mark.anyio

NOBODY = 1 << 22
"""No process has such a number."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with shared_metrics():
        yield Path(os.environ[WORKERS_VARIABLE])
    assert WORKERS_VARIABLE not in os.environ


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_scrape_of_any_worker_answers_for_all_and_for_the_dead(folder: Path, tmp_path: Path) -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(ServerProcess(upstream.url, tmp_path)) for _ in range(2)]
        assert worker_pids(str(folder)) == sorted(str(worker.pid) for worker in workers)
        for worker in workers:
            upstream.script(*say("Hello you.", 3))
            await documents_of(await WS.start(worker, {"message": "x"}))
        for worker in workers:
            upstream.script(token("Hello"), Gate(gate))
            reading = await stack.enter_async_context(await WS.start(worker, {"message": "x"}))
            await reading.take(2)
        for worker in workers:
            found = await until(worker, 2, "chatserver_connections", transport="websocket")
            assert found("chatserver_runs", state="running") == found("chatserver_runs", state="kept") == 2
            assert found("chatserver_runs_ended_total", reason="stop") == found("chatserver_run_seconds_count") == 2
            first_tokens = "chatserver_turn_first_token_seconds"
            assert found(f"{first_tokens}_count") == found(f"{first_tokens}_bucket", le="+Inf") == 2
            assert {each.labels["pid"] for each in found.of("process_cpu_seconds_total", {})} == {
                str(worker.pid) for worker in workers
            }
        before = await scrape(workers[1])
        workers[0].kill()
        await workers[0].wait()
        worker_died(workers[0].pid)
        after = await scrape(workers[1], OPENMETRICS)
    assert after("chatserver_connections", transport="websocket") == after("chatserver_runs", state="running") == 1
    assert after("chatserver_runs_ended_total") == before("chatserver_runs_ended_total") == 2
    assert len(after.of("process_cpu_seconds_total", {})) == after("chatserver_build_info") == 1


async def test_a_worker_that_follows_another_goes_on_with_the_counts(folder: Path, tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, ServerProcess(upstream.url, tmp_path) as server:
        for count in (1, 2):
            upstream.script(*say("Hello."))
            await documents_of(await WS.start(server, {"message": "x"}))
            assert (await scrape(server))("chatserver_runs_ended_total") == count
            server.terminate()
            await server.wait()
            worker_died(server.pid)
            await server.start()
        assert (await scrape(server))("chatserver_runs_ended_total") == 2
        assert (await scrape(server))("chatserver_runs") == 0


async def test_the_files_of_dead_workers_are_merged_and_their_counts_stay(folder: Path, tmp_path: Path) -> None:
    names = {f"{kind}_dead.db" for kind in KINDS} | {"lock"}
    async with FakeUpstream() as upstream, ServerProcess(upstream.url, tmp_path) as server:
        for count in (1, 2, 3):
            upstream.script(*say("Hello you.", 3))
            await documents_of(await WS.start(server, {"message": "x"}))
            before = await until(server, count, "chatserver_runs_ended_total")
            server.kill()
            await server.wait()
            worker_died(server.pid)
            (folder / f"counter_{NOBODY}.db").touch()  # Of a worker that was killed as it made its file.
            await server.start()
            after = await scrape(server)
            for name in ("runs_ended_total", "run_seconds_count", "run_seconds_sum", "run_seconds_bucket"):
                found = f"chatserver_{name}"
                assert after.of(found, {}) == before.of(found, {}), found
            assert after("chatserver_run_seconds_count") == count
        own = {f"{kind}_{server.pid}.db" for kind in (*KINDS, "gauge_livesum")}
        assert names_in(folder) == names | own


def test_nobody_merges_while_somebody_reads(folder: Path) -> None:
    dead, merged = folder / f"counter_{NOBODY}.db", folder / "counter_dead.db"
    dead.touch()
    with files_at_rest(str(folder)), files_at_rest(str(folder)):
        merge_dead(str(folder))
        assert dead.exists()
    merge_dead(str(folder))
    assert merged.exists() and not dead.exists()
