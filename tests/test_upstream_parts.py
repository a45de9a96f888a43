"""What reads a model server, part by part: thoughts, arguments, repetitions, parameters, words for the log."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from chatserver.app import APIS
from chatserver.dialogue import AssistantTurn, Leavings, ToolSpecification, TurnCall, told_to
from chatserver.providers import ModelRequest
from chatserver.providers.api import ARGUMENTS_CHARS_LIMIT
from chatserver.providers.chat_completions.api import COMPLETIONS_NAMES, ChatCompletions
from chatserver.providers.chat_completions.repetition import Told
from chatserver.providers.chat_completions.tool_calls import Arguments
from chatserver.providers.parameters import MODELS_LIMIT, Parameters
from chatserver.providers.thinking import BLANK_CHARS, TAGS, ThinkTags
from chatserver.providers.words import LINE_CHARS, WORDS_CHARS, loggable, words_of
from chatserver.settings import PARAMETERS
from tests.cost import LINEAR, growth

NONE: frozenset[str] = frozenset()


# ---- thoughts -------------------------------------------------------------------------------------------------------


def split(pieces: list[str]) -> tuple[str, str]:
    """The thoughts and the answer."""
    tags = ThinkTags()
    parts = [part for piece in pieces for part in tags.split(piece)] + tags.rest()
    assert all(text for _, text in parts)
    return "".join(text for is_thought, text in parts if is_thought), "".join(
        text for is_it, text in parts if not is_it
    )


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place for place in places if place < len(text))})
    return [text[start:end] for start, end in pairwise(ends)]


words = st.text("<>/thinkseed:[]THINK \n◁▷a", max_size=30)


@given(st.sampled_from(TAGS), words, words, st.lists(st.integers(0, 80)))
@example(TAGS[0], "hm", "Hi", list(range(80)))
@example(TAGS[1], "</think>", "<think>x</think>", list(range(80)))
def test_thoughts_are_told_apart_however_they_are_cut(
    tags: tuple[str, str], thought: str, answer: str, places: list[int]
) -> None:
    opening, closing = tags
    thought = thought.replace(closing, "")
    text = f" \n{opening}{thought}{closing}\n\n{answer}"
    if closing in f"{thought}{closing}"[:-1]:
        return
    assert split(cut(text, places)) == (thought.lstrip(), answer.lstrip())


@given(words, st.lists(st.integers(0, 40)))
def test_what_opens_with_no_tag_is_answer_whole(text: str, places: list[int]) -> None:
    if not any(text.lstrip().startswith(opening) for opening, _ in TAGS):
        assert split(cut(text, places)) == ("", text)


def test_blanks_are_not_waited_through_for_ever() -> None:
    tags = ThinkTags()
    for _ in range(BLANK_CHARS + 1):
        tags.split("\n")
    assert tags.is_past


# ---- arguments ------------------------------------------------------------------------------------------------------

some_value = st.text(max_size=10) | st.integers() | st.none() | st.just([{}, {"a": "{}"}])
some_arguments = st.dictionaries(st.text(max_size=5), some_value, max_size=4).map(json.dumps)


def put_together(pieces: list[str]) -> str:
    arguments = Arguments()
    for piece in pieces:
        arguments.add(piece)
    return arguments.text()


@given(some_arguments, st.lists(st.integers(0, 100)))
@example('{"a":{"a":{"a":1}}}', [5, 10])
@example('{"a": "{\\"a\\": 1}{}"}', list(range(40)))
@example('{"a":[{},{},{}]}', [5, 8, 11])
@example('{"a":111111}', list(range(20)))
def test_fragments_of_arguments_are_joined_however_they_are_cut(text: str, places: list[int]) -> None:
    assert put_together(cut(text, places)) == text


@given(some_arguments, st.lists(st.integers(1, 100), min_size=1))
def test_arguments_that_grow_are_not_joined(text: str, places: list[int]) -> None:
    ends = sorted(place for place in places if place < len(text))
    assert put_together([*(text[:end] for end in ends), text]) == text
    assert put_together([*(text[:end] for end in ends), text, text]) == text


@given(some_arguments, st.lists(st.integers(0, 100)))
def test_arguments_that_are_said_again_at_the_end_are_there_once(text: str, places: list[int]) -> None:
    assert json.loads(put_together([*cut(text, places), text])) == json.loads(text)
    assert json.loads(put_together([*cut(text, places), json.dumps(json.loads(text), indent=1)])) == json.loads(text)


@given(some_arguments, st.lists(st.integers(0, 100)))
@example('{"a": 1}', [4, 8])
def test_whoever_looks_on_sees_arguments_once_however_they_come(text: str, places: list[int]) -> None:
    ends = sorted(place for place in places if 0 < place < len(text))
    for pieces in (
        cut(text, places),
        [*cut(text, places), text],
        [*(text[:end] for end in ends), text, text],
        ["{}", *cut(text, places)],
    ):
        seen = "".join(map(Arguments().add, pieces))
        assert seen == text or (text == "{}" and seen == "")


def test_to_look_for_a_repetition_costs_about_as_much_as_the_arguments() -> None:
    def write(count: int) -> None:
        arguments, size = Arguments(), 1
        arguments.add("x")
        while size < count:  # Each is as long as all before, and is no repetition only at its end.
            arguments.add("x" * (size - 1) + "y")
            size *= 2
        for _ in range(count):
            arguments.add("x")

    assert growth(write, 10_000) < LINEAR


def test_arguments_that_grow_to_their_limit_take_the_memory_of_one() -> None:
    text, arguments = json.dumps({"a": "x" * (ARGUMENTS_CHARS_LIMIT - 100)}), Arguments()
    for end in [*range(1, len(text), len(text) // 50), len(text)]:
        arguments.add(text[:end])
    assert arguments.text() == text
    assert len(arguments._pieces) == 1


def test_fragments_behind_snapshots_are_joined_in_the_time_of_their_length() -> None:
    arguments, beginning = Arguments(), '{"a":"' + "x" * 100_000
    for size in range(20):
        arguments.add(beginning[: 100_000 + size])
    for _ in range(200_000):  # To copy what there is for each would take minutes.
        arguments.add("yz")
    arguments.add('"}')
    assert json.loads(arguments.text()) == {"a": beginning[6:100_019] + "yz" * 200_000}


def test_it_is_not_looked_for_ever_whether_arguments_are_whole() -> None:
    arguments, looks = Arguments(), 0
    for _ in range(10_000):
        arguments.add("{}")
        looks += arguments._looks
        arguments.is_whole()
    assert arguments._looks < 100


# ---- repetitions ----------------------------------------------------------------------------------------------------


@given(st.lists(st.text("ha \n", min_size=1, max_size=6), min_size=1, max_size=8))
def test_no_text_is_dropped_that_comes_before_the_end(pieces: list[str]) -> None:
    told = Told()
    assert [told.new(piece, may_repeat=False, is_whole=False) for piece in pieces] == pieces


@given(st.lists(st.text("ab c", min_size=1, max_size=300), min_size=1, max_size=5))
def test_a_message_that_holds_the_rest_adds_the_rest(pieces: list[str]) -> None:
    told, text = Told(), ""
    for piece in pieces:
        text += piece
        assert told.new(text, may_repeat=False, is_whole=True) == piece
    assert told.new(text, may_repeat=False, is_whole=True) == ""


# ---- parameters -----------------------------------------------------------------------------------------------------

LEFT = dict.fromkeys(("reasoning_content", "reasoning", "reasoning_details", "extra_content"), "x")
TURN = AssistantTurn("", (TurnCall("c", "f", {}, "c"),), Leavings("maker", {"message": LEFT, "calls": [LEFT]}))
ALL = ModelRequest(
    model="m", messages=[TURN], tools=[ToolSpecification("f", "", {})], temperature=0.5, max_output_tokens=9
)
REFUSALS: list[tuple[str, str | None]] = [
    ("m does not support tools", "tools"),
    ("registry.ollama.ai/library/gemma:2b does not support tools", "tools"),
    ('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', "tools"),
    ("tools param requires --jinja flag", "tools"),
    ("No endpoints found that support tool use.", "tools"),
    ("Function calling is not enabled for this model", "tools"),
    ("This model doesn't support function calling", "tools"),
    ("error extra_forbidden body stream_options include_usage Extra inputs are not permitted", "stream_options"),
    ("Unrecognized request argument supplied: stream_options", "stream_options"),
    ("Unknown parameter: 'stream_options.include_usage'.", "stream_options"),
    ("stream_options can only be set when stream=true", "stream_options"),
    ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"),
    ("Unsupported value: 'temperature' does not support 0.5. Only the default (1) is supported.", "temperature"),
    ("`temperature` is deprecated for this model.", "temperature"),
    ("Your organization must be verified to stream this model. stream unsupported_value", "stream"),
    ("streaming is not supported", "stream"),
    ("temperature must be between 0 and 1", None),
    ("max_tokens is too large: 100000", None),
    ("string too long. Expected a string with maximum length 64, but got 70 instead. tools[0].function.name", None),
    ("the server is overloaded", None),
    ("'messages.1' : property 'reasoning_content' is unsupported", "reasoning_content"),
    ("property 'reasoning' is unsupported, did you mean 'role'?", "reasoning"),
    ("messages.1.assistant.reasoning_details: Extra inputs are not permitted", "reasoning_details"),
    ('Invalid JSON payload received. Unknown name "extra_content": Cannot find field.', "extra_content"),
]


def taken(omitted: frozenset[str] = NONE, *, is_foreign: bool) -> Parameters:
    return Parameters(ChatCompletions(is_foreign=is_foreign), omitted)


@pytest.mark.parametrize(("words", "name"), REFUSALS)
def test_the_parameter_that_a_refusal_is_about(words: str, name: str | None) -> None:
    assert taken(is_foreign=True).in_words(ALL, NONE, words) == name


def test_what_can_be_left_out_is_what_settings_name() -> None:
    found = {name: set(api.omittable) for name, api in APIS.items()}
    assert found == {name: set(names) for name, names in PARAMETERS.items()}


def sent(
    request: ModelRequest, *refused: str, is_foreign: bool = False, omitted: frozenset[str] = NONE
) -> dict[str, Any]:
    parameters = taken(omitted, is_foreign=is_foreign)
    body: dict[str, Any] = json.loads(parameters.body(request, parameters.refused_by("m") | frozenset(refused)))
    return body


def test_what_is_refused_is_left_out_and_the_limit_has_two_names() -> None:
    assert set(sent(ALL)) == {*("model", "messages", *COMPLETIONS_NAMES)} - {"max_tokens", *LEFT}
    assert sent(ALL, is_foreign=True)["max_tokens"] == 9
    assert sent(ALL, "max_tokens", is_foreign=True)["max_completion_tokens"] == 9
    assert sent(ALL, "max_completion_tokens")["max_tokens"] == 9
    assert not {"max_tokens", "max_completion_tokens"} & set(sent(ALL, "max_tokens", "max_completion_tokens"))
    assert sent(ALL, omitted=frozenset({"stream"})).keys().isdisjoint({"stream_options"})
    assert sent(ALL, "stream")["stream"] is False
    for name in COMPLETIONS_NAMES:
        assert name not in sent(ALL, name) or name == "stream"


def asked_of(maker: str) -> ModelRequest:
    return replace(ALL, messages=told_to(maker, ALL.messages))


def test_a_field_that_a_server_does_not_want_back_is_left_out_of_its_messages() -> None:
    def fields(*refused: str, maker: str = "maker") -> list[set[str]]:
        body = json.loads(taken(is_foreign=True).body(asked_of(maker), frozenset(refused)))
        (message,) = body["messages"]
        return [each.keys() & LEFT.keys() for each in (message, *message["tool_calls"])]

    assert fields() == [set(LEFT)] * 2
    assert fields("reasoning") == [set(LEFT) - {"reasoning"}] * 2
    assert fields(maker="another") == [set()] * 2
    words = "property 'reasoning' is unsupported"
    assert taken(is_foreign=True).in_words(asked_of("another"), NONE, words) is None


def test_models_are_remembered_up_to_a_limit() -> None:
    parameters = taken(is_foreign=True)
    for number in range(MODELS_LIMIT):
        parameters.remember(str(number), frozenset({"tools"}))
    assert parameters.refused_by("0") == {"tools"}
    parameters.remember("one more", frozenset({"stream"}))
    assert parameters.refused_by("0") == {"tools"}
    assert parameters.refused_by("1") == NONE


# ---- words for the log ----------------------------------------------------------------------------------------------


def test_words_are_the_texts_of_a_refusal_without_what_it_quotes() -> None:
    body = {"detail": [{"type": "x", "loc": ["body", 0], "msg": "no\n\tgood", "input": {"messages": "SECRET"}}]}
    assert words_of(body) == "x body 0 no good"
    assert words_of({"error": {"code": "1301", "message": "m", "failed_generation": "SECRET"}}) == "code 1301 m"
    assert len(words_of(["x" * 100] * 10_000)) <= WORDS_CHARS
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    assert words_of(deep) == ""


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: CANARY-1234. You can find",
        "Authorization: Bearer CANARY-1234 refused",
        "x-api-key: CANARY-1234",
        "{'api_key': 'CANARY-1234'}",
        "GET /v1?key=CANARY-1234&x=1",
        "token=CANARY-1234",
        "sk-proj-CANARY-1234 is no good",
        "gsk_CANARY-1234",
        "the key is CANARY-1234",
    ],
)
def test_no_secret_gets_into_the_log(text: str) -> None:
    assert "CANARY" not in loggable(text, ["CANARY-1234"], [])
    if "the key is" not in text:
        assert "CANARY" not in loggable(text, [], [])


def test_a_line_is_one_line_and_short() -> None:
    line = loggable("a\x1b[31m\r\n\u2028b" + "x" * 5000, [], [])
    assert line.isprintable()
    assert len(line) == LINE_CHARS


def test_no_piece_of_a_dialogue_gets_into_the_log() -> None:
    prompt = "My diagnosis is something that nobody else\nshall ever come to know."
    line = loggable(f"cannot answer '{' '.join(prompt.split())}': bad", [], ["x" * 100_000, "", prompt])
    assert line == "cannot answer '…': bad"
    assert loggable("the context is too long", [], ["the context"]) == "the context is too long"
    for size in range(12, len(prompt)):
        assert "…" in loggable(f"no: {' '.join(prompt[:size].split())}", [], [prompt])
