"""What one user takes of the server at a time: connections, requests on their way, bodies that are coming."""

from collections import Counter
from typing import Self

from chatserver.errors import TooMany

PLACE = "chatserver.place"
"""Where the extensions of a request have its ``Place``, from its head to the last byte of its answer."""


class Place:
    """One of the connections that a user may have, and what is held for it of a body that is still coming."""

    __slots__ = ("_bytes_limit", "_held_bytes", "_user", "_user_bytes", "_users")

    def __init__(self, users: Counter[str], user_bytes: Counter[str], user: str, bytes_limit: float) -> None:
        self._users = users
        self._user_bytes = user_bytes
        self._bytes_limit = bytes_limit
        self._held_bytes = 0
        self._user = user
        users[user] += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def hold(self, size: int) -> None:
        """Count bytes of a body until all of them are let go.

        Raises:
            TooMany: the bodies of this user that are on their way hold as much as they may together.
        """
        if self._user_bytes[self._user] + size > self._bytes_limit:
            raise TooMany(f"at most {self._bytes_limit} bytes of bodies at a time")
        self._user_bytes[self._user] += size
        self._held_bytes += size

    def let_go(self) -> None:
        """The body has come, or will not."""
        _subtract(self._user_bytes, self._user, self._held_bytes)
        self._held_bytes = 0

    def leave(self) -> None:
        """Once, at the end."""
        self.let_go()
        _subtract(self._users, self._user, 1)


def _subtract(counter: Counter[str], user: str, count: int) -> None:
    counter[user] -= count
    if not counter[user]:
        del counter[user]
