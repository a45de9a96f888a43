"""Function calls of a turn, put together from the events of the items that they are."""

from collections.abc import Iterator
from typing import Any

from chatserver.commands import new_id
from chatserver.providers import WANTED_CALLS_LIMIT, OnDelta, ToolCallFragment, ToolCallRequest
from chatserver.providers.api import ARGUMENTS_CHARS_LIMIT
from chatserver.providers.clean_text import Cleaner, cleaned
from chatserver.providers.faults import endless_arguments, too_many_calls


class _Call:
    """A call whose arguments are still coming."""

    __slots__ = "arguments", "call_id", "cleaner", "name"

    def __init__(self, call_id: str, name: str) -> None:
        self.call_id = call_id
        self.name = name
        self.arguments: list[str] = []
        self.cleaner = Cleaner()


class FunctionCalls:
    """The calls of one turn, by their numbers in its output."""

    __slots__ = "_calls", "_chars", "_ids", "_on_delta"

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self._calls: dict[int, _Call] = {}
        self._ids: set[str] = set()
        self._chars = 0

    def begin(self, index: int, item: dict[str, Any]) -> None:
        """A call begins, or is whole: what an item says of it replaces what was said before.

        Raises:
            Fault: the turn has too many calls, or their arguments are too long.
        """
        call = self._calls.get(index)
        name, arguments = item.get("name"), item.get("arguments")
        if call is None:
            if len(self._calls) == WANTED_CALLS_LIMIT:
                raise too_many_calls()
            call = self._calls[index] = _Call(self._own_id(item.get("call_id")), "")
        if isinstance(name, str) and name:
            call.name = cleaned(name)
        if isinstance(arguments, str) and arguments:
            self.replace(index, arguments)

    def add(self, index: int, text: str) -> None:
        """The next piece of a call's arguments, which is shown.

        Raises:
            Fault: the arguments are too long.
        """
        self._append(index, text)
        call = self._calls[index]
        if piece := call.arguments[-1]:
            self._on_delta(ToolCallFragment(call.call_id, call.name, piece))

    def _append(self, index: int, text: str) -> None:
        if (call := self._calls.get(index)) is None:
            self.begin(index, {})
            call = self._calls[index]
        text = call.cleaner.clean(text)
        call.arguments.append(text)
        self._chars += len(text)
        if self._chars > ARGUMENTS_CHARS_LIMIT:
            raise endless_arguments()

    def replace(self, index: int, arguments: str) -> None:
        """All of a call's arguments.

        Raises:
            Fault: the arguments are too long.
        """
        if (call := self._calls.get(index)) is not None:
            self._chars -= sum(map(len, call.arguments))
            call.arguments, call.cleaner = [], Cleaner()
        self._append(index, arguments)

    def requests(self) -> Iterator[ToolCallRequest]:
        """The complete calls, in the order of the output."""
        for _, call in sorted(self._calls.items()):
            yield ToolCallRequest(call.call_id, call.name, "".join([*call.arguments, call.cleaner.rest()]))

    def _own_id(self, call_id: Any) -> str:
        """The id of a new call; one is made up where the server gives none, or one that is taken."""
        own = cleaned(call_id) if isinstance(call_id, str) else ""
        if not own or own in self._ids:
            own = f"call_{new_id()}"
        self._ids.add(own)
        return own
