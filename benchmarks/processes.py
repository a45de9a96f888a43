"""What the kernel knows of a process and all its children: CPU time, memory, sleeps; and which core they may use."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FILES_LIMIT = 65_536
"""5,000 streams through a proxy are 20,000 sockets, and some to spare."""

CPU_CLOCK = 2
"""As clock_getcpuclockid(3) makes the id of a process's clock; a part of Linux that does not change."""


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def cpu_ns(pid: int) -> int:
    """CPU time of a process tree in ns: the clock of each process, which knows its ended threads too."""
    total = 0
    for each in tree(pid):
        with suppress(OSError):
            total += time.clock_gettime_ns((~each << 3) | CPU_CLOCK)
    return total


def resident_bytes(pid: int) -> int:
    """Memory of a process tree that is in RAM, pages shared with others shared out among them."""
    total = 0
    for each in tree(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def wakes(pid: int) -> int:
    """How often the event loops of a process tree, its main threads, have gone to sleep: something woke each of them.

    The threads that a loop wakes are no wakes of their own.
    """
    total = 0
    for each in tree(pid):
        with suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text()
            total += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total


def cores() -> tuple[int, int]:
    """The core of the servers and that of the load: two, where there are two."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[min(1, len(usable) - 1)]


def raise_files_limit() -> int:
    """Allow as many open files as this user may; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = FILES_LIMIT if hard == resource.RLIM_INFINITY else min(hard, FILES_LIMIT)
    if hard < FILES_LIMIT:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_LIMIT, FILES_LIMIT))
            return FILES_LIMIT
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit
