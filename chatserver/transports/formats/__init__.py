"""How a run's records are written over plain HTTP, a module a format. Bytes only: `stream` sends them."""

from functools import lru_cache

from chatserver.errors import NotAcceptable
from chatserver.transports.formats.format import Format
from chatserver.transports.formats.ndjson import JsonLines
from chatserver.transports.formats.sse import EventStream
from chatserver.transports.formats.text import PlainText

__all__ = ["FORMATS", "Format", "chosen"]

FORMATS: tuple[Format, ...] = (EventStream(), JsonLines(), PlainText())


@lru_cache(maxsize=16)  # Few entries: the client chooses the text, and it may be long.
def chosen(accept: str) -> Format:
    """The format that an `Accept` header prefers; the first one where it does not care, or is empty.

    Raises:
        NotAcceptable: it takes none of them.
    """
    ranges = [_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    wishes = [(_quality(each.media_type, ranges), -index, each) for index, each in enumerate(FORMATS)]
    quality, _, best = max(wishes, key=lambda wish: wish[:2])
    if quality <= 0:
        raise NotAcceptable(f"this can be had as {', '.join(each.media_type for each in FORMATS)}")
    return best


def _range(part: str) -> tuple[str, float]:
    media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
    try:
        return media_type, min(1.0, max(0.0, float(quality)))
    except ValueError:
        return media_type, 0.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The quality that the most specific matching range gives."""
    for form in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if matching := [quality for name, quality in ranges if name == form]:
            return max(matching)
    return 0.0
