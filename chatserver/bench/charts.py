"""Pictures as SVG text: axes, lines, bands, whiskers. Colours are classes, so that a page can be light or dark."""

import math
from collections.abc import Sequence
from html import escape

from msgspec import Struct

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 40


class Axis(Struct, frozen=True):
    """Values to positions between two pixels; ``ticks`` are (value, label)."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    ticks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


class Line(Struct, frozen=True):
    """One contender in a picture: its class names, its points, and for each x the lowest and highest of the rounds."""

    name: str
    classes: str
    points: list[tuple[float, float]]
    band: list[tuple[float, float, float]] = []


def logarithmic(values: Sequence[float], start: float, end: float) -> Axis:
    """A log axis over the values; ticks at 1, 2 and 5 where there is room, else at 1."""
    positive = [each for each in values if each > 0] or [1.0]
    low, high = min(positive), max(positive)
    if high < low * 4:
        low, high = low / 2, high * 2
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return Axis(low, high, start, end, True, [(each, label(each)) for each in ticks if low <= each <= high])


def linear(low: float, high: float, start: float, end: float) -> Axis:
    """A linear axis with about five ticks."""
    high = high if high > low else low + 1
    raw = (high - low) / 5
    step = next(
        each * 10.0 ** math.floor(math.log10(raw))
        for each in (1, 2, 5, 10)
        if each * 10.0 ** math.floor(math.log10(raw)) >= raw
    )
    first = math.ceil(low / step)
    values = [step * (first + n) for n in range(8) if step * (first + n) <= high * 1.0001]
    return Axis(low, high, start, end, False, [(each, label(each)) for each in values])


def hdr(start: float, end: float, deepest: float) -> Axis:
    """The axis of HdrHistogram: 1/(1-p), so that each further nine takes as much room as the last."""
    nines = [(1.0, "0 %"), (2.0, "50"), (10.0, "90"), (100.0, "99"), (1000.0, "99.9"), (10_000.0, "99.99")]
    return Axis(1.0, max(deepest, 20.0), start, end, True, [each for each in nines if each[0] <= max(deepest, 20.0)])


def label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1 and value == round(value) else f"{value:g}"


def frame(x: Axis, y: Axis, x_title: str, y_title: str) -> list[str]:
    """The grid, its ticks and what the axes mean."""
    parts = []
    for value, text in x.ticks:
        parts.append(f'<path class="axis" d="M{x.at(value)} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x.at(value)}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{text}</text>')
    for value, text in y.ticks:
        parts.append(f'<path class="axis" d="M{LEFT} {y.at(value)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y.at(value) + 4}" text-anchor="end">{text}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_title)}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(
        f'<text transform="rotate(-90 13 {middle})" x="13" y="{middle}" text-anchor="middle">{escape(y_title)}</text>'
    )
    return parts


def svg(parts: Sequence[str], title: str, height: float = HEIGHT) -> str:
    """A picture; ``title`` is what a screen reader says."""
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>{body}</svg>'
    )


def plot(
    lines: Sequence[Line], x: Axis, y: Axis, titles: tuple[str, str, str], *, marks: Sequence[tuple[float, float]] = ()
) -> str:
    """Lines with their bands; ``marks`` are points with a ring around them."""
    parts = frame(x, y, titles[1], titles[2])
    for line in lines:
        if len(line.band) > 1:
            there = " ".join(f"{x.at(at)},{y.at(low)}" for at, low, _ in line.band)
            back = " ".join(f"{x.at(at)},{y.at(high)}" for at, _, high in reversed(line.band))
            parts.append(f'<polygon class="band {line.classes.split()[0]}" points="{there} {back}"/>')
    for line in lines:
        path = " ".join(f"{x.at(at)},{y.at(value)}" for at, value in line.points)
        parts.append(
            f'<polyline class="line {line.classes}" points="{path}"><title>{escape(line.name)}</title></polyline>'
        )
        if len(line.points) <= 8:
            parts += [
                f'<circle class="{line.classes.split()[0]}" cx="{x.at(a)}" cy="{y.at(v)}" r="3"/>'
                for a, v in line.points
            ]
    parts += [f'<circle class="mark" cx="{x.at(at)}" cy="{y.at(value)}" r="7"/>' for at, value in marks]
    return svg(parts, titles[0])


def dots(
    points: Sequence[tuple[float, float]], x: Axis, y: Axis, titles: tuple[str, str, str], drops: Sequence[float]
) -> str:
    """Every event where and how late it came; drops as lines."""
    parts = frame(x, y, titles[1], titles[2])
    parts += [f'<path class="mark" d="M{x.at(each)} {TOP}V{HEIGHT - BOTTOM}"/>' for each in drops]
    parts += [f'<circle class="dot c0" cx="{x.at(at)}" cy="{y.at(value)}" r="1.6"/>' for at, value in points]
    if drops:
        parts.append(f'<text class="marked" x="{x.at(drops[0]) + 4}" y="{TOP + 10}">dropped</text>')
    return svg(parts, titles[0])


def whiskers(rows: Sequence[tuple[str, str, float, float, float]], title: str) -> str:
    """Ratios with their intervals, one row each: name, classes, middle, low, high. The line is 1: no difference."""
    height = TOP + 22 * len(rows) + BOTTOM
    axis = logarithmic([1.0, *[value for row in rows for value in row[2:]]], 250, WIDTH - 60)
    parts = []
    for value, text in axis.ticks:
        parts.append(f'<path class="axis" d="M{axis.at(value)} {TOP}V{height - BOTTOM}"/>')
        parts.append(f'<text x="{axis.at(value)}" y="{height - BOTTOM + 15}" text-anchor="middle">{text}×</text>')
    parts.append(f'<path class="mark" d="M{axis.at(1)} {TOP - 4}V{height - BOTTOM}"/>')
    for place, (name, classes, middle, low, high) in enumerate(rows):
        y = TOP + 22 * place + 11
        color = classes.split()[0]
        parts.append(f'<text class="name" x="236" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<path class="whisker {color}" d="M{axis.at(low)} {y}H{axis.at(high)}'
            f'M{axis.at(low)} {y - 4}v8M{axis.at(high)} {y - 4}v8"/>'
        )
        parts.append(f'<circle class="{color}" cx="{axis.at(middle)}" cy="{y}" r="4"/>')
        parts.append(
            f'<text class="name" x="{WIDTH - 4}" y="{y + 4}" text-anchor="end">{label(float(f"{middle:.3g}"))}×</text>'
        )
    return svg(parts, title, height)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names with their colour, dashed for WebSocket."""
    drawn = [
        f'<span><svg viewBox="0 0 26 8" width="26" height="8"><path class="line {classes}" d="M0 4H26"/></svg> '
        f"{escape(name)}</span>"
        for name, classes in entries
    ]
    return f'<p class="legend">{" ".join(drawn)}</p>'
