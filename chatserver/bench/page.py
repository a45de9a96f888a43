"""The report as one HTML file: no script, nothing fetched, light or dark as the reader's system is."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from chatserver.bench import charts
from chatserver.bench.chapters import Chapter
from chatserver.bench.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line
from chatserver.bench.observations import Observation, Recording
from chatserver.bench.report import Cell, Groups, groups, refusals, rows
from chatserver.bench.statistics import Metric, by_round, histogram, spread
from chatserver.bench.tables import number, told

PERCENTILES = (0, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99)
SHOWN_POINTS = 1500
KNEE_SHARE = 95.0

METHOD = (
    "Every contender runs alone on its core and gets the same load from a process on another one, in turns, round by "
    "round. Arrivals are random, planned in advance and the same for all; times count from the planned moment, so a "
    "server that is late cannot hide it. What came first in each measurement is warm-up and does not count. Ratios are "
    "made within a round; the middle one is shown with its 95 % bootstrap interval over the rounds, and where that "
    "interval holds 1, no difference was measured. A measurement that the load itself spoiled is refused and listed."
)

STYLE = Path(__file__).with_name("page.css").read_text()


def html(recording: Recording, chapters: Sequence[Chapter], earlier: Recording | None = None) -> str:
    """The whole page; with an ``earlier`` recording, each number also says how it changed since."""
    facts = recording.environment
    contenders = _names(recording)
    body = [
        "<h1>How fast is it?</h1>",
        f'<p class="soft">{escape(facts.began_at)} · commit {escape(facts.facts.get("commit", "–"))} · '
        f"<code>{escape(facts.command)}</code></p>",
        f"<p>{METHOD}</p>",
        charts.legend(
            [
                (f"{each} {transport}", _classes(contenders, each, transport))
                for each in contenders
                for transport in _transports(recording, each)
            ]
        ),
    ]
    for chapter in chapters:
        if observations := recording.of(chapter.scenario):
            since = earlier.of(chapter.scenario) if earlier else []
            body += _chapter(chapter, observations, since, contenders)
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(value)}" for name, value in facts.facts.items())
    body += ["<h2>Where and with what</h2>", f'<div class="scroll"><table class="facts">{rows}</table></div>']
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>chatserver bench</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    )


def picture(recording: Recording, chapter: Chapter) -> str:
    """A chapter's ratios as an SVG file of its own, light or dark; empty where nothing was measured."""
    names = _names(recording)
    drawn = _ratios(chapter, recording.of(chapter.scenario), names).partition("<figcaption")[0]
    return drawn.replace("><title>", f"><style>{STYLE}svg {{ background: var(--paper); }}</style><title>", 1)


def _names(recording: Recording) -> list[str]:
    """All contenders, this server first: their places are their colours."""
    names = list(dict.fromkeys(each.contender for each in recording.observations))
    return sorted(names, key=lambda name: name != "chatserver")


def _transports(recording: Recording, contender: str) -> list[str]:
    return sorted({each.transport for each in recording.observations if each.contender == contender})


def _classes(contenders: Sequence[str], contender: str, transport: str) -> str:
    return f"c{contenders.index(contender) % 6}{' ws' if transport == 'WebSocket' else ''}"


def _chapter(
    chapter: Chapter, observations: list[Observation], since: list[Observation], contenders: Sequence[str]
) -> Iterator[str]:
    found = groups(observations)
    yield f'<h2>{escape(chapter.title)}</h2><p class="soft">{escape(chapter.about)}</p>'
    pictures = [each for each in _pictures(chapter, found, contenders) if each]
    yield f'<div class="scroll">{_table(chapter, observations, since)}</div>'
    if pictures:
        yield f'<div class="pictures">{"".join(f"<figure>{each}</figure>" for each in pictures)}</div>'
    refused = [f"<li>{escape(line)}" for line in refusals(observations)]
    if refused:
        yield f'<details><summary>{len(refused)} refused</summary><ul class="refused">{"".join(refused)}</ul></details>'


