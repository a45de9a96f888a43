"""Tool calls put together from fragments. Servers number, name and cut the fragments in every way there is."""

import json
from collections.abc import Iterator
from typing import Any

from chatserver.commands import new_id
from chatserver.providers import WANTED_CALLS_LIMIT, OnDelta, ToolCallFragment, ToolCallRequest
from chatserver.providers.api import ARGUMENTS_CHARS_LIMIT
from chatserver.providers.chat_completions.leavings import CALL_FIELDS
from chatserver.providers.clean_text import Cleaner, cleaned
from chatserver.providers.faults import endless_arguments, too_many_calls

SNAPSHOTS_ENOUGH = 8
"""How many fragments in a row must begin with the fragment before, so that this is no accident."""

PARSES_AT_MOST = 64
"""How often a call's arguments are checked for being whole before the turn ends: each check reads all of them."""


class Arguments:
    """The JSON of one call's arguments.

    Fragments are meant to be joined. But some servers repeat in each fragment all that came before (snapshots), some
    send the whole once more at the end, and some begin with an empty object. JSON tells which: where the joined
    fragments are no object, one of these other readings is taken, if it gives an object.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._chars = 0
        self._cleaner = Cleaner()
        self._snapshots = 0
        self._is_chain = True
        self._looks = 0

    def add(self, text: str) -> str:
        """The next fragment; what is new in it, as far as that can be told by now."""
        text = self._cleaner.clean(text)
        if not text:
            return ""
        last = self._pieces[-1] if self._pieces else "{"
        if self._snapshots >= SNAPSHOTS_ENOUGH and last.startswith(text):
            return ""
        self._is_chain = self._is_chain and text.startswith(last)
        new = self._new_in(text)
        self._snapshots = self._snapshots + 1 if self._is_chain else 0
        if self._snapshots >= SNAPSHOTS_ENOUGH:
            self._pieces, self._chars = [], 0
        self._pieces.append(text)
        self._chars += len(text)
        return new

    def _new_in(self, text: str) -> str:
        """A fragment without what it repeats. To look for a repetition costs in all about as much as the arguments."""
        if not self._pieces:
            return "" if text.strip() == "{}" else text
        if self._is_chain:
            return text[len(self._pieces[-1]) :]
        return "" if len(text) == self._chars and text == "".join(self._pieces) else text

    def replace(self, value: Any) -> None:
        """Replace all fragments by the whole arguments: an object, or its JSON."""
        text = value if isinstance(value, str) else json.dumps(value)
        if text.strip() not in ("", "{}") or not self._pieces:
            self._pieces, self._chars, self._snapshots, self._is_chain = [], 0, 0, True
            self._cleaner = Cleaner()
            self.add(text)

    @property
    def chars(self) -> int:
        """The length of the arguments; of snapshots, that of the last."""
        return len(self._pieces[-1]) if self._pieces and self._is_chain else self._chars

    @property
    def has_begun(self) -> bool:
        return bool(self._pieces)

    def is_whole(self) -> bool:
        """Whether the arguments are a whole object; checked ``PARSES_AT_MOST`` times, then False."""
        if not self._pieces or not self._pieces[-1].rstrip().endswith("}") or self._looks >= PARSES_AT_MOST:
            return False
        self._looks += 1
        return _is_object(self.text())

    def text(self) -> str:
        """The arguments as their fragments are read."""
        pieces = [*self._pieces, self._cleaner.rest()] if self._cleaner.is_halfway else self._pieces
        joined = "".join(pieces)
        if len(pieces) < 2 or _is_object(joined):
            return joined
        last, before = pieces[-1], "".join(pieces[:-1])
        is_whole_before = _is_object(before)
        if _is_object(last) and (self._is_chain or is_whole_before):
            return before if is_whole_before and last.strip() == "{}" else last
        behind = "".join(pieces[1:])
        return behind if pieces[0].strip() == "{}" and _is_object(behind) else joined


class _Call:
    """A call whose arguments are still coming."""

    def __init__(self, call_id: str, index: int | None) -> None:
        self.call_id = call_id
        self.index = index
        self.name = ""
        self.arguments = Arguments()
        self.left: dict[str, Any] = {}


class ToolCalls:
    """The calls of one turn."""

    __slots__ = "_by_id", "_by_index", "_calls", "_chars", "_on_delta"

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self._calls: list[_Call] = []
        self._chars = 0
        self._by_id: dict[str, list[_Call]] = {}
        self._by_index: dict[int | None, _Call] = {}

    def collect(self, fragment: Any, place: int | None = None) -> bool:
        """Add a fragment to its call, and show what is new in it; whether the fragment says anything.

        ``place``: the fragment is the whole call, the one with this number in the turn.

        Raises:
            Fault: the turn has too many calls, or their arguments are too long.
        """
        if not isinstance(fragment, dict):
            return False
        function = fragment.get("function")
        function = function if isinstance(function, dict) else fragment
        name, arguments = function.get("name"), function.get("arguments")
        name = cleaned(name) if isinstance(name, str) else ""
        id = fragment.get("id")
        id = cleaned(str(id)) if isinstance(id, str | int) and id else ""
        text = arguments if isinstance(arguments, str) else ""
        left = {field: fragment[field] for field in CALL_FIELDS if fragment.get(field) is not None}
        if not (id or name or text or left or isinstance(arguments, dict)):
            return False
        call = self._call_of(id, _index(fragment.get("index", place)), name, text)
        chars_before = call.arguments.chars
        call.left |= left
        if name and not (call.name and call.arguments.has_begun):
            call.name = name if place is not None else _joined(call.name, name)
        if isinstance(arguments, dict) or (place is not None and text):
            call.arguments.replace(arguments)
        elif new := call.arguments.add(text):
            self._on_delta(ToolCallFragment(call.call_id, call.name, new))
        self._chars += call.arguments.chars - chars_before
        if self._chars > ARGUMENTS_CHARS_LIMIT:
            raise endless_arguments()
        return bool(name or text or arguments)

    def requests(self) -> Iterator[tuple[ToolCallRequest, dict[str, Any]]]:
        """The complete calls, each with the fields that go back with it.

        Without a name and arguments it is none: some servers send such with each text.
        """
        for call in self._calls:
            arguments = call.arguments.text()
            if call.name or arguments.strip() not in ("", "null", "{}"):
                yield ToolCallRequest(call.call_id, call.name, arguments), call.left

    def _call_of(self, id: str, index: int | None, name: str, arguments: str) -> _Call:
        """The call that a fragment belongs to; a new call where the fragment begins one.

        A known id decides. A new id with a name begins a call even under an index in use, since some servers give every
        call the index 0. Without an id the index decides, unless the call of that index is whole and the fragment has a
        name. Without id and index, a name begins a call.
        """
        for known in reversed(self._by_id.get(id, ())):
            if index is None or known.index in (None, index):
                return known
        if not (name and (id or index is None)):
            same = self._by_index.get(index) if index is not None else self._calls[-1] if self._calls else None
            if same and not (name and arguments and same.arguments.is_whole() and not _repeats(same, name, arguments)):
                return same
        if len(self._calls) == WANTED_CALLS_LIMIT:
            raise too_many_calls()
        call = _Call(id if id and id not in self._by_id else f"call_{new_id()}", index)
        self._by_id.setdefault(id or call.call_id, []).append(call)
        self._by_index[index] = call
        self._calls.append(call)
        return call


def _joined(name: str, piece: str) -> str:
    """A name and its next piece. Some servers repeat in each piece the name, or all that came before."""
    return piece if piece.startswith(name) else name + piece


def _repeats(call: _Call, name: str, arguments: str) -> bool:
    return call.name == name and call.arguments.text() == arguments


def _index(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return int(value) if isinstance(value, int | float) and value == value // 1 else None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
