"""The replay of an agent: where its run has waited, it is called anew, and says again what the run has told already."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from chatserver.answer import fold
from chatserver.call_checks import as_told
from chatserver.calls import Calls
from chatserver.dialogue import is_question
from chatserver.events import TEXTS, Event, Reasoning, Token, ToolCall, ToolResult, to_json
from chatserver.function_agent.yielded import Draft
from chatserver.parts import text_bytes
from chatserver.steps import Emit

HELD_BYTES_LIMIT = 64 * 1024
"""How much text is held back until a call shows whether the text is new."""


class _Told:
    """The text of one kind that the run has told, in sections between the calls, and how far the agent repeats it."""

    __slots__ = ("_at", "_sections", "_text", "differs")

    def __init__(self) -> None:
        self._text = ""
        self._sections = [0]  # Where each begins.
        self._at = 0
        self.differs = False
        """Whether the agent says something else here, in place of the section or behind all of it."""

    def add(self, text: str) -> None:
        self._text += text

    def end_section(self) -> int:
        """Where the text ends that was told before a call."""
        end = len(self._text)
        self._sections.append(end)
        return end

    @property
    def is_over(self) -> bool:
        return self._at == len(self._text)

    def new(self, text: str) -> str:
        """What is new of the next text: nothing, all of it, or also what it has begun with as the section does."""
        if self.differs:
            return text
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return ""
        self.differs = True
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(text, self._text[self._at :], strict=False))
        end = self._at + sum(1 for _ in alike)
        section = end if end == len(self._text) else self._sections[bisect_right(self._sections, end) - 1]
        text, self._at = (self._text[: self._at] + text)[section:], section
        return text

    def go_on(self, at: int) -> None:
        """The agent has come to a call, before which so much was told."""
        self._at, self.differs = max(self._at, at), False

    def end(self) -> None:
        """Whatever the agent says from now on is new."""
        self.go_on(len(self._text))


class Replay:
    """What an agent says and calls, without what its run has told before; of a run that begins, all is new.

    Calls with a tool and arguments of before get the recorded results, each once. Text is not told again as long as it
    is what was told. Where it differs, the next call decides: before a recorded call, the text stands for what was told
    there, and is dropped. Before a new call, at the end, and behind all recorded calls it is new.
    """

    def __init__(self, emit: Emit, calls: Calls, told: Sequence[Event] = ()) -> None:
        """``told``: what the run has told before the agent is called anew. No call of it waits any more."""
        self._emit, self._calls = emit, calls
        self._texts = {Token: _Told(), Reasoning: _Told()}
        self._recorded: list[tuple[ToolCall, ToolResult, tuple[int, ...]]] = []
        self._repeated: set[str] = set()  # Drafts of calls, whose results the agent is to repeat, too.
        self._held: list[Token | Reasoning] = []
        self._held_bytes = 0
        self._is_over = not told  # Looked up for each token: to look at the texts would take 0.8 µs.
        self._record(told)

    def _record(self, told: Sequence[Event]) -> None:
        results = {each.call_id: each for each in told if isinstance(each, ToolResult)}
        questions = {part.call_id for part in fold(told).parts if is_question(part)}
        for event in told:
            if isinstance(event, TEXTS):
                self._texts[type(event)].add(event.content)
            elif isinstance(event, ToolCall) and event.call_id not in questions:
                ends = tuple([each.end_section() for each in self._texts.values()])
                self._recorded.append((event, results[event.call_id], ends))

    def say(self, step: Draft) -> None:
        """Tell the run of a step, unless the step is repeated."""
        if self._is_over:
            self._emit(step)
        else:
            self._compare(step)
            has_more = self._recorded or self._repeated
            self._is_over = not has_more and all(each.is_over for each in self._texts.values())

    def _compare(self, step: Draft) -> None:
        if isinstance(step, TEXTS):
            self._say_text(step)
        elif isinstance(step, ToolCall):
            if self._result_of(step.tool, step.args) is None:
                self._new_call()
                self._emit(step)
            else:
                self._repeated.add(step.call_id)
        elif step.call_id in self._repeated:
            self._repeated.remove(step.call_id)
        else:
            self._emit(step)

    async def call(self, name: str, args: dict[str, Any]) -> ToolResult:
        """The recorded result of a call; a call that is new is made.

        Raises:
            TypeError, ValueError: JSON has no form for the arguments.
        """
        result = self._result_of(*as_told(name, to_json(args).decode())[:2]) if self._recorded else None
        if result is None:
            self._new_call()
            result = await self._calls.call(name, args)
        return result

    def end(self) -> None:
        """The agent has ended: what is held back is new."""
        self._release()

    def _say_text(self, step: Token | Reasoning) -> None:
        kind = type(step)
        if not (text := self._texts[kind].new(step.content)):
            return
        self._held.append(kind(content=text))
        self._held_bytes += text_bytes(text)
        if not self._recorded or self._held_bytes > HELD_BYTES_LIMIT:
            self._release()

    def _result_of(self, tool: str, args: dict[str, Any]) -> ToolResult | None:
        """The recorded result of a call that is repeated; None: the call is new."""
        for index, (call, result, ends) in enumerate(self._recorded):
            if (call.tool, call.args) == (tool, args):
                del self._recorded[index]
                self._held.clear()
                self._held_bytes = 0
                for texts, end in zip(self._texts.values(), ends, strict=True):
                    texts.go_on(end)
                return result
        return None

    def _new_call(self) -> None:
        self._release()
        self._held_bytes = 0
        for each in self._texts.values():
            if self._recorded:
                each.go_on(0)
            else:
                each.end()

    def _release(self) -> None:
        """Tell what is held back."""
        held, self._held = self._held, []
        for each in held:
            self._emit(each)
