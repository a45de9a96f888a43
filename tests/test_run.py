"""The state machine of a run, by itself: every transition, every pair of causes, by a plain loop without a clock."""

from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from chatserver.dialogue import INTERRUPTED_CALL, QUESTION
from chatserver.endings import INTERRUPTED, UNSTORED, WRONG
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    Done,
    Error,
    Reasoning,
    Token,
    ToolCall,
    ToolInput,
    ToolProgress,
    ToolResult,
)
from chatserver.log import EVENTS_LIMIT, SEQ_LIMIT
from chatserver.log.memory import MemoryLog
from chatserver.meter import Meter
from chatserver.parts import ReasoningPart, TextPart, ToolCallPart
from chatserver.runs import run as machine
from chatserver.runs.run import CLOSED_CALLS_LIMIT, Run
from chatserver.runs.states import TRANSITIONS, CannotHappen, Cause, State
from chatserver.steps import Step
from chatserver.waiting import UNAPPROVED, UNRETURNED, WITHDRAWN
from tests.logs import kept, watched_log
from tests.scripted_model import RESOURCE

CALL = ToolCall(call_id="c", tool="clock", args={}, needs_approval=False)
RESULT = ToolResult(call_id="c", tool="clock", result=1, is_error=False, truncated=False, duration_ms=1)
INPUT = ToolInput(call_id="c", tool="clock", delta="{}")
PROGRESS = ToolProgress(call_id="c", message="half", progress=1, total=2)
WORD = Token(content="word")

CAN: dict[State, dict[Cause, State]] = {
    State.RUNNING: {
        Cause.SAY: State.RUNNING,
        Cause.WAIT: State.WAITING,
        Cause.END: State.ENDING,
        Cause.PARK: State.FORGOTTEN,
    },
    State.WAITING: {
        Cause.SAY: State.WAITING,
        Cause.GO_ON: State.RUNNING,
        Cause.END: State.ENDING,
        Cause.PARK: State.FORGOTTEN,
    },
    State.ENDING: {Cause.END: State.ENDING, Cause.CLOSE: State.OVER},
    State.OVER: {Cause.END: State.OVER, Cause.KEEP: State.KEPT, Cause.FORGET: State.FORGOTTEN},
    State.KEPT: {Cause.END: State.KEPT, Cause.FORGET: State.FORGOTTEN},
    State.FORGOTTEN: {Cause.END: State.FORGOTTEN, Cause.KEEP: State.FORGOTTEN, Cause.FORGET: State.FORGOTTEN},
}
"""Written once more: a change of the table is a change of what a client may see."""

WAYS: dict[State, Sequence[Cause]] = {
    State.RUNNING: (),
    State.WAITING: (Cause.WAIT,),
    State.ENDING: (Cause.END,),
    State.OVER: (Cause.END, Cause.CLOSE),
    State.KEPT: (Cause.END, Cause.CLOSE, Cause.KEEP),
    State.FORGOTTEN: (Cause.END, Cause.CLOSE, Cause.FORGET),
}
"""How a run comes into each state."""

GRACE_SECONDS, KEPT_SECONDS = 10.0, 300.0


def run_of(meter: Meter | None = None, grace_seconds: float | None = GRACE_SECONDS) -> Run:
    return Run(RESOURCE, watched_log(), meter or Meter(), grace_seconds, 0.0)


DOES: dict[Cause, Callable[[Run, float], object]] = {
    Cause.SAY: lambda run, _: run.say(WORD),
    Cause.WAIT: lambda run, _: run.wait(),
    Cause.GO_ON: lambda run, now: run.go_on(now),
    Cause.END: lambda run, _: run.end("stop"),
    Cause.CLOSE: lambda run, now: run.close(run.ending(now)),
    Cause.KEEP: lambda run, now: run.keep(now + KEPT_SECONDS),
    Cause.FORGET: lambda run, _: run.forget(),
    Cause.PARK: lambda run, _: run.park(),
}


def in_state(state: State, **options: Any) -> Run:
    run = run_of(**options)
    for cause in WAYS[state]:
        DOES[cause](run, 0.0)
    assert run.state is state
    return run


