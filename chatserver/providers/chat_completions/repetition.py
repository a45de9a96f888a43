"""Whether a text is said again: some servers end with all that they have streamed."""

HEAD_CHARS = 200
"""How much of a text's beginning is kept to compare with; of the rest only the length is known."""


class Told:
    """How much of a text has come, with enough of its beginning to recognize a repetition."""

    __slots__ = ("_chars", "_head", "_pieces")

    def __init__(self) -> None:
        self._head = ""
        self._chars = 0
        self._pieces = 0

    def new(self, text: str, may_repeat: bool, is_whole: bool) -> str:
        """The new part of a piece, which is counted too.

        ``is_whole``: the piece is the whole text from its beginning. ``may_repeat``: the piece comes at the end of the
        answer, so it may be the whole text.
        """
        if self._chars and (is_whole or (may_repeat and self._is_again(text))):
            text = text[self._chars :] if text.startswith(self._head) else ""
        if text:
            if self._chars < HEAD_CHARS:
                self._head = (self._head + text)[:HEAD_CHARS]
            self._chars += len(text)
            self._pieces += 1
        return text

    def _is_again(self, text: str) -> bool:
        """Whether a piece is the whole text again, and not its next words."""
        if self._pieces < 2 or len(text) != self._chars or not text.startswith(self._head):
            return False
        return len(text) >= HEAD_CHARS or (" " in text and not text[0].isspace() and not text[-1].isspace())
