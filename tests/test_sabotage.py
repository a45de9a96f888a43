"""Every proof has a way to fail: with a fault in the product, the one that is there for it turns red."""

import gc
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, TypeAlias

import anyio
import pytest

from tests import sabotage
from tests.clients import NDJSON, SSE, WS, BrokenError
from tests.proving import ROUTE, Stage, staged
from tests.test_races import cancels_around_the_end, starters_leave
from tests.test_readers import (
    cancel_closes_the_upstream,
    carries_many_runs,
    detaches,
    moves_its_cursor,
    pings_go_on,
    readers_agree,
    stores_before_it_says,
)
from tests.test_resume import (
    frames_to_the_byte,
    resumes_after_every_event,
    resumes_at_random_bytes,
    resumes_from_a_merged_log,
    resumes_from_the_store,
    resumes_while_it_goes_on,
)

# A product with a fault, and a proof that hangs and is cut off, may leave connections open.
pytestmark = [pytest.mark.proof, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

Proof: TypeAlias = Callable[[Stage], Awaitable[None]]

HANG = "no end"
HANG_SECONDS = 1.5
"""When a proof that a fault makes wait for ever counts as red."""

LONG_SECONDS = 30.0
"""For a proof that must come to a verdict by itself."""


@dataclass(frozen=True)
class Case:
    """A fault, the proof that is there for it, and what the proof says then."""

    fault: Callable[[], AbstractAsyncContextManager[None]]
    proof: Proof
    verdict: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        proof = self.proof.func if isinstance(self.proof, partial) else self.proof
        return f"{self.fault.__name__}-{getattr(proof, '__name__', proof)}"


async def store_is_read(stage: Stage) -> None:
    await resumes_from_the_store(stage, await stage.told(), 10)


sse_to_ws = partial(resumes_after_every_event, first=SSE, second=WS)
sse_to_ndjson = partial(resumes_after_every_event, first=SSE, second=NDJSON)
any_byte = partial(resumes_at_random_bytes, first=WS, second=SSE, cuts=30, rng=Random(1))
hops = partial(resumes_while_it_goes_on, route=ROUTE, unseen=False)
merged = partial(resumes_from_a_merged_log, stands=(59,), step=7)
ten_readers = partial(readers_agree, rng=Random(1), cancels=False)
one_cancels = partial(readers_agree, rng=Random(1), cancels=True)
many_runs = partial(carries_many_runs, count=5, rng=Random(1))
cursor_moved = partial(moves_its_cursor, moves=8, rng=Random(1))
cancelled = partial(cancel_closes_the_upstream, transport=WS)
cancelled_late = partial(cancels_around_the_end, transport=SSE, point="before-it-is-stored")
starters = partial(starters_leave, transport=SSE, delays=range(100, 110))
stored = partial(stores_before_it_says, transport=SSE)
pinged = partial(pings_go_on, count=3)

CASES = [
    Case(sabotage.event_dropped, many_runs, "seqs are"),
    Case(sabotage.event_dropped, hops, HANG),
    Case(sabotage.event_dropped_on_resume, sse_to_ws, "document [0-9]+ is"),
    Case(sabotage.event_dropped_on_resume, any_byte, "document [0-9]+ is"),
    Case(sabotage.event_doubled, many_runs, "seqs are"),
    Case(sabotage.event_doubled_on_resume, sse_to_ws, "document [0-9]+ is"),
    Case(sabotage.cursor_one_too_low, sse_to_ws, "document 2 is"),
    Case(sabotage.cursor_one_too_low, any_byte, "document [0-9]+ is"),
    Case(sabotage.cursor_one_too_high, sse_to_ws, "document 2 is"),
    Case(sabotage.second_terminal_event, sse_to_ws, "behind the terminal"),
    Case(sabotage.second_terminal_event, ten_readers, "terminal"),
    Case(sabotage.cancel_says_its_own_end, one_cancels, "terminal"),
    Case(sabotage.cancel_says_its_own_end, cancelled_late, "terminal events at"),
    Case(sabotage.cancel_ignored, one_cancels, HANG),
    Case(sabotage.upstream_left_open, cancelled, HANG),
    Case(sabotage.leaving_cancels, hops, "the stream ended|types are"),
    Case(sabotage.leaving_unnoticed, starters, HANG, {"grace_seconds": 0}),
    Case(sabotage.end_of_the_log_taken_for_the_end, hops, "the stream ended"),
    Case(sabotage.wake_up_lost, hops, HANG),
    Case(sabotage.token_lost, hops, HANG),
    Case(sabotage.token_said_twice, hops, "types are"),
    Case(sabotage.answer_stored_late, stored, "running"),
    Case(sabotage.end_not_stored, store_is_read, HANG, {"retention_seconds": 0}),
    Case(sabotage.lengths_stored_wrong, store_is_read, "stands for", {"retention_seconds": 0}),
    Case(sabotage.text_cut_one_too_late, merged, "stands for"),
    Case(sabotage.text_cut_one_too_late, sse_to_ws, "stands for"),
    Case(sabotage.lines_end_with_crlf, frames_to_the_byte, r"text/event-stream.*\\r\\n"),
    Case(sabotage.encoded_again_on_one_transport, sse_to_ndjson, "document [0-9]+ is"),
    Case(sabotage.first_reader_goes_on, cursor_moved, "behind the terminal event|follows"),
    Case(sabotage.first_reader_goes_on, detaches, "after a detach"),
    Case(sabotage.pings_stop, pinged, HANG, {"heartbeat_seconds": 0.1}),
]


@pytest.fixture(scope="module", autouse=True)
def leavings() -> Iterator[None]:
    """What faults have left is collected here, and not in a test of another file."""
    yield
    gc.collect()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_fault_turns_its_proof_red(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    async with staged(**case.settings) as stage:
        assert await _verdict(case, stage, LONG_SECONDS) is None
        async with case.fault():
            verdict = await _verdict(case, stage, HANG_SECONDS if case.verdict == HANG else LONG_SECONDS)
    assert verdict is not None, "the proof stays green"
    assert re.search(case.verdict, verdict, re.DOTALL), verdict
    failures = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert not failures, "the product failed in another way than the fault says"


async def _verdict(case: Case, stage: Stage, seconds: float) -> str | None:
    """What a proof says that turns red; None: it is green."""
    try:
        with anyio.move_on_after(seconds) as scope:
            await case.proof(stage)
    except BaseExceptionGroup as group:
        if group.split((AssertionError, BrokenError))[1] is not None:
            raise
        return str(group.exceptions)
    except (AssertionError, BrokenError) as error:
        return str(error)
    return HANG if scope.cancelled_caught else None