def types_of(run: Run) -> list[str]:
    log = run.log
    assert isinstance(log, MemoryLog)
    return [each.type for each in kept(log)]


# ---- the table ------------------------------------------------------------------------------------------------------


def test_every_cause_in_every_state_does_what_the_table_says_and_nothing_else() -> None:
    assert TRANSITIONS == CAN
    assert DOES.keys() == set(Cause) and WAYS.keys() == set(State)
    for state, cause in product(State, Cause):
        run = in_state(state)
        before = types_of(run)
        if cause in CAN[state]:
            DOES[cause](run, 1.0)
            assert run.state is CAN[state][cause]
        else:
            with pytest.raises(CannotHappen):
                DOES[cause](run, 1.0)
            assert (run.state, types_of(run)) == (state, before), "what cannot happen has done nothing"


CAUSES: dict[str, Callable[[Run, float], object]] = {
    **{str(cause): does for cause, does in DOES.items()},
    "cancel": lambda run, _: run.end("cancelled"),
    "interrupt": lambda run, _: run.end(INTERRUPTED),
    "call": lambda run, _: run.say(CALL),
    "result": lambda run, _: run.say(RESULT),
    "hold": lambda run, _: run.hold("c"),
    "release": lambda run, now: run.release("c", now),
    "come": lambda run, now: run.count(1, now),
    "leave": lambda run, now: run.count(-min(1, run.subscribers), now),
    "time": lambda run, _: run.pass_time(run.deadline or 0.0),
}
"""Readers, time and endings are causes too, and so is what an agent may and may not tell."""


def test_every_pair_of_causes_in_every_state_keeps_the_rules() -> None:
    for state, *names in product(State, CAUSES, CAUSES):
        run = in_state(state)
        run.count(1, 0.0)
        goes_on(run, names)


def test_a_run_keeps_the_rules_whatever_happens_to_it() -> None:
    for seed in range(100):
        goes_on(run_of(), Random(seed).choices(list(CAUSES), k=20))


def goes_on(run: Run, names: Sequence[str]) -> None:
    endings: list[Done | Error] = []
    for now, name in enumerate(names, 1):
        before, said = run.state, types_of(run)
        try:
            CAUSES[name](run, float(now))
        except CannotHappen:
            assert types_of(run) == said, "what cannot happen has done nothing"
        check(run, before, said, endings)


def check(run: Run, before: State, said: list[str], endings: list[Done | Error]) -> None:
    """What holds of every run, whatever has happened to it."""
    assert run.state is before or run.state in (*CAN[before].values(), State.ENDING)
    types = types_of(run)
    terminals = [each for each in types if each in ("done", "error")]
    is_parked = run.state is State.FORGOTTEN and not terminals
    assert terminals == types[len(types) - len(terminals) :] and len(terminals) == (run.is_over and not is_parked)
    if before not in (State.RUNNING, State.WAITING):
        assert [each for each in types if each not in terminals] == [each for each in said if each not in terminals]
    if run.state not in (State.RUNNING, State.WAITING) and not is_parked:
        endings.append(run.ending(0.0))
        assert endings[0] == endings[-1], "the first ending wins"
    deadline = run.deadline
    if run.subscribers > 0 or run.state in (State.WAITING, State.ENDING, State.OVER, State.FORGOTTEN):
        assert deadline is None or run.state is State.KEPT
    else:
        assert deadline is not None


# ---- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "other"), [("cancelled", INTERRUPTED), (INTERRUPTED, "cancelled")])
def test_the_first_ending_wins(first: Any, other: Any) -> None:
    run = run_of()
    for ending in (first, other, "stop"):
        run.end(ending)
    terminal = run.ending(1.5)
    assert terminal == INTERRUPTED if first is INTERRUPTED else isinstance(terminal, Done)
    run.end(other)
    run.close(terminal)
    run.end(other)
    assert run.ending(1.5) == terminal and types_of(run) == [terminal.__struct_config__.tag]


def test_how_a_run_ends_is_told_with_its_usage_and_its_time() -> None:
    run = run_of()
    run.say(WORD)
    run.end("length")
    done = run.ending(1.5)
    assert isinstance(done, Done)
    assert (done.session_id, done.message_id, done.finish_reason, done.duration_ms) == ("s", "m", "length", 1500)
    run.close(UNSTORED)
    assert types_of(run) == ["token", "error"], "an end that could not be stored tells that"


def test_nothing_is_said_after_a_cancel_was_accepted() -> None:
    run = run_of()
    run.say(WORD)
    run.end("cancelled")
    for step in (WORD, CALL):
        with pytest.raises(CannotHappen):
            run.say(step)
    assert types_of(run) == ["token"]


def test_calls_without_a_result_are_given_one_when_their_run_ends() -> None:
    """In words that say what is known: of a call that waits, and of one that goes on."""
    run = run_of()
    called(run, "c", "asks")
    run.say(RESULT)
    run.say(replace(CALL, call_id="approved", needs_approval=True))
    run.say(replace(CALL, call_id="screen", executor="client"))
    run.say(replace(CALL, call_id="question", tool=QUESTION, executor="client"))
    for call_id, asker in (("approved", None), ("screen", None), ("question", "asks")):
        run.hold(call_id, asker)
    run.end("cancelled")
    run.close_calls(1.0)
    results = {
        part.call_id: (part.result, part.is_error) for part in run.said().parts if isinstance(part, ToolCallPart)
    }
    assert results == {
        "c": (1, False),
        "asks": (INTERRUPTED_CALL, True),
        "approved": (UNAPPROVED, True),
        "screen": (UNRETURNED, True),
        "question": (WITHDRAWN, True),
    }


def test_a_call_that_the_end_cuts_off_has_taken_the_time_until_then() -> None:
    run = run_of()
    called(run, "c", "d")
    run.calls.begun["c"] = 1.5
    run.end("cancelled")
    run.close_calls(2.0)
    assert [part.duration_ms for part in run.said().parts if isinstance(part, ToolCallPart)] == [500, 2000]


