"""The package as its source: each module parsed once for all tests that read it."""

import ast
from functools import cache
from pathlib import Path

import chatserver

PACKAGE = Path(chatserver.__file__).parent


@cache
def modules() -> dict[str, list[ast.AST]]:
    """The nodes of each module, by its path in the package; documentation left out."""
    found: dict[str, list[ast.AST]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        documented = {id(each.value) for each in nodes if isinstance(each, ast.Expr)}
        found[path.relative_to(PACKAGE).as_posix()] = [each for each in nodes if id(each) not in documented]
    return found
