"""The first words of what an upstream says when it fails, for the log: one short line, without secrets and prompts."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

WORDS_CHARS = 1000
"""How much of the upstream's words is looked at."""

LINE_CHARS = 300
"""How much of them is written to the log."""

QUOTE_CHARS = 12
"""A piece of the dialogue that is as long is a quotation."""

QUOTABLE_CHARS = 32 * 1024
"""How much of the dialogue, the newest, is looked for in the words."""

NOT_WORDS = frozenset({"input", "prompt", "messages", "ctx", "failed_generation", "body", "request", "traceback"})
"""Where validators and gateways quote the request or the answer."""

NUMBERED = frozenset({"code", "status_code"})
"""Fields whose number would say nothing without their name."""

MASK = "***"
_SECRET = re.compile(
    r"(?i)(\bbearer\s+|\b(?:x-)?api[-_ ]?key[\"']?\s*(?:provided)?\s*[:=]\s*[\"']?"
    r"|\b(?:token|secret|password)[\"']?\s*[:=]\s*[\"']?|[?&](?:key|sig|signature|code)=)[^\s\"',;&}]+"
)
_KEY = re.compile(
    r"\b(?:sk|pk|gsk|xai|AIza|hf|nvapi|pplx|r8|csk|tgp|fw)[-_][A-Za-z0-9_*.-]{6,}|\bAIza[\w-]{10,}|\beyJ[\w.-]{10,}"
)


def words_of(tree: Any) -> str:
    """The texts and numbers in a document, in their order, without those of fields that quote a request."""
    words, left = [], WORDS_CHARS
    for word in _leaves(tree, 0):
        words.append(word[:left])
        left -= len(word) + 1
        if left <= 0:
            break
    return " ".join(words)


def _leaves(tree: Any, depth: int) -> Iterator[str]:
    match tree:
        case str():
            yield " ".join(tree[: 4 * WORDS_CHARS].split())
        case int() | float() if not isinstance(tree, bool):
            yield str(tree)[:32]
        case list() if depth < 8:
            for each in tree:
                yield from _leaves(each, depth + 1)
        case dict() if depth < 8:
            for name, each in tree.items():
                if name in NUMBERED and isinstance(each, str | int):
                    yield f"code {each}"
                elif name not in NOT_WORDS:
                    yield from _leaves(each, depth + 1)


def loggable(text: str, secrets: Sequence[str], dialogue: Sequence[str]) -> str:
    """A text with words of an upstream as a line of the log may have it; ``dialogue``: the texts it had been sent."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _KEY.sub(MASK, _SECRET.sub(rf"\1{MASK}", text))
    text = _without_quotations(text[: 2 * LINE_CHARS], dialogue)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)[:LINE_CHARS]


def _without_quotations(text: str, dialogue: Sequence[str]) -> str:
    """The text without longer pieces of the dialogue: some servers quote what they refuse."""
    newest, left = list[str](), QUOTABLE_CHARS
    for content in reversed(dialogue):
        if left > 0:
            newest.append(" ".join(content[:left].split()))
            left -= len(content)
    said = "\n".join(newest)
    pieces = {text[at : at + QUOTE_CHARS] for at in range(len(text) - QUOTE_CHARS + 1)}
    quoted = pieces & {said[at : at + QUOTE_CHARS] for at in range(len(said) - QUOTE_CHARS + 1)}
    kept, end = list[str](), 0
    for at, char in enumerate(text):
        if text[at : at + QUOTE_CHARS] in quoted:
            kept += [] if at < end else ["…"]
            end = at + QUOTE_CHARS
        elif at >= end:
            kept.append(char)
    return "".join(kept)
