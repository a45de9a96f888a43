"""The event log in memory: what only it promises."""

import pytest
from msgspec.structs import replace

from chatserver.events import Token, fold, record
from chatserver.log.memory import MemoryLog, MemoryLogs
from tests.logs import ENDLESS, a_run, all_of, end, seqs

pytestmark = pytest.mark.anyio


async def test_a_forgotten_log_can_be_read_to_its_end_by_who_has_it() -> None:
    logs = MemoryLogs(ENDLESS)
    log = await logs.create("one")
    reading = log.read(0)
    for draft in a_run(5):
        await log.append(draft)
    logs.forget("one")
    assert await logs.open("one") is None
    assert [seqs(batch) async for batch in reading] == [[1, 2, 3, 4, 5]]


async def test_a_log_that_a_crash_left_is_read_from_any_cursor() -> None:
    """It is numbered above every seq that can have been sent."""
    snapshot = fold([Token(content="kept")]).snapshot("r", 1_000_000)
    records = [record(snapshot), record(replace(end(), run_id="r", seq=1_000_001))]
    log = MemoryLog("r", ENDLESS, records)
    for cursor in (0, 1, 77, 999_999):
        assert await all_of(log, cursor) == records
    assert await all_of(log, 1_000_000) == records[1:]
    assert await all_of(log, 1_000_001) == []
    with pytest.raises(RuntimeError):
        await log.append(Token(content="more"))
