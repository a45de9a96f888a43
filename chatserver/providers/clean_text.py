"""Makes a text of an upstream fit to be stored and sent: PostgreSQL refuses NUL, UTF-8 has no lone surrogates."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Cleaner:
    """Cleans a text that comes in pieces, and joins a pair of surrogates that a server has split over two pieces."""

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def clean(self, text: str) -> str:
        """The next piece."""
        if self._half or not (text.isascii() or _is_encodable(text)):
            text = self._half + text
            self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
            whole = text[: len(text) - len(self._half)]
            text = whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text.replace("\0", REPLACEMENT)

    @property
    def is_halfway(self) -> bool:
        return bool(self._half)

    def rest(self) -> str:
        """What stands for a half whose other half never came."""
        return REPLACEMENT if self._half else ""


def _is_encodable(text: str) -> bool:
    """Whether a text has no surrogates, which UTF-8 does not take. To repair a text takes four times as long."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cleaned(text: str) -> str:
    """A whole text."""
    cleaner = Cleaner()
    return cleaner.clean(text) + cleaner.rest()
