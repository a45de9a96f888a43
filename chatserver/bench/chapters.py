"""What a report is made of: for each scenario its title, its words, and the numbers that are compared."""

from msgspec import Struct

from chatserver.bench.statistics import Metric


class Chapter(Struct, frozen=True):
    """One scenario's part of a report. ``steps`` names what grows from step to step (`streams`), if anything does."""

    scenario: str
    title: str
    about: str
    metrics: tuple[Metric, ...]
    curve: str = ""
    """Samples whose percentile curve and ECDF are drawn."""
    steps: str = ""
    series: str = ""
    """Samples that are drawn over time."""


def latency(name: str, title: str, *percents: float) -> tuple[Metric, ...]:
    """Percentiles of samples in µs, shown in ms."""
    return tuple(Metric(name, f"{title} p{percent:g}", "ms", percent, 0.001) for percent in percents or (50, 99))
