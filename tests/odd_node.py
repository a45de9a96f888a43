"""A node that is not as it should be: ``python -m tests.odd_node hurry,no_fence serve …``; each name is a function."""

import sys

from chatserver.cli import main
from chatserver.nodes import membership


def hurry() -> None:
    """A node that is gone is found in less than half the time; nothing else is other."""
    for name in ("BETWEEN_LOOKS_SECONDS", "LEASE_SECONDS", "MISSED_SECONDS", "CUT_OFF_SECONDS"):
        vars(membership)[name] *= 0.4


if __name__ == "__main__":
    for name in sys.argv.pop(1).split(","):
        globals()[name]()
    main()
