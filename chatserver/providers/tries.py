"""The tries of one turn: whether a failure is worth another one, what that asks, and what the log says of all."""

import logging
import random
import re
from collections.abc import Iterator, Sequence, Set
from time import monotonic

from msgspec.structs import replace

from chatserver.errors import UpstreamError
from chatserver.providers import ModelRequest
from chatserver.providers.faults import Fault, Kind
from chatserver.providers.parameters import Parameters
from chatserver.providers.unseen import Media, newest_of, refused_in, without
from chatserver.providers.words import loggable

logger = logging.getLogger(__name__)

FORMAT = re.compile(r"response_?format|json_?schema|text\.format|structured output|guided|grammar")
NO_FORMAT = "the model server refuses `response_format`, or its schema; this server's log has its words"

RETRIES_LIMIT = 2
RETRY_DEADLINE_SECONDS = 5.0


class Tries:
    """What is asked of a model server in one turn until it answers.

    ``secrets`` never come into the log.
    """

    __slots__ = (
        "_deadline", "_delays", "_has_refused", "_parameters", "_refused", "_request", "_secrets", "is_fresh",
    )  # fmt: skip

    def __init__(self, request: ModelRequest, parameters: Parameters, secrets: Sequence[str]) -> None:
        self._request = request
        self._parameters = parameters
        self._secrets = secrets
        self._refused = parameters.refused_by(request.model)
        self._has_refused = False
        self._deadline = monotonic() + RETRY_DEADLINE_SECONDS
        self._delays: Iterator[float] | None = None
        self.is_fresh = False
        """The next try is not to use a connection that was used before."""

    def body(self) -> bytes:
        """What is asked next."""
        return self._parameters.body(self._request, self._refused)

    def succeeded(self) -> None:
        """The turn was answered: what was left out for it is left out from now on."""
        if self._has_refused and (new := self._parameters.remember(self._request.model, self._refused)):
            self._log(f"refuses {', '.join(sorted(new))} for the model {self._request.model}: left out from now on")

    def failed(self, fault: Fault, has_begun: bool) -> float | None:
        """Seconds after which it is tried again; None: that was all.

        ``has_begun``: something of the answer had come.
        """
        parameter, is_about_request = None, fault.error.code in ("llm_error", "upstream_unavailable")
        if is_about_request and not has_begun and fault.kind is not Kind.FILTERED:
            if kinds := refused_in(fault.words, self._request.messages):
                return self._without(kinds, fault)
            if self._request.response_format is not None and FORMAT.search(fault.words.lower()):
                fault.error = UpstreamError("llm_error", NO_FORMAT)
                fault.kind = Kind.FINAL
            parameter = self._parameters.in_words(self._request, self._refused, fault.words)
        if parameter is not None:
            self._refused |= {parameter}
            self._has_refused = True
            self._log(f"{fault.cause} - tried again without {parameter}")
            return 0.0
        may_pass = fault.kind in (Kind.PASSING, Kind.STALE) and not has_begun
        delay = self._delay(fault) if may_pass else None
        self._log(fault.cause if delay is None else f"{fault.cause} - tried again in {delay:.2f} s")
        self.is_fresh = fault.kind is Kind.STALE
        return delay

    def _without(self, kinds: Set[Media], fault: Fault) -> float | None:
        """The model takes no images, or no files: fail if the newest message has any, go on without the older ones."""
        if new := kinds & newest_of(self._request.messages):
            names = " and ".join(sorted(new, reverse=True))
            advice = "choose a model that does, or send the message without"
            fault.error = UpstreamError("llm_error", f"the model {self._request.model} takes no {names}: {advice}")
            fault.kind = Kind.FINAL
            self._log(fault.cause)
            return None
        self._request = replace(self._request, messages=without(self._request.messages, kinds))
        self._log(f"{fault.cause} - tried again without the {' and '.join(sorted(kinds))} of older messages")
        return 0.0

    def _delay(self, fault: Fault) -> float | None:
        if self._delays is None:
            self._delays = backoff()
        delay = next(self._delays, None)
        if delay is None:
            return None
        delay = max(delay, fault.error.retry_after or 0.0)
        return delay if monotonic() + delay <= self._deadline else None

    def _log(self, sentence: str) -> None:
        text = loggable(sentence, self._secrets, [item.text for item in self._request.messages])
        logger.warning("run %s: the model server %s", self._request.run_id, text)


def backoff() -> Iterator[float]:
    """Seconds to wait before each further try: full steps of 0.25 s doubled, with jitter."""
    for attempt in range(RETRIES_LIMIT):
        yield 0.25 * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
