"""What a format of HTTP streams is made of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from chatserver.events import Record


class Format(ABC):
    """One way to write records as the body of a response. It holds nothing: all streams share it."""

    name: str
    """As metrics call it."""

    media_type: str
    content_type: bytes
    ping = b""
    """What shows that the connection lives; empty: nothing can."""

    shows_failure = True
    """Whether a reader sees from the records how the run has ended. If not, the body of a failed one is broken off."""

    def opening(self) -> bytes:
        """The first bytes, sent before any event."""
        return b""

    @staticmethod
    @abstractmethod
    def frame(records: Sequence[Record]) -> bytes:
        """The records as the bytes of one write."""

    def farewell(self) -> bytes:
        """The last bytes of a stream that ends before its run."""
        return b""
