"""What a server's `finish_reason` means: servers have many words for four meanings, and for no meaning."""

from functools import lru_cache
from typing import Literal, TypeAlias

End: TypeAlias = Literal["stop", "length", "content_filter"]

NONE = frozenset({"", "null", "none", "nil", "undefined", "unspecified", "unfinished", "in_progress"})
"""Texts that stand for `null`: the answer goes on."""

MARKS: tuple[tuple[End | Literal["failure"], str], ...] = (
    (
        "content_filter",
        "filter safety sensitive recitation prohibited blocklist spii refusal moderation guardrail toxic",
    ),
    ("length", "length max_tokens max_output max_new_tokens token_limit context_window truncat"),
    (
        "failure",
        "error abort cancel fail timeout timed_out insufficient interrupt malformed unexpected overload unavailable"
        " rate_limit exhausted disconnect",
    ),
)
"""The meaning of a reason that contains one of these words; the first match counts. Any other reason means `stop`."""

CHARS_READ = 100


def meaning(reason: object) -> End | Literal["failure"] | None:
    """What a `finish_reason` means; None: the answer goes on."""
    if not isinstance(reason, str):
        return None
    word = reason[:CHARS_READ].strip().lower().replace("-", "_").replace(" ", "_")
    word = word.removeprefix("finishreason.").removeprefix("finish_reason_")
    if word in NONE:
        return None
    return _meaning_of(word)


@lru_cache(64)  # A server has a few words, and each turn has one.
def _meaning_of(word: str) -> End | Literal["failure"]:
    return next((each for each, marks in MARKS if any(mark in word for mark in marks.split())), "stop")
