"""A run that is about to begin."""

from collections.abc import Callable

from chatserver.log import EventLog
from chatserver.runs.life import Life
from chatserver.sessions import Begun


class Foreseen:
    """A run that is about to begin in the store: its model is asked while the disk commits.

    Nobody else knows of it before it is on disk, and it does nothing but ask: its tools, and its end, wait for that.
    """

    def __init__(self, make: Callable[[Begun, EventLog], tuple[Life, Callable[[], object]]], log: EventLog) -> None:
        self.make = make
        self.log = log
        self._begun: Begun | None = None
        self._life: Life | None = None
        self._cancel: Callable[[], object] | None = None
        self._is_left = False

    def ask(self, begun: Begun) -> None:
        """Nothing but the disk can refuse the run. Again: the store has begun it anew, and what was asked is void."""
        if self._begun is None and not self._is_left:
            self._begun = begun
            self._life, self._cancel = self.make(begun, self.log)

    def life_of(self, begun: Begun) -> Life | None:
        """The run in its life, if it is this one."""
        return self._life if self._begun is begun else None

    def leave(self) -> None:
        """Whoever was asked is not needed."""
        self._is_left = True
        if self._cancel is not None:
            self._cancel()
