"""Each close code stands once, in one table, and the table is true: who sends a code, and no other code is sent."""

import ast

import pytest

from chatserver import errors
from chatserver.errors import ChatError, Internal, TooMany, Unauthenticated
from chatserver.transports import close_codes
from chatserver.transports.close_codes import CLOSE_CODES, FAILED, Closing, closing_of
from tests.package import modules

TABLE = "transports/close_codes.py"
CLOSINGS = {name: each.code for name, each in vars(close_codes).items() if isinstance(each, Closing)}
ROOMS = ("serving", "transports", "routes")
BY_REFUSAL = {4000 + kind.status for kind in (TooMany, Unauthenticated)}


def used(room: str) -> set[int]:
    """The codes with which a room closes."""
    names = {
        node.id
        for module, nodes in modules().items()
        if module.startswith(f"{room}/") and module != TABLE
        for node in nodes
        if isinstance(node, ast.Name)
    }
    codes = {code for name, code in CLOSINGS.items() if name in names}
    return codes | (BY_REFUSAL | {FAILED.code} if "closing_of" in names else set())


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_says_who_closes(room: str) -> None:
    said = {each.code for each in CLOSE_CODES.values() if room in each.senders}
    assert used(room) - {close_codes.LOST} == said


def test_no_code_stands_anywhere_else() -> None:
    codes = CLOSE_CODES.keys() - {1000}  # As a number, that one is in any program.
    found = [
        (module, node.lineno, node.value)
        for module, nodes in modules().items()
        if module != TABLE
        for node in nodes
        if isinstance(node, ast.Constant) and node.value in codes and type(node.value) is int
    ]
    assert found == []


def test_every_closing_has_a_code_of_the_table_and_fits_into_a_frame() -> None:
    closings = [each for each in vars(close_codes).values() if isinstance(each, Closing)]
    assert len(closings) > 8
    for each in closings:
        assert each.code in CLOSE_CODES and len(each.reason.encode()) <= 123, each
        assert CLOSE_CODES[each.code].senders != {"network"}, "this one cannot be sent"


def test_a_refusal_closes_with_its_own_code_or_as_a_bug() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ChatError)]
    made = [kind() for kind in kinds if kind.__init__ is ChatError.__init__]
    assert {closing_of(each).code for each in made} <= CLOSE_CODES.keys()
    assert closing_of(TooMany("why")) == Closing(4429, "why")
    assert closing_of(Unauthenticated()).code == 4401
    assert closing_of(Internal()) == FAILED
