"""The model tokens of a run and of a user's day, and the bytes of text that an answer may have."""

from math import inf

from chatserver.answer import Answer
from chatserver.dialogue import BYTES_PER_TOKEN, asked_tokens
from chatserver.events import Usage
from chatserver.parts import ToolCallPart, text_bytes
from chatserver.providers import ModelRequest


class Day:
    """The tokens of one user on one day (UTC), of finished and of running runs."""

    def __init__(self, date: str, limit: int, spent: int) -> None:
        self.date = date
        self.spent = spent
        self._limit = limit

    def is_spent(self) -> bool:
        return self.spent >= self._limit


class Spent(Exception):
    """Nothing more may be asked or said: the tokens of the run, or of the user's day, are used up."""


class Meter:
    """The model tokens of a run at any moment: what the upstream told, and an estimate where it did not tell.

    The meter also counts the text that the answer may still have: ``answer_bytes_limit`` bytes of UTF-8 in all.
    """

    __slots__ = (
        "_asked_tokens", "_known_tokens", "_limit", "_room_bytes", "_said_bytes", "_told", "day", "spent",
    )  # fmt: skip

    def __init__(self, limit: float = inf, day: Day | None = None, answer_bytes_limit: float = inf) -> None:
        self._limit = limit
        self.day = day
        """The user's day on which what is spent from now on is counted; None: nobody counts."""
        self._told = Usage()
        self._asked_tokens: int | None = None
        self._known_tokens = 0  # What was told of the turns before, and what is asked in this one.
        self._said_bytes = 0
        self._room_bytes = answer_bytes_limit
        self.spent = 0
        """All tokens of the run, kept as a sum, like those of the day: both sums are needed with every delta."""

    def resume(self, usage: Usage, answer: Answer) -> None:
        """Go on where an earlier process has stopped: so much is spent, and was counted, and this was said."""
        self._told = usage
        self._known_tokens = self.spent = usage.input_tokens + usage.output_tokens
        self._room_bytes -= sum(text_bytes(part.text) for part in answer.parts if not isinstance(part, ToolCallPart))

    def begin_turn(self, request: ModelRequest) -> None:
        """Count a request to the model.

        Raises:
            Spent: the model may not be asked.
        """
        if self.is_spent():
            raise Spent
        self._ask(asked_tokens([*request.messages, *request.tools]))

    def add_text(self, text: str) -> str:
        """Count a text of the answer or of its reasoning; the part of the text that may be said.

        Raises:
            Spent: no text may be said.
        """
        if self.is_spent():
            raise Spent
        size = text_bytes(text)
        if size > self._room_bytes:
            text = text.encode()[: int(self._room_bytes)].decode(errors="ignore")
            size = text_bytes(text)
        self._room_bytes -= size
        self._said_bytes += size
        self._count()
        return text

    def add_arguments(self, arguments: str) -> None:
        """Count the arguments of a tool call.

        Raises:
            Spent: the model may say no more.
        """
        if self.is_spent():
            raise Spent
        self._said_bytes += text_bytes(arguments)
        self._count()

    def end_turn(self, usage: Usage | None) -> None:
        self._told += usage or self._estimate()
        self._ask(None)

    def void(self) -> None:
        """There is no such run: nothing was spent."""
        self._told = Usage()
        self._ask(None)

    def usage(self) -> Usage:
        return self._told + self._estimate()

    def is_spent(self) -> bool:
        return self.spent >= self._limit or (self.day is not None and self.day.is_spent())

    def _ask(self, tokens: int | None) -> None:
        """A turn of so many tokens begins; None: a turn has ended."""
        self._asked_tokens, self._said_bytes = tokens, 0
        self._known_tokens = self._told.input_tokens + self._told.output_tokens + (tokens or 0)
        self._count()

    def _count(self) -> None:
        spent = self._known_tokens - -self._said_bytes // BYTES_PER_TOKEN
        if self.day is not None:
            self.day.spent += spent - self.spent
        self.spent = spent

    def _estimate(self) -> Usage:
        """The estimated usage of a turn that is going on, or that ended without its usage."""
        if self._asked_tokens is None:
            return Usage()
        return Usage(self._asked_tokens, -(-self._said_bytes // BYTES_PER_TOKEN), estimated=True)
