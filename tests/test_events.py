"""Events: one document for each, one fold for all."""

from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from chatserver.answer import Answer, fold, retold, unfold
from chatserver.commands import new_id
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    EVENT_TYPES,
    TERMINAL_TYPES,
    Done,
    Error,
    Event,
    Reasoning,
    Snapshot,
    Start,
    Token,
    ToolCall,
    ToolInput,
    ToolProgress,
    ToolResult,
    Usage,
    decode,
    pieces,
    record,
    schema,
)
from chatserver.parts import ReasoningPart, TextPart, ToolCallPart

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
"""A log that fails a property is shown, however long it is."""

RUN_ID = new_id()

# ---- logs, as runs write them ---------------------------------------------------------------------------------------

characters = st.characters(codec="utf-8") | st.sampled_from('\0\n\r\t\x1f\x7f"\\/\x85\u2028\u2029\ufeff🦜é')
texts = st.text(characters, max_size=40)
big_texts = st.builds(lambda piece, times: piece * times, texts.filter(bool), st.integers(1, 3000)).map(
    lambda t: t[:30_000]
)
names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
args = st.dictionaries(texts, json_values, max_size=3)
big_results = json_values | st.integers(0, 30_000).map("r".__mul__)
small = st.integers(0, 10**6)
usages = st.builds(Usage, small, small, st.booleans())

starts = st.builds(
    Start, session_id=names, message_id=names, user_message_id=names, model=texts, protocol=small, heartbeat_ms=small
)
tokens = st.builds(Token, content=texts | big_texts)
reasonings = st.builds(Reasoning, content=texts | big_texts)
executors = st.sampled_from(["server", "client"])
calls = st.builds(ToolCall, call_id=names, tool=texts, args=args, needs_approval=st.booleans(), executor=executors)
results = st.builds(
    ToolResult,
    call_id=names,
    tool=texts,
    result=big_results,
    is_error=st.booleans(),
    truncated=st.booleans(),
    duration_ms=small,
)
call_parts = st.builds(
    ToolCallPart,
    call_id=names,
    tool=texts,
    args=args,
    needs_approval=st.booleans(),
    executor=executors,
    result=json_values,
    is_error=st.none() | st.booleans(),
    truncated=st.none() | st.booleans(),
    duration_ms=st.none() | small,
)
text_parts = st.builds(TextPart, texts) | st.builds(ReasoningPart, texts)
snapshots = st.builds(Snapshot, parts=st.lists(text_parts | call_parts, max_size=4).map(tuple))
dones = st.builds(
    Done,
    session_id=names,
    message_id=names,
    finish_reason=st.sampled_from(["stop", "length", "content_filter", "cancelled", "turn_limit"]),
    total_tokens=small,
    usage=usages,
    duration_ms=small,
)
errors = st.builds(
    Error,
    code=st.sampled_from(["rate_limited", "llm_error", "interrupted"]),
    message=texts,
    retryable=st.booleans(),
    retry_after=st.none() | st.floats(0, 1e6),
)
terminals = dones | errors
drafts = starts | tokens | reasonings | calls | results | snapshots | terminals


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """A log as a run appends it: a start, text and tool calls with their results, perhaps a terminal event."""
    log: list[Event] = [draw(starts)]
    waiting: list[str] = []
    for number, draft in enumerate(draw(st.lists(tokens | reasonings | calls | results, max_size=25))):
        match draft:
            case ToolCall():
                waiting.append(f"call_{number}")
                log.append(replace(draft, call_id=waiting[-1]))
            case ToolResult() if waiting:
                log.append(replace(draft, call_id=waiting.pop(0)))
            case Token() | Reasoning():
                log += pieces(draft)
    log += draw(st.lists(terminals, max_size=1))
    return [replace(event, run_id=RUN_ID, seq=seq) for seq, event in enumerate(log, 1)]


def many_calls(count: int) -> list[Event]:
    """Calls that have no result yet take more room in a snapshot than most events."""
    return [
        ToolCall(run_id=RUN_ID, seq=seq, call_id=f"call_{seq}", tool="clock", args={}) for seq in range(1, count + 1)
    ]


def escaped(count: int) -> list[Event]:
    """Text that JSON writes in six bytes a character."""
    return [Token(run_id=RUN_ID, seq=seq, content="\x01" * 500) for seq in range(1, count + 1)]


of_logs = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)

# ---- one event ------------------------------------------------------------------------------------------------------

