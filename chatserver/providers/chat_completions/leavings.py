"""What a turn leaves that only its server understands, and wants back with it.

Each field was made necessary by servers that answer 400 without it: `extra_content` holds Gemini's thought signatures,
of a call or of the text; `reasoning_content` goes back with calls to DeepSeek and Kimi, under the name under which it
came; `reasoning_details` is OpenRouter's form of the same for all models.
"""

from typing import Any

from chatserver.providers.api import LEAVINGS_BYTES_LIMIT, size_of

CALL_FIELDS = ("extra_content", "provider_specific_fields")
_JOINED = ("text", "summary")
"""Fields of a detail that come in pieces."""


class MessageFields:
    """The fields of a turn's message, as they come in its deltas."""

    __slots__ = ("_bytes", "_details", "_extra_content", "_reasoning", "empty_field", "reasoning_field")

    def __init__(self) -> None:
        """``reasoning_field``: the first that had reasoning; ``empty_field``: the first that was there without any."""
        self.reasoning_field: str | None = None
        self.empty_field: str | None = None
        self._reasoning = bytearray()
        self._details: list[dict[str, Any]] = []
        self._extra_content: Any = None
        self._bytes = 0

    def think(self, text: str) -> None:
        """Reasoning that has come."""
        self._reasoning += text.encode()

    def collect(self, delta: dict[str, Any], *, is_whole: bool) -> None:
        """The fields of a delta; or of a message, which ``is_whole``: it has all there is."""
        if (extra := delta.get("extra_content")) is not None and self._has_room(extra):
            self._extra_content = extra
        details = delta.get("reasoning_details")
        if isinstance(details, list) and details and self._has_room(details):
            if is_whole:
                self._details = []
            for piece in details:
                if isinstance(piece, dict):
                    self._add(piece)

    def left(self, with_calls: bool) -> dict[str, Any]:
        """What goes back; reasoning only with calls, since there are servers that refuse it elsewhere.

        An empty reasoning goes back too: DeepSeek refuses a turn with calls that lacks the field.
        """
        if self._bytes > LEAVINGS_BYTES_LIMIT:
            return {}
        fields: dict[str, Any] = {}
        if with_calls and (field := self.reasoning_field or self.empty_field):
            fields[field] = self._reasoning.decode()
        if self._details:
            fields["reasoning_details"] = self._details
        if self._extra_content is not None:
            fields["extra_content"] = self._extra_content
        return fields

    def _has_room(self, value: Any) -> bool:
        self._bytes += size_of(value)
        return self._bytes <= LEAVINGS_BYTES_LIMIT

    def _add(self, piece: dict[str, Any]) -> None:
        """Put a detail behind the others, or a further piece of one into it."""
        name = next((name for name in _JOINED if isinstance(piece.get(name), str)), None)
        if name is not None:
            for known in reversed(self._details):
                if isinstance(known.get(name), str) and _is_same(known, piece):
                    text = known[name] + piece[name]
                    known.update({key: value for key, value in piece.items() if value is not None} | {name: text})
                    return
        self._details.append(dict(piece))


def _is_same(known: dict[str, Any], piece: dict[str, Any]) -> bool:
    has_other_id = None not in (known.get("id"), piece.get("id")) and known["id"] != piece["id"]
    return (known.get("type"), known.get("index")) == (piece.get("type"), piece.get("index")) and not has_other_id
