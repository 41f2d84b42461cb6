"""Line charts as SVG text, for a page that needs no script.

    svg = charts.lines({'loss': ([50, 100], [2.1, 1.4])}, unit='nats')

Lines have classes, whose colours come from the page's style sheet.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 560, 240  # user units; the page scales the whole
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 26  # room for the tick labels
_MOST_POINTS = 300  # per line; of more, neighbours are averaged

Series = tuple[Sequence[float], Sequence[float | None]]


def lines(series: dict[str, Series], *, unit: str = '', floor: float | None = None) -> Markup:
    """Draws a chart of lines over steps.

    Args:
      series: name -> steps (rising) and values; None and NaN interrupt the line.
      unit: after the values in the notes that appear on pointing at a line.
      floor: the axis starts no higher than this, e.g. 0 for shares.

    Returns:
      An <svg> whose i-th line has class `s<i>`; '' if there is not a single value.
    """
    points = {name: _thinned(*line) for name, line in series.items()}
    known = [value for line in points.values() for _, value in line if value is not None]
    if not known:
        return Markup('')
    steps = [step for line in points.values() for step, _ in line]
    low, high = min(known), max(known)
    low = low if floor is None else min(low, floor)
    ticks_y = ticks(low, high)
    low, high = min(low, ticks_y[0]), max(high, ticks_y[-1])
    ticks_x = ticks(min(steps), max(steps), most=6)
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return round(_LEFT + (step - first) / max(last - first, 1e-12) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (value - low) / max(high - low, 1e-12) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(", ".join(series))} over steps">']
    for value in ticks_y:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{number(value)}</text>')
    for step in ticks_x:
        if first <= step <= last:
            parts.append(f'<text x="{x(step)}" y="{_HEIGHT - 8}" text-anchor="middle">{number(step)}</text>')
    for index, (name, line) in enumerate(points.items()):
        parts.append(f'<g class="s{index}">')
        for run in _unbroken(line):
            if len(run) > 1:
                parts.append(f'<polyline points="{" ".join(f"{x(step)},{y(value)}" for step, value in run)}"/>')
        for step, value in line:
            if value is not None and (len(line) <= 40 or [(step, value)] in _unbroken(line)):
                note = escape(f'{name}: {value:.4g}{unit and " " + unit} at step {step:,.0f}')
                parts.append(f'<circle cx="{x(step)}" cy="{y(value)}" r="2.5"><title>{note}</title></circle>')
        parts.append('</g>')
    return Markup(''.join([*parts, '</svg>']))


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers, about `most` of them, that span the range from `low` to `high`."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(multiple * power for multiple in (1, 2, 2.5, 5, 10) if multiple * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """Returns the label of a tick: 0.25, 40k, 1.5M, 3e-05."""
    size = abs(value)
    if size >= 1e6:
        return f'{value / 1e6:.4g}M'
    if size >= 1e4:
        return f'{value / 1e3:.4g}k'
    return f'{value:.0e}' if 0 < size < 1e-3 else f'{value:.4g}'


def _thinned(steps: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    """At most `_MOST_POINTS` points, each the mean of as many neighbours."""
    clean = [None if value is None or not math.isfinite(value) else value for value in values]
    size = -(-len(clean) // _MOST_POINTS)
    points = []
    for start in range(0, len(clean), max(size, 1)):
        known = [value for value in clean[start : start + size] if value is not None]
        middle = steps[min(start + size // 2, len(clean) - 1)]
        points.append((middle, sum(known) / len(known) if known else None))
    return points


def _unbroken(line: list[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    runs, current = [], []
    for step, value in line:
        if value is not None:
            current.append((step, value))
        elif current:
            runs.append(current)
            current = []
    return [*runs, current] if current else runs
