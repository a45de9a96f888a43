"""What the routes are built on; one per app, in its state."""

from typing import Any

from litestar.connection import ASGIConnection
from msgspec import Struct

from chatserver.auth import Gate
from chatserver.limits import Requests
from chatserver.runs import Runs
from chatserver.sessions import Sessions
from chatserver.settings import Settings
from chatserver.transports.connections import Connections


class Parts(Struct, frozen=True):
    """The parts of a running server."""

    settings: Settings
    gate: Gate
    requests: Requests
    runs: Runs
    sessions: Sessions
    connections: Connections


def parts_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Parts:
    parts: Parts = connection.app.state.parts
    return parts
