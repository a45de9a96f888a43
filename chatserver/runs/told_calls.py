"""The tool calls that a run was told: which have their result, and which wait for an answer."""

from collections.abc import Collection, Sequence

from chatserver.dialogue import INTERRUPTED_CALL
from chatserver.parts import ToolCallPart
from chatserver.waiting import unanswered


class ToldCalls:
    """Empty at first. A call is open until it has its result."""

    __slots__ = ("_has_result", "_held")

    def __init__(self) -> None:
        self._has_result: dict[str, bool] = {}
        self._held: dict[str, str | None] = {}  # Those that wait; of a question, with the call whose tool asks.

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._has_result

    def resume(self, calls: Sequence[ToolCallPart], waiting: Collection[str]) -> None:
        """Those of an earlier process, where these wait. Whoever has asked a question is gone."""
        self._has_result = {call.call_id: call.is_error is not None for call in calls}
        self._held = dict.fromkeys(waiting)

    def begin(self, call_id: str) -> None:
        """A call is told."""
        self._has_result[call_id] = False

    def end(self, call_id: str) -> None:
        """A call has its result."""
        self._has_result[call_id] = True
        self._held.pop(call_id, None)

    def is_open(self, call_id: str) -> bool:
        """Whether the call was told, and not its result."""
        return self._has_result.get(call_id) is False

    @property
    def has_open(self) -> bool:
        """Whether a call was told, and not its result."""
        return not all(self._has_result.values())

    def is_held(self, call_id: str) -> bool:
        """Whether the call waits."""
        return call_id in self._held

    def known(self, call: ToolCallPart) -> str:
        """What is known of a call without a result."""
        return unanswered(call) if self.is_held(call.call_id) else INTERRUPTED_CALL

    def hold(self, call_id: str, asker: str | None) -> None:
        """The call waits for an answer, and the one whose tool asks, for this call."""
        self._held[call_id] = asker

    def release(self, call_id: str) -> None:
        """The call has its answer."""
        self._held.pop(call_id, None)

    @property
    def has_held(self) -> bool:
        """Whether calls wait."""
        return bool(self._held)

    @property
    def questions(self) -> int:
        """For how many answers to questions a tool of this process waits."""
        return sum(asker is not None for asker in self._held.values())

    @property
    def is_resting(self) -> bool:
        """Whether calls wait, and no other one goes on."""
        still = {*self._held, *self._held.values()}
        return self.has_held and all(has_result or call_id in still for call_id, has_result in self._has_result.items())
