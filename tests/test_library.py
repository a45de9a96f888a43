"""The package as a library: what it names, and what a strict program makes of that."""

import subprocess
import sys
from pathlib import Path

import pytest

import chatserver

ROOT = Path(__file__).parents[1]
HEAVY = ("litestar", "msgspec", "anyio", "openai", "sqlalchemy", "uvicorn")


def test_the_version_costs_no_import() -> None:
    source = f"import sys, chatserver; print(chatserver.__version__, [each for each in {HEAVY} if each in sys.modules])"
    said = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=50)
    assert said.stdout == f"{chatserver.__version__} []\n"


@pytest.mark.parametrize("name", chatserver.__all__)
def test_each_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(chatserver, name)
    assert name in dir(chatserver)
    if callable(found) and getattr(found, "__module__", "").startswith("chatserver"):
        assert found.__doc__ and not found.__doc__.startswith(f"{name}("), f"{name} has no docstring of its own"


def test_there_is_nothing_more() -> None:
    assert sorted(name for names in chatserver._HOMES.values() for name in names) == chatserver.__all__
    with pytest.raises(AttributeError, match="nothing_of_this"):
        chatserver.nothing_of_this  # noqa: B018 - to read it is the test


PROGRAM = '''
"""What a user writes, under the strictest rules."""

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
'''

WRONG = """
from chatserver import create_app

create_app(None, user="ann")
create_app(None, [])
"""


@pytest.mark.timeout(300)
def test_a_strict_program_is_well_typed(tmp_path: Path) -> None:
    """By mypy, against the installed package, and not without a look: what is wrong is told."""
    (tmp_path / "mine.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    files = [str(tmp_path / "mine.py"), str(tmp_path / "wrong.py")]
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", *files]
    # In the checkout, where mypy has its cache: all libraries anew would take a minute.
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    told = said.stdout.splitlines()
    assert [line for line in told if "wrong.py:" not in line] == []
    for line, code in ((4, "arg-type"), (5, "call-arg")):
        assert any(f"wrong.py:{line}: error" in each and f"[{code}]" in each for each in told), told
