"""Hundreds of readers of one log: mixed cursors and speeds, cancelled ones, late joiners; none misses a thing."""

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import anyio
import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from chatserver.events import Event, Record, Token, record
from chatserver.log import BATCH_RECORDS_LIMIT, EventLog
from tests.conftest import Scale
from tests.logs import ENDLESS, Store, a_run, in_each_store, new_log
from tests.merging import first_seq_of, unmerged

pytestmark = [pytest.mark.anyio, in_each_store]


class Truth:
    """What was written, and by which it is judged what was read."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.drafts: list[Event] = []
        self.documents: list[bytes] = []
        self._gates: dict[int, anyio.Event] = {}

    def add(self, draft: Event) -> None:
        """Before it is appended."""
        self.drafts.append(draft)
        self.documents.append(record(replace(draft, run_id=self.run_id, seq=len(self.drafts))).data)
        if gate := self._gates.pop(len(self.drafts), None):
            gate.set()

    async def grown_by(self, count: int) -> None:
        """Time passes by what is written, not by a clock."""
        await self._gates.setdefault(len(self.drafts) + count, anyio.Event()).wait()


@dataclass
class Reader:
    """A client of any manners: it begins anywhere, may be slow, leaves and comes back with its cursor."""

    log: EventLog
    truth: Truth
    chance: random.Random
    pause: Callable[[], Awaitable[None]]
    cursor: int
    is_over: bool = False

    async def run(self) -> None:
        while not self.is_over:
            match self.chance.randrange(4):
                case 0:
                    await self._until_cancelled()
                case 1:
                    await self._some(self.chance.randrange(1, 2000))
                case 2:
                    await self.pause()
                    await self._some(self.chance.randrange(1, 200))
                case _:
                    await self._some(ENDLESS)

    async def _until_cancelled(self) -> None:
        """Cancelled wherever it may be at some moment; waiting, or in the middle of a batch."""
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await self.pause()
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel)
            await self._some(ENDLESS)
            tasks.cancel_scope.cancel()

    async def _some(self, count: int) -> None:
        """Read so many events at least, then close; a slow one waits after each batch, as for its peer."""
        is_slow = self.chance.random() < 0.3
        async with aclosing(self.log.read(self.cursor)) as batches:
            async for batch in batches:
                self._take(batch)
                count -= len(batch)
                if is_slow and not self.is_over:
                    await self.pause()
                if count <= 0:
                    return
        assert self.is_over, "the iterator ended before the run did"

    def _take(self, batch: Sequence[Record]) -> None:
        assert not self.is_over, "a batch behind the terminal event"
        assert 0 < len(batch) <= BATCH_RECORDS_LIMIT
        said = self.truth.documents[self.cursor : batch[-1].seq]
        assert first_seq_of(batch[0].data) == self.cursor + 1
        assert unmerged([each.data for each in batch], self.truth.documents) == said
        self.cursor = batch[-1].seq
        self.is_over = batch[-1].is_terminal


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
async def test_no_reader_misses_doubles_or_reorders_an_event(store: Store, seed: int, scale: Scale) -> None:
    """Hundreds of mixed cursors and speeds; cancelled ones, late joiners, some after the end."""
    chance = random.Random(seed)
    events_count, readers_count = scale(5_000, 100_000), scale(200, 400)
    readers: list[Reader] = []
    with anyio.fail_after(scale(50, 850)):
        async with new_log(store) as (log, elsewhere), anyio.create_task_group() as tasks:
            truth = Truth(log.run_id)

            async def pause() -> None:
                count = chance.choice([0, 1, 30, events_count // 20])
                if count and len(truth.drafts) + count <= events_count:
                    await truth.grown_by(count)
                else:
                    await checkpoint()

            def join() -> None:
                cursor = chance.choice([0, chance.randint(0, len(truth.drafts))])
                readers.append(Reader(elsewhere, truth, chance, pause, cursor))
                tasks.start_soon(readers[-1].run)

            arrivals = sorted(chance.randint(-events_count, events_count) for _ in range(readers_count))
            for seq, draft in enumerate(a_run(events_count), 1):
                while arrivals and arrivals[0] < seq:
                    arrivals.pop(0)
                    join()
                truth.add(draft)
                assert log.append(draft).seq == seq
                if chance.random() < 0.05:
                    await checkpoint()
            for _ in range(20):
                join()
    assert [(reader.cursor, reader.is_over) for reader in readers] == [(events_count, True)] * (readers_count + 20)


async def test_a_reader_can_be_cancelled_while_its_run_talks_without_pause(store: Store) -> None:
    """anyio cancels no task whose wait is over, and here it always is."""
    scope, left = anyio.CancelScope(), anyio.Event()
    async with new_log(store) as (log, elsewhere), anyio.create_task_group() as tasks:

        async def read() -> None:
            with scope:
                async with aclosing(elsewhere.read(0)) as batches:
                    async for _ in batches:
                        pass
            left.set()

        async def talk() -> None:
            for _ in range(200):
                log.append(Token(content="x"))
                await checkpoint()

        async def cancel() -> None:
            for _ in range(100):
                await checkpoint()
            scope.cancel()
            for _ in range(50):
                await checkpoint()

        tasks.start_soon(read)
        tasks.start_soon(talk)
        await cancel()
        is_left = left.is_set()
        tasks.cancel_scope.cancel()
    assert is_left
