"""What a user writes, under the strictest rules of mypy: `just types` holds it, for that looks at all tests.

What is wrong here has to be told: an error that mypy does not find makes its `type: ignore` one that is not used.
"""

from typing import Any

from litestar import Litestar
from litestar.connection import ASGIConnection

from chatserver import ChatPlugin, Settings, Tool, create_app, load_settings, serve, tool


@tool
def add(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


async def plain(text: str) -> str:
    """Say it again."""
    return text


async def who(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    return connection.headers.get("x-user")


def who_at_once(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    return "ann"


added: Tool = add
settings: Settings = load_settings(model="mine", grace_seconds=5)
app: Litestar = create_app(settings, tools=[add, plain], user=who)
host = Litestar(plugins=[ChatPlugin("/assistant", tools=[plain], user=who_at_once)])
if __name__ == "__main__":
    serve(host)

    create_app(None, user="ann")  # type: ignore[arg-type]
    create_app(None, None)  # type: ignore[call-arg]
