"""What is said to clients is made in one place each: the end of a run that fails, a refusal, what shows life."""

import ast

import msgspec
import pytest

from chatserver import errors
from chatserver.endings import INTERNAL, INTERRUPTED, UNREAD, ending_of
from chatserver.errors import BadRequest, ChatError, MethodNotAllowed, RunActive, RunLost, Unavailable, UpstreamError
from chatserver.events import Error
from chatserver.replies import PING, problem_of, rejected
from tests.package import modules

KINDS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ChatError)]


def test_an_error_event_is_made_in_one_place() -> None:
    made = {
        module
        for module, nodes in modules().items()
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Error"
    }
    assert made == {"endings.py"}


@pytest.mark.parametrize(
    ("text", "home"),
    [
        ("application/problem+json", "transports/refusal.py"),
        ("about:blank", "replies.py"),
        ("rejected", "replies.py"),
        ("accepted", "replies.py"),
        ("pong", "replies.py"),
        ("ping", "commands.py"),
    ],
)
def test_a_word_of_the_wire_stands_in_one_place(text: str, home: str) -> None:
    """The measuring clients and the providers, which know words of other servers, are no part of the server's wire."""
    found = {
        module
        for module, nodes in modules().items()
        for node in nodes
        if isinstance(node, ast.Constant) and node.value == text
    }
    assert {module for module in found if not module.startswith(("bench/", "providers/"))} == {home}
    assert msgspec.json.decode(PING) == {"type": "ping"}


def test_an_exception_ends_a_run_in_its_own_words_or_in_none() -> None:
    upstream = UpstreamError("rate_limited", "busy", retryable=True, retry_after=2.5)
    assert ending_of(upstream) == Error(code="rate_limited", message="busy", retryable=True, retry_after=2.5)
    lost = ending_of(RunLost("another one ended it"))
    assert (lost.code, lost.message, lost.retryable) == (INTERRUPTED.code, "another one ended it", True)
    assert ending_of(Unavailable("locked")) == UNREAD
    assert ending_of(ValueError("a secret")) == INTERNAL


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_refusal_says_the_same_on_both_transports(kind: type[ChatError]) -> None:
    by_kind = {RunActive: ("a-run",), MethodNotAllowed: (["GET"],)}
    takes_pointer = issubclass(kind, BadRequest)
    error = kind(*(("why", "/message") if takes_pointer else by_kind.get(kind, ())))
    problem = msgspec.to_builtins(problem_of(error))
    reply = msgspec.to_builtins(rejected(error, {"ref": "a", "run_id": "named"}))
    assert reply.pop("type") == "rejected" and reply.pop("ref") == "a"
    assert reply.pop("run_id") == problem.pop("run_id", "named")
    assert reply.pop("message") == problem.pop("detail")
    assert (problem.pop("type"), bool(problem.pop("title"))) == ("about:blank", True)
    assert reply == problem and reply["status"] == kind.status
