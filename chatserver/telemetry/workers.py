"""Metrics of several workers: each worker counts in files of a folder, which their parent makes and looks after.

The parent sets PROMETHEUS_MULTIPROC_DIR before it starts a worker as a new process: prometheus-client reads the
variable when it is imported. The parent itself does not import it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

WORKERS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_GAUGES = "gauge_livesum_"
"""How the files of gauges begin; behind it stands the worker's process id."""


@contextmanager
def shared_metrics(*, has_workers: bool = False) -> Iterator[None]:
    """For the parent: a folder for the metrics of its workers, as long as they run.

    ``has_workers``: the program before this one, in the same process, has left workers and their folder.
    """
    folder = os.environ[WORKERS_VARIABLE] if has_workers else mkdtemp(prefix="chatserver-metrics-")
    os.environ[WORKERS_VARIABLE] = folder
    try:
        yield
    finally:
        del os.environ[WORKERS_VARIABLE]
        rmtree(folder, ignore_errors=True)


def worker_died(pid: int) -> None:
    """For the parent: a worker is gone. Its connections and runs count no longer; what it has counted up stays."""
    Path(os.environ[WORKERS_VARIABLE], f"{_GAUGES}{pid}.db").unlink(missing_ok=True)


def worker_pids(folder: str) -> list[str]:
    """The workers that the parent has not reported as dead."""
    return sorted(path.stem.removeprefix(_GAUGES) for path in Path(folder).glob(f"{_GAUGES}*.db"))
