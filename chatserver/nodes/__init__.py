"""Several nodes as one server: what they share in Redis. Nothing outside this room knows Redis."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from chatserver.auth.tickets import Tickets
from chatserver.errors import SettingsError
from chatserver.log.journal import Journal
from chatserver.runs.elsewhere import Elsewhere
from chatserver.runs.places import Places
from chatserver.sessions import Quota, Sessions
from chatserver.settings import Settings, variable
from chatserver.transports.admission import Admissions

if TYPE_CHECKING:
    from chatserver.nodes.link import Link


class Shared(Struct, frozen=True, kw_only=True):
    """What processes with one database share, in the form for nodes or for a process that is alone."""

    sessions: Sessions
    journal: Journal
    elsewhere: Elsewhere
    places: Places
    admissions: Admissions
    tickets: Tickets


def quota_of(settings: Settings) -> Quota:
    """What each user may have stored."""
    return Quota(settings.max_sessions_per_user, settings.max_stored_bytes_per_user)


def link_to(redis_url: str | None) -> Callable[[], AbstractAsyncContextManager["Link | None"]]:
    """What opens the link to the Redis of a URL; without a URL there is none, and this server is the only one.

    Raises:
        SettingsError: it is no such URL, or the extra is not installed. What is returned raises it, too: what answers
            there will never do.
    """
    if not redis_url:
        return nullcontext
    try:
        from chatserver.nodes.address import Address
        from chatserver.nodes.link import open_link

        return partial(open_link, Address(redis_url))
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{variable('redis_url')}: {error.name} is missing: pip install 'chatserver[redis]'"
        ) from None
    except ValueError as error:
        raise SettingsError(f"{variable('redis_url')}: {error}") from None
