"""When an owner's calls to Redis are made: alone at once, shortly after another one together."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

from chatserver.events import Token
from chatserver.nodes import publisher
from chatserver.nodes.link import Script
from chatserver.nodes.owned_log import OwnedLog
from chatserver.nodes.publisher import GATHER_SECONDS, Publisher
from chatserver.nodes.wire import Word
from tests.logs import start

pytestmark = pytest.mark.anyio

NEVER_SECONDS = 3600.0


class Calls:
    """In place of a link: keeps the calls, whose replies come when the test wants. Time passes when it wants, too."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sent: list[int] = []
        """How many runs each call has had."""

        self._on_reply: Callable[[Any], None] | None = None

    def post(self, script: Script, keys: Sequence[Word], args: Sequence[Word], on_reply: Callable[[Any], None]) -> None:
        assert self._on_reply is None, "a call is under way"
        self.sent.append((len(args) - 2) // 4)
        self._on_reply = on_reply

    def reply(self) -> None:
        on_reply, self._on_reply = self._on_reply, None
        assert on_reply is not None
        on_reply([])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    monkeypatch.setattr(publisher, "monotonic", lambda: made.now)
    return made


def logs_of(calls: Calls, count: int) -> list[OwnedLog]:
    publishes = Publisher(calls, "a").publish  # type: ignore[arg-type]
    return [OwnedLog(f"run {number}", publishes) for number in range(count)]


async def appended(*logs: OwnedLog) -> None:
    """Append to each, and let the turn of the loop end."""
    for log in logs:
        log.append(Token(content="x") if log.last_seq else start())
    await asyncio.sleep(0)


async def test_what_comes_soon_after_a_call_goes_out_with_what_comes_later(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "GATHER_LIMIT_SECONDS", NEVER_SECONDS)
    first, second, third, fourth = logs_of(calls, 4)
    await appended(first)
    assert calls.sent == [1], "what comes alone does not wait"
    calls.reply()
    await appended(second)
    calls.now += GATHER_SECONDS / 2
    await appended(third)
    assert calls.sent == [1]
    calls.now += GATHER_SECONDS
    await appended(fourth)
    assert calls.sent == [1, 3]
    assert (second.shown.last_seq, second.last_seq) == (0, 1), "nothing is shown before Redis has it"
    calls.reply()
    assert second.shown.last_seq == fourth.shown.last_seq == 1


async def test_what_has_waited_for_a_late_reply_goes_out_with_it(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "GATHER_LIMIT_SECONDS", NEVER_SECONDS)
    first, second = logs_of(calls, 2)
    await appended(first)
    calls.now += 2 * GATHER_SECONDS
    await appended(first, second)
    assert calls.sent == [1]
    calls.reply()
    await asyncio.sleep(0)
    assert calls.sent == [1, 2]


async def test_what_nothing_follows_goes_out_all_the_same(calls: Calls) -> None:
    first, second = logs_of(calls, 2)
    await appended(first)
    calls.reply()
    await appended(second)
    assert calls.sent == [1]
    with anyio.fail_after(20):
        while calls.sent != [1, 1]:  # noqa: ASYNC110 - a timer of the loop is waited for
            await asyncio.sleep(0)
    calls.reply()
    assert second.shown.last_seq == 1
