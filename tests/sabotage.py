"""Faults that the proofs must see: each, while its block lasts, breaks the product of this process in one way."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias
from unittest.mock import patch
from weakref import WeakSet

from msgspec.structs import replace

from chatserver.events import Reasoning, Record, Token, decode, record
from chatserver.log import StoredLog
from chatserver.log.memory import MemoryCursor, MemoryLog
from chatserver.log.merged import Texts
from chatserver.providers import Finish, ModelRequest, OnDelta
from chatserver.providers.provider import OpenAIProvider
from chatserver.runs.life import Life
from chatserver.runs.run import Run
from chatserver.runs.subscription import Subscription
from chatserver.sessions import Sessions
from chatserver.steps import Step
from chatserver.transports.connections import Connection
from chatserver.transports.formats.ndjson import JsonLines
from chatserver.transports.formats.sse import EventStream
from chatserver.transports.multiplexer import Multiplexer
from tests.merging import first_seq_of

SEQ = 36
"""Where a fault that hits one event hits."""

LATE_SECONDS = 0.5


# ---- what is read is not what was appended --------------------------------------------------------------------------


Fault: TypeAlias = AbstractAsyncContextManager[None]


@asynccontextmanager
async def _read_as(change: Callable[[Record], Iterable[Record]], *, from_start: bool = True) -> AsyncIterator[None]:
    opened, original, resumed = MemoryLog.cursor, MemoryCursor.take, WeakSet[MemoryCursor]()

    def cursor(self: MemoryLog, after: int) -> MemoryCursor:
        made = opened(self, after)
        if after:
            resumed.add(made)
        return made

    def take(self: MemoryCursor) -> Sequence[Record]:
        while batch := original(self):
            if not from_start and self not in resumed:
                return batch
            if changed := [new for old in batch for new in change(old)]:
                return changed
        return ()

    with patch.object(MemoryLog, "cursor", cursor), patch.object(MemoryCursor, "take", take):
        yield


def event_dropped() -> Fault:
    return _read_as(lambda each: [] if _stands_for(each, SEQ) else [each])


def event_dropped_on_resume() -> Fault:
    return _read_as(lambda each: [] if _stands_for(each, SEQ) else [each], from_start=False)


def event_doubled() -> Fault:
    return _read_as(lambda each: [each, each] if _stands_for(each, SEQ) else [each])


def event_doubled_on_resume() -> Fault:
    return _read_as(lambda each: [each, each] if _stands_for(each, SEQ) else [each], from_start=False)


def _stands_for(each: Record, seq: int) -> bool:
    return first_seq_of(each.data) <= seq <= each.seq


def second_terminal_event() -> Fault:
    """With a `seq` of its own, so that only the rule itself is broken."""
    return _read_as(lambda each: [each, _renumbered(each, each.seq + 1)] if each.is_terminal else [each])


def _renumbered(each: Record, seq: int) -> Record:
    return record(replace(decode(each.data), seq=seq))


def cursor_one_too_low() -> Fault:
    return _cursor_moved(-1)


def cursor_one_too_high() -> Fault:
    return _cursor_moved(1)


@asynccontextmanager
async def _cursor_moved(by: int) -> AsyncIterator[None]:
    original = MemoryLog.cursor

    def cursor(self: MemoryLog, after: int) -> MemoryCursor:
        return original(self, max(0, after + by) if after else 0)

    with patch.object(MemoryLog, "cursor", cursor):
        yield


# ---- the log and the store ------------------------------------------------------------------------------------------


@asynccontextmanager
async def wake_up_lost() -> AsyncIterator[None]:
    original = MemoryLog._wake

    def wake(self: MemoryLog) -> None:
        if self.last_seq != SEQ:
            original(self)

    with patch.object(MemoryLog, "_wake", wake):
        yield


@asynccontextmanager
async def text_cut_one_too_late() -> AsyncIterator[None]:
    """Of a merged text a cursor is given all but what comes next."""
    original = Texts.event

    def event(self: Texts, run_id: str, after: int = 0) -> Token | Reasoning:
        right, late = original(self, run_id, after), original(self, run_id, after + (after >= self.first_seq))
        return replace(right, content=late.content)

    with patch.object(Texts, "event", event):
        yield


@asynccontextmanager
async def end_not_stored() -> AsyncIterator[None]:
    def without_end(log: StoredLog, *_: object) -> StoredLog:
        return replace(log, documents=log.documents.rpartition(b"\n")[0])

    with patch.object(StoredLog, "ended", without_end):
        yield


@asynccontextmanager
async def lengths_stored_wrong() -> AsyncIterator[None]:
    original = MemoryLog.stored

    def wrong(self: MemoryLog, *last: Record) -> StoredLog:
        log = original(self, *last)
        return replace(log, lengths=bytes(len(log.lengths)))

    with patch.object(MemoryLog, "stored", wrong):
        yield


@asynccontextmanager
async def answer_stored_late() -> AsyncIterator[None]:
    original = Sessions.finish
    async with asyncio.TaskGroup() as late:

        async def store(*args: Any, **kwargs: Any) -> None:
            await asyncio.sleep(LATE_SECONDS)
            await original(*args, **kwargs)

        async def finish(*args: Any, **kwargs: Any) -> None:
            late.create_task(store(*args, **kwargs))

        with patch.object(Sessions, "finish", finish):
            yield


def token_lost() -> Fault:
    return _said_as(lambda _: 0)


def token_said_twice() -> Fault:
    return _said_as(lambda _: 2)


@asynccontextmanager
async def _said_as(times: Callable[[Token], int]) -> AsyncIterator[None]:
    original = Run.say

    def say(self: Run, step: Step) -> None:
        for _ in range(times(step) if isinstance(step, Token) else 1):
            original(self, step)

    with patch.object(Run, "say", say):
        yield


# ---- the run --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def upstream_left_open() -> AsyncIterator[None]:
    """Whoever reads the upstream lives on when its run is cancelled."""
    original, orphans = OpenAIProvider.stream, list[asyncio.Task[Finish]]()

    async def stream(self: OpenAIProvider, request: ModelRequest, on_delta: OnDelta) -> Finish:
        orphans.append(asyncio.get_running_loop().create_task(original(self, request, on_delta)))
        return await asyncio.shield(orphans[-1])

    with patch.object(OpenAIProvider, "stream", stream):
        yield
    for orphan in orphans:
        orphan.cancel()
    await asyncio.gather(*orphans, return_exceptions=True)


@asynccontextmanager
async def cancel_ignored() -> AsyncIterator[None]:
    with patch.object(Life, "cancel", lambda self: None):
        yield


@asynccontextmanager
async def cancel_says_its_own_end() -> AsyncIterator[None]:
    """A cancel appends a `done` of its own, whether or not the run is ending already."""
    original = Life.cancel

    def cancel(self: Life) -> None:
        log = self.log
        assert isinstance(log, MemoryLog)
        readers, log._readers = log._readers, {}
        log.append(self.run.ending(0.0))
        log.is_over, log._readers = False, readers  # Nobody has seen the log over.
        log._wake()
        original(self)

    with patch.object(Life, "cancel", cancel):
        yield


@asynccontextmanager
async def leaving_unnoticed() -> AsyncIterator[None]:
    original = Run.count
    with patch.object(Run, "count", lambda self, readers, now: original(self, max(0, readers), now)):
        yield


@asynccontextmanager
async def end_of_the_log_taken_for_the_end() -> AsyncIterator[None]:
    original = Subscription.__init__

    def init(self: Subscription, log: MemoryLog, after: int, count: Callable[[int], None] | None) -> None:
        original(self, log, after, count)
        self.is_at_end = self.is_at_end or 0 < after == log.last_seq

    with patch.object(Subscription, "__init__", init):
        yield


@asynccontextmanager
async def leaving_cancels() -> AsyncIterator[None]:
    original = Life.count

    def count(self: Life, readers: int) -> None:
        original(self, readers)
        if readers < 0:
            self.cancel()

    with patch.object(Life, "count", count):
        yield


# ---- the transports -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lines_end_with_crlf() -> AsyncIterator[None]:
    original = EventStream.frame

    def frame(self: EventStream, records: Sequence[Record]) -> bytes:
        return original(records).replace(b"\n", b"\r\n")

    with patch.object(EventStream, "frame", frame):
        yield


@asynccontextmanager
async def encoded_again_on_one_transport() -> AsyncIterator[None]:
    """The same JSON, in other bytes."""

    def frame(self: JsonLines, records: Sequence[Record]) -> bytes:
        return b"".join(json.dumps(json.loads(each.data)).encode() + b"\n" for each in records)

    with patch.object(JsonLines, "frame", frame):
        yield


@asynccontextmanager
async def first_reader_goes_on() -> AsyncIterator[None]:
    """A second attach on a connection does not end the first one."""

    def detach(self: Multiplexer, run_id: str) -> None:
        if pump := self._pumps.pop(run_id, None):
            self._pumps[f"{run_id}, the first"] = pump  # Until the connection ends.

    with patch.object(Multiplexer, "_detach", detach):
        yield


@asynccontextmanager
async def pings_stop() -> AsyncIterator[None]:
    original, pinged = Connection.ping, set[Connection]()

    def ping(self: Connection) -> None:
        if self not in pinged:
            pinged.add(self)
            original(self)

    with patch.object(Connection, "ping", ping):
        yield
