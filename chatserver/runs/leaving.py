"""What a process that drains does for its readers of runs that go on at other processes."""

from contextlib import suppress

import anyio

from chatserver.errors import Unavailable
from chatserver.log import EventLogs
from chatserver.sessions.waits import Waits

DRAIN_LOOK_SECONDS = 0.25
"""Between two looks whether the runs still go on, and whether they wait."""

LAST_EVENTS_SECONDS = 0.5
"""How long after the drain the end of an interrupted run may take to come from its process, if that drains too."""


async def leave_followed(logs: EventLogs, waits: Waits, seconds: float) -> None:
    """Let the runs of other processes that are read here end, for so long; then let their readers go.

    Readers of a run that waits are let go at once, or as soon as it waits. Who is let go comes back to another process.
    """
    with anyio.move_on_after(seconds + LAST_EVENTS_SECONDS):
        while run_ids := {log.run_id for log in logs.followed()}:
            with suppress(Unavailable):  # It is asked again.
                waiting = await waits.waiting(run_ids)
                for log in logs.followed():
                    if log.run_id in waiting:
                        log.close()
            await anyio.sleep(DRAIN_LOOK_SECONDS)
    for log in logs.followed():
        log.close()