def _table(chapter: Chapter, observations: list[Observation], since: list[Observation]) -> str:
    heads = "".join(f"<th>{escape(each.title)}<br>{escape(each.unit)}" for each in chapter.metrics)
    lines = []
    for row in rows(chapter, observations, since):
        ours = ' class="ours"' if row.contender == "chatserver" else ""
        cells = "".join(map(_cell, row.cells))
        lines.append(f"<tr{ours}><td>{escape(row.title)}{cells}<td>{escape(told(row.ratio))}")
    head = f"<tr><th>{heads}<th>{escape(chapter.metrics[0].title)},<br>× chatserver’s [95 %]"
    return f"<table>{head}{''.join(lines)}</table>"


def _cell(cell: Cell) -> str:
    values = cell.spread
    if values is None:
        return "<td>–"
    notes = f"<small>{number(values.low)}–{number(values.high)}</small>" if values.rounds > 1 else ""
    if cell.change is not None:
        notes += f"<small>{escape(told(cell.change))} of earlier</small>"
    return f"<td>{number(values.middle)}{notes}"


def _pictures(chapter: Chapter, found: Groups, contenders: Sequence[str]) -> Iterator[str]:
    yield _ratios(chapter, [each for seen in found.values() for each in seen], contenders)
    if chapter.steps:
        for metric in (*chapter.metrics[:2], *[each for each in chapter.metrics[2:] if each.unit == "µs"]):
            yield _growth(chapter, metric, found, contenders)
    if chapter.curve:
        curves = {key: _pooled(seen, chapter.curve) for key, seen in found.items()}
        curves = {key: samples for key, samples in curves.items() if samples}
        if curves:
            yield _percentile_curve(chapter, curves, found, contenders)
            yield _ecdf(chapter, curves, contenders)
    if chapter.series:
        for (contender, transport, _), seen in found.items():
            yield _series(chapter, f"{contender} {transport}", seen[-1])


def _ratios(chapter: Chapter, observations: Sequence[Observation], contenders: Sequence[str]) -> str:
    lines = [
        (
            f"{row.step:,} · " * bool(row.step) + f"{row.contender} {row.transport}",
            _classes(contenders, row.contender, row.transport),
            row.ratio.middle,
            row.ratio.low,
            row.ratio.high,
        )
        for row in rows(chapter, observations)
        if row.ratio is not None and row.contender != "chatserver"
    ]
    title = f"{chapter.metrics[0].title}, as multiples of chatserver’s on the same transport, 95 % interval"
    return charts.whiskers(lines, title) + f"<figcaption class='soft'>{escape(title)}</figcaption>" if lines else ""


def _pooled(seen: list[Observation], name: str) -> list[int]:
    return [
        value for each in seen if not (each.refusal or each.latency_refusal) for value in each.samples.get(name, [])
    ]


def _percentile_curve(
    chapter: Chapter, curves: dict[tuple[str, str, int], list[int]], found: Groups, contenders: Sequence[str]
) -> str:
    lines, deepest = [], 20.0
    for key, samples in curves.items():
        made = histogram(samples)
        wanted = [each for each in PERCENTILES if (100 - each) / 100 * len(samples) >= 1]
        deepest = max(deepest, 100 / (100 - wanted[-1]))
        rounds = [histogram(_pooled([each], chapter.curve)) for each in found[key] if _pooled([each], chapter.curve)]
        at = [(100 / (100 - each), each) for each in wanted]
        band = [
            (
                x,
                min(r.get_value_at_percentile(p) for r in rounds) / 1000,
                max(r.get_value_at_percentile(p) for r in rounds) / 1000,
            )
            for x, p in at
        ]
        points = [(x, made.get_value_at_percentile(p) / 1000) for x, p in at]
        lines.append(Line(f"{key[0]} {key[1]}", _classes(contenders, key[0], key[1]), points, band))
    y = charts.logarithmic([v for line in lines for _, v in line.points], HEIGHT - BOTTOM, TOP)
    x = charts.hdr(LEFT, WIDTH - RIGHT, deepest)
    return charts.plot(lines, x, y, (f"{chapter.title}: percentiles", "percentile", "ms")) + _caption(
        "Percentiles of all rounds; the bands are their lowest and highest round."
    )


