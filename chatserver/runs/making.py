"""Runs in their lives: as they begin, and as they are taken from the database where they have waited."""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from chatserver.call_checks import Toolbox
from chatserver.commands import ChatRequest
from chatserver.events import PROTOCOL_VERSION, Start, Usage
from chatserver.log import EventLog, EventLogs
from chatserver.meter import Day, Meter
from chatserver.runs.asking import Asking
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.holds import Holds, RunHold
from chatserver.runs.life import Ask, Life
from chatserver.runs.places import Place
from chatserver.runs.run import Run
from chatserver.sessions import Begun, Parked, Sessions
from chatserver.settings import Settings
from chatserver.telemetry import NOTHING, Observer, RunObserver
from chatserver.waiting import seconds_until

Made: TypeAlias = tuple[Life, Ask]
"""A run that has no task yet, and what asks its model."""


class Making(Struct, frozen=True):
    """Makes runs; ``on_idle`` is called with one that waits and has had no reader for long."""

    settings: Settings
    sessions: Sessions
    logs: EventLogs
    toolbox: Toolbox
    checkpoints: Checkpoints
    holds: Holds
    observer: Observer
    on_idle: Callable[[Life], None]

    def begun(
        self, user: str, request: ChatRequest, begun: Begun, log: EventLog, place: Place, observer: RunObserver
    ) -> Made:
        """A run that begins."""
        settings = self.settings
        log.append(
            Start(
                session_id=begun.run.session_id,
                message_id=begun.run.message_id,
                user_message_id=begun.user_message_id,
                model=request.model or settings.model,
                protocol=PROTOCOL_VERSION,
                heartbeat_ms=round(settings.heartbeat_seconds * 1000),
            )
        )
        grace_seconds, held_seconds = self._grace_seconds(request), settings.retention_seconds
        run = Run(begun.run, log, self._meter(place.day), grace_seconds, monotonic(), observer, held_seconds)
        life = self._life(user, run, request)
        life.place = place
        return life, partial(Asking(settings, self.sessions).first, [*begun.past], life)

    def taken(self, parked: Parked, log: EventLog) -> Made:
        """A run that has waited."""
        settings, request = self.settings, parked.wait.request
        said, usage = replace(log.answer(), transcript=parked.said.transcript), parked.run.usage or Usage()
        meter = self._meter(None)
        meter.resume(usage, said)
        began = monotonic() + seconds_until(parked.run.created_at)
        observer = self.observer.run(parked.run.run_id, request.model or settings.model, NOTHING)
        grace_seconds, held_seconds = self._grace_seconds(request), settings.retention_seconds
        life = self._life(
            parked.user, Run(parked.run, log, meter, grace_seconds, began, observer, held_seconds), request
        )
        life.billed = usage.input_tokens + usage.output_tokens
        life.resume(said, parked.wait.calls)
        self.holds.resume(life, parked.wait.calls)
        return life, partial(Asking(settings, self.sessions).again, parked, life)

    def _life(self, user: str, run: Run, request: ChatRequest) -> Life:
        life = Life(user, run, self.sessions, self.checkpoints, self.toolbox)
        life.request = request
        life.on_lost = partial(self.logs.lose, life.run_id)
        life.on_idle, life.hold = self.on_idle, partial(RunHold, self.holds)
        return life

    def _meter(self, day: Day | None) -> Meter:
        return Meter(self.settings.max_tokens_per_run, day, self.settings.max_answer_bytes)

    def _grace_seconds(self, request: ChatRequest) -> float | None:
        return self.settings.grace_seconds if request.on_disconnect == "cancel" else None
