"""A recording as text: per chapter one table, contenders down, numbers across."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from chatserver.bench import report
from chatserver.bench.chapters import Chapter
from chatserver.bench.observations import Recording
from chatserver.bench.report import Cell
from chatserver.bench.statistics import Comparison

WHOLE_COLUMNS = 1000
"""The width of an output that is no terminal: no table is so wide, so that none is cut."""


def console(*, is_for_people: bool = True) -> Console:
    """Where tables are printed; where programs read the output, what is told to people goes to stderr."""
    made = Console(stderr=not is_for_people)
    return made if made.is_terminal else Console(stderr=not is_for_people, width=WHOLE_COLUMNS)


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


def show(recording: Recording, chapters: Sequence[Chapter], console: Console, earlier: Recording | None = None) -> None:
    """Print everything that was measured; with an ``earlier`` recording, also how it changed since."""
    facts = " · ".join(f"{name} {value}" for name, value in recording.environment.facts.items())
    console.print(f"[bold]{recording.environment.command}[/]  {recording.environment.began_at}\n{facts}", style="dim")
    for chapter in chapters:
        observations = recording.of(chapter.scenario)
        if not observations:
            continue
        table = Table(title=chapter.title, title_justify="left", title_style="bold", caption=chapter.about)
        table.caption_justify = "left"
        table.add_column(min_width=20)
        for metric in chapter.metrics:
            table.add_column(f"{metric.title}\n{metric.unit}", justify="right")
        table.add_column("first column × chatserver's [95 %]", min_width=16)
        for row in report.rows(chapter, observations, earlier.of(chapter.scenario) if earlier else ()):
            table.add_row(row.title, *map(_cell, row.cells), told(row.ratio))
        console.print(table)
        for line in report.refusals(observations):
            console.print(f"  refused: {line}", style="yellow")


def _cell(cell: Cell) -> str:
    values = cell.spread
    if values is None:
        return "–"
    low_high = f"\n[dim]{number(values.low)}–{number(values.high)}[/]" if values.rounds > 1 else ""
    return number(values.middle) + low_high + (f"\n{told(cell.change)} of earlier" if cell.change else "")
