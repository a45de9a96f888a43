"""Answers to calls that wait: checked, recorded, and told to whoever has the run."""

import asyncio
from weakref import WeakValueDictionary

import anyio
from anyio import to_thread

from chatserver.call_checks import check_edited
from chatserver.commands import CallAnswer, checked_id
from chatserver.dialogue import is_question
from chatserver.errors import AlreadyAnswered, NotFound, TooMany
from chatserver.parts import ToolCallPart
from chatserver.questions import check_reply
from chatserver.resources import RunStatus
from chatserver.runs.elsewhere import Elsewhere
from chatserver.runs.lives import Lives
from chatserver.runs.places import Places
from chatserver.sessions import Sessions
from chatserver.waiting import Approved, resolution_of

ELSEWHERE_SECONDS = 0.2
"""How long an answer at another node, which holds the place that this one was refused, may take to be recorded."""


class Answers:
    """Records the answers of users, those to the calls of one run one after the other: the run needs one place."""

    def __init__(
        self, sessions: Sessions, places: Places, lives: Lives, elsewhere: Elsewhere, result_bytes_limit: int
    ) -> None:
        self._sessions = sessions
        self._places = places
        self._lives = lives
        self._elsewhere = elsewhere
        self._result_bytes_limit = result_bytes_limit
        self._turns = WeakValueDictionary[str, asyncio.Lock]()

    async def record(self, user: str, run_id: str, call_id: str, answer: CallAnswer) -> bool:
        """Record an answer, and let the run go on; False: just now the run was let go of, and is nobody's.

        Raises:
            NotFound: the user has no such run, or the run no such call.
            AlreadyAnswered: the call waits for no answer.
            BadRequest, TooLarge: the answer does not fit the call.
            TooMany: no place is left for the run to go on.
            Unavailable: the database cannot be used now.
        """
        async with self._turns.setdefault(run_id, asyncio.Lock()):
            try:
                return await self._record(user, run_id, call_id, answer)
            except TooMany:  # Perhaps the place is held for this very run, which then needs no further one.
                await anyio.sleep(ELSEWHERE_SECONDS)
                return await self._record(user, run_id, call_id, answer)

    async def _record(self, user: str, run_id: str, call_id: str, answer: CallAnswer) -> bool:
        status, call = await self._waiting(user, run_id, checked_id(call_id))
        resolution = resolution_of(answer, call, self._result_bytes_limit)
        if is_question(call):
            await to_thread.run_sync(check_reply, resolution, call.args)  # A schema may take a second.
        if isinstance(resolution, Approved) and resolution.args is not None:
            await check_edited(self._lives.toolbox, call.tool, resolution.args)
        place = await self._places.acquire(user) if status == "waiting" else None
        try:
            is_mine = await self._sessions.waits.answer(run_id, call_id, resolution)
            life = self._lives.lives.get(run_id)
            if is_mine and life is not None:
                place = await self._lives.holds.resolve(life, call_id, resolution, place)
            elif is_mine is not None:
                self._elsewhere.nudge(run_id)
        finally:
            if place is not None:
                await place.release()
        return is_mine is not None

    async def _waiting(self, user: str, run_id: str, call_id: str) -> tuple[RunStatus, ToolCallPart]:
        try:
            return await self._sessions.waits.check(user, run_id, call_id)
        except NotFound:
            life = self._lives.lives.get(run_id)
            if life is not None and life.user == user and call_id in life.run.calls:  # Told, and not stored yet.
                raise AlreadyAnswered from None
            raise