def _ecdf(chapter: Chapter, curves: dict[tuple[str, str, int], list[int]], contenders: Sequence[str]) -> str:
    lines = []
    for key, samples in curves.items():
        ordered = sorted(samples)
        places = sorted({round(n * (len(ordered) - 1) / 120) for n in range(121)})
        points = [(max(ordered[each], 1) / 1000, (each + 1) / len(ordered) * 100) for each in places]
        lines.append(Line(f"{key[0]} {key[1]}", _classes(contenders, key[0], key[1]), points))
    x = charts.logarithmic([at for line in lines for at, _ in line.points], LEFT, WIDTH - RIGHT)
    y = charts.linear(0, 100, HEIGHT - BOTTOM, TOP)
    return charts.plot(lines, x, y, (f"{chapter.title}: distribution", "ms", "% of events by then")) + _caption(
        "How many had come after how long."
    )


def _growth(chapter: Chapter, metric: Metric, found: Groups, contenders: Sequence[str]) -> str:
    lines, marks, knees = [], [], []
    delivered = Metric("delivered_share", "", "%", scale=100)
    for contender, transport in dict.fromkeys(key[:2] for key in found):
        points, band = [], []
        steps = sorted(key[2] for key in found if key[:2] == (contender, transport))
        for step in steps:
            seen = found[contender, transport, step]
            if values := spread(list(by_round(seen, metric).values())):
                points.append((float(step), max(values.middle, 1e-3)))
                band.append((float(step), max(values.low, 1e-3), max(values.high, 1e-3)))
        if points:
            lines.append(Line(f"{contender} {transport}", _classes(contenders, contender, transport), points, band))
        last = spread(list(by_round(found[contender, transport, steps[-1]], delivered).values()))
        if last and last.middle < KNEE_SHARE:
            marks += points[-1:]
            knees.append(f"{contender} {transport} {last.middle:.0f} % at {steps[-1]:,}")
    if not lines:
        return ""
    x = charts.logarithmic([at for line in lines for at, _ in line.points], LEFT, WIDTH - RIGHT)
    x = charts.Axis(
        x.low,
        x.high,
        x.start,
        x.end,
        True,
        [(at, charts.label(at)) for at in sorted({at for line in lines for at, _ in line.points})],
    )
    y = charts.logarithmic(
        [v for line in lines for _, low, high in line.band for v in (low, high)], HEIGHT - BOTTOM, TOP
    )
    titles = (f"{metric.title} by {chapter.steps}", chapter.steps, metric.unit)
    knee = f". Knee (ringed), what came in time: {'; '.join(knees)}." if knees else ""
    return charts.plot(lines, x, y, titles, marks=marks) + _caption(f"{metric.title}{knee}")


def _series(chapter: Chapter, name: str, last: Observation) -> str:
    at, values = last.samples.get("at_ms", []), last.samples.get(chapter.series, [])
    if not at or len(at) != len(values):
        return ""
    every = max(1, len(at) // SHOWN_POINTS)
    points = [(when / 1000, max(value, 1) / 1000) for when, value in list(zip(at, values, strict=True))[::every]]
    drops = [each / 1000 for each in last.samples.get("drop_at_ms", [])]
    x = charts.linear(0, max(when for when, _ in points), LEFT, WIDTH - RIGHT)
    y = charts.logarithmic([value for _, value in points], HEIGHT - BOTTOM, TOP)
    return charts.dots(points, x, y, (f"{chapter.title}: {name}", "s", "ms"), drops) + _caption(
        f"{name}, round {last.round}: each event, when it came and how long after it was due"
    )


def _caption(text: str) -> str:
    return f"<figcaption class='soft'>{escape(text)}</figcaption>"
