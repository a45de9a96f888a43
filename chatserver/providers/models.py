"""The models that the upstream offers: fetched when the upstream does not have the model of a run."""

from contextlib import aclosing
from typing import Any

import anyio
import msgspec

from chatserver.providers.client import ModelServer
from chatserver.syntax import one_line
from chatserver.upstream.body import read_into

LIST_SECONDS = 5.0
LIST_BYTES_LIMIT = 4 * 1024 * 1024
"""Routers list hundreds of models, each with its prices."""

SHOWN_LIMIT = 10
SHOWN_CHARS_LIMIT = 100


async def offered_beside(server: ModelServer, model: str) -> str:
    """The names of some offered models, as text; empty if ``model`` is offered, or nothing is.

    Raises:
        Exception: the server does not tell its models.
    """
    names = await _offered(server)
    if model in names:
        return ""
    shown = ", ".join(one_line(name[:SHOWN_CHARS_LIMIT]) for name in names[:SHOWN_LIMIT])
    more = f" and {len(names) - SHOWN_LIMIT} more" if len(names) > SHOWN_LIMIT else ""
    return f"{shown}{more}"


async def _offered(server: ModelServer) -> list[str]:
    """The names at `GET /models`, in the order of the server; none where the list is too long.

    Raises:
        Exception: the list cannot be had in time, or makes no sense.
    """
    body = bytearray()
    with anyio.fail_after(LIST_SECONDS):
        response = await server.ask("models")
        async with aclosing(response):
            if not await read_into(body, response, LIST_BYTES_LIMIT):
                return []
    return _names(msgspec.json.decode(body))


def _names(tree: Any) -> list[str]:
    """The names in a list of OpenAI's form or of a similar one (a bare list, `models`); else none."""
    found = tree.get("data") or tree.get("models") if isinstance(tree, dict) else tree
    models = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    names = (each.get("id") or each.get("name") for each in models)
    return list(dict.fromkeys(name for name in names if name and isinstance(name, str)))
