"""A node: what one process shares with the others over Redis, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatserver.commands import new_id
from chatserver.nodes import Shared, quota_of
from chatserver.nodes.admissions import SharedAdmissions
from chatserver.nodes.alone import local_admissions
from chatserver.nodes.commands import OtherNodes
from chatserver.nodes.days import SharedDays
from chatserver.nodes.journal import open_journal
from chatserver.nodes.link import Link
from chatserver.nodes.membership import open_membership
from chatserver.nodes.open_counts import OpenCounts
from chatserver.nodes.owned_log import OwnedLog
from chatserver.nodes.places import SharedPlaces
from chatserver.nodes.tickets import SharedTickets
from chatserver.runs.places import LocalPlaces
from chatserver.sessions import open_sessions
from chatserver.settings import Settings
from chatserver.telemetry import Observer


@asynccontextmanager
async def open_node(link: Link, settings: Settings, observer: Observer) -> AsyncIterator[Shared]:
    """Be one of the nodes until the end of the block. The database knows the node by the same id as Redis.

    Raises:
        SettingsError: the database cannot be used, or Redis will never do.
    """
    node, quota = new_id(), quota_of(settings)
    async with (
        open_membership(link, node) as membership,
        open_sessions(settings.database_url, quota, node, membership, observer) as sessions,
        open_journal(link, node, sessions.log, observer=observer) as journal,
    ):
        others, counts = OtherNodes(link, membership), OpenCounts(link, node)

        def lose(log: OwnedLog) -> None:
            (journal.lose if log.has_ended else journal.give_up)(log.run_id)  # The database has it before it has ended.
            others.lose(log.run_id)

        membership.on_forgotten = journal.publish_again
        link.on_up.append(journal.publish_again)
        membership.journal, journal.publisher.on_fenced = journal, lose
        membership.on_look.append(lambda _: counts.renew())
        days = SharedDays(link, settings.max_tokens_per_day, sessions.spent_on)
        yield Shared(
            sessions=sessions,
            journal=journal,
            elsewhere=others,
            places=SharedPlaces(counts, LocalPlaces(settings, days)),
            admissions=SharedAdmissions(counts, local_admissions(settings)),
            tickets=SharedTickets(link),
        )
