"""From observations to what may be said about them: percentiles, and differences with their doubt."""

import math
import random
from collections.abc import Iterable, Sequence
from statistics import NormalDist, median

from hdrh.histogram import HdrHistogram
from msgspec import Struct

from chatserver.bench.observations import Observation

LONGEST_US = 120_000_000
RESAMPLES = 2000
ROUNDS_FOR_A_VERDICT = 5

_T_QUANTILES = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 15: 2.131, 20: 2.086, 30: 2.042}
"""Student's t at 97.5 %, by degrees of freedom."""


class Metric(Struct, frozen=True):
    """A number of one measurement: a value by its name, or a percentile of its samples."""

    name: str
    title: str
    unit: str
    percentile: float | None = None
    scale: float = 1.0
    lower_is_better: bool = True

    def of(self, observation: Observation) -> float | None:
        """The number, in ``unit``; None where it was refused or never taken."""
        if observation.refusal or (self.percentile is not None and observation.latency_refusal):
            return None
        if self.percentile is None:
            value = observation.values.get(self.name)
            return None if value is None else value * self.scale
        samples = observation.samples.get(self.name)
        return percentile(samples, self.percentile) * self.scale if samples else None


class Spread(Struct, frozen=True):
    """The rounds of one contender: their median, the lowest and the highest."""

    middle: float
    low: float
    high: float
    rounds: int


class Comparison(Struct, frozen=True):
    """One contender against another: the median of the rounds' ratios (or differences), and its 95 % interval."""

    middle: float
    low: float
    high: float
    rounds: int
    neutral: float

    @property
    def verdict(self) -> str:
        if self.rounds < ROUNDS_FOR_A_VERDICT:
            return f"only {self.rounds} rounds"
        if self.low <= self.neutral <= self.high:
            return "no measurable difference"
        return "lower" if self.high < self.neutral else "higher"


def histogram(samples: Iterable[int]) -> HdrHistogram:
    """An HdrHistogram of samples in µs, with 3 significant digits."""
    made = HdrHistogram(1, LONGEST_US, 3)
    for each in samples:
        made.record_value(min(max(1, each), LONGEST_US))
    return made


def percentile(samples: Sequence[int], percent: float) -> float:
    """A percentile of samples; the value of the sample itself, without interpolation."""
    ordered = sorted(samples)
    return float(ordered[min(len(ordered) - 1, max(0, math.ceil(round(percent / 100 * len(ordered), 6)) - 1))])


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values), len(values)) if values else None


def ratio(ours: dict[int, float], theirs: dict[int, float]) -> Comparison | None:
    """How many times theirs ours is, by the rounds that both have."""
    shared = [ours[each] / theirs[each] for each in sorted(ours) if theirs.get(each)]
    return _compared(shared, neutral=1.0)


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Comparison | None:
    """How much more ours is than theirs, by the rounds that both have."""
    return _compared([ours[each] - theirs[each] for each in sorted(ours) if each in theirs], neutral=0.0)


def _compared(paired: list[float], neutral: float) -> Comparison | None:
    """The median of paired rounds and its bootstrap interval.

    Rounds are resampled, never single events: events of a round share its moment, its connections and its neighbours
    on the machine, so thousands of them are no thousand witnesses. Contenders of a round run within seconds of each
    other; pairing them takes out what the machine did to both. The plain percentile bootstrap is too narrow for few
    rounds, so its quantiles are spread as Student's t asks (Hesterberg 2015, "expanded percentile interval"). With 5
    rounds that is the range of them all: two equal contenders differ by it in 1 of 16 comparisons.
    """
    if not paired:
        return None
    count = len(paired)
    if count == 1:
        return Comparison(paired[0], paired[0], paired[0], 1, neutral)
    source = random.Random(count)  # noqa: S311 - the same report from the same observations
    medians = sorted(median(source.choices(paired, k=count)) for _ in range(RESAMPLES))
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * _t_quantile(count - 1))
    at = int(tail * RESAMPLES)
    return Comparison(median(paired), medians[at], medians[-1 - at], count, neutral)


def _t_quantile(freedom: int) -> float:
    known = [each for each in _T_QUANTILES if each <= freedom]
    return _T_QUANTILES[max(known)] if known else 4.303


def by_round(observations: Iterable[Observation], metric: Metric) -> dict[int, float]:
    """The metric of each round that has it."""
    found = {each.round: metric.of(each) for each in observations}
    return {number: value for number, value in found.items() if value is not None}
