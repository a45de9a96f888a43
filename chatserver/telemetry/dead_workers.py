"""The counts of workers that have died: they stay, in one file of each kind, so that restarts pile up no files.

Whoever reads the files of a folder, and whoever merges some of them, holds the lock of the folder: else a scrape would
find counts twice, or not at all, and a count that falls looks like a restart of all workers.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

if sys.platform != "win32":
    import fcntl

KINDS = "counter", "histogram"
"""The kinds of metrics that are counted up, each with a file of each worker: ``counter_1234.db``."""

_DEAD = "dead"
"""Stands in place of a process id."""


@contextmanager
def files_at_rest(folder: str, *, alone: bool = False) -> Iterator[None]:
    """Until the end of the block nobody merges files of the folder; ``alone``: nor does anybody read them.

    Raises:
        BlockingIOError: somebody reads or merges them, so this caller is not alone.
    """
    with Path(folder, "lock").open("w") as lock:
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        yield


def merge_dead(folder: str) -> None:
    """Merge the files of workers whose processes are gone, unless somebody reads: then whoever comes next does it."""
    with suppress(BlockingIOError), files_at_rest(folder, alone=True):
        for kind in KINDS:
            _merge(Path(folder), kind)


def _merge(folder: Path, kind: str) -> None:
    dead = [path for path in folder.glob(f"{kind}_*.db") if _is_gone(path.stem.removeprefix(f"{kind}_"))]
    if not dead:
        return
    counts, merged = defaultdict[str, float](float), folder / f"{kind}_{_DEAD}.db"
    for path in (merged, *dead):
        if path.exists() and path.stat().st_size:  # Else its worker was killed as it began to count.
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
                counts[key] += value
    written = merged.with_suffix(".new")
    written.unlink(missing_ok=True)
    file = MmapedDict(str(written))  # type: ignore[no-untyped-call]
    for key, value in counts.items():
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]
    written.replace(merged)
    for path in dead:
        path.unlink()


def _is_gone(pid: str) -> bool:
    if pid == _DEAD:
        return False
    try:
        os.kill(int(pid), 0)
    except OSError as error:  # One of another user lives, and has the number of a worker that is gone.
        return isinstance(error, ProcessLookupError)
    return False
