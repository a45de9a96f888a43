"""From the fragments of calls that a model is writing to the few events that show them."""

from collections.abc import Callable

from chatserver.commands import NAME_CHARS_LIMIT
from chatserver.events import TEXT_CHARS_PER_EVENT, ToolInput
from chatserver.providers import WANTED_CALLS_LIMIT, ToolCallFragment

INPUT_SHARE = 8
"""An event has at least an eighth of what was shown before: the first come at once, and 32 KiB take some 100."""

INPUT_CHARS_LIMIT = 32 * 1024
"""How much of a call's arguments is shown: longer ones are refused anyway."""


class _Written:
    """One call as far as it is written, and what of it waits to be shown."""

    __slots__ = ("call_id", "has_several", "shown", "tool", "waiting", "waiting_chars")

    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.tool = ""
        self.has_several = False
        self.shown = self.waiting_chars = 0
        self.waiting: list[str] = []

    def add(self, text: str) -> None:
        self.waiting.append(text)
        self.waiting_chars += len(text)

    @property
    def is_due(self) -> bool:
        return bool(self.tool) and self.waiting_chars * INPUT_SHARE >= self.shown

    def take(self) -> str:
        """What waits, up to the limit."""
        text = "".join(self.waiting)[: INPUT_CHARS_LIMIT - self.shown]
        self.waiting.clear()
        self.shown, self.waiting_chars = self.shown + len(text), 0
        return text


class ToolInputs:
    """The calls that the model is writing in one turn, each under the id that ``name`` gives it."""

    __slots__ = ("_emit", "_name", "_written")

    def __init__(self, emit: Callable[[ToolInput], None], name: Callable[[str], str]) -> None:
        """``name``: from the id that the provider has for a call to the call's id in the run."""
        self._emit = emit
        self._name = name
        self._written: dict[str, _Written] = {}

    def add(self, fragment: ToolCallFragment) -> None:
        """Show a fragment, alone or together with those before it; the first text when another comes: it may be all."""
        written = self._written.get(fragment.call_id)
        if written is None:
            if len(self._written) == WANTED_CALLS_LIMIT:
                return
            self._written[fragment.call_id] = written = _Written(self._name(fragment.call_id))
        written.tool = written.tool or fragment.name[:NAME_CHARS_LIMIT]
        if not fragment.arguments:
            return
        if written.waiting and not written.has_several:
            written.has_several = True
            self._show(written)
        written.add(fragment.arguments)
        if written.has_several and written.is_due:
            self._show(written)

    def end(self, own_id: str) -> str:
        """The call is complete: show the rest of it, unless nothing was shown; the call's id in the run."""
        written = self._written.pop(own_id, None)
        if written is None:
            return self._name(own_id)
        if written.shown:
            self._show(written)
        return written.call_id

    def _show(self, written: _Written) -> None:
        if not written.tool:
            return
        text = written.take()
        for start in range(0, len(text), TEXT_CHARS_PER_EVENT):
            delta = text[start : start + TEXT_CHARS_PER_EVENT]
            self._emit(ToolInput(call_id=written.call_id, tool=written.tool, delta=delta))
