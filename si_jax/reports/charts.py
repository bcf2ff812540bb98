"""Small charts as inline SVG, which take the colours of the page and print as lines.

Every chart has a title and a description with its numbers for those who do not see it. A network keeps its
colour, its marker and its dashes on the whole page. Charts are drawn 360 units wide, so that their text can
be read on a phone.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from si_jax.reports.accuracy import Cell

COLOURS = 6  # of page.css
WIDTH = 360
# From where they have as many corners as they need, around (0, 0).
MARKERS = (
    'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0',
    'M-3.5 -3.5h7v7h-7z',
    'M0 -4.6L4.4 3.4H-4.4z',
    'M0 -5L5 0L0 5L-5 0z',
)
MOST_POINTS = 300  # of a curve; a longer one is thinned


class Series(NamedTuple):
    """A curve."""

    number: int  # what it is drawn by
    label: str  # what it is called
    points: list[tuple[float, float | None]]  # (x, y); y is None where there is no number


class Line(NamedTuple):
    """A line of an interval chart: its label, and number, label and accuracy of each that has one."""

    label: str
    marks: list[tuple[int, str, Cell]]


class Ids:
    """Makes ids that no other element of the page has."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def next(self, kind: str) -> str:
        return f'{kind}-{next(self._count)}'


def key(number: int) -> Markup:
    """What stands for a network in a legend."""
    return Markup(
        '<svg class="key" viewBox="-14 -7 28 14" width="28" height="14" aria-hidden="true" focusable="false">'
        '<path class="line {0}" d="M-13 0H13"/>{1}</svg>'
    ).format(_class(number), _marker(number, 0, 0))


def intervals(ids: Ids, title: str, lines: Sequence[Line]) -> Markup:
    """Accuracies with their intervals on one axis from 0 to 100 %, from top to bottom."""
    left, right, top, step, gap = 100, 24, 8, 15, 12
    heights = [max(1, len(line.marks)) * step + gap for line in lines]
    bottom = top + sum(heights)

    def x(value: float) -> float:
        return left + value * (WIDTH - left - right)

    parts = []
    for tick in (0, 25, 50, 75, 100):
        parts.append(_line('grid', x(tick / 100), top, x(tick / 100), bottom))
        parts.append(_text(x(tick / 100), bottom + 16, f'{tick} %' if tick == 100 else str(tick), 'middle'))
    y = float(top)
    for line, height in zip(lines, heights, strict=True):
        middle = y + height / 2
        parts.append(_text(left - 8, middle + 4, _short(line.label, 15), 'end'))
        for i, (number, _, cell) in enumerate(line.marks):
            at = middle + (i - (len(line.marks) - 1) / 2) * step
            parts.append(_line(f'whisker {_class(number)}', x(cell.low), at, x(cell.high), at))
            parts.append(_marker(number, x(cell.value), at))
        y += height
        if line is not lines[-1]:
            parts.append(_line('rule', 4, y, WIDTH - right, y))
    words = '; '.join(
        f'{line.label}: ' + ', '.join(f'{name} {percent(cell)}' for _, name, cell in line.marks)
        for line in lines
    )
    return _svg(ids, title, words, bottom + 24, parts)


