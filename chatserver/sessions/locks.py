"""Lock files: on one machine they show at once that a process has died."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from time import time

if sys.platform != "win32":
    import fcntl

LOCK_SECONDS = 86_400.0
"""How old a lock must be to be removed, whatever its database: the process is dead, its runs were ended long ago."""


class Lock:
    """A file that a process keeps locked while it lives. If another process can lock the file, the owner is dead.

    Where files cannot be locked, or are on another machine, the lock never tells.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> None:
        with suppress(OSError):
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if not _locked(self._file):
                self.remove()  # An unlocked file would say that this process is dead.
                self.release()

    def is_free(self) -> bool:
        try:
            file = os.open(self._path, os.O_RDWR)
        except OSError:
            return False
        try:
            return _locked(file)
        finally:
            os.close(file)

    def remove(self) -> None:
        with suppress(OSError):
            self._path.unlink()

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def remove_old(pattern: Path) -> None:
    """Remove what killed processes have left whose database nobody has used again, as after tests."""
    for path in pattern.parent.glob(pattern.name):
        with suppress(OSError):
            if time() - path.stat().st_mtime > LOCK_SECONDS and (lock := Lock(path)).is_free():
                lock.remove()


def _locked(file: int) -> bool:
    """Lock the file for as long as it is open; whether the file could be locked."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
