"""Where a run is: here, at another process, in the database, or with nobody, so that it is taken."""

from chatserver.commands import checked_id
from chatserver.log import EventLog, EventLogs
from chatserver.resources import RunResource
from chatserver.runs.elsewhere import Elsewhere
from chatserver.runs.life import Life
from chatserver.runs.lives import Lives
from chatserver.sessions import Sessions


class Reach:
    """Finds runs."""

    def __init__(self, sessions: Sessions, logs: EventLogs, lives: Lives, elsewhere: Elsewhere) -> None:
        self._sessions = sessions
        self._logs = logs
        self._lives = lives
        self._elsewhere = elsewhere

    async def log_of(self, user: str, run_id: str) -> tuple[EventLog, Life | None]:
        """The log of a run, and the run if this process has it, or has taken it since it waits and is nobody's."""
        for look_again in (self._sessions.interrupt_abandoned, None):
            if life := await self.find(user, run_id):
                return life.log, life
            run = await self._sessions.run(user, run_id)
            if life := await self._taken(user, run):
                return life.log, life
            if log := await (self._logs.open if run.finished_at is None else self._logs.restore)(run_id):
                return log, None
            if look_again is not None:
                await look_again()
        raise self._elsewhere.unreached()

    async def here(self, user: str, run_id: str) -> Life | None:
        """A run of this process, also one that is just taken, since it waits and is nobody's."""
        life = await self.find(user, run_id)
        return life or await self._taken(user, await self._sessions.run(user, run_id))

    async def _taken(self, user: str, run: RunResource) -> Life | None:
        if run.status != "waiting":
            return None
        if not await self._lives.revive(run.run_id):
            await self._sessions.interrupt_abandoned()  # Its process may be dead.
            await self._lives.revive(run.run_id)
        return await self.find(user, run.run_id)

    async def anywhere(self, user: str, run_id: str) -> tuple[Life | None, bool]:
        """A run as ``here``, and whether it goes on at all; what dead processes left is ended first, or taken."""
        for look_again in (self._sessions.interrupt_abandoned, None):
            if life := await self.here(user, run_id):
                return life, True
            if (await self._sessions.run(user, run_id)).finished_at is not None:
                return None, False
            if look_again is not None:
                await look_again()
        return None, True

    async def find(self, user: str, run_id: str) -> Life | None:
        """A run of this process. A run that begins is on disk, and so in reach, before it is in ``lives``."""
        if beginning := self._lives.beginning.get(checked_id(run_id)):
            await beginning.wait()
        life = self._lives.lives.get(run_id)
        return life if life is not None and life.user == user else None
