"""What a user may have stored: counted in the transactions that store it, freed by deletion. On both databases."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from anyio import create_task_group
from sqlalchemy import Connection, select, text

from chatserver.errors import QuotaExceeded, TooMany
from chatserver.sessions import Quota, Sessions, database, open_sessions
from chatserver.sessions.database import Database
from chatserver.sessions.schema import holdings
from tests.clients import RefusedError, Transport, documents_of, request, text_of
from tests.databases import answered, ask, ended
from tests.fake_upstream import say
from tests.life import in_time
from tests.proving import each_transport, staged

pytestmark = pytest.mark.anyio


def counted(connection: Connection) -> dict[str, tuple[int, int]]:
    return {row.user_id: (row.sessions, row.bytes) for row in connection.execute(select(holdings))}


def looked_up(connection: Connection) -> dict[str, tuple[int, int]]:
    """The same, by looking."""
    size = "octet_length({})" if connection.dialect.name == "postgresql" else "length(CAST({} AS BLOB))"
    said = " + ".join(size.format(name) for name in ("parts", "transcript"))
    # Four bytes, `[]` and `[]`, stand for an answer that has said nothing yet, and are counted when it has ended.
    query = (
        f"SELECT user_id, count(*), (SELECT coalesce(sum({said}), 0) FROM messages WHERE user_id = s.user_id)"
        " - 4 * (SELECT count(*) FROM runs WHERE user_id = s.user_id AND finished_at IS NULL)"
        f" + (SELECT coalesce(sum({size.format('events')}), 0) FROM runs WHERE user_id = s.user_id)"
        " FROM sessions AS s GROUP BY user_id"
    )
    return {user: (sessions, size) for user, sessions, size in connection.execute(text(query))}


async def test_what_is_counted_is_what_is_there(sessions: Sessions, database: Database, url: str) -> None:
    first = await answered(sessions, "Grüße", "ü" * 100, session_id="s")
    await answered(sessions, None, "again", regenerate=first.user_message_id)
    await answered(sessions, "Other", session_id="t")
    await answered(sessions, "Bob's", session_id="s", user="bob")
    active = await ask(sessions, "Now?", session_id="s")
    assert await database.read(counted) == await database.read(looked_up)
    await ended(sessions, active)
    await ended(sessions, active)  # As if nobody had heard that it was kept.
    await sessions.delete("ann", "t")
    now = await database.read(counted)
    assert now == await database.read(looked_up)
    assert (now["ann"][0], now["bob"][0]) == (1, 1)
    for user in ("ann", "bob"):
        await sessions.delete(user, "s")
    assert await database.read(counted) == {"ann": (0, 0), "bob": (0, 0)}


BEFORE = """
INSERT INTO sessions VALUES ('ann', 's', '', '', '', '');
INSERT INTO sessions VALUES ('ann', 't', '', '', '', '');
INSERT INTO sessions VALUES ('bob', 's', '', '', '', '');
INSERT INTO messages VALUES ('u', 'ann', 's', 1, NULL, 'user', 'complete', NULL, NULL, '', 'Grün', '', '[]', NULL)
"""


async def test_what_was_stored_before_there_were_quotas_is_counted(url: str) -> None:
    with patch.object(database, "migrate", partial(database.migrate, version="0004")):
        async with database.open_database(url) as before:
            await before.write(lambda connection: [connection.execute(text(each)) for each in BEFORE.split(";")])
    async with database.open_database(url) as after:
        assert await after.read(counted) == {"ann": (2, 7), "bob": (1, 0)}


async def test_a_user_has_so_many_sessions_and_no_more(url: str) -> None:
    async with open_sessions(url, Quota(sessions=2)) as sessions:
        for name in ("a", "b"):
            await answered(sessions, session_id=name)
        for session_id in ("c", None):
            with pytest.raises(TooMany, match="2 sessions"):
                await ask(sessions, session_id=session_id)
        await answered(sessions, session_id="a")
        await answered(sessions, session_id="c", user="bob")
        await sessions.delete("ann", "b")
        await answered(sessions, session_id="c")
        assert len((await sessions.page("ann", 10, None)).sessions) == 2


async def test_racing_sessions_are_not_more_than_allowed(url: str) -> None:
    begun: list[str] = []
    async with open_sessions(url, Quota(sessions=3)) as sessions:

        async def race() -> None:
            with suppress(TooMany):
                begun.append((await ask(sessions)).run.session_id)

        async with create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(race)
    assert len(begun) == 3


async def test_a_user_has_so_many_bytes_and_no_more(url: str) -> None:
    async with open_sessions(url, Quota(bytes=2000)) as sessions:
        first = await answered(sessions, "x" * 100, "y" * 500, session_id="s")
        await answered(sessions, "x" * 100, "y" * 500, session_id="t")
        for fields in ({"session_id": "s"}, {"session_id": "new"}):
            with pytest.raises(QuotaExceeded):
                await ask(sessions, "x" * 1000, **fields)
        await ask(sessions, session_id="s", user="bob")
        await sessions.delete("ann", "t")
        assert (await ask(sessions, None, regenerate=first.user_message_id)).is_new


@each_transport
@in_time
async def test_a_user_who_has_all_that_one_may_have_is_told_so(transport: Transport, tmp_path: Path) -> None:
    async with staged(directory=tmp_path, max_sessions_per_user=2, max_stored_bytes_per_user=3000) as stage:
        for name in ("a", "b"):
            stage.upstream.script(*say("Yes"))
            documents = await documents_of(await transport.start(stage.server, {"message": "Hi", "session_id": name}))
            assert text_of(documents) == "Yes"
        for body, code in (({"message": "Hi"}, "too_many"), ({"message": "x" * 3000, "session_id": "a"}, "quota")):
            with pytest.raises(RefusedError) as refused:
                await transport.start(stage.server, body)
            assert (refused.value.status, refused.value.code) == (429, code)
        assert (await request(stage.server, "DELETE", "/chat/sessions/a")).status == 204
        stage.upstream.script(*say("Yes"))
        assert text_of(await documents_of(await transport.start(stage.server, {"message": "Hi"}))) == "Yes"
