"""A process that shares nothing but its database with others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chatserver.auth.tickets import LocalTickets
from chatserver.limits import RateLimiter
from chatserver.log.journal import LocalJournal
from chatserver.nodes import Shared, quota_of
from chatserver.runs.elsewhere import Alone
from chatserver.runs.places import LocalDays, LocalPlaces
from chatserver.sessions import open_sessions
from chatserver.settings import Settings
from chatserver.telemetry import Observer
from chatserver.transports.admission import LocalAdmissions

BODIES_AT_ONCE = 16
"""How many of the largest bodies, or more of smaller ones, one user may be sending at a time."""


@asynccontextmanager
async def open_alone(settings: Settings, observer: Observer) -> AsyncIterator[Shared]:
    """Use the database until the end of the block.

    Raises:
        SettingsError: the database cannot be used.
    """
    async with open_sessions(settings.database_url, quota_of(settings), observer=observer) as sessions:
        yield Shared(
            sessions=sessions,
            journal=LocalJournal(),
            elsewhere=Alone(),
            places=LocalPlaces(settings, LocalDays(settings.max_tokens_per_day, sessions.spent_on)),
            admissions=local_admissions(settings),
            tickets=LocalTickets(),
        )


def local_admissions(settings: Settings) -> LocalAdmissions:
    """What one process admits by itself."""
    # Without authentication all are one user, whom nobody else could be kept from asking.
    rate_limiter = RateLimiter(None if settings.auth == "none" else settings.max_requests_per_minute)
    return LocalAdmissions(rate_limiter, settings.max_connections_per_user, BODIES_AT_ONCE * settings.max_body_bytes)
