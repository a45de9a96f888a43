"""Waits: what is kept of runs that wait for answers, and the answers, each recorded once.

A call waits as long as it stands in the ``wait`` of its run. The process of the run takes an answer by an UPDATE that
removes the call there, and only then makes the call. So whoever takes the run over can have each call wait again that
it finds there, and no call is made twice. An answer that its dead process has not taken is taken by the next one.
"""

from collections.abc import Collection, Container, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, and_, func, select, update

from chatserver.answer import Answer
from chatserver.errors import AlreadyAnswered, NotFound, RunLost, Unavailable
from chatserver.log import StoredLog
from chatserver.parts import Part, ToolCallPart
from chatserver.resources import RunResource, RunStatus, timestamp
from chatserver.sessions.database import Database
from chatserver.sessions.end import Progress, check_owner, lock_session, park, say, spend
from chatserver.sessions.leases import Lease
from chatserver.sessions.queries import RUN_COLUMNS
from chatserver.sessions.schema import call_answers, insert_or_update, messages, runs
from chatserver.waiting import Refused, Resolution, Wait

DUE_AT_ONCE = 100
"""How many parked runs that are due are looked up at a time."""

_IS_ACTIVE = runs.c.finished_at.is_(None)
_IS_PARKED = and_(_IS_ACTIVE, runs.c.owner.is_(None), runs.c.status == "waiting")


class Parked(Struct, frozen=True, kw_only=True):
    """A waiting run that this process has taken, with all that its continuation needs."""

    user: str
    run: RunResource
    user_message_id: str
    wait: Wait
    log: StoredLog
    said: Answer
    answers: Mapping[str, Resolution]
    """What is recorded of its calls, by id."""


