"""Commands between nodes: the owner of a run is told to cancel it, and which nodes have readers of it.

A node tells of its readers at once, and then again with each look: so a message that is lost does no harm for long, and
a node that is gone has no readers. The owner counts one reader for each such node.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from chatserver.errors import ChatError, Unavailable
from chatserver.nodes.follower import TAILS
from chatserver.nodes.keys import CANCELS, node_key, owner_key
from chatserver.nodes.link import Link, Script
from chatserver.nodes.membership import Membership
from chatserver.runs.elsewhere import Counted, Owner

SILENT_LOOKS = 5
"""After so many looks of the owner in which a node has not told of its readers of a run, the node has none."""

CANCEL, TELL = Script("cancel"), Script("tell")


class _Read:
    """An own run that another node reads, and the looks since that was told."""

    __slots__ = ("life", "looks")

    def __init__(self, life: Counted) -> None:
        self.life = life
        self.looks = 0


class OtherNodes:
    """``Elsewhere`` over Redis."""

    def __init__(self, link: Link, membership: Membership) -> None:
        self._link = link
        self._membership = membership
        self._owner: Owner
        self._reading = Counter[str]()  # The readers here of each run of another node.
        self._read: dict[tuple[str, str], _Read] = {}  # Own runs, each with a node that reads it.
        self._verbs: dict[str, Callable[[str, str], None]] = {
            "cancel": self._cancel,
            "read": self._add_reader,
            "leave": self._remove_reader,
            "nudge": self._nudge,
        }

    @property
    def is_reached(self) -> bool:
        return self._membership.is_answered

    def serve(self, owner: Owner) -> None:
        self._owner = owner
        self._membership.on_look.append(self._looked)
        self._membership.on_cut_off = owner.interrupt
        self._link.subscribe(node_key(self._membership.node), self._obey)

    def lose(self, run_id: str) -> None:
        """Another node has taken a run of this one."""
        self._owner.lose(run_id)

    # What is asked of others.

    def count(self, run_id: str, readers: int) -> None:
        was_read = run_id in self._reading
        self._reading[run_id] += readers
        if not self._reading[run_id]:
            del self._reading[run_id]
        if (is_read := run_id in self._reading) != was_read:
            self._tell("read" if is_read else "leave", [run_id])

    def _tell(self, verb: str, run_ids: Sequence[str]) -> None:
        owners = [owner_key(run_id) for run_id in run_ids]
        what = f"{verb} {self._membership.node}"
        self._link.post(TELL, owners, (node_key(""), what, *run_ids), _unheard)

    async def cancel(self, run_id: str) -> None:
        what = f"cancel {self._membership.node}"
        if not await self._link.call(CANCEL, (owner_key(run_id),), (node_key(""), CANCELS, what, run_id)):
            raise self.unreached()

    def nudge(self, run_id: str) -> None:
        self._tell("nudge", [run_id])

    async def last_seq(self, run_id: str) -> int:
        try:
            return int((await self._link.call(TAILS, (), (run_id,)))[0])
        except Unavailable:
            return 0

    def unreached(self) -> ChatError:
        return Unavailable("the node that goes on with this run cannot be reached now", retry_after=1)

    # What others ask.

    def _obey(self, message: bytes) -> None:
        verb, node, *run_ids = message.decode().split(" ")
        for run_id in run_ids:
            self._verbs[verb](run_id, node)

    def _cancel(self, run_id: str, node: str) -> None:
        self._owner.cancel(run_id)

    def _nudge(self, run_id: str, node: str) -> None:
        self._owner.nudge(run_id)

    def _add_reader(self, run_id: str, node: str) -> None:
        read, life = self._read.get((run_id, node)), self._owner.life(run_id)
        if read is not None and read.life is life:
            read.looks = 0
        elif life is not None:
            life.count(1)
            self._read[run_id, node] = _Read(life)

    def _remove_reader(self, run_id: str, node: str) -> None:
        if read := self._read.pop((run_id, node), None):
            read.life.count(-1)

    def _looked(self, cancelled: Sequence[str]) -> None:
        """With each look: obey what was not heard, tell of the readers here, forget those whom nobody tells of."""
        for run_id in cancelled:
            self._owner.cancel(run_id)
        if self._reading:
            self._tell("read", list(self._reading))
        for (run_id, node), read in list(self._read.items()):
            if read.looks == SILENT_LOOKS:
                self._remove_reader(run_id, node)
            else:
                read.looks += 1


def _unheard(reply: object) -> None:
    """Told again with the next look."""
