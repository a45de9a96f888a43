"""HTTP and WebSocket routes, the page and the documents. Beside `app.py`, only these files know Litestar."""

from typing import Any

from litestar.connection import ASGIConnection

from chatserver.transports.components import Components


def components_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Components:
    components: Components = connection.app.state["components"]  # As an attribute, it is looked for in vain first.
    return components
