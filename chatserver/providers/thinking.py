"""Thoughts that a model writes into its text, between tags, where its server has not separated them."""

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
"""The opening and closing tags of thoughts, of various models."""

BLANK_CHARS = 100
"""How many blanks may stand before a tag; a text that begins with more is no thought."""


class ThinkTags:
    """Splits the text of one turn; ``is_past``: no more thoughts can come.

    Thoughts stand at the beginning of a turn: further on, a tag is something that the model talks about. A closing tag
    without an opening one (a template has opened it in the prompt) stays text, since what stands before it was shown.
    """

    __slots__ = "_closing", "_has_thought", "_held", "_is_closed", "is_past"

    def __init__(self) -> None:
        self.is_past = False
        self._closing = ""
        self._has_thought = False
        self._is_closed = False
        self._held = ""

    def split(self, text: str) -> list[tuple[bool, str]]:
        """The next text split into parts, as far as they are certain: each whether it is a thought, and its text."""
        if self.is_past:
            return [(False, text)]
        text, self._held = self._held + text, ""
        if self._is_closed:
            return self._answer(text)
        return self._thoughts(text) if self._closing else self._beginning(text)

    def rest(self) -> list[tuple[bool, str]]:
        """What was held back, at the end of the turn."""
        held, self._held = self._held, ""
        return [(bool(self._closing), held)] if held else []

    def _beginning(self, text: str) -> list[tuple[bool, str]]:
        bare = text.lstrip()
        for opening, closing in TAGS:
            if bare.startswith(opening):
                self._closing = closing
                return self._thoughts(bare[len(opening) :])
        if any(opening.startswith(bare) for opening, _ in TAGS) and len(text) <= BLANK_CHARS:
            self._held = text
            return []
        self.is_past = True
        return [(False, text)]

    def _thoughts(self, text: str) -> list[tuple[bool, str]]:
        thought, mark, answer = text.partition(self._closing)
        if not mark:
            sizes = range(min(len(text), len(self._closing) - 1), 0, -1)
            size = next((size for size in sizes if text.endswith(self._closing[:size])), 0)
            thought, self._held = text[: len(text) - size], text[len(text) - size :]
        if not self._has_thought:
            thought = thought.lstrip()
            self._has_thought = bool(thought)
        found = [(True, thought)] if thought else []
        if mark:
            self._is_closed = True
            found += self._answer(answer)
        return found

    def _answer(self, text: str) -> list[tuple[bool, str]]:
        """The first text behind the thoughts, without the blank lines that stand between."""
        text = text.lstrip()
        self.is_past = bool(text)
        return [(False, text)] if text else []
