"""Each way in which a run can fail is said in one place, and to each exception belongs one."""

import ast
from pathlib import Path

from chatserver import endings
from chatserver.endings import INTERNAL, INTERRUPTED, UNREAD, ending_of
from chatserver.errors import RunLost, Unavailable, UpstreamError
from chatserver.events import Error

PACKAGE = Path(endings.__file__).parent


def test_an_error_event_is_made_nowhere_else() -> None:
    made = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Error"
    ]
    assert set(made) == {"endings.py"}


def test_an_exception_ends_a_run_in_its_own_words_or_in_none() -> None:
    upstream = UpstreamError("rate_limited", "busy", retryable=True, retry_after=2.5)
    assert ending_of(upstream) == Error(code="rate_limited", message="busy", retryable=True, retry_after=2.5)
    lost = ending_of(RunLost("another one ended it"))
    assert (lost.code, lost.message, lost.retryable) == (INTERRUPTED.code, "another one ended it", True)
    assert ending_of(Unavailable("locked")) == UNREAD
    assert ending_of(ValueError("a secret")) == INTERNAL
