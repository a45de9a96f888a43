"""How a run ends, in front of its readers or by a crash, and what is kept of one that goes on."""

from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, Executable, Row, bindparam, case, select, tuple_, update

from chatserver.answer import Answer, interrupted, retold
from chatserver.dialogue import INTERRUPTED_CALL, estimated_tokens, json_bytes, told_bytes
from chatserver.endings import DELETED, INTERRUPTED
from chatserver.errors import RunLost
from chatserver.events import Done, Error, Event, Terminal, Usage, record
from chatserver.log import SEQ_LIMIT, StoredLog
from chatserver.parts import ToolCallPart
from chatserver.resources import RunFailure, status_after, timestamp
from chatserver.sessions.holdings import add_to_run
from chatserver.sessions.schema import USER_OF_RUN, call_answers, insert_or_update, messages, runs, sessions, spendings
from chatserver.sessions.statements import Statement
from chatserver.sessions.witness import Left
from chatserver.waiting import seconds_until, unanswered

# What they set are the parameters named as columns.
_IS_UNFINISHED = (runs.c.run_id == bindparam("run"), runs.c.finished_at.is_(None))
_SESSION = select(runs.c.user_id, runs.c.session_id).where(*_IS_UNFINISHED)
_TOUCH = Statement(
    update(sessions)
    .where(tuple_(sessions.c.user_id, sessions.c.session_id).in_(_SESSION))
    .values(updated_at=bindparam("now"), bytes=sessions.c.bytes + bindparam("size"))
)
_END = Statement(update(runs).where(*_IS_UNFINISHED))
_MESSAGE = select(runs.c.message_id).where(runs.c.run_id == bindparam("run")).scalar_subquery()
_OF_RUN = update(messages).where(messages.c.message_id == _MESSAGE)
_SAY = Statement(_OF_RUN)
_LEFT = select(messages.c.parts, messages.c.transcript).where(messages.c.message_id == _MESSAGE)
_LEFT_RUNS = select(runs.c.run_id, runs.c.session_id, runs.c.message_id, runs.c.usage, runs.c.created_at, runs.c.wait)
_CHECKPOINT = Statement(_OF_RUN.where(messages.c.status == "streaming"))


class Progress(Struct, frozen=True):
    """How far a run has come. ``billed`` of its tokens have been counted as spent."""

    answer: Answer
    log: StoredLog
    usage: Usage | None = None
    billed: int = 0


def finish(connection: Connection, run_id: str, ending: Terminal, progress: Progress, owner: str) -> bool:
    """Keep what a run has come to, for the process ``owner``; again: nothing. Whether it was kept now.

    Raises:
        RunLost: another process has ended the run, or deleted it with its session.
    """
    now, status = timestamp(), status_after(ending)
    answer, log, usage = progress.answer, progress.log, progress.usage
    error = RunFailure(ending.code, ending.message) if isinstance(ending, Error) else None
    size = len(log.documents) + len(log.lengths) + json_bytes(answer.parts) + json_bytes(answer.transcript)
    # The session first: everybody locks in this order, so that PostgreSQL meets no deadlock with a deletion.
    _TOUCH.change(connection, {"run": run_id, "now": now, "size": size})
    ended = {"status": status, "last_seq": log.last_seq, "usage": usage, "finished_at": now, "error": error}
    kept = {"events": log.documents, "lengths": log.lengths, "wait": None, "waits_until": None}
    if _END.change(connection, {"run": run_id, "owner": owner} | kept | ended) == 0:
        check_owner(connection, run_id, owner)
        return False
    spend(connection, run_id, progress, now)
    finish_reason = None if isinstance(ending, Error) else ending.finish_reason
    message_status = "complete" if status == "completed" else "partial"
    say(connection, run_id, answer, usage=usage, status=message_status, finish_reason=finish_reason)
    add_to_run(connection, run_id, size)
    return True


def say(connection: Connection, run_id: str, answer: Answer, **fields: Any) -> None:
    """Keep the message of a run."""
    _SAY.change(connection, {"run": run_id} | _said(answer) | fields)


def spend(connection: Connection, run_id: str, progress: Progress, now: str) -> None:
    """Count what a run has spent, and was not counted before, as spent today by its user."""
    if (usage := progress.usage) is not None:
        tokens = usage.input_tokens + usage.output_tokens - progress.billed
        _SPEND.change(connection, {"run": run_id, "day": now[:10], "tokens": tokens})


def lock_session(connection: Connection, run_id: str, now: str) -> None:
    """Lock the session of an active run, as whoever changes the run and its message does first; it is used now."""
    _TOUCH.change(connection, {"run": run_id, "now": now, "size": 0})


def has_ended(connection: Connection, run_id: str, owner: str) -> bool:
    """Whether the process ``owner`` has ended the run."""
    mine = select(runs.c.run_id).where(runs.c.run_id == run_id, runs.c.finished_at.is_not(None), runs.c.owner == owner)
    return connection.scalar(mine) is not None


def check_owner(connection: Connection, run_id: str, owner: str) -> None:
    """A run is over already: well, if this very process has ended it, and never heard that its end was kept."""
    found = connection.execute(select(runs.c.owner).where(runs.c.run_id == run_id)).one_or_none()
    if found is None:
        raise RunLost(DELETED.message, is_deleted=True)
    if found.owner != owner:
        raise RunLost("the server was away for too long: another one ended the answer")


