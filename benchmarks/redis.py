"""A Redis for servers that share their runs."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.servers import free_port, pinned


def binary() -> str | None:
    """Where Redis is; None where it is not installed."""
    return shutil.which("redis-server", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextmanager
def running(core: int) -> Iterator[tuple[str, int]]:
    """The URL and the process of an empty Redis, which keeps nothing on disk, until the end of the block."""
    command, port = binary(), free_port()
    assert command is not None  # noqa: S101 - asked before
    with tempfile.TemporaryDirectory(prefix="chatserver-redis-") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        process = pinned(core, command, *options, stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.2)
            yield f"redis://127.0.0.1:{port}/0", process.pid
        finally:
            process.terminate()
            process.wait(5)
