"""Faults that the proofs of several nodes must see: each, while its block lasts, breaks all nodes of this process."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha1
from typing import Any, TypeAlias
from unittest.mock import patch

from chatserver.events import Event, Record
from chatserver.nodes import membership, publisher
from chatserver.nodes.follower import Follower
from chatserver.nodes.link import Script
from chatserver.nodes.owned_log import OwnedLog

Fault: TypeAlias = AbstractContextManager[Any]


@contextmanager
def _script(script: Script, right: str, wrong: str) -> Iterator[None]:
    """A script in which a text, which must be there once, is another."""
    source = script.source.decode()
    assert source.count(right) == 1, f"{right!r} is there {source.count(right)} times"
    changed = source.replace(right, wrong).encode()
    with patch.multiple(script, source=changed, digest=sha1(changed, usedforsecurity=False).hexdigest()):
        yield


def no_fence() -> Fault:
    """Whoever publishes counts as the owner of the run."""
    return _script(
        publisher.PUBLISH,
        "local owner, tail = redis.call('HGET', stream .. ':owner', 'node'), -1",
        "local owner, tail = node, -1",
    )


def no_lease() -> Fault:
    """The lease of a node never ends."""
    return _script(membership.LOOK, "redis.call('SET', KEYS[2], 1, 'PX', ARGV[2])", "redis.call('SET', KEYS[2], 1)")


@contextmanager
def shown_before_it_is_published() -> Iterator[None]:
    original = OwnedLog.append

    def append(self: OwnedLog, draft: Event) -> Record:
        new = original(self, draft)
        self.show_all()
        return new

    with patch.object(OwnedLog, "append", append):
        yield


@contextmanager
def messages_lost(every: int = 3) -> Iterator[None]:
    """One of so many messages of runs' channels never comes. This is no fault: followers must find what they lack."""
    original, count = Follower._hear, 0

    def hear(self: Follower, followed: Any, message: bytes) -> None:
        nonlocal count
        count += 1
        if count % every:
            original(self, followed, message)

    with patch.object(Follower, "_hear", hear):
        yield


@contextmanager
def messages_lost_and_never_missed() -> Iterator[None]:
    with (
        messages_lost(),
        patch.object(Follower, "_compare", lambda *_: None),
        patch.object(Follower, "_read", _read_first),
    ):
        yield


_read = Follower._read


def _read_first(self: Follower, followed: Any) -> None:
    """Read a run when it is first followed, and never again."""
    if not followed.first_read.done():
        _read(self, followed)