def test_calls_that_are_given_a_result_at_the_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent may tell of calls without end, and what comes last must still have its number."""
    assert CLOSED_CALLS_LIMIT < SEQ_LIMIT - EVENTS_LIMIT
    monkeypatch.setattr(machine, "CLOSED_CALLS_LIMIT", 2)
    run = run_of()
    called(run, "c", "d", "e")
    run.end("stop")
    run.close_calls(1.0)
    assert types_of(run) == ["tool_call"] * 3 + ["tool_result"] * 2


# ---- readers and time -----------------------------------------------------------------------------------------------


def test_the_grace_period_begins_at_the_start_and_anew_when_the_last_reader_has_left() -> None:
    run = run_of()
    deadlines = [run.deadline]
    for now, readers in ((1.0, 1), (2.0, 1), (3.0, -1)):
        run.count(readers, now)
        deadlines.append(run.deadline)
    run.pass_time(1e9)
    run.count(-1, 5.0)
    assert [*deadlines, run.deadline] == [GRACE_SECONDS, None, None, None, 15.0]
    run.pass_time(14.9)
    run.say(WORD)
    run.pass_time(15.0)
    done = run.ending(15.0)
    assert isinstance(done, Done) and done.finish_reason == "cancelled"


def test_who_comes_back_in_time_keeps_the_run() -> None:
    run = run_of()
    run.count(1, 0.0)
    run.count(-1, 1.0)
    run.count(1, 10.9)
    run.pass_time(11.0)
    assert (run.state, run.deadline) == (State.RUNNING, None)


def test_a_run_that_is_to_go_on_needs_no_reader() -> None:
    run = run_of(grace_seconds=None)
    run.count(1, 0.0)
    run.count(-1, 1.0)
    assert run.deadline is None


def test_a_run_that_waits_for_somebody_is_not_abandoned_meanwhile() -> None:
    run = run_of()
    run.wait()
    deadlines = [run.deadline]
    run.pass_time(1e9)
    run.go_on(100.0)
    assert [*deadlines, run.deadline] == [None, 100 + GRACE_SECONDS]


def called(run: Run, *call_ids: str) -> None:
    for call_id in call_ids:
        run.say(replace(CALL, call_id=call_id))


def test_a_run_waits_while_all_its_calls_without_a_result_wait() -> None:
    run, states = run_of(), list[str]()
    called(run, "c", "d", "e")
    steps: list[Callable[[], object]] = [
        lambda: run.hold("c"),
        lambda: run.say(replace(RESULT, call_id="d")),
        lambda: run.hold("e"),
        lambda: run.release("c", 1.0),
        lambda: run.say(RESULT),
        lambda: called(run, "f"),
        lambda: run.say(replace(RESULT, call_id="f")),
        lambda: run.release("e", 1.0),
        lambda: run.say(replace(RESULT, call_id="e")),
    ]
    for step in steps:
        step()
        states.append("waiting" if run.state is State.WAITING else "-")
    assert states == ["-", "-", "waiting", "-", "waiting", "-", "waiting", "-", "-"]


def test_no_call_waits_in_a_run_that_has_ended() -> None:
    run = run_of()
    called(run, "c")
    run.end("cancelled")
    with pytest.raises(CannotHappen):
        run.hold("c")
    run.release("c", 1.0)
    assert run.state is State.ENDING


def test_a_run_that_waits_without_readers_stays_in_memory_for_so_long() -> None:
    run = Run(RESOURCE, watched_log(), Meter(), GRACE_SECONDS, 0.0, held_seconds=KEPT_SECONDS)
    called(run, "c")
    run.hold("c")
    deadlines = [run.deadline]
    run.pass_time(KEPT_SECONDS)
    deadlines.append(run.deadline)
    run.count(1, 400.0)
    assert [*deadlines, run.deadline, run.state] == [KEPT_SECONDS, 2 * KEPT_SECONDS, None, State.WAITING]
    run.park()
    assert run.is_over and types_of(run) == ["tool_call"]


def test_a_run_that_is_resumed_waits_with_what_it_has_said() -> None:
    said = run_of()
    called(said, "c", "d")
    said.say(RESULT)
    run = run_of()
    run.resume(said.said(), ["d"])
    assert run.state is State.WAITING and [run.calls.is_open(each) for each in "cd"] == [False, True]
    with pytest.raises(CannotHappen):
        run.say(CALL)


def test_a_late_reader_does_not_stop_that_a_run_is_forgotten() -> None:
    run = in_state(State.KEPT)
    for readers in (1, -1, 1):
        run.count(readers, 1.0)
        assert run.deadline == KEPT_SECONDS
    states = []
    for now in (KEPT_SECONDS - 0.1, KEPT_SECONDS):
        run.pass_time(now)
        states.append(run.state)
    assert (states, run.is_over, run.deadline) == ([State.KEPT, State.FORGOTTEN], True, None)


# ---- what an agent may say ------------------------------------------------------------------------------------------

LONG = "x" * EVENT_BYTES_LIMIT


@pytest.mark.parametrize(
    "steps",
    [
        [RESULT],
        [WORD, RESULT],
        [CALL, RESULT, RESULT],
        [CALL, CALL],
        [CALL, RESULT, CALL],
        [CALL, INPUT],
        [CALL, RESULT, INPUT],
        [PROGRESS],
        [INPUT, PROGRESS],
        [CALL, RESULT, PROGRESS],
        [ToolInput(call_id="a b", tool="clock", delta="{}")],
        [ToolInput(call_id="c", tool="clock", delta=LONG)],
        [CALL, ToolProgress(call_id="c", message=LONG, progress=None, total=None)],
        ["no event"],
        [Done],
        [INTERRUPTED],
        [ToolCall(call_id="a\0b", tool="clock", args={})],
        [ToolCall(call_id="c", tool="clock", args={"x": LONG})],
        [CALL, ToolResult(call_id="c", tool="clock", result=LONG, is_error=False, truncated=False, duration_ms=1)],
    ],
    ids=lambda steps: "-".join(str(getattr(each, "tool", each))[:9] for each in steps),
)
def test_an_agent_that_breaks_the_rules_fails_its_run_in_words(
    steps: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of()
    for step in steps[:-1]:
        run.say(step)
    said = types_of(run)
    with pytest.raises(CannotHappen):
        run.say(steps[-1])
    assert (run.state, run.ending(0.0), types_of(run)) == (State.ENDING, WRONG, said)
    assert "the agent of run run breaks the rules" in caplog.text


def test_what_is_for_showing_only_is_told_while_a_call_is_written_and_while_it_runs_and_changes_no_answer() -> None:
    run, plain = run_of(), run_of()
    for step in (WORD, INPUT, WORD, INPUT, CALL, PROGRESS, PROGRESS, RESULT, WORD):
        run.say(step)
    for step in (WORD, WORD, CALL, RESULT, WORD):
        plain.say(step)
    shown = ["token", "tool_input", "token", "tool_input", "tool_call", "tool_progress", "tool_progress"]
    assert types_of(run) == [*shown, "tool_result", "token"]
    assert run.said() == plain.said()


@pytest.mark.parametrize("text", [Token, Reasoning])
def test_a_text_is_cut_where_the_answer_is_full(text: type[Token | Reasoning]) -> None:
    run = run_of(Meter(answer_bytes_limit=10))
    run.say(text(content="12345678"))
    run.say(text(content=""))
    with pytest.raises(CannotHappen):
        run.say(text(content="9ö!"))
    assert types_of(run) == [text.__struct_config__.tag] * 2
    (part,) = run.said().parts
    assert part == (TextPart if text is Token else ReasoningPart)("123456789")
    assert ends(run) == "length"


def test_a_long_text_becomes_several_events_that_fit() -> None:
    run, text = run_of(), "\x01🦜" * 40_000
    run.say(Token(content=text))
    assert isinstance(run.log, MemoryLog)
    records = kept(run.log)
    assert [each.seq for each in records] == list(range(1, 9))
    assert max(len(each.data) for each in records) <= EVENT_BYTES_LIMIT
    assert run.said().content == text


def test_no_text_is_taken_once_the_tokens_are_spent() -> None:
    meter = Meter(limit=10)
    run = run_of(meter)
    meter.end_turn(None)
    meter.spent = 10
    with pytest.raises(CannotHappen):
        run.say(WORD)
    assert (types_of(run), ends(run)) == ([], "length")


@pytest.mark.parametrize("step", [WORD, Reasoning(content="hm"), CALL])
def test_a_run_ends_where_its_log_is_full(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "EVENTS_LIMIT", 3)
    run = run_of()
    run.say(WORD)
    run.say(WORD)
    with pytest.raises(CannotHappen):
        run.say(step)
    assert (len(types_of(run)), ends(run)) == (3, "length")
    assert EVENTS_LIMIT > 3


def test_a_run_ends_where_its_answer_has_too_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that alternates at each token: every checkpoint would build as many parts as there are tokens."""
    monkeypatch.setattr(machine, "PARTS_LIMIT", 4)
    run, thought = run_of(), Reasoning(content="hm")
    for step in (WORD, WORD, thought, thought, WORD, CALL, WORD, WORD):
        run.say(step)
    with pytest.raises(CannotHappen):
        run.say(thought)
    assert (len(types_of(run)), ends(run)) == (8, "length")


def ends(run: Run) -> str:
    done = run.ending(0.0)
    assert isinstance(done, Done)
    return done.finish_reason


def test_what_is_withheld_is_shown_at_the_end_and_not_before() -> None:
    """The end is stored first. Until then the database says that the call waits, and has nothing that follows."""
    run = run_of()
    run.writer.withhold()
    called(run, "c")
    run.hold("c")
    run.say(WORD)
    run.end("cancelled")
    run.close_calls(1.0)
    assert types_of(run) == []
    run.close(run.ending(1.0))
    assert types_of(run) == ["tool_call", "token", "tool_result", "done"]
