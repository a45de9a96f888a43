"""Tools that fail, in whatever way: the call ends at once with an error for the model, and nothing else feels it."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import msgspec
import pytest

from chatserver.tools.execution import ToolThreads
from chatserver.tools.results import Outcome
from tests.tool_calls import LIMIT, LONG, Function, Gates, assert_works, both, called, each_way, open_gates

pytestmark = pytest.mark.anyio


@pytest.fixture
def gates() -> Iterator[Gates]:
    yield from open_gates()


def raises() -> None:
    raise ValueError("no such river")


def raises_without_words() -> None:
    raise KeyError


def misses_a_key() -> None:
    dict[str, int]()["river"]


def raises_what_cannot_be_printed() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    raise Mute


def raises_much() -> None:
    raise ValueError("x" * 100_000)


def exits() -> None:
    sys.exit(3)


def interrupts() -> None:
    raise KeyboardInterrupt


def stops_an_iteration() -> None:
    next(iter(()))


def cancels_itself() -> None:
    raise asyncio.CancelledError


def closes_a_generator() -> None:
    raise GeneratorExit


def times_out() -> None:
    raise TimeoutError("the database is slow")


def an_object() -> object:
    return object()


def a_function() -> object:
    return an_object


def a_generator() -> object:
    return (n for n in range(3))


def an_odd_key() -> object:
    return {(1, 2): 3}


def itself() -> object:
    found: list[Any] = []
    found.append(found)
    return found


def half_a_pair_inside() -> object:
    return ["\ud83e"]


FAILURES: list[Callable[[], Any]] = [
    raises,
    raises_without_words,
    raises_what_cannot_be_printed,
    raises_much,
    exits,
    interrupts,
    stops_an_iteration,
    cancels_itself,
    closes_a_generator,
    times_out,
    an_object,
    a_function,
    a_generator,
    an_odd_key,
    itself,
    half_a_pair_inside,
]


@each_way(FAILURES)
async def test_a_failure_is_an_outcome_at_once_and_other_calls_do_not_feel_it(function: Function, gates: Gates) -> None:
    """Even what is meant to end a program, a task or a loop is only a failure of that tool."""
    threads = ToolThreads(LONG, LIMIT)

    async def other() -> bool:
        return await asyncio.to_thread(gates.wait)

    outcomes: list[Outcome] = []

    async def call_other() -> None:
        outcomes.append(await called(threads, other))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_other)
        await gates.has_entered()
        outcome = await called(threads, function)
        gates.open()
    assert outcome.is_error and isinstance(outcome.result, str) and outcome.result
    assert len(msgspec.json.encode(outcome.result)) <= LIMIT
    assert outcomes[0].result is True
    await assert_works(threads)


async def test_a_failure_says_what_went_wrong() -> None:
    threads = ToolThreads(LONG, LIMIT)
    for function in both(raises):
        assert (await called(threads, function)).result == "no such river"
    for function in both(raises_without_words):
        assert "KeyError" in (await called(threads, function)).result
    for function in both(misses_a_key):
        assert (await called(threads, function)).result == "KeyError: 'river'"
    for function in both(exits):
        assert (await called(threads, function)).result == "SystemExit: 3"
    for function in both(times_out):
        assert (await called(threads, function)).result == "the database is slow"


async def test_arguments_that_do_not_fit_are_an_outcome_and_nothing_is_called() -> None:
    calls: list[int] = []

    def count(n: int) -> None:
        calls.append(n)

    outcome = await called(ToolThreads(LONG, LIMIT), count, n="many")
    assert outcome.is_error and "$.n" in outcome.result and calls == []
