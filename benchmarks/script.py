"""What the scripted model shall do: asked for inside the user's message, so that it passes through any server."""

import re
from typing import Self

from msgspec import Struct

SCRIPT = re.compile(r"lab:(\d+),(\d+(?:\.\d+)?|\d*closed|bulk),(\d+),(\d+(?:\.\d+)?)")

STAMP_MODULUS_US = 1_000_000_000
"""Stamps are microseconds of CLOCK_MONOTONIC modulo this: 17 minutes, and nothing measured here lasts so long."""


class Script(Struct, frozen=True):
    """``tokens`` at a ``pace``, then silence for ``hold_seconds``, then the end.

    A pace is tokens a second, ``closed`` (the next one when ``key``'s reader has the last), ``16closed`` (the same with
    16 in one write), or ``bulk`` (as fast as the upstream can).
    """

    tokens: int
    pace: str = "bulk"
    key: int = 0
    hold_seconds: float = 0.0

    @property
    def message(self) -> str:
        return f"lab:{self.tokens},{self.pace},{self.key},{self.hold_seconds:g}"

    @property
    def burst(self) -> int:
        """Tokens that leave at once when a reader has the last ones; 0: it is not the reader who sets the pace."""
        return int(self.pace.removesuffix("closed") or 1) if self.pace.endswith("closed") else 0

    @property
    def rate(self) -> float:
        """Tokens a second; 0: no schedule."""
        return float(self.pace) if self.pace[0].isdigit() and not self.burst else 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """The newest script in a text.

        Raises:
            ValueError: there is none.
        """
        found = SCRIPT.match(text, max(0, text.rfind("lab:")))
        if found is None:
            raise ValueError("the lab's upstream answers the lab's messages only")
        return cls(int(found[1]), found[2], int(found[3]), float(found[4]))


def content(index: int, planned_us: int = 0, late_us: int = 0) -> str:
    """A token's text: its number, when it was due, how much later it left. All are of one length."""
    return f" {index:06d}@{planned_us % STAMP_MODULUS_US:09d}+{min(late_us, 99_999):05d}"


TOKEN_CHARACTERS = len(content(0))


def tokens_of(text: str) -> list[str]:
    """The tokens that are joined in the text of an event: more than one where a server merged them."""
    return [text[start : start + TOKEN_CHARACTERS] for start in range(0, len(text), TOKEN_CHARACTERS)]


def index_of(text: str) -> int:
    """The number in a token's text."""
    return int(text[1:7])


def delivered_us(text: str, now_us: int) -> tuple[int, int]:
    """How long after it was due a token came, and how much of that it left late; in µs."""
    return (now_us - int(text[8:17])) % STAMP_MODULUS_US, int(text[18:23])
