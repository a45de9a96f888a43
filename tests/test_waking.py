"""What comes in one read of a model's socket wakes each reader once; what comes alone wakes it at once."""

import pytest

from chatserver.events import Token
from chatserver.log.memory import MemoryLog
from chatserver.log.waking import WAKES
from chatserver.providers import Delta
from chatserver.providers.chat_completions.turn_decoder import TurnDecoder
from chatserver.providers.faults import Fault
from chatserver.providers.turn import Turn
from tests.counting import calls_of


class Reader:
    """Somebody who takes what there is when woken, and how much that was each time."""

    def __init__(self, log: MemoryLog) -> None:
        self._cursor = log.cursor(0)
        self._cursor.wake = self.read
        self.batches: list[int] = []
        assert not self._cursor.take()

    def read(self) -> None:
        while batch := self._cursor.take():
            self.batches.append(len(batch))


def chunks(*texts: str) -> bytes:
    return b"".join(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text.encode() for text in texts)


def turn_into(log: MemoryLog) -> Turn:
    def on_delta(delta: Delta) -> None:
        assert isinstance(delta, Token)
        log.append(delta)

    return Turn(TurnDecoder(on_delta), idle_seconds=60)


def test_the_tokens_of_one_read_are_one_write_to_each_reader() -> None:
    log = MemoryLog("run")
    readers, turn = [Reader(log), Reader(log)], turn_into(log)
    turn.receive(chunks("a"))
    turn.receive(chunks(*"bcdefghijklmnop"))
    turn.receive(chunks("q"))
    assert [each.batches for each in readers] == [[1, 15, 1]] * 2


def test_what_came_before_an_error_in_the_same_read_reaches_the_readers() -> None:
    log = MemoryLog("run")
    reader, turn = Reader(log), turn_into(log)
    with pytest.raises(Fault):
        turn.receive(chunks("a", "b") + b'data: {"error":{"message":"no"}}\n\n')
    assert reader.batches == [2]


def test_a_hold_within_a_hold_ends_with_the_outer_one() -> None:
    log, other = MemoryLog("run"), MemoryLog("other")
    readers = [Reader(log), Reader(other)]
    with WAKES:
        with WAKES:
            log.append(Token(content="a"))
        other.append(Token(content="b"))
        log.append(Token(content="c"))
        assert [each.batches for each in readers] == [[], []]
    assert [each.batches for each in readers] == [[2], [1]]
    log.append(Token(content="d"))
    assert readers[0].batches == [2, 1]


def test_a_hold_costs_its_begin_and_its_end() -> None:
    def hold() -> None:
        with WAKES:
            pass

    assert calls_of(hold) == 4  # With `hold` and one of the count itself.