def _spend(dialect: str) -> Executable:
    """Add ``tokens`` to what the user of a ``run`` has spent on a ``day``; the days before it are forgotten."""
    query = insert_or_update(dialect, spendings).values(user_id=USER_OF_RUN)
    is_same_day = spendings.c.day == query.excluded.day
    sum_of_day = case((is_same_day, spendings.c.tokens + query.excluded.tokens), else_=query.excluded.tokens)
    values = {"day": query.excluded.day, "tokens": sum_of_day}
    return query.on_conflict_do_update(index_elements=["user_id"], set_=values)


_SPEND = Statement(_spend)


def _said(answer: Answer) -> dict[str, Any]:
    told = told_bytes(answer.parts, answer.transcript)
    return {"parts": answer.parts, "transcript": answer.transcript, "told_bytes": told}


def checkpoint(connection: Connection, answers: Mapping[str, Answer]) -> None:
    """Keep what these runs, by id, have said so far. Of those that are over or gone: nothing."""
    # In one order always, again for the sake of PostgreSQL's locks.
    rows = [{"run": run_id, **_said(answer)} for run_id, answer in sorted(answers.items())]
    if rows:
        _CHECKPOINT.change(connection, *rows)


def interrupt(connection: Connection, left: Mapping[str, Left], left_by: str | None, owner: str) -> list[Terminal]:
    """End runs that a process has left, each with what it had said as its log.

    A run of which a call waits is parked instead: all that its readers were shown is stored.

    ``left``: the runs by id, each with what is known of it beside what its message holds. The longer one of both
    answers counts. A run has failed, unless its user had cancelled it. On PostgreSQL another process may end or delete
    a run meanwhile: that one stays so. How each run has ended that was ended here.
    """
    # In the order in which everybody locks, and one after the other: together the answers may be large.
    ended, mine = list[Terminal](), runs.c.finished_at.is_(None) & (runs.c.owner == left_by)
    unfinished = _LEFT_RUNS.where(runs.c.run_id.in_(left), mine)
    for run in connection.execute(unfinished.order_by(runs.c.user_id, runs.c.session_id)).all():
        run_id, told = run.run_id, left[run.run_id]
        if run.wait is not None and run.wait.calls and not told.is_cancelled:
            # Since then they may have been taken: then the next look ends the run.
            park(connection, mine & (runs.c.run_id == run_id))
            continue
        if (kept := connection.execute(_LEFT, {"run": run_id}).one_or_none()) is None:
            continue
        answered = set(connection.scalars(select(call_answers.c.call_id).where(call_answers.c.run_id == run_id)))
        said = interrupted(_further(Answer(*kept), told.said), partial(_known, answered))
        ending: Terminal = _cancelled(run, said) if told.is_cancelled else INTERRUPTED
        progress = Progress(said, left_log(run_id, said, ending))
        if isinstance(ending, Done):  # Nothing more is counted for the day, whatever the end of the run.
            progress = replace(progress, usage=ending.usage, billed=ending.total_tokens)
        with suppress(RunLost), connection.begin_nested():
            if finish(connection, run_id, ending, progress, owner):
                ended.append(ending)
    return ended


def _cancelled(run: Row[*tuple[Any, ...]], said: Answer) -> Done:
    """The end of a run that its user has cancelled. Its usage is known if it has waited, else only of its words."""
    texts = [part.text for part in said.parts if not isinstance(part, ToolCallPart)]
    usage = run.usage or Usage(0, estimated_tokens("".join(texts)), estimated=True)
    return Done(
        session_id=run.session_id,
        message_id=run.message_id,
        finish_reason="cancelled",
        total_tokens=usage.input_tokens + usage.output_tokens,
        usage=usage,
        duration_ms=max(0, round(-1000 * seconds_until(run.created_at))),
    )


def _known(answered: Container[str], call: ToolCallPart) -> str:
    """What is known of a call without a result, where these calls have been answered: each before it was made."""
    has_waited = (call.needs_approval or call.executor == "client") and call.call_id not in answered
    return unanswered(call) if has_waited else INTERRUPTED_CALL


def park(connection: Connection, which: ColumnElement[bool]) -> bool:
    """Let go of a run of which calls wait; whether there is such a run.

    One that was more than waiting is due at once: a call was answered, or another one went on and has to be told of.
    """
    found = select(runs.c.run_id, runs.c.status, runs.c.wait).where(which, runs.c.finished_at.is_(None))
    run = connection.execute(found.with_for_update()).one_or_none()
    if run is None or run.wait is None or not run.wait.calls:
        return False
    expires_at = min(call.expires_at for call in run.wait.calls.values())
    due_at = expires_at if run.status == "waiting" else timestamp()
    parked = {"owner": None, "status": "waiting", "waits_until": due_at}
    connection.execute(update(runs).where(runs.c.run_id == run.run_id).values(parked))
    return True


def _further(kept: Answer, heard: Answer | None) -> Answer:
    """The longer one of two beginnings of one answer. How it goes back to its provider is only in the one ``kept``."""
    if heard is None or json_bytes(heard.parts) <= json_bytes(kept.parts):
        return kept
    return replace(heard, transcript=kept.transcript)


def left_log(run_id: str, left: Answer, ending: Terminal) -> StoredLog:
    """The log of a run that died: what it had said and its end, numbered above all that can have been sent."""
    return StoredLog.of([record(each) for each in _remains(run_id, left, ending)])


def _remains(run_id: str, left: Answer, ending: Terminal) -> Iterator[Event]:
    for seq, draft in enumerate([*retold(left.parts, run_id, SEQ_LIMIT), ending], SEQ_LIMIT + 1):
        yield replace(draft, run_id=run_id, seq=seq)
