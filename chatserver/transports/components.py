"""What the routes are built on; one per app, in its state."""

from typing import TYPE_CHECKING

from msgspec import Struct

from chatserver.auth import Gate
from chatserver.runs.runs import Runs
from chatserver.sessions import Sessions
from chatserver.settings import Settings
from chatserver.telemetry.metrics import Metrics
from chatserver.transports.admission import Admissions
from chatserver.transports.connections import Connections

if TYPE_CHECKING:
    from chatserver.tools.mcp.servers import McpServers


class Components(Struct, frozen=True):
    """The components of a running server."""

    settings: Settings
    gate: Gate
    runs: Runs
    sessions: Sessions
    admissions: Admissions
    connections: Connections
    metrics: Metrics
    mcp: "McpServers | None"
