"""The package as a library: what it names. What mypy makes of that, `typed_program.py` holds."""

import subprocess
import sys

import pytest

import chatserver

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
