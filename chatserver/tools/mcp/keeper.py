"""Keeps the processes of one MCP server, and ends all of them when the line to the process that wants them ends.

A program of its own: ``python keeper.py LINE COMMAND ARGUMENT…``. The other end of the line, a pipe, is held by the
process that has started this one, and nothing is ever written to it. So the line ends when that process closes it and
when that process dies, however it dies. The command's processes are a process group. What leaves the group is free.
"""

import os
import select
import signal
import sys
from contextlib import suppress
from time import monotonic

KILL_AFTER_SECONDS = 1.0
"""How long the processes may take to end after SIGTERM."""

NOT_FOUND_STATUS = 127
GLANCE_SECONDS = 0.02
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals to all processes of a service. This process ends when its child does."""


def main(line: int, command: list[str]) -> int:
    """Run a command until it ends or the line does; its exit status, 128 and more for a signal."""
    os.set_inheritable(line, False)
    waking = _wake_when_a_child_ends()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setpgroup=0, setsigdef=IGNORED)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        return NOT_FOUND_STATUS
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)  # The pipes are the child's alone: their end is its end.
    status = None
    while status is None and line not in select.select([line, waking], [], [])[0]:
        os.read(waking, 64)
        status = _status(child)
    ended = _end(child)
    return ended if status is None else status


def _wake_when_a_child_ends() -> int:
    waking, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return waking


def _status(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    return None if pid == 0 else code if code >= 0 else 128 - code


def _end(group: int) -> int:
    """End all processes of a group, and the child that leads it; the child's exit status where it was not known."""
    status = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = monotonic() + KILL_AFTER_SECONDS
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
        while _is_there(group) and monotonic() < deadline:
            with suppress(ChildProcessError):
                status = _status(group) or status
            select.select([], [], [], GLANCE_SECONDS)
    return status


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