IDS: dict[str, Any] = {"run_id": "r1", "seq": 7}
DOCUMENTS: list[tuple[Event, str]] = [
    (
        Start(**IDS, session_id="s", message_id="m", user_message_id="u", model="x", protocol=1, heartbeat_ms=15000),
        '{"type":"start","run_id":"r1","seq":7,"session_id":"s","message_id":"m","user_message_id":"u","model":"x",'
        '"protocol":1,"heartbeat_ms":15000}',
    ),
    (Token(**IDS, content='Hé\n"🦜"'), '{"type":"token","run_id":"r1","seq":7,"content":"Hé\\n\\"🦜\\""}'),
    (Reasoning(**IDS, content=""), '{"type":"reasoning","run_id":"r1","seq":7,"content":""}'),
    (
        ToolInput(**IDS, call_id="c", tool="clock", delta='{"a'),
        '{"type":"tool_input","run_id":"r1","seq":7,"call_id":"c","tool":"clock","delta":"{\\"a"}',
    ),
    (
        ToolCall(**IDS, call_id="c", tool="t", args={"a": [1, None]}),
        '{"type":"tool_call","run_id":"r1","seq":7,"call_id":"c","tool":"t","args":{"a":[1,null]},'
        '"needs_approval":false,"executor":"server"}',
    ),
    (
        ToolProgress(**IDS, call_id="c", message=None, progress=1, total=2.5),
        '{"type":"tool_progress","run_id":"r1","seq":7,"call_id":"c","message":null,"progress":1,"total":2.5}',
    ),
    (
        ToolResult(**IDS, call_id="c", tool="t", result=None, is_error=False, truncated=False, duration_ms=3),
        '{"type":"tool_result","run_id":"r1","seq":7,"call_id":"c","tool":"t","result":null,"is_error":false,'
        '"truncated":false,"duration_ms":3}',
    ),
    (
        Snapshot(**IDS, parts=(ReasoningPart("R"), ToolCallPart(call_id="c", tool="t", args={}), TextPart("C"))),
        '{"type":"snapshot","run_id":"r1","seq":7,"parts":[{"type":"reasoning","text":"R"},{"type":"tool_call",'
        '"call_id":"c","tool":"t","args":{},"needs_approval":false,"executor":"server","result":null,'
        '"is_error":null,"truncated":null,"duration_ms":null},{"type":"text","text":"C"}]}',
    ),
    (
        Done(
            **IDS,
            session_id="s",
            message_id="m",
            finish_reason="stop",
            total_tokens=3,
            usage=Usage(1, 2),
            duration_ms=4,
        ),
        '{"type":"done","run_id":"r1","seq":7,"session_id":"s","message_id":"m","finish_reason":"stop",'
        '"total_tokens":3,"usage":{"input_tokens":1,"output_tokens":2,"estimated":false},"duration_ms":4}',
    ),
    (
        Error(**IDS, code="rate_limited", message="busy", retryable=True),
        '{"type":"error","run_id":"r1","seq":7,"code":"rate_limited","message":"busy","retryable":true,'
        '"retry_after":null}',
    ),
]


@pytest.mark.parametrize(("event", "document"), DOCUMENTS, ids=[type(event).__name__ for event, _ in DOCUMENTS])
def test_a_document_is_these_bytes(event: Event, document: str) -> None:
    made = record(event)
    assert (made.seq, made.data) == (7, document.encode())
    assert made.type == msgspec.json.decode(document)["type"]
    assert made.is_terminal == (made.type in TERMINAL_TYPES)


def test_every_type_of_event_has_its_layout_here() -> None:
    assert [type(event) for event, _ in DOCUMENTS] == list(EVENT_TYPES)


@given(drafts)
@of_logs
def test_a_recorded_event_comes_back_as_it_was_and_its_document_is_one_line(draft: Event) -> None:
    event = replace(draft, run_id=RUN_ID, seq=1)
    data = record(event).data
    assert decode(data) == event
    assert len(data.splitlines()) == len(data.decode().splitlines()) == 1


@given(drafts)
@of_logs
def test_every_event_fits_its_schema(draft: Event) -> None:
    document = msgspec.json.decode(record(replace(draft, run_id=RUN_ID, seq=1)).data)
    VALIDATOR.validate(document)
    for name in document:
        assert not VALIDATOR.is_valid({key: value for key, value in document.items() if key != name})


VALIDATOR: Any = jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize(
    "document",
    [
        "",
        "null",
        "{}",
        '{"type":"token","run_id":"r","seq":1}',
        '{"type":"told","run_id":"r","seq":1,"content":""}',
        '{"type":"token","run_id":"r","seq":"1","content":""}',
        '{"type":"token","run_id":"r","seq":1,"content":null}',
        '{"type":"error","run_id":"r","seq":1,"code":"oops","message":"","retryable":true,"retry_after":null}',
    ],
)
def test_what_is_no_event_is_refused(document: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(document.encode())


# ---- long text ------------------------------------------------------------------------------------------------------


@given(st.sampled_from([Token, Reasoning]), big_texts | texts)
@example(Token, "\x01" * 200_000)
@example(Reasoning, "🦜" * 100_000)
@example(Token, "\x85\u2028" * 20_000)
@example(Token, '"' * 64 * 1024)
@of_logs
def test_text_of_any_length_becomes_events_that_fit_and_add_up(kind: type[Token] | type[Reasoning], text: str) -> None:
    made = list(pieces(kind(content=text)))
    assert {type(piece) for piece in made} == {kind}
    assert "".join(piece.content for piece in made) == text
    for piece in made:
        assert len(record(replace(piece, run_id="r" * 64, seq=10**6)).data) <= EVENT_BYTES_LIMIT


@given(st.builds(Token, content=texts) | st.builds(Reasoning, content=texts))
@of_logs
def test_a_text_that_is_not_long_stays_one(text: Token | Reasoning) -> None:
    assert list(pieces(text)) == [text]


# ---- fold -----------------------------------------------------------------------------------------------------------


def by_hand(log: list[Event]) -> list[list[Any]]:
    """Parts as a client makes them that knows only the contract: kind, then text, or call and its result."""
    parts: list[list[Any]] = []
    for event in log:
        match event:
            case Token(content=text) | Reasoning(content=text) if text:
                if not parts or parts[-1][0] is not type(event):
                    parts.append([type(event), ""])
                parts[-1][1] += text
            case ToolCall():
                parts.append([ToolCall, event, None])
            case ToolResult():
                call = next(part for part in parts if part[0] is ToolCall and part[1].call_id == event.call_id)
                call[2] = event
    return parts


@given(logs())
@of_logs
def test_a_fold_is_what_a_client_puts_together(log: list[Event]) -> None:
    answer = fold(log)
    assert answer.content == "".join(event.content for event in log if isinstance(event, Token))
    expected = by_hand(log)
    assert len(answer.parts) == len(expected)
    for part, (kind, *facts) in zip(answer.parts, expected, strict=True):
        if not isinstance(part, ToolCallPart):
            assert (part, facts) == ((TextPart if kind is Token else ReasoningPart)(part.text), [part.text])
            continue
        call, result = facts
        for name in ("call_id", "tool", "args", "needs_approval", "executor"):
            assert getattr(part, name) == getattr(call, name)
        for name in ("result", "is_error", "truncated", "duration_ms"):
            assert getattr(part, name) == (getattr(result, name) if result else None)


def test_the_order_in_which_things_happened_is_the_order_of_the_parts() -> None:
    """Of two calls the second is answered first, and then the model goes on: text between two calls stays there."""
    call = ToolCall(call_id="a", tool="t", args={})
    result = ToolResult(call_id="b", tool="t", result=2, is_error=False, truncated=False, duration_ms=1)
    said: list[Event] = [Reasoning(content="hm"), Token(content="one"), Token(content=" two"), call]
    called: list[Event] = [replace(call, call_id="b"), result, replace(result, call_id="a", result=1)]
    parts = fold([*said, *called, Token(content="three"), Reasoning(content="so"), Token(content="four")]).parts
    told = [part.result if isinstance(part, ToolCallPart) else part for part in parts]
    texts = [TextPart("three"), ReasoningPart("so"), TextPart("four")]
    assert told == [ReasoningPart("hm"), TextPart("one two"), 1, 2, *texts]


@given(logs())
@of_logs
def test_what_parts_unfold_to_folds_to_them_again(log: list[Event]) -> None:
    parts = fold(log).parts
    events = list(unfold(parts))
    assert fold(events).parts == parts
    assert all(len(record(replace(each, run_id="r" * 64, seq=10**6)).data) <= EVENT_BYTES_LIMIT for each in events)


@given(logs())
@of_logs
def test_an_answer_is_retold_in_a_snapshot_and_what_does_not_fit_behind_it(log: list[Event]) -> None:
    answer = fold(log)
    snapshot, *rest = retold(answer.parts, RUN_ID, 10**6)
    before = Token(content="of before")
    assert fold([before, snapshot, *rest]) == answer
    whole = len(record(answer.snapshot(RUN_ID, 10**6)).data)
    assert (rest == []) == (whole <= EVENT_BYTES_LIMIT)
    assert len(record(replace(snapshot, run_id=RUN_ID, seq=10**6)).data) <= EVENT_BYTES_LIMIT


@given(logs(), st.data())
@of_logs
def test_a_fold_may_begin_at_any_snapshot_of_the_log(log: list[Event], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    before = fold(log[:cut])
    snapshot = before.snapshot(RUN_ID, cut)
    assert fold([snapshot, *log[cut:]]) == fold(log)
    assert fold([*log[:cut], snapshot, *log[cut:]]) == fold(log)
    assert decode(record(snapshot).data) == snapshot


@pytest.mark.parametrize("more", [0, 1])
def test_a_snapshot_takes_what_fits_into_one_event_to_the_byte(more: int) -> None:
    around = len(record(Answer((ReasoningPart("hm"), TextPart(""))).snapshot(RUN_ID, 10**6)).data)
    parts = (ReasoningPart("hm"), TextPart("x" * (EVENT_BYTES_LIMIT - around + more)))
    snapshot, *rest = retold(parts, RUN_ID, 10**6)
    assert isinstance(snapshot, Snapshot) and snapshot.parts == (parts[:1] if more else parts)
    assert fold([snapshot, *rest]).parts == parts


def test_a_call_that_is_told_twice_is_one_part() -> None:
    call = ToolCall(call_id="c", tool="t", args={})
    parts = fold([call, Token(content="so"), replace(call, args={"a": 1})]).parts
    assert parts == (ToolCallPart(call_id="c", tool="t", args={"a": 1}), TextPart("so"))


def test_a_fold_of_nothing_is_empty() -> None:
    assert fold([]) == Answer()
