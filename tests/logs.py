"""What tests of event logs share. They know only ``EventLogs``: a shared store joins by a line in ``STORES``."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import TypeAlias

import anyio
import pytest
from msgspec.structs import replace

from chatserver.commands import new_id
from chatserver.events import Error, Event, Reasoning, Record, Start, Token, ToolCall, ToolResult, record
from chatserver.log import EventLog, EventLogs
from chatserver.log.journal import LocalJournal
from chatserver.log.logs import MemoryLogs
from chatserver.log.memory import MemoryLog

WAIT_SECONDS = 20.0
ENDLESS = 2**40

Nodes: TypeAlias = tuple[EventLogs, EventLogs]
"""A store as the node of the owner sees it, and as another one does."""


@asynccontextmanager
async def memory() -> AsyncIterator[Nodes]:
    """Two nodes in one process."""
    journal = LocalJournal()
    yield MemoryLogs(ENDLESS, nothing_stored, journal), MemoryLogs(ENDLESS, nothing_stored, journal)


async def nothing_stored(run_id: str) -> None:
    """As a database in which no run has ended."""


Store: TypeAlias = Callable[[], AbstractAsyncContextManager[Nodes]]
STORES: dict[str, Store] = {"memory": memory}
in_each_store = pytest.mark.parametrize("store", STORES.values(), ids=STORES)


@asynccontextmanager
async def new_log(store: Store) -> AsyncIterator[tuple[EventLog, EventLog]]:
    """A log as its owner has it, and as a reader elsewhere does."""
    async with store() as (owner, other):
        run_id = new_id()
        log = await owner.create(run_id)
        found = await other.open(run_id)
        assert found is not None
        yield log, found


def start() -> Start:
    return Start(session_id="s", message_id="m", user_message_id="u", model="x", protocol=1, heartbeat_ms=1)


def end() -> Error:
    return Error(code="interrupted", message="", retryable=True)


def seqs(records: Iterable[Record]) -> list[int]:
    return [each.seq for each in records]


async def appended(log: EventLog, count: int) -> None:
    """Tokens until there are ``count`` events."""
    for number in range(log.last_seq + 1, count + 1):
        log.append(Token(content=f"{number} "))


async def all_of(log: EventLog, after: int = 0) -> list[Record]:
    with anyio.fail_after(WAIT_SECONDS):
        return [each async for batch in log.read(after) for each in batch]


def kept(log: EventLog, after: int = 0) -> list[Record]:
    """All that there is to read behind a cursor now."""
    with closing(log.cursor(after)) as cursor:
        return [each for batch in iter(cursor.take, ()) for each in batch]


def documents_of(drafts: Iterable[Event], run_id: str) -> list[bytes]:
    """What is appended of these drafts, none of which is long."""
    return [record(replace(draft, run_id=run_id, seq=seq)).data for seq, draft in enumerate(drafts, 1)]


def watched_log(run_id: str = "run") -> MemoryLog:
    """A log with a reader who never leaves, so that its events stay fresh when it is over, as they were appended."""
    log = MemoryLog(run_id)
    log.cursor(0)
    return log


def data(records: Iterable[Record]) -> list[bytes]:
    return [each.data for each in records]


def a_run(count: int) -> Iterator[Event]:
    """The drafts of a run of ``count`` events of all kinds, no two alike."""
    yield start()
    for number in range(2, count):
        match number % 100:
            case 50:
                yield ToolCall(call_id=f"c{number}", tool="clock", args={"n": number})
            case 51:
                yield ToolResult(
                    call_id=f"c{number - 1}",
                    tool="clock",
                    result=number,
                    is_error=False,
                    truncated=False,
                    duration_ms=1,
                )
            case rest if rest < 20:
                yield Reasoning(content=f"<{number}>")
            case _:
                yield Token(content=f"{number} ")
    yield end()