class Waits:
    """The waiting runs of one database. Each method is one transaction."""

    def __init__(self, database: Database, lease: Lease) -> None:
        self._database = database
        self._lease = lease

    async def store(
        self,
        run_id: str,
        wait: Wait,
        progress: Progress,
        is_waiting: bool,
        limit: float,
    ) -> Mapping[str, Resolution]:
        """Keep all of a run that has calls which wait; ``is_waiting``: nothing else of it goes on.

        The calls are returned that wait no more: those that have been answered meanwhile, which is taken with that, or
        all of them, refused, since as many runs of the user wait as may.

        Raises:
            RunLost: another process has ended the run, or deleted it with its session; nothing is kept.
        """
        log = progress.log
        kept = {"last_seq": log.last_seq, "events": log.documents, "lengths": log.lengths, "usage": progress.usage}

        def work(connection: Connection) -> Mapping[str, Resolution]:
            now = timestamp()
            lock_session(connection, run_id, now)
            mine = _IS_ACTIVE & (runs.c.run_id == run_id) & (runs.c.owner == self._lease.owner)
            user = connection.scalar(update(runs).where(mine).values(kept).returning(runs.c.user_id))
            if user is None:
                check_owner(connection, run_id, self._lease.owner)
                return {}
            answers = _answers(connection, [run_id]).get(run_id, {})
            resolved = {call_id: each for call_id, each in answers.items() if call_id in wait.calls}
            if is_waiting and not resolved and _waiting_of(connection, user, run_id) >= limit:
                resolved = dict.fromkeys(wait.calls, Refused(f"{limit} answers wait for somebody, the most at a time"))
            status = "waiting" if is_waiting and not resolved else "running"
            waits = {"status": status, "wait": _without(wait, resolved)}
            connection.execute(update(runs).where(runs.c.run_id == run_id).values(waits))
            say(connection, run_id, progress.answer)
            spend(connection, run_id, progress, now)
            return resolved

        return await self._database.write(work)

    async def check(self, user: str, run_id: str, call_id: str) -> tuple[RunStatus, ToolCallPart]:
        """The status of a run, and a call of it that waits.

        Raises:
            NotFound: the user has no such run, or the run no such call.
            AlreadyAnswered: the call waits for no answer.
        """

        def work(connection: Connection) -> tuple[RunStatus, ToolCallPart]:
            query = select(runs.c.status, runs.c.wait, runs.c.finished_at, messages.c.parts).join_from(
                runs, messages, messages.c.message_id == runs.c.message_id
            )
            row = connection.execute(query.where(runs.c.run_id == run_id, runs.c.user_id == user)).one_or_none()
            if row is None:
                raise NotFound
            if (part := _call(row.parts, call_id)) is None:
                raise NotFound
            is_open = row.finished_at is None and row.wait is not None and call_id in row.wait.calls
            if not is_open or call_id in _answers(connection, [run_id]).get(run_id, {}):
                raise AlreadyAnswered
            return row.status, part

        return await self._database.read(work)

    async def answer(self, run_id: str, call_id: str, resolution: Resolution) -> bool | None:
        """Record the answer to a waiting call; whether the run is this process's, which takes the answer with that.

        None: nobody has it, as yet.

        Raises:
            AlreadyAnswered: another answer was first, or the call waits no more.
        """

        def work(connection: Connection) -> bool | None:
            is_there = _IS_ACTIVE & (runs.c.run_id == run_id) & runs.c.owner.is_not(None)
            started = update(runs).where(is_there).values(status="running")
            row = connection.execute(started.returning(runs.c.owner, runs.c.wait)).one_or_none()
            if row is None:
                if connection.scalar(select(runs.c.run_id).where(_IS_PARKED, runs.c.run_id == run_id)) is not None:
                    return None
                raise AlreadyAnswered
            values = {"run_id": run_id, "call_id": call_id, "resolution": resolution}
            first = insert_or_update(connection.dialect.name, call_answers).values(values).on_conflict_do_nothing()
            if row.wait is None or call_id not in row.wait.calls or connection.execute(first).rowcount == 0:
                raise AlreadyAnswered
            if is_mine := bool(row.owner == self._lease.owner):
                _take(connection, run_id, row.wait, [call_id])
            return is_mine

        return await self._database.write(work)

    async def answers(self, run_ids: Sequence[str]) -> Mapping[str, Mapping[str, Resolution]]:
        """The answers of those of these runs that are still this process's and not over, by run and call."""

        def work(connection: Connection) -> Mapping[str, Mapping[str, Resolution]]:
            mine = select(runs.c.run_id).where(
                _IS_ACTIVE, runs.c.run_id.in_(run_ids), runs.c.owner == self._lease.owner
            )
            found = list(connection.scalars(mine))
            answered = _answers(connection, found)
            return {run_id: answered.get(run_id, {}) for run_id in found}

        return await self._database.read(work)

    async def take(self, run_id: str, call_ids: Container[str]) -> None:
        """Take the answers to these calls of a run of this process, before the calls are made.

        Raises:
            RunLost: the run is another process's, over, or deleted.
        """

        def work(connection: Connection) -> None:
            mine = _IS_ACTIVE & (runs.c.run_id == run_id) & (runs.c.owner == self._lease.owner)
            goes_on = update(runs).where(mine).values(status="running")
            if (row := connection.execute(goes_on.returning(runs.c.wait)).one_or_none()) is None:
                raise RunLost("another process goes on with the run")
            if row.wait is not None:  # Else it has never been stored that a call waits.
                _take(connection, run_id, row.wait, call_ids)

        await self._database.write(work)

    async def park(self, run_id: str, even_running: bool = False) -> bool:
        """Let go of a waiting run of this process; False: it does not wait, or is another process's.

        ``even_running``: also of one of which something else goes on beside a call that waits, or that has an answer
        which was not taken: whoever takes the run takes the answer.
        """

        def work(connection: Connection) -> bool:
            mine = (runs.c.run_id == run_id) & (runs.c.owner == self._lease.owner)
            return park(connection, mine if even_running else mine & (runs.c.status == "waiting"))

        return await self._database.write(work)

    async def claim(self, run_id: str) -> Parked | None:
        """Take a parked run; None: it is not parked, or another process was first.

        Raises:
            Unavailable: other processes may be about to take this one for dead.
        """
        if self._lease.is_stale:
            raise Unavailable("the database was not reached for a while", retry_after=1)

        def work(connection: Connection) -> Parked | None:
            beside = (runs.c.user_id, runs.c.user_message_id, runs.c.wait, runs.c.events, runs.c.lengths)
            taken = update(runs).where(_IS_PARKED, runs.c.run_id == run_id).values(owner=self._lease.owner)
            row = connection.execute(taken.returning(*RUN_COLUMNS, *beside)).one_or_none()
            if row is None:
                return None
            fields = dict(zip(RunResource.__struct_fields__, row, strict=False))
            said = select(messages.c.parts, messages.c.transcript).where(messages.c.message_id == row.message_id)
            return Parked(
                user=row.user_id,
                run=RunResource(**fields),
                user_message_id=row.user_message_id,
                wait=row.wait,
                log=StoredLog(row.last_seq, row.events, row.lengths or b""),
                said=Answer(*connection.execute(said).one()),
                answers=_answers(connection, [run_id]).get(run_id, {}),
            )

        return await self._database.write(work)

    async def waiting(self, run_ids: Collection[str]) -> set[str]:
        """Which of these runs wait, whatever process has them."""

        def work(connection: Connection) -> set[str]:
            waiting = _IS_ACTIVE & (runs.c.status == "waiting") & runs.c.run_id.in_(run_ids)
            return set(connection.scalars(select(runs.c.run_id).where(waiting)))

        return await self._database.read(work)

    async def due(self) -> list[str]:
        """Some parked runs with calls that have expired or were answered, or with more to tell than that they wait."""

        def work(connection: Connection) -> list[str]:
            query = select(runs.c.run_id).where(_IS_PARKED, runs.c.waits_until <= timestamp())
            return list(connection.scalars(query.limit(DUE_AT_ONCE)))

        return await self._database.read(work)


def _without(wait: Wait, call_ids: Container[str]) -> Wait:
    return replace(wait, calls={call_id: call for call_id, call in wait.calls.items() if call_id not in call_ids})


def _take(connection: Connection, run_id: str, wait: Wait, call_ids: Container[str]) -> None:
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(wait=_without(wait, call_ids)))


def _answers(connection: Connection, run_ids: Sequence[str]) -> dict[str, dict[str, Resolution]]:
    found: dict[str, dict[str, Resolution]] = {}
    query = select(call_answers).where(call_answers.c.run_id.in_(run_ids))
    for run_id, call_id, resolution in connection.execute(query):
        found.setdefault(run_id, {})[call_id] = resolution
    return found


def _waiting_of(connection: Connection, user: str, but: str) -> int:
    """How many runs of a user wait, beside one."""
    query = select(func.count()).select_from(runs).where(_IS_ACTIVE, runs.c.user_id == user, runs.c.run_id != but)
    return connection.scalar(query.where(runs.c.status == "waiting")) or 0


def _call(parts: Sequence[Part], call_id: str) -> ToolCallPart | None:
    return next((part for part in parts if isinstance(part, ToolCallPart) and part.call_id == call_id), None)
