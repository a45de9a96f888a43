"""What is used of libraries that they do not promise: listed in one place, there in the installed version, no more."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client import Histogram
from redis.asyncio.connection import Connection
from uvicorn.server import ServerState

from chatserver.nodes.wire import REDIS_NAMES
from chatserver.serving import server
from chatserver.serving.server import UVICORN_NAMES
from chatserver.telemetry.metrics import PROMETHEUS_NAMES

SERVING = Path(server.__file__).parent
OWNERS = {"_config": "Config", "config": "Config", "_server": "ServerState", "server_state": "ServerState"}
"""What the attributes of our classes are called that hold an object of uvicorn."""


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """An application."""


def lacking(names: Mapping[str, Sequence[str]]) -> list[str]:
    """What uvicorn has not."""
    config = uvicorn.Config(nothing, interface="asgi3", log_config=None)
    config.load()
    found: dict[str, Any] = {"Config": config, "Server": uvicorn.Server(config), "ServerState": ServerState()}
    # Set when it starts.
    missing = {f"{owner}.{name}" for owner in names for name in names[owner] if not hasattr(found[owner], name)}
    return sorted(missing - {"Server.servers"})


def test_uvicorn_has_what_is_used_of_it() -> None:
    assert lacking(UVICORN_NAMES) == []


def test_what_another_version_lacks_is_named() -> None:
    names = {"Config": ("loaded_app", "gone"), "ServerState": ("connections", "lost")}
    assert lacking(names) == ["Config.gone", "ServerState.lost"]


def used() -> Iterator[tuple[str, str]]:
    for path in SERVING.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
                holder = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
                if owner := OWNERS.get(holder):
                    yield owner, node.attr


def test_nothing_else_is_used_of_it() -> None:
    """The room's own subclass aside, whose methods are looked up by uvicorn."""
    listed = {(owner, name) for owner, names in UVICORN_NAMES.items() for name in names}
    assert set(used()) - listed == set()
    assert {name for owner, name in used() if owner == "Config"} == set(UVICORN_NAMES["Config"])


async def test_redis_py_has_what_is_used_of_it() -> None:
    assert [name for name in REDIS_NAMES if not hasattr(Connection(), name)] == []


def test_prometheus_client_has_what_is_used_of_it() -> None:
    assert [name for name in PROMETHEUS_NAMES if not hasattr(Histogram("h", "h", registry=None), name)] == []


@pytest.mark.parametrize("library", ["uvicorn", "redis", "prometheus-client"])
def test_a_library_is_pinned_to_the_minor_version_that_was_read(library: str) -> None:
    (bound,) = [each for each in requires("chatserver") or () if re.match(rf"{library}\b(?!-)", each)]
    major, minor, *_ = version(library).split(".")
    assert re.fullmatch(rf"{library}(\[.*\])?<{major}\.{int(minor) + 1},>={major}\.{minor}(;.*)?", bound), bound


@pytest.mark.parametrize("names", [UVICORN_NAMES], ids=["uvicorn"])
def test_no_name_is_private(names: Mapping[str, Sequence[str]]) -> None:
    assert not [name for each in names.values() for name in each if name.startswith("_")]
