"""What the demo model says: a function of the dialogue and of the tools on offer."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

LONG_WORDS_LIMIT = 20_000
ASKED_CHARS_LIMIT = 1000
"""How much of the newest message the demo looks at."""

HELP = """I am the demo model that is built into chatserver: no key, no network, a script. \
This answer comes to you as numbered events over Server-Sent Events or WebSocket. \
Leave at any event and come back on either transport with `after` set to the last `seq` you saw: \
nothing is lost and nothing comes twice.

Try one of these:

- **What time is it in Tokyo?** I call the `clock` tool.
- **What is 17 * 23?** I call the `calculator` tool.
- **Think about rivers.** I reason before I answer.
- **Count to 500.** A long answer, for cutting and resuming.
- **Book a table for 4 at 19:30.** `book_table` waits for your approval, also through a reload and a restart.
- **Work for 10 seconds.** `work` tells how far it is.
- **What is my screen size?** I call `screen_size`, a tool that your client has and not the server.
- **Fail with 429.** Any of {faults}: each ends in the `error` event that a real model server would cause.

Set `OPENAI_API_KEY` or `OPENAI_BASE_URL` and the same server streams from OpenAI, vLLM, Ollama or llama.cpp."""

NO_SCREEN = """I cannot see your screen, and your client offers no tool for it. A client offers tools in its request: \
`"tools": [{"name": "screen_size", "description": "…", "parameters": {"type": "object"}}]`. \
I call such a tool, your client runs it and answers with the result. The chat page of this server does so."""

FAULTS = ("429", "quota", "401", "context", "500", "stall", "truncate", "garbage")

ZONES = {
    "tokyo": "Asia/Tokyo",
    "berlin": "Europe/Berlin",
    "london": "Europe/London",
    "paris": "Europe/Paris",
    "new york": "America/New_York",
    "san francisco": "America/Los_Angeles",
    "delhi": "Asia/Kolkata",
    "sydney": "Australia/Sydney",
}

# Linear patterns: possessive quantifiers never backtrack, and no match begins in the middle of a number.
_NUMBER = r"\(*+-?\d[\d.]*+\)*+"
_OPERATOR = r"(?:\s*+(?:\*\*|//|[+*%x×÷])\s*+|\s++[-/]\s++)"  # 2026-11-22 is a date, and 1/2 may be one too.
_BEGIN = r"(?:(?<!\()(?=\()|(?<![\d.])\.++(?=\d)|(?<![\d.(]))"
_SUM = re.compile(rf"{_BEGIN}(?P<sum>{_NUMBER}(?:{_OPERATOR}{_NUMBER})++)")
_FAULT = re.compile(rf"(?:^\W*(?:please )?fail\b|\bfail with\b)(?:.*?\b(?P<fault>{'|'.join(FAULTS)}))?", re.IGNORECASE)
_COUNT = re.compile(r"\bcount\b", re.IGNORECASE)
_DIGITS = re.compile(r"\d{1,6}")
_THINK = re.compile(r"\b(?:think|reason|ponder)\w*\b", re.IGNORECASE)
_TIME = re.compile(r"\b(?:time|clock|date|day)\b", re.IGNORECASE)
_BOOK = re.compile(r"\b(?:book|reserve)\b", re.IGNORECASE)
_TABLE = re.compile(r"\btable\b", re.IGNORECASE)
_PEOPLE = re.compile(r"\bfor (\d{1,3})\b", re.IGNORECASE)
_HOUR = re.compile(r"\bat (\d{1,2}:\d{2})\b", re.IGNORECASE)
_WORK = re.compile(r"\bwork (?:for )?(\d{1,4}) ?s", re.IGNORECASE)
_SCREEN = re.compile(r"\bscreen\b", re.IGNORECASE)


class PromptMessage(Struct, frozen=True, gc=False):
    """A message of a request, undecoded: only what the newest messages say is read."""

    role: str = ""
    content: msgspec.Raw = msgspec.Raw(b'""')
    tool_calls: msgspec.Raw = msgspec.Raw(b"[]")
    tool_call_id: str = ""

    @property
    def text(self) -> str:
        """The content; one of several parts is read as its JSON."""
        content = bytes(self.content)
        return msgspec.json.decode(content, type=str) if content[:1] == b'"' else content.decode()

    def called(self) -> dict[str, str]:
        """The tools that this message calls, by the ids of the calls."""
        calls = msgspec.json.decode(self.tool_calls, type=list[PromptCall] | None)
        return {call.id: call.function.name for call in calls or ()}


class Function(Struct, frozen=True, gc=False):
    name: str = ""


class PromptCall(Struct, frozen=True, gc=False):
    id: str = ""
    function: Function = Function()


class Table(Struct, frozen=True):
    """What ``book_table`` returns."""

    people: int
    time: str
    confirmation: str


class Work(Struct, frozen=True):
    """What ``work`` returns."""

    worked_seconds: int


class Area(Struct, frozen=True):
    width: float
    height: float


class Screen(Struct, frozen=True):
    """What the page's ``screen_size`` returns."""

    screen: Area


