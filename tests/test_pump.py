"""What a log has goes to a peer as long as the peer takes it: plain calls, without a loop or a socket."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise

import anyio
import pytest

from chatserver.events import Done, Record, Token, Usage
from chatserver.log import BATCH_BYTES_LIMIT
from chatserver.log.memory import MemoryLog
from chatserver.runs.subscription import Subscription
from chatserver.transports.connections import Connections
from chatserver.transports.pump import Pump
from tests.test_connections import Peer, Spoken

pytestmark = pytest.mark.anyio

END = Done(
    session_id="s",
    message_id="m",
    finish_reason="stop",
    total_tokens=0,
    usage=Usage(input_tokens=0, output_tokens=0, estimated=True),
    duration_ms=0,
)


def framed(batch: Sequence[Record]) -> bytes:
    return b"".join(b"%d " % each.seq for each in batch)


class Reader:
    """A pump from a log to a peer."""

    def __init__(
        self, log: MemoryLog, *, takes: bool = True, frame: Callable[[Sequence[Record]], bytes] = framed
    ) -> None:
        self.peer = Peer(takes=takes)
        self.ends: list[Record | None] = []
        connections = Connections(heartbeat_seconds=15.0, send_timeout_seconds=30.0)
        connection = Spoken(self.peer, connections, None)
        self.pump = Pump(Subscription(log, 0, None), connection, frame, self._over)
        self.peer.on_writable = self.pump.run
        self.pump.run()

    def _over(self, pump: Pump, last: Record | None) -> None:
        pump.close()
        self.ends.append(last)

    @property
    def seqs(self) -> list[int]:
        return [int(seq) for message in self.peer.messages for seq in message.split()]


def say(log: MemoryLog, count: int) -> None:
    for _ in range(count):
        log.append(Token(content="x"))


async def test_an_event_is_written_before_its_append_returns() -> None:
    log = MemoryLog("r")
    reader = Reader(log)
    for seq in range(1, 10):
        say(log, 1)
        assert reader.seqs == list(range(1, seq + 1))


async def test_a_peer_that_takes_nothing_is_not_written_to_and_gets_all_when_it_does() -> None:
    log = MemoryLog("r")
    reader, other = Reader(log, takes=False), Reader(log)
    say(log, 50)
    assert len(reader.peer._held) == 1 and reader.seqs == []
    assert other.seqs == list(range(1, 51))
    reader.peer.open()
    await anyio.wait_all_tasks_blocked()
    assert reader.seqs == list(range(1, 51))


async def test_the_end_of_the_run_is_told_once_with_its_last_record() -> None:
    log = MemoryLog("r")
    early = Reader(log)
    say(log, 3)
    end = log.append(END)
    late = Reader(log)
    for reader, seqs in ((early, [1, 2, 3, 4]), (late, [3, 4])):  # The late one is sent the three texts merged.
        assert reader.ends == [end] and reader.seqs == seqs
        reader.pump.run()
        assert reader.ends == [end]


async def test_a_log_that_is_closed_before_its_run_has_ended_is_told_as_a_failure() -> None:
    log = MemoryLog("r")
    reader = Reader(log)
    say(log, 1)
    behind = Reader(log, takes=False)
    say(log, 1)
    log.close()
    assert reader.ends == [None] and reader.seqs == [1, 2]
    behind.peer.open()
    assert behind.ends == [None] and behind.seqs == [1, 2]


async def test_whoever_has_left_is_sent_nothing() -> None:
    log = MemoryLog("r")
    reader = Reader(log)
    say(log, 2)
    reader.pump.close()
    say(log, 2)
    reader.pump.run()
    assert reader.seqs == [1, 2] and reader.ends == []


async def test_a_peer_that_takes_everything_does_not_keep_the_loop_for_itself() -> None:
    """A long log is sent about a batch in each turn of the loop."""
    log = MemoryLog("r")
    for _ in range(60):
        log.append(Token(content="x" * 10_000))
    reader = Reader(log, frame=lambda batch: b"".join(each.data for each in batch))
    sizes = [0]
    while sum(map(len, reader.peer.messages)) > sizes[-1]:
        sizes.append(sum(map(len, reader.peer.messages)))
        await asyncio.sleep(0)
    assert sizes[-1] > 60 * 10_000
    assert max(later - earlier for earlier, later in pairwise(sizes)) <= 2 * BATCH_BYTES_LIMIT


async def test_a_reader_that_fails_is_told_and_others_are_not_disturbed(caplog: pytest.LogCaptureFixture) -> None:
    log = MemoryLog("r")
    failing, healthy = Reader(log), Reader(log)
    failing.peer.failure = RuntimeError("a bug")
    say(log, 2)
    assert failing.ends == [None] and healthy.seqs == [1, 2]
    assert [each.exc_info and each.exc_info[1] for each in caplog.records] == [failing.peer.failure]
