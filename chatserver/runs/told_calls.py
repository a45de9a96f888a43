"""The tool calls that a run was told: which have their result, and which wait for an answer."""

from collections.abc import Collection, Sequence
from typing import TypeAlias

from chatserver.answer import closed
from chatserver.commands import is_id
from chatserver.dialogue import INTERRUPTED_CALL
from chatserver.events import ToolCall, ToolInput, ToolProgress, ToolResult
from chatserver.parts import ToolCallPart
from chatserver.waiting import unanswered

CallStep: TypeAlias = ToolInput | ToolCall | ToolProgress | ToolResult


class ToldCalls:
    """Empty at first. A call is open until it has its result."""

    __slots__ = ("_has_result", "begun", "held")

    def __init__(self) -> None:
        self._has_result: dict[str, bool] = {}
        self.held: dict[str, str | None] = {}
        """The calls that wait; of a question, with the call whose tool asks."""
        self.begun: dict[str, float] = {}
        """When each call was told, without those of an earlier process."""

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._has_result

    def resume(self, calls: Sequence[ToolCallPart], waiting: Collection[str]) -> None:
        """Those of an earlier process, where these wait. Whoever has asked a question is gone."""
        self._has_result = {call.call_id: call.is_error is not None for call in calls}
        self.held = dict.fromkeys(waiting)

    def allow(self, step: object) -> bool:
        """Whether this can be told: a call with an id of its own, or something of a call without a result."""
        if isinstance(step, ToolInput | ToolCall):
            return is_id(step.call_id) and step.call_id not in self
        return isinstance(step, ToolProgress | ToolResult) and self.is_open(step.call_id)

    def tell(self, step: CallStep) -> None:
        """This is told."""
        if isinstance(step, ToolCall):
            self._has_result[step.call_id] = False
        elif isinstance(step, ToolResult):
            self._has_result[step.call_id] = True
            self.held.pop(step.call_id, None)

    def is_open(self, call_id: str) -> bool:
        """Whether the call was told, and not its result."""
        return self._has_result.get(call_id) is False

    @property
    def has_open(self) -> bool:
        """Whether a call was told, and not its result."""
        return not all(self._has_result.values())

    def is_held(self, call_id: str) -> bool:
        """Whether the call waits."""
        return call_id in self.held

    def known(self, call: ToolCallPart) -> str:
        """What is known of a call without a result."""
        return unanswered(call) if self.is_held(call.call_id) else INTERRUPTED_CALL

    def closed(self, call: ToolCallPart, now: float, resumed_at: float) -> ToolCallPart:
        """A call without a result, with what is known of it; one of an earlier process was ``resumed_at`` then."""
        began = self.begun.get(call.call_id, resumed_at)
        return closed(call, self.known(call), round((now - began) * 1000))

    def hold(self, call_id: str, asker: str | None) -> None:
        """The call waits for an answer, and the one whose tool asks, for this call."""
        self.held[call_id] = asker

    def release(self, call_id: str) -> None:
        """The call has its answer."""
        self.held.pop(call_id, None)

    @property
    def questions(self) -> int:
        """For how many answers to questions a tool of this process waits."""
        return sum(asker is not None for asker in self.held.values())

    @property
    def is_resting(self) -> bool:
        """Whether calls wait, and no other one goes on."""
        still = {*self.held, *self.held.values()}
        return bool(self.held) and all(
            has_result or call_id in still for call_id, has_result in self._has_result.items()
        )
