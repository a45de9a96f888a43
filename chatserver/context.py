"""The context of a run: what an agent has of the run that it answers."""

from collections.abc import Callable, Sequence

from msgspec import Struct

from chatserver.calls import Calls
from chatserver.events import Event
from chatserver.meter import Meter
from chatserver.steps import Emit, Settled
from chatserver.telemetry import UNOBSERVED_RUN, RunObserver


class RunContext(Struct, frozen=True, kw_only=True):
    """Whose run it is, and what its agent may do there.

    ``emit`` meters texts, ``calls`` makes tool calls; the agent meters its requests to the model by ``meter``.
    ``is_resumed``: the run has waited, and another process, or this one before, has called its agent; that has asked
    for ``turns`` turns of the model. ``told`` gives what the run has told so far, with adjacent texts merged.
    """

    user: str
    session_id: str
    run_id: str
    meter: Meter
    emit: Emit
    settled: Settled
    calls: Calls
    told: Callable[[], Sequence[Event]]
    observer: RunObserver = UNOBSERVED_RUN
    is_resumed: bool = False
    turns: int = 0
