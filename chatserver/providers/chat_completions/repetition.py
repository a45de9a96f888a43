"""Whether a text is said again: some servers end with all that they have streamed."""

HEAD_CHARS = 200
"""How much of a text's beginning is kept to compare with; of the rest only the length is known."""


class Told:
    """What was said so far of a text, as far as it takes to know it again."""

    __slots__ = ("_chars", "_head", "_pieces")

    def __init__(self) -> None:
        self._head = ""
        self._chars = 0
        self._pieces = 0

    def add(self, text: str) -> None:
        """This was said."""
        if self._chars < HEAD_CHARS:
            self._head = (self._head + text)[:HEAD_CHARS]
        self._chars += len(text)
        self._pieces += 1

    def new(self, text: str, may_repeat: bool, is_whole: bool) -> str:
        """What is new in a text, which is said with that.

        ``is_whole``: the text is all from the beginning on. ``may_repeat``: it comes where an
        answer ends, so it may be.
        """
        if text and self._chars and (is_whole or (may_repeat and self._is_again(text))):
            text = text[self._chars :] if text.startswith(self._head) else ""
        if text:
            self.add(text)
        return text

    def _is_again(self, text: str) -> bool:
        """Whether it cannot well be the next words: several pieces in one, and no blank where they would join."""
        if self._pieces < 2 or len(text) != self._chars or not text.startswith(self._head):
            return False
        return len(text) >= HEAD_CHARS or (" " in text and not text[0].isspace() and not text[-1].isspace())
