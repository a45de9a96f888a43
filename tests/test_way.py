"""What a token's way costs, from a read of the model server's socket to a write to its reader's, counted in calls."""

import anyio
import pytest

from benchmarks.way import CHUNKS, STEPS, close, opened
from tests.counting import calls_of

pytestmark = pytest.mark.anyio

CALLS = 77
"""Of Python's functions and of C's, with one of the count itself. Each is needed by a rule: see ARCHITECTURE.md."""


async def test_a_token_that_comes_alone_takes_no_more_calls_than_its_rules_need() -> None:
    receive = await opened(STEPS["reader: woken, framed, written"])
    for chunk in CHUNKS[:50]:
        receive(chunk)
    found = [calls_of(lambda chunk=chunk: receive(chunk)) for chunk in CHUNKS[50:60]]  # type: ignore[misc]
    close()
    await anyio.wait_all_tasks_blocked()
    assert min(found) == max(found) <= CALLS
