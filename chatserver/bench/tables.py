"""A recording as text for a terminal: per chapter one table, contenders down, numbers across."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from chatserver.bench.chapters import Chapter
from chatserver.bench.observations import Observation, Recording
from chatserver.bench.statistics import Comparison, Metric, by_round, ratio, spread


def groups(observations: Sequence[Observation]) -> dict[tuple[str, str, int], list[Observation]]:
    """Observations by contender, transport and step, in the order of their first appearance in round 1."""
    found: dict[tuple[str, str, int], list[Observation]] = {}
    for each in observations:
        found.setdefault(each.key, []).append(each)
    order = {name: index for index, name in enumerate(dict.fromkeys(each.contender for each in observations))}
    first = observations[0].contender if observations else ""
    ours = "chatserver" if "chatserver" in order else first
    return dict(sorted(found.items(), key=lambda item: (item[0][2], item[0][1], item[0][0] != ours, item[0][0])))


def refusals(observations: Sequence[Observation]) -> Iterator[str]:
    """Every measurement that does not count, and why: failures are listed, never dropped."""
    for each in observations:
        if reason := each.refusal or each.latency_refusal:
            step = f", {each.step}" if each.step else ""
            what = "" if each.refusal else " (times only)"
            yield f"{each.contender} {each.transport}{step}, round {each.round}: {reason}{what}"


def number(value: float | None) -> str:
    """As many digits as mean something."""
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if value else "0"


def told(comparison: Comparison | None) -> str:
    """A comparison in words."""
    if comparison is None:
        return "–"
    interval = f" [{number(comparison.low)}, {number(comparison.high)}]" if comparison.rounds > 1 else ""
    doubt = "" if comparison.verdict in ("lower", "higher") else f", {comparison.verdict}"
    return f"{number(comparison.middle)}×{interval}{doubt}"


def compared(
    found: dict[tuple[str, str, int], list[Observation]], metric: Metric
) -> dict[tuple[str, str, int], Comparison]:
    """Each contender against chatserver on the same transport; chatserver's WebSocket against its SSE."""
    rounds = {key: by_round(seen, metric) for key, seen in found.items()}
    results = {}
    for (contender, transport, step), mine in rounds.items():
        other = ("chatserver", "SSE" if contender == "chatserver" else transport, step)
        if (contender, transport, step) != other and other in rounds and (result := ratio(mine, rounds[other])):
            results[contender, transport, step] = result
    return results


def show(recording: Recording, chapters: Sequence[Chapter], console: Console, earlier: Recording | None = None) -> None:
    """Print everything that was measured; with an ``earlier`` recording, also how it changed since."""
    facts = " · ".join(f"{name} {value}" for name, value in recording.environment.facts.items())
    console.print(f"[bold]{recording.environment.command}[/]  {recording.environment.began_at}\n{facts}", style="dim")
    for chapter in chapters:
        observations = recording.of(chapter.scenario)
        if not observations:
            continue
        found = groups(observations)
        table = Table(title=chapter.title, title_justify="left", title_style="bold", caption=chapter.about)
        table.caption_justify = "left"
        table.add_column(min_width=20)
        for metric in chapter.metrics:
            table.add_column(f"{metric.title}\n{metric.unit}", justify="right")
        table.add_column("first column × chatserver's [95 %]", min_width=16)
        ratios = compared(found, chapter.metrics[0])
        since = groups(earlier.of(chapter.scenario)) if earlier else {}
        for (contender, transport, step), seen in found.items():
            cells = []
            for metric in chapter.metrics:
                if values := spread(list(by_round(seen, metric).values())):
                    low_high = f"\n[dim]{number(values.low)}–{number(values.high)}[/]" if values.rounds > 1 else ""
                    change = ratio(
                        by_round(seen, metric), by_round(since.get((contender, transport, step), []), metric)
                    )
                    cells.append(number(values.middle) + low_high + (f"\n{told(change)} of earlier" if change else ""))
                else:
                    cells.append("–")
            label = f"{step:,} {chapter.steps} · " if step else ""
            table.add_row(f"{label}{contender} {transport}", *cells, told(ratios.get((contender, transport, step))))
        console.print(table)
        for line in refusals(observations):
            console.print(f"  refused: {line}", style="yellow")
