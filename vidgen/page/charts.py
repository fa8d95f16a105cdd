"""Small SVG charts: lines and stacked bars over steps, coloured by CSS classes."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vidgen.page.kit import Html

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 34  # margins of the plot, in the same units
MAX_BINS = 300  # more points than this cannot be told apart at this width
MAX_BARS = 64

Points = Sequence[tuple[float, float]]  # (step, value), steps increasing


@dataclass(frozen=True)
class Line:
    label: str
    points: Points
    style: str  # CSS class: "raw", "smooth" or "plain"


@dataclass(frozen=True)
class Mark:
    """A step worth a vertical line, such as the one a run resumed from."""

    step: int
    label: str


def line_chart(
    title: str, lines: Sequence[Line], *, marks: Sequence[Mark] = (), from_zero: bool = False
) -> Html:
    """Lines over steps; a logarithmic axis where positive values span more than a factor of 5.

    The range of values holds all of the last line, which is drawn on top, and 96 % of the
    others' points: strays may leave the plot rather than flatten it.
    """
    values = [y for _, y in lines[-1].points]
    for line in lines[:-1]:
        ranked = sorted(y for _, y in line.points)
        stray = len(ranked) // 50
        values += ranked[stray : len(ranked) - stray]
    low, high = min(values), max(values)
    log = not from_zero and low > 0 and high / low > 5
    y_axis = _log_axis(low, high) if log else _linear_axis(0.0 if from_zero else low, high)
    x_axis = _step_axis([x for line in lines for x, _ in line.points])
    drawn = []
    for line in lines:
        points = (f"{_x(x_axis, x):.1f},{_y(y_axis, y):.1f}" for x, y in _thin(line.points))
        drawn.append(f'<polyline class="line {line.style}" points="{" ".join(points)}"/>')
    note = " (log scale)" if log else ""
    # A nested svg cuts off what leaves the plot.
    box = f"{LEFT} {TOP - 2} {WIDTH - LEFT - RIGHT} {HEIGHT - TOP - BOTTOM + 4}"
    x, y, width, height = box.split()
    body = (
        f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">'
        f"{''.join(drawn)}</svg>{_marks(marks, x_axis)}"
    )
    return _frame(title + note, body, x_axis, y_axis)


def stacked_bars(title: str, steps: Sequence[int], parts: Mapping[str, Sequence[float]]) -> Html:
    """Bars of means over neighbouring steps, `parts` stacked from the bottom up.

    One slow bar (a first step, a checkpoint) must not flatten the others: the axis may end
    below it, and the bar then carries a mark and its true height in its tooltip.
    """
    groups = _bins(len(steps), MAX_BARS)
    bars = [{n: _mean(v[i] for i in group) for n, v in parts.items()} for group in groups]
    heights = [sum(bar.values()) for bar in bars]
    usual = sorted(heights)[int(0.9 * (len(heights) - 1))]
    high = max(heights) if max(heights) <= 2 * usual else 1.25 * usual
    y_axis, x_axis = _linear_axis(0.0, high), _step_axis(steps, pad=0.5)
    top = y_axis.high
    drawn = []
    for group, bar, height in zip(groups, bars, heights, strict=True):
        first, last = steps[group[0]], steps[group[-1]]
        x0, x1 = _x(x_axis, first - 0.5), _x(x_axis, last + 0.5)
        gap = min(1.0, (x1 - x0) / 8)
        when = f"step {first}" if first == last else f"steps {first} to {last}"
        detail = ", ".join(f"{name} {ms:.1f}" for name, ms in bar.items())
        drawn.append(f"<g><title>{escape(f'{when}: {height:.1f} ms ({detail})')}</title>")
        base = 0.0
        for name, part in bar.items():
            y0, y1 = _y(y_axis, min(base, top)), _y(y_axis, min(base + part, top))
            if y0 - y1 > 0.05:
                drawn.append(
                    f'<rect class="{phase_class(name)}" x="{x0 + gap / 2:.2f}" y="{y1:.2f}" '
                    f'width="{x1 - x0 - gap:.2f}" height="{y0 - y1:.2f}"/>'
                )
            base += part
        if height > top:
            middle = (x0 + x1) / 2
            drawn.append(f'<path class="cut" d="M{middle - 4:.1f} 12 l4 -7 l4 7 z"/>')
        drawn.append("</g>")
    return _frame(title, "".join(drawn), x_axis, y_axis)


PHASES = ("data", "encode", "forward", "backward", "optimizer", "checkpoint", "validate")


def phase_class(name: str) -> str:
    """The CSS class that colours a phase, the same in every chart; grey for unnamed ones."""
    return f"phase-{name}" if name in PHASES else "phase-other"


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Each value's mean with those around it, up to about a 25th of the run.

    The window is centred, so that it follows a fast fall without lagging. At the start it narrows
    to stay so; at the end only its far side is cut, or the curve would end in one noisy value.
    """
    half = max(2, len(points) // 50)
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    out = []
    for i, (x, _) in enumerate(points):
        first = i - min(half, i)
        end = i + min(half, i, len(points) - 1 - i) + 1
        out.append((x, (sums[end] - sums[first]) / (end - first)))
    return out


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]
    scale: Callable[[float], float]

    def place(self, value: float) -> float:
        """0 at the low end of the axis, 1 at the high end."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(value) - low) / (high - low)


def _linear_axis(low: float, high: float) -> _Axis:
    """An axis whose ends are round numbers just outside the values."""
    if high <= low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    return _Axis(ticks[0], ticks[-1], ticks, float)


def _log_axis(low: float, high: float) -> _Axis:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = tuple(t for d in decades for s in steps if low <= (t := s * 10.0**d) <= high)
    margin = (high / low) ** 0.03
    return _Axis(low / margin, high * margin, ticks, math.log10)


def _step_axis(steps: Sequence[float], pad: float = 0.0) -> _Axis:
    low, high = min(steps) - pad, max(steps) + pad
    if high <= low:
        low, high = low - 1, high + 1
    step = max(1.0, _round_step((high - low) / 5))
    first, last = math.ceil(low / step), math.floor(high / step)
    return _Axis(low, high, tuple(i * step for i in range(first, last + 1)), float)


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * s for s in (1, 2, 5, 10) if power * s >= step * (1 - 1e-9))


def _x(axis: _Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: _Axis, value: float) -> float:
    # A logarithm needs a positive value: what lies far below the plot is drawn just below it.
    if axis.scale is math.log10:
        value = max(value, axis.low / 100)
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _frame(title: str, body: str, x_axis: _Axis, y_axis: _Axis) -> Html:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [f'<svg class="chart" {size} role="img" aria-label="{escape(title)}">']
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(tick)}</text>'
        )
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{_label(tick)}</text>'
        )
    parts.append(body)
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{right}" y="{HEIGHT - 3}" text-anchor="end">step</text></svg>')
    return Html("".join(parts))


def _marks(marks: Sequence[Mark], x_axis: _Axis) -> str:
    parts = []
    for mark in marks:
        if x_axis.low <= mark.step <= x_axis.high:
            x = _x(x_axis, mark.step)
            # The label stays inside the plot on either half of it.
            anchor, shift = ("start", 5) if x_axis.place(mark.step) < 0.5 else ("end", -5)
            parts.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
                f'<text class="marked" x="{x + shift:.1f}" y="{TOP + 10}" '
                f'text-anchor="{anchor}">{escape(mark.label)}</text>'
            )
    return "".join(parts)


def _label(value: float) -> str:
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")


def _thin(points: Points) -> Points:
    """At most two points a bin, its lowest and its highest value, so that spikes stay visible."""
    if len(points) <= 2 * MAX_BINS:
        return points
    out = []
    for group in _bins(len(points), MAX_BINS):
        ranked = sorted(group, key=lambda i: points[i][1])
        out += [points[i] for i in sorted({ranked[0], ranked[-1]})]
    return out


def _bins(count: int, most: int) -> list[range]:
    """`count` neighbours in at most `most` groups of nearly equal size."""
    groups = min(count, most)
    edges = [count * i // groups for i in range(groups + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def _mean(values: Iterable[float]) -> float:
    items = list(values)
    return math.fsum(items) / len(items)
