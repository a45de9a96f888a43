"""A log that is given what was numbered elsewhere: on the node of its owner when the journal has it, and on others."""

from anyio.lowlevel import checkpoint
from msgspec import UNSET
from msgspec.structs import replace

from chatserver.events import TEXTS, TYPE_NAMES, Reasoning, Record, Token, record
from chatserver.log import StoredLog
from chatserver.log.memory import RESTORED_PER_TURN, MemoryLog
from chatserver.log.merged import Merged, events_of


class FedLog(MemoryLog):
    """A ``MemoryLog`` that nobody appends to."""

    @property
    def has_readers(self) -> bool:
        """Whether somebody has a cursor in it."""
        return bool(self._readers)

    @property
    def merged(self) -> Merged:
        """All of it in the merged form, to be looked at."""
        return self._merged

    def feed(self, chunk: StoredLog) -> bool:
        """Keep what is new of a part of the log; False: what is new does not follow what is here, and is not kept.

        Nothing is new to a log that is over.
        """
        if self.is_over:
            return True
        has_gap, before = False, self.last_seq
        for event, document, lengths in events_of(chunk):
            if event.seq <= self.last_seq:
                continue
            first = event.seq - max(0, len(lengths) - 1)
            if has_gap := first > self.last_seq + 1:
                break
            if lengths and isinstance(event, TEXTS):
                self._keep_merged(event, lengths, self.last_seq + 1 - first)
            else:
                self.keep(event, Record(event.seq, TYPE_NAMES[type(event)], document))
        if self.last_seq > before:
            self.tell()
        return not has_gap

    def _keep_merged(self, event: Token | Reasoning, lengths: tuple[int, ...], known: int) -> None:
        """Keep a merged event but for the texts that are known, so many from its first."""
        content, left = event.content[sum(lengths[:known]) :], lengths[known:]
        if len(left) == 1:
            alone = replace(event, first_seq=UNSET, content=content)
            return self.keep(alone, record(alone))
        first_seq = event.seq - len(left) + 1
        self._merged.add_stored(replace(event, first_seq=first_seq, content=content), b"", left)
        self._jump(event.seq)

    async def complete(self, stored: StoredLog) -> None:
        """The run is over: from now on the log is what was stored of it, wherever its readers are."""
        merged = Merged(self.run_id)
        for count, _ in enumerate(merged.restore(stored), 1):
            if count % RESTORED_PER_TURN == 0:
                await checkpoint()
        self._merged, self.is_over = merged, True
        self._jump(stored.last_seq)
        self._settle()
        self.tell()

    def _jump(self, last_seq: int) -> None:
        """What is here up to this number is there in the merged form only."""
        self.last_seq = last_seq
        self._fresh.clear(last_seq)
        self._newest = ()
        self._batch_after, self._batch = -1, ()
