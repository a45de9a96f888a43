"""The package keeps the order that its design draws: rooms in one line, libraries at home, files that can be read."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "chatserver"

ROOMS = (
    "parts",
    "content",
    "dialogue",
    "events",
    "answer",
    "errors",
    "endings",
    "strict_json",
    "media",
    "json_schema",
    "structured",
    "commands",
    "client_tools",
    "replies",
    "resources",
    "syntax",
    "settings",
    "telemetry",
    "log",
    "upstream",
    "providers",
    "limits",
    "tools",
    "meter",
    "steps",
    "waiting",
    "questions",
    "call_checks",
    "calls",
    "context",
    "agent",
    "function_agent",
    "sessions",
    "runs",
    "auth",
    "transports",
    "nodes",
    "schema",
    "routes",
    "app",
    "plugin",
    "serving",
    "terminal",
    "bench",
    "cli",
    "__main__",
)
"""A room may import those before it. What is imported under ``TYPE_CHECKING`` or within a function counts too."""

EVERYWHERE = frozenset({"anyio", "msgspec"})

HOMES = {
    "alembic": ("sessions/",),
    "asyncpg": ("sessions/",),
    "click": ("cli.py", "terminal/"),
    "dotenv": ("settings/loading.py",),
    "hdrh": ("bench/",),
    "hiredis": ("nodes/",),
    "httptools": ("bench/", "upstream/connection.py", "serving/"),
    "httpx2": ("auth/tokens.py", "upstream/", "providers/", "tools/mcp/", "terminal/"),
    "jsonschema": ("json_schema.py",),
    "jsonschema_specifications": ("json_schema.py",),
    "jwt": ("auth/tokens.py",),
    "litestar": ("routes/", "app.py", "plugin.py"),
    "mcp": ("tools/mcp/",),
    "openai": ("providers/",),
    "opentelemetry": ("telemetry/traces.py",),
    "prometheus_client": ("telemetry/",),
    "pydantic": ("tools/mcp/",),
    "redis": ("nodes/",),
    "referencing": ("json_schema.py",),
    "rich": ("bench/",),
    "sqlalchemy": ("sessions/",),
    "uvicorn": ("serving/", "cli.py"),
    "uvloop": ("serving/",),
    "websockets": ("serving/", "terminal/"),
}
"""Where a library may be imported: nowhere else does the program know that it exists."""

NAMES_THAT_SAY_NOTHING = frozenset({"util", "helper", "common", "base", "manager", "service", "handler"})

LINES_LIMIT = 300


def complaints(package: Path) -> list[str]:
    """Whatever in the package breaks a rule, each with the place and the rule."""
    found = [
        f"{path.relative_to(package).as_posix()}{complaint}"
        for path in sorted(package.rglob("*.py"))
        for complaint in (*_about_file(path, package), *_about_imports(path, package))
    ]
    return list(dict.fromkeys(found))  # one line that imports three names breaks a rule once


def _about_file(path: Path, package: Path) -> Iterator[str]:
    for part in path.relative_to(package).with_suffix("").parts:
        if part.strip("_").removesuffix("s") in NAMES_THAT_SAY_NOTHING:
            yield f": `{part}` says nothing about what is inside"
    lines = len(path.read_text().splitlines())
    if lines > LINES_LIMIT:
        yield f": {lines} lines, over {LINES_LIMIT}"


def _about_imports(path: Path, package: Path) -> Iterator[str]:
    place = path.relative_to(package)
    room = place.with_suffix("").parts[0]
    if room != "__init__" and room not in ROOMS:
        yield f": `{room}` has no place in ROOMS"
        return
    for line, module in _imported(ast.parse(path.read_text())):
        top, _, inner = module.partition(".")
        if top == package.name:
            complaint = _about_room(room, inner.partition(".")[0])
        elif top in sys.stdlib_module_names or top in EVERYWHERE:
            complaint = None
        else:
            complaint = _about_library(place.as_posix(), top)
        if complaint:
            yield f":{line}: {complaint}"


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every module that the code names; of ``from x import y`` both x and x.y, since y may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{name.name}") for name in node.names)


def _about_room(room: str, other: str) -> str | None:
    if other not in ROOMS or room == "__init__":
        return None  # a name of the package itself, or the package that names what is public
    if ROOMS.index(other) > ROOMS.index(room):
        return f"`{room}` imports `{other}`, which comes after it"
    return None


def _about_library(place: str, library: str) -> str | None:
    if not library:
        return "a relative import"
    if library not in HOMES:
        return f"`{library}` has no place in HOMES"
    if not place.startswith(HOMES[library]):
        return f"`{library}` is imported outside {', '.join(HOMES[library])}"
    return None


def test_the_package_keeps_its_rules() -> None:
    assert complaints(PACKAGE) == []


def test_the_files_of_the_lab_are_small_too() -> None:
    lab = PACKAGE.parent / "benchmarks"
    assert [f"{path.name}{each}" for path in lab.rglob("*.py") for each in _about_file(path, lab)] == []


def constants(package: Path) -> dict[str, list[str]]:
    """The modules that define each constant; a type variable of one letter is none."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for name in {each.id for each in targets if isinstance(each, ast.Name)}:
                if name.isupper() and len(name) > 1:
                    found.setdefault(name, []).append(path.relative_to(package).as_posix())
    return found


