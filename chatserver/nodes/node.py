"""A node: what one process shares with the others over Redis, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatserver.commands import new_id
from chatserver.nodes import Shared
from chatserver.nodes.commands import OtherNodes
from chatserver.nodes.journal import open_journal
from chatserver.nodes.link import Link
from chatserver.nodes.membership import open_membership
from chatserver.nodes.owned_log import OwnedLog
from chatserver.sessions import Quota, open_sessions
from chatserver.telemetry import Observer


@asynccontextmanager
async def open_node(link: Link, database_url: str, quota: Quota, observer: Observer) -> AsyncIterator[Shared]:
    """Be one of the nodes until the end of the block. The database knows the node by the same id as Redis.

    Raises:
        SettingsError: the database or Redis cannot be used.
    """
    node = new_id()
    async with (
        open_membership(link, node) as membership,
        open_sessions(database_url, quota, node, membership, observer) as sessions,
        open_journal(link, node, sessions.log) as journal,
    ):
        others = OtherNodes(link, membership)

        def lose(log: OwnedLog) -> None:
            journal.lose(log.run_id)
            others.lose(log.run_id)

        membership.journal, journal.publisher.on_fenced = journal, lose
        yield Shared(sessions, journal, others)
