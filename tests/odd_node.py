"""A node that is not as it should be: ``python -m tests.odd_node hurry,no_fence serve …``; each name is a function."""

import sys

from chatserver.cli import main
from chatserver.nodes import membership
from chatserver.sessions import arrival, leases


def hurry() -> None:
    """A node that is gone is found in less than half the time; nothing else is other."""
    for name in ("BETWEEN_LOOKS_SECONDS", "LEASE_SECONDS", "MISSED_SECONDS", "CUT_OFF_SECONDS"):
        vars(membership)[name] *= 0.4


def patience() -> None:
    """A node may stand still for seconds, as all may where tests run."""
    membership.LEASE_SECONDS, membership.MISSED_SECONDS = 12.0, 4.0


def watchful() -> None:
    """A process looks often which processes of its database live."""
    leases.RENEW_SECONDS = 0.5


def haste() -> None:
    """A server does not wait for its database for long."""
    arrival.ARRIVAL_SECONDS = 0.1


if __name__ == "__main__":
    for name in sys.argv.pop(1).split(","):
        globals()[name]()
    main()
