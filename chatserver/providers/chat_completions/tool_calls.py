"""Tool calls out of their fragments. Servers number, name and cut them in every way that there is."""

import json
from collections.abc import Iterator
from typing import Any

from chatserver.commands import new_id
from chatserver.providers import WANTED_CALLS_LIMIT, ToolCallRequest
from chatserver.providers.clean_text import Cleaner, cleaned
from chatserver.providers.faults import nonsense

ARGUMENTS_CHARS_LIMIT = 1024 * 1024
"""How long the arguments of all calls of a turn may be together."""

SNAPSHOTS_ENOUGH = 8
"""How many fragments in a row must repeat the one before, and go on, to be no accident."""

PARSES_AT_MOST = 64
"""How often it is looked whether a call's arguments are whole before they have ended: each look reads them all."""


class Arguments:
    """The JSON of one call's arguments.

    Fragments are to be joined. But there are servers that repeat in each one what came before (snapshots), that send
    the whole once more at the end, or that begin with an empty object. JSON says which it was: what is no object when
    joined is read in one of these ways if that makes it one.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._chars = 0
        self._cleaner = Cleaner()
        self._snapshots = 0
        self._is_chain = True
        self._looks = 0

    def add(self, text: str) -> None:
        """The next fragment."""
        text = self._cleaner.clean(text)
        if not text:
            return
        last = self._pieces[-1] if self._pieces else "{"
        if self._snapshots >= SNAPSHOTS_ENOUGH and last.startswith(text):
            return
        self._is_chain = self._is_chain and text.startswith(last)
        self._snapshots = self._snapshots + 1 if self._is_chain else 0
        if self._snapshots >= SNAPSHOTS_ENOUGH:
            self._pieces, self._chars = [], 0
        self._pieces.append(text)
        self._chars += len(text)

    def replace(self, value: Any) -> None:
        """All of them at once, as the object that they are, or as its JSON."""
        text = value if isinstance(value, str) else json.dumps(value)
        if text.strip() not in ("", "{}") or not self._pieces:
            self._pieces, self._chars, self._snapshots, self._is_chain = [], 0, 0, True
            self._cleaner = Cleaner()
            self.add(text)

    @property
    def chars(self) -> int:
        """How much it is: of snapshots, the last."""
        return len(self._pieces[-1]) if self._pieces and self._is_chain else self._chars

    @property
    def has_begun(self) -> bool:
        return bool(self._pieces)

    def is_whole(self) -> bool:
        """Nothing can follow. Looked for a number of times only."""
        if not self._pieces or not self._pieces[-1].rstrip().endswith("}") or self._looks >= PARSES_AT_MOST:
            return False
        self._looks += 1
        return _is_object(self.text())

    def text(self) -> str:
        """All that has come, put together."""
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


class ToolCalls:
    """The calls of one turn."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._chars = 0
        self._by_id: dict[str, list[_Call]] = {}
        self._by_index: dict[int | None, _Call] = {}

    def collect(self, fragment: Any, place: int | None = None) -> bool:
        """Add a fragment to the call it belongs to; whether it says anything.

        ``place``: it is not a fragment, but all of the call with this number among the turn's.

        Raises:
            Fault: the turn has too many calls, or they are too long.
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
        if not (id or name or text or isinstance(arguments, dict)):
            return False
        call = self._call_of(id, _index(fragment.get("index", place)), name, text)
        chars_before = call.arguments.chars
        if name and not (call.name and call.arguments.has_begun):
            call.name = name
        if isinstance(arguments, dict) or (place is not None and text):
            call.arguments.replace(arguments)
        else:
            call.arguments.add(text)
        self._chars += call.arguments.chars - chars_before
        if self._chars > ARGUMENTS_CHARS_LIMIT:
            raise nonsense("tool arguments without end", "the model's tool arguments have no end")
        return bool(name or text or arguments)

    def requests(self) -> Iterator[ToolCallRequest]:
        """The calls, complete. What has neither a name nor arguments is none: some servers send such with each text."""
        for call in self._calls:
            arguments = call.arguments.text()
            if call.name or arguments.strip() not in ("", "null", "{}"):
                yield ToolCallRequest(call.call_id, call.name, arguments)

    def _call_of(self, id: str, index: int | None, name: str, arguments: str) -> _Call:
        """The call that a fragment belongs to; a new one where it begins one.

        A known id decides. A new id with a name begins a call even under an index in use, since some servers count
        every call as number 0. Without an id the index decides, unless that call is whole and this one has a name.
        Without both a name begins a call.
        """
        for known in reversed(self._by_id.get(id, ())):
            if index is None or known.index in (None, index):
                return known
        if not (name and (id or index is None)):
            same = self._by_index.get(index) if index is not None else self._calls[-1] if self._calls else None
            if same and not (name and arguments and same.arguments.is_whole() and not _repeats(same, name, arguments)):
                return same
        if len(self._calls) == WANTED_CALLS_LIMIT:
            raise nonsense("tool calls without end", f"the model wants over {WANTED_CALLS_LIMIT} tool calls at once")
        call = _Call(id if id and id not in self._by_id else f"call_{new_id()}", index)
        self._by_id.setdefault(id or call.call_id, []).append(call)
        self._by_index[index] = call
        self._calls.append(call)
        return call


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