RETELLINGS: dict[str, tuple[Any, Callable[[Any], str], str]] = {
    "book_table": (
        Table,
        lambda it: f"A table for **{it.people}** at **{it.time}** is booked, under **{it.confirmation}**.",
        "I have no table for you:",
    ),
    "work": (Work, lambda it: f"I have worked for **{it.worked_seconds}** s.", "I have not worked to the end:"),
    "screen_size": (
        Screen,
        lambda it: f"Your screen has **{it.screen.width:g} × {it.screen.height:g}** pixels.",
        "I do not know the size of your screen. Your client says:",
    ),
}
"""For each tool: the form of its result, the result in words, and what is said before any other text."""


class Script(Struct, frozen=True):
    """What the demo says in one turn, and the fault it ends with."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    fault: str | None = None


def script_for(messages: Sequence[PromptMessage], tools: set[str]) -> Script:
    """Decide what to say to the newest message, or to the results of the tools that were called for it."""
    since = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "user"), 0)
    asked = messages[since].text[:ASKED_CHARS_LIMIT] if messages else ""
    if results := _results(messages[since:]):
        return Script(text=" ".join(_told(results)))
    if fault := _FAULT.search(asked):
        kind = (fault["fault"] or "truncate").lower()
        return Script(text="I was told to fail, and so I stop in the middle of this", fault=kind)
    if (count := _COUNT.search(asked)) and (last := _DIGITS.search(asked, count.end())):
        return Script(text=" ".join(str(n) for n in range(1, min(int(last[0]), LONG_WORDS_LIMIT) + 1)))
    calls = tuple(_calls(asked, tools))
    thoughts = _thoughts(asked) if _THINK.search(asked) else ""
    if calls:
        return Script(text="Let me look that up. ", reasoning=thoughts, calls=calls)
    if thoughts:
        return Script(
            text="I have thought about it: it depends, and now you have seen my reasoning.", reasoning=thoughts
        )
    return Script(text=NO_SCREEN if _SCREEN.search(asked) else HELP.format(faults=", ".join(FAULTS)))


def _results(messages: Sequence[PromptMessage]) -> list[tuple[str, str]]:
    """Each tool that has answered, and what."""
    names: dict[str, str] = {}
    for each in messages:
        names |= each.called()
    return [(names.get(each.tool_call_id, ""), each.text) for each in messages if each.role == "tool"]


def _told(results: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The results in words. What is no result of the tool's own is one of the server's: a refusal, a failure."""
    if plain := [text for name, text in results if name not in RETELLINGS]:
        yield f"The tools answered: {', '.join(f'**{text}**' for text in plain)}."
    for name, text in results:
        if name not in RETELLINGS:
            continue
        kind, success, failure = RETELLINGS[name]
        try:
            yield success(msgspec.json.decode(text, type=kind))
        except (msgspec.DecodeError, UnicodeError):
            yield f"{failure} {text}"


def _calls(asked: str, tools: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "clock" in tools and _TIME.search(asked):
        zones = [zone for city, zone in ZONES.items() if city in asked.lower()]
        for zone in zones or ["UTC"]:
            yield "clock", {"timezone": zone}
    if "calculator" in tools:
        for found in _SUM.finditer(asked):
            expression = found["sum"].replace("x", "*").replace("×", "*").replace("÷", "/")
            yield "calculator", {"expression": expression}
    if "book_table" in tools and _TABLE.search(asked) and _BOOK.search(asked):
        people, time = _PEOPLE.search(asked), _HOUR.search(asked)
        yield "book_table", {"people": int(people[1]) if people else 2, "time": time[1] if time else "19:00"}
    if "work" in tools and (work := _WORK.search(asked)):
        yield "work", {"seconds": int(work[1])}
    if "screen_size" in tools and _SCREEN.search(asked):
        yield "screen_size", {}


def _thoughts(asked: str) -> str:
    return (
        f"The user says {asked[:200]!r}. I am a script, so I cannot really think; but I can show how reasoning comes: "
        "first the question, then what is known, then what follows from it."
    )
