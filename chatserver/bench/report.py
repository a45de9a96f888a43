"""What a recording says: per chapter a row for each contender, which tables, the page and JSON show in their ways."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from chatserver.bench.chapters import Chapter
from chatserver.bench.observations import Observation, Recording
from chatserver.bench.statistics import Comparison, Metric, Spread, by_round, ratio, spread

Key: TypeAlias = tuple[str, str, int]
Groups: TypeAlias = dict[Key, list[Observation]]


class Cell(Struct, frozen=True):
    """A metric of one contender.

    ``ratio`` is to chatserver's on the same transport, or of chatserver's WebSocket to its SSE; ``change`` is to the
    same contender in an earlier recording.
    """

    metric: Metric
    spread: Spread | None
    ratio: Comparison | None
    change: Comparison | None


class Row(Struct, frozen=True):
    """One contender on one transport, in one step."""

    contender: str
    transport: str
    step: int
    title: str
    cells: tuple[Cell, ...]

    @property
    def ratio(self) -> Comparison | None:
        """That of the first metric, the one that a chapter is about."""
        return self.cells[0].ratio


def groups(observations: Sequence[Observation]) -> Groups:
    """Observations by contender, transport and step: chatserver first in each step, then by name."""
    found: Groups = {}
    for each in observations:
        found.setdefault(each.key, []).append(each)
    return dict(
        sorted(found.items(), key=lambda item: (item[0][2], item[0][1], item[0][0] != "chatserver", item[0][0]))
    )


def rows(chapter: Chapter, observations: Sequence[Observation], since: Sequence[Observation] = ()) -> Iterator[Row]:
    """The rows of a chapter; ``since`` are an earlier recording's observations."""
    found, before = groups(observations), groups(since)
    for key, seen in found.items():
        contender, transport, step = key
        other = found.get(("chatserver", "SSE" if contender == "chatserver" else transport, step), [])
        cells = tuple(
            _cell(metric, seen, other if other is not seen else [], before.get(key, [])) for metric in chapter.metrics
        )
        title = f"{step:,} {chapter.steps} · " * bool(step) + f"{contender} {transport}"
        yield Row(contender, transport, step, title, cells)


def _cell(metric: Metric, seen: list[Observation], other: list[Observation], since: list[Observation]) -> Cell:
    rounds = by_round(seen, metric)
    compared = (ratio(rounds, by_round(each, metric)) for each in (other, since))
    return Cell(metric, spread(list(rounds.values())), *compared)


def refusals(observations: Sequence[Observation]) -> Iterator[str]:
    """Every measurement that does not count, and why: failures are listed, never dropped."""
    for each in observations:
        if reason := each.refusal or each.latency_refusal:
            step = f", {each.step}" if each.step else ""
            what = "" if each.refusal else " (times only)"
            yield f"{each.contender} {each.transport}{step}, round {each.round}: {reason}{what}"


def document(recording: Recording, chapters: Iterable[Chapter]) -> dict[str, Any]:
    """All of it for programs: metrics by their titles, each with its unit and the median, lowest and highest round."""
    facts = recording.environment
    told = []
    for chapter in chapters:
        if observations := recording.of(chapter.scenario):
            lines = [_line(row, chapter) for row in rows(chapter, observations)]
            told.append(
                {
                    "scenario": chapter.scenario,
                    "title": chapter.title,
                    "rows": lines,
                    "refused": list(refusals(observations)),
                }
            )
    return {"command": facts.command, "began_at": facts.began_at, "facts": facts.facts, "chapters": told}


def _line(row: Row, chapter: Chapter) -> dict[str, Any]:
    metrics = {}
    for cell in row.cells:
        if cell.spread:
            metrics[cell.metric.title] = {
                "unit": cell.metric.unit,
                **numbers(cell.spread),
                "to_chatserver": numbers(cell.ratio) if cell.ratio else None,
            }
    step = {chapter.steps: row.step} if row.step else {}
    return {"contender": row.contender, "transport": row.transport, **step, "metrics": metrics}


def numbers(seen: Spread | Comparison) -> dict[str, float]:
    """For programs: the median of the rounds, and their lowest and highest or, of a comparison, its 95 % interval."""
    return {"median": seen.middle, "low": seen.low, "high": seen.high, "rounds": seen.rounds}