def curves(ids: Ids, title: str, series: Sequence[Series], *, share: bool, log: bool = False) -> Markup:
    """Curves over epochs, of which at least one has a number.

    `share`: the values are fractions, shown from 0 to 100 %. `log`: all of them must be positive.
    """
    left, right, top, height = 46, 14, 10.0, 150.0
    drawn = [one._replace(points=_thinned(one.points)) for one in series]
    known = [(at, value) for one in drawn for at, value in one.points if value is not None]
    first, last = min(at for at, _ in known), max(at for at, _ in known)
    ticks = _ticks([value for _, value in known], share, log)
    low, high = (math.log10(ticks[0]), math.log10(ticks[-1])) if log else (ticks[0], ticks[-1])

    def x(at: float) -> float:
        return left + (at - first) / ((last - first) or 1) * (WIDTH - left - right)

    def y(value: float) -> float:
        value = math.log10(value) if log else value
        return top + height * (1 - (value - low) / ((high - low) or 1))

    parts = []
    for tick in ticks:
        parts.append(_line('grid', left, y(tick), WIDTH - right, y(tick)))
        parts.append(_text(left - 6, y(tick) + 4, f'{100 * tick:.0f} %' if share else f'{tick:g}', 'end'))
    for at in sorted({first, last}):
        anchor = 'start' if at == first and first != last else 'end'
        parts.append(_text(x(at), top + height + 16, f'{at:g}', anchor))
    parts.append(_text((left + WIDTH - right) / 2, top + height + 16, 'epoch', 'middle'))
    for one in drawn:
        path, pen = '', 'M'
        for at, value in one.points:
            path += '' if value is None else f'{pen}{x(at):.1f} {y(value):.1f}'
            pen = 'M' if value is None else 'L'
        parts.append(Markup('<path class="line {}" d="{}"/>').format(_class(one.number), path))
        marked = [(at, value) for at, value in one.points if value is not None]
        for at, value in marked if len(marked) <= 12 else marked[-1:]:
            parts.append(_marker(one.number, x(at), y(value)))
    words = '; '.join(_in_words(one, share) for one in series)
    return _svg(ids, title, words, top + height + 24, parts)


def percent(cell: Cell) -> str:
    """An accuracy with its interval: `67.8 % [63.0, 72.2]`."""
    return f'{100 * cell.value:.1f} % [{100 * cell.low:.1f}, {100 * cell.high:.1f}]'


def _in_words(series: Series, share: bool) -> str:
    """A curve in words: where it begins, ends, and goes in between."""
    known = [(at, value) for at, value in series.points if value is not None]
    if not known:
        return f'{series.label}: no number'

    def say(value: float) -> str:
        return f'{100 * value:.1f} %' if share else f'{value:.4g}'

    (first, start), (last, end) = known[0], known[-1]
    values = [value for _, value in known]
    return (
        f'{series.label}: {say(start)} at epoch {first:g}, {say(end)} at epoch {last:.10g}, '
        f'between {say(min(values))} and {say(max(values))}'
    )


def _ticks(values: list[float], share: bool, log: bool) -> list[float]:
    if share:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    if log:
        first = math.floor(math.log10(min(values)))
        last = max(math.ceil(math.log10(max(values))), first + 1)
        stride = math.ceil((last - first) / 5)
        return [10.0**power for power in range(first, last + stride, stride)]
    low, high = min(0.0, *values), max(0.0, *values)
    span = (high - low) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 3))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= 5)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    stride = -(-len(points) // MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _class(number: int) -> Markup:
    return Markup('c{} d{}').format(number % COLOURS, number % len(MARKERS))


def _marker(number: int, x: float, y: float) -> Markup:
    return Markup('<path class="mark {}" d="{}" transform="translate({} {})"/>').format(
        _class(number), MARKERS[number % len(MARKERS)], f'{x:.1f}', f'{y:.1f}'
    )


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<path class="{}" d="M{} {}L{} {}"/>').format(
        name, f'{x1:.1f}', f'{y1:.1f}', f'{x2:.1f}', f'{y2:.1f}'
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
        f'{x:.1f}', f'{y:.1f}', anchor, text
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f'{text[: most - 1]}…'


def _svg(ids: Ids, title: str, words: str, height: float, parts: list[Markup]) -> Markup:
    name, about = ids.next('chart'), ids.next('about')
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{} {}">'
        '<title id="{}">{}</title><desc id="{}">{}</desc>{}</svg>'
    ).format(
        WIDTH, f'{height:.0f}', name, about, name, title, about, words, Markup('').join(map(escape, parts))
    )
