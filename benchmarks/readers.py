"""Readers of single runs in the lab: each token's latency from its stamp, each run's loss and doubles."""

import asyncio
from collections.abc import Callable
from time import monotonic_ns

from benchmarks.script import delivered_us, index_of, tokens_of
from chatserver.bench.connections import Document


class RunReader:
    """One run: when its first event, each token and its end came. Indices show what was lost or came twice.

    Each token of a merged event counts, with its own latency: the one that waited longest is the oldest.
    """

    def __init__(self, planned_ns: int = 0, on_token: Callable[[], object] | None = None) -> None:
        self.planned_ns = planned_ns
        self.asked_ns = 0
        self.first_event_ns = 0
        self.first_token_ns = 0
        self.ended_ns = 0
        self.run_id = ""
        self.session_id = ""
        self.last_seq = 0
        self.problem: str | None = None
        self.indices: list[int] = []
        self.arrivals: list[tuple[int, int, int]] = []
        """Of each token: when it came (ns), how long after it was due, how much of that it left late (µs)."""
        self.began = asyncio.Event()
        self.over = asyncio.Event()
        self.on_token = on_token

    def document(self, document: Document, at_ns: int) -> None:
        kind = document.type
        if document.seq and not self.first_event_ns:
            self.first_event_ns = at_ns
        if kind == "token":
            if not self.first_token_ns:
                self.first_token_ns = at_ns
                self.began.set()
            tokens = tokens_of(document.content)
            if len(tokens) != len(document.seqs):
                self.problem = f"{len(tokens)} tokens came as the events {document.seqs}"
            for token in tokens:
                self.indices.append(index_of(token))
                self.arrivals.append((at_ns, *delivered_us(token, at_ns // 1000)))
                if self.on_token is not None:
                    self.on_token()
        elif kind == "start":
            self.session_id = document.session_id
        elif kind == "error":
            self.problem = f"{document.code}: {document.message}"
        self.run_id = document.run_id or self.run_id
        self.last_seq = document.seq or self.last_seq

    def ended(self, problem: str | None) -> None:
        self.ended_ns = monotonic_ns()
        self.problem = self.problem or problem
        self.began.set()
        self.over.set()

    def lost_and_doubled(self, tokens: int) -> tuple[int, int]:
        """How many of the run's tokens never came, and how many came again."""
        seen = set(self.indices)
        return tokens - len(seen), len(self.indices) - len(seen)
