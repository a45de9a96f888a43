"""The page's cores, in Node: no browser is needed to know what they make of a text or of numbers."""

import subprocess
from pathlib import Path

import pytest

from tests.live import ROOT
from tests.web_client import node

CASES = sorted((ROOT / "tests" / "page").glob("*.test.mjs"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_it_holds_in_node(path: Path) -> None:
    done = subprocess.run([node(), "--test", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "# fail 0" in done.stdout and "# pass 0" not in done.stdout