SAID_BY_EACH = frozenset({"ROUTES", "TOOLS"})
"""What each module of a kind has, and others read from all of them: one meaning, a value each."""


def test_no_two_constants_have_one_name() -> None:
    twice = {name: places for name, places in constants(PACKAGE).items() if len(places) > 1}
    assert {name: places for name, places in twice.items() if name not in SAID_BY_EACH} == {}
    assert twice.keys() >= SAID_BY_EACH


def test_constants_of_one_name_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("T = 1\n_A = 1\nSIZE_BYTES = 1\nfor X in (): pass\nname = 2\nX.y = 1")
    (tmp_path / "b.py").write_text("from a import X\nSIZE_BYTES: int = 1\nT = 1\n_A = 2\nname = 2\nX.y = 1")
    assert {name: places for name, places in constants(tmp_path).items() if len(places) > 1} == {
        "SIZE_BYTES": ["a.py", "b.py"],
        "_A": ["a.py", "b.py"],
    }


def test_every_room_and_home_exists() -> None:
    """A rule about a file that was renamed away would hold for ever."""
    rooms = [room for room in ROOMS if not (PACKAGE / room).is_dir() and not (PACKAGE / f"{room}.py").is_file()]
    homes = [home for places in HOMES.values() for home in places if not (PACKAGE / home).exists()]
    assert (rooms, homes) == ([], [])


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("events.py", "import chatserver.app", "events.py:1: `events` imports `app`, which comes after it"),
        ("log/memory.py", "\nfrom chatserver import app", "log/memory.py:2: `log` imports `app`, which comes after it"),
        ("agent.py", "def f():\n    import chatserver.cli", "agent.py:2: `agent` imports `cli`, which comes after it"),
        ("runs/life.py", "from .agent import answer", "runs/life.py:1: a relative import"),
        ("agent.py", "from click import Group, echo", "agent.py:1: `click` is imported outside cli.py, terminal/"),
        (
            "providers/demo.py",
            "import httptools",
            "providers/demo.py:1: `httptools` is imported outside bench/, upstream/connection.py, serving/",
        ),
        (
            "runs/life.py",
            "from sqlalchemy.ext import asyncio",
            "runs/life.py:1: `sqlalchemy` is imported outside sessions/",
        ),
        (
            "app.py",
            "import uvicorn.config",
            "app.py:1: `uvicorn` is imported outside serving/, cli.py",
        ),
        ("app.py", "import requests", "app.py:1: `requests` has no place in HOMES"),
        ("attic.py", "", "attic.py: `attic` has no place in ROOMS"),
        ("log/_helpers.py", "", "log/_helpers.py: `_helpers` says nothing about what is inside"),
        ("agent.py", "x = 1\n" * 301, "agent.py: 301 lines, over 300"),
    ],
)
def test_a_broken_rule_is_told(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    path = tmp_path / "chatserver" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert complaints(tmp_path / "chatserver") == [complaint]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "from chatserver.app import create_app"),
        (
            "app.py",
            "import json, anyio, litestar\nfrom chatserver import __version__\nfrom chatserver.runs.runs import Run",
        ),
        ("log/redis.py", "from chatserver.log import EventLog\nfrom chatserver.events import Event"),
        ("providers/openai.py", "def f():\n    import openai"),
        ("agent.py", "x = 1\n" * 300),
    ],
)
def test_a_kept_rule_is_not(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / "chatserver" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert complaints(tmp_path / "chatserver") == []
