"""The model tokens of a run and of a user's day, and the text that an answer may have."""

from math import inf

from chatserver.dialogue import BYTES_PER_TOKEN, estimated_tokens, text_bytes
from chatserver.events import Usage
from chatserver.providers import ModelRequest


class Day:
    """The tokens of one user on one day (UTC): those of runs that are over, and of those that go on."""

    def __init__(self, date: str, limit: int, spent: int) -> None:
        self.date = date
        self.spent = spent
        self._limit = limit

    def is_spent(self) -> bool:
        return self.spent >= self._limit


class Spent(Exception):
    """Nothing more may be asked or said: the run has what one may have, or the user what a day may have."""


class Meter:
    """The model tokens of a run, right at any moment: what the upstream told, and an estimate where it did not.

    And how much text its answer may still have: ``answer_bytes_limit`` bytes of UTF-8 at first.
    """

    def __init__(self, limit: float = inf, day: Day | None = None, answer_bytes_limit: float = inf) -> None:
        self._limit = limit
        self._day = day
        self._told = Usage()
        self._asked_tokens: int | None = None
        self._said_bytes = 0
        self._room_bytes = answer_bytes_limit
        self.spent = 0
        """All tokens of the run. It is kept, as the day's are: both are asked for with every delta."""

    def ask(self, request: ModelRequest) -> None:
        """The model is asked.

        Raises:
            Spent: it may not be.
        """
        if self.is_spent():
            raise Spent
        self._asked_tokens, self._said_bytes = estimated_tokens([*request.messages, *request.tools]), 0
        self._count()

    def say(self, text: str) -> str:
        """As much as may be said of a text of the answer, or of its reasoning; it is counted.

        Raises:
            Spent: none of it.
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

    def call(self, arguments: str) -> None:
        """The model wants a tool called.

        Raises:
            Spent: it has said enough.
        """
        if self.is_spent():
            raise Spent
        self._said_bytes += text_bytes(arguments)
        self._count()

    def told(self, usage: Usage | None) -> None:
        self._told, self._asked_tokens = self._told + (usage or self._estimate()), None
        self._count()

    def usage(self) -> Usage:
        return self._told + self._estimate()

    def is_spent(self) -> bool:
        return self.spent >= self._limit or (self._day is not None and self._day.is_spent())

    def _count(self) -> None:
        now = 0 if self._asked_tokens is None else self._asked_tokens - -self._said_bytes // BYTES_PER_TOKEN
        spent = self._told.input_tokens + self._told.output_tokens + now
        if self._day is not None:
            self._day.spent += spent - self.spent
        self.spent = spent

    def _estimate(self) -> Usage:
        """The turn that is going on, or that ended without its usage."""
        if self._asked_tokens is None:
            return Usage()
        return Usage(self._asked_tokens, -(-self._said_bytes // BYTES_PER_TOKEN), estimated=True)
