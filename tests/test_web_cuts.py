"""The browser client in Node, behind a proxy that cuts at any byte: what it shows is what the server stored."""

from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from tests.chaos import Fault, cuts
from tests.conftest import Scale
from tests.proving import seeded
from tests.web_client import CLIENT, answers_of_node, check_answers, harmed, long_answer, patience_seconds, reach, wrong

pytestmark = pytest.mark.proof

RUNS = 4
WAYS = [("sse", 0), ("ws", 0), ("auto", 0), ("sse", 37), ("ws", 37)]
"""Transports, and after how many events the reader hops to the other one; 0: never."""


async def survives(tokens: int, transport: str, hops: int, rng: Random, count: int, module: Path = CLIENT) -> None:
    """Read a few answers at a time through cuts, until there were enough of them."""
    read: list[Any] = []
    async with harmed(long_answer(tokens)) as chaos:
        chaos.faults = cuts(rng, reach(tokens) * (1 if transport == "sse" else RUNS))
        with anyio.fail_after(patience_seconds(count)):
            while chaos.cuts.total() < count:
                messages = [f"message {len(read) + number}" for number in range(RUNS)]
                read += await answers_of_node(chaos, module, transport=transport, messages=messages, hops=hops)
                await check_answers(chaos.server, read)


@pytest.mark.parametrize(("transport", "hops"), WAYS)
async def test_every_answer_survives_cuts_at_any_byte(transport: str, hops: int, scale: Scale) -> None:
    await survives(scale(100, 400), transport, hops, seeded(), scale(10, 100))


# ---- clients that are wrong -----------------------------------------------------------------------------------------

ATTACH_SSE = '"Last-Event-ID": String(run.cursor)'
ATTACH_WS = "after: run.cursor }"
DROP_DUPLICATE = "event.seq <= this.cursor"
MIND_THE_GAP = 'first !== this.cursor + 1 && event.type !== "snapshot"'
NO_MIND = (MIND_THE_GAP, "false"), (DROP_DUPLICATE, "false")


@dataclass(frozen=True)
class Wrong:
    """A client with a fault, and what is found when it reads."""

    name: str
    transport: str
    changes: tuple[tuple[str, str], ...]
    verdict: str

    def __str__(self) -> str:
        return f"{self.name}-{self.transport}"


MISCOUNTED = r"\d+ of \d+ events"
LOST = f"bad_cursor|{MISCOUNTED}"
"""The second is what is left to find when the cut comes just before the run's last event."""

WRONG = [
    Wrong("cursor too high", "sse", ((ATTACH_SSE, '"Last-Event-ID": String(run.cursor + 1)'),), f"gap: event|{LOST}"),
    Wrong("cursor too high", "ws", ((ATTACH_WS, "after: run.cursor + 1 }"),), f"gap: event|{LOST}"),
    Wrong("event lost", "sse", ((ATTACH_SSE, '"Last-Event-ID": String(run.cursor + 1)'), *NO_MIND), LOST),
    Wrong(
        "event doubled",
        "sse",
        ((ATTACH_SSE, '"Last-Event-ID": String(Math.max(0, run.cursor - 1))'), *NO_MIND),
        MISCOUNTED,
    ),
    Wrong("event doubled", "ws", ((ATTACH_WS, "after: Math.max(0, run.cursor - 1) }"), *NO_MIND), MISCOUNTED),
    Wrong("always from the start", "ws", ((ATTACH_WS, "after: 0 }"), *NO_MIND), MISCOUNTED),
]


@pytest.mark.parametrize("fault", WRONG, ids=str)
async def test_a_wrong_cursor_is_found(fault: Wrong, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=fault.verdict):
        await survives(60, fault.transport, 0, Random(7), 30, wrong(tmp_path, *fault.changes))


async def test_a_key_that_is_not_kept_starts_a_run_twice(tmp_path: Path) -> None:
    """Every first answer is lost after the server has obeyed."""
    right = "body: chat.json.stringify(run.request)"
    key = (right, right.replace("run.request", "{ ...run.request, idempotency_key: newKey() }"))
    for module, runs in ((CLIENT, 1), (wrong(tmp_path, key), 3)):
        async with harmed(long_answer(10)) as chaos:
            chaos.faults = iter([*repeat(Fault("fin"), 2), Fault()])
            (answer,) = await answers_of_node(chaos, module, transport="sse", messages=["once"])
            assert answer["error"] is None
            assert chaos.requests == ["POST /chat/stream"] * 3
            with pytest.raises(AssertionError, match="3 sessions") if runs > 1 else anyio.CancelScope():
                await check_answers(chaos.server, [answer])


async def test_a_frozen_connection_needs_its_watch(tmp_path: Path) -> None:
    """A client that does not count bytes waits for ever."""
    blind = wrong(
        tmp_path,
        ("if (left > 0) this.#timer", "if (!this.hasHeard && left > 0) this.#timer"),
        ('      this.enter("stalled");\n', "      if (this.hasHeard) return;\n"),
    )
    for transport in ("sse", "ws"):
        async with harmed(long_answer(40)) as chaos:
            for module in (CLIENT, blind):
                chaos.faults = iter([Fault("freeze", 1500)])
                with anyio.move_on_after(20 if module is CLIENT else 2.5) as patience:
                    (answer,) = await answers_of_node(chaos, module, transport=transport, messages=["go on"])
                    assert answer["error"] is None
                assert patience.cancelled_caught == (module is blind)
