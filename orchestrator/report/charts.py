"""Charts as SVG, drawn here: they need no library and no network, and take their colours from the page's style.

Sizes are in the SVG's own units; the page scales it to its column. Every mark says its value in a `<title>`, which browsers show on hover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.algorithms.calibration_bin import CalibrationBin
from orchestrator.report.markup import Markup, element, joined
from orchestrator.report.numbers import counted, short, tick_label, ticks, whole_ticks

MOST_POINTS = 240
"""Of a line. More steps than this are averaged in blocks."""
MOST_BARS = 48
MOST_DOTS = 40
"""Steps up to which each has a visible dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The plane that marks are drawn in: values to places."""

    x: tuple[float, float]
    """Values at the left and the right edge, left < right."""
    y: tuple[float, float]
    """At the bottom and the top, bottom < top."""
    width: float = 360
    height: float = 180
    left: float = 46
    right: float = 12
    top: float = 8
    bottom: float = 22

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where the point stands."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - up * (self.height - self.top - self.bottom),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Values by step, in the order of steps."""

    label: str
    points: tuple[tuple[int, float], ...]
    """At least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One bar of a stack: the mean of steps `first` to `last`."""

    first: int
    last: int
    parts: dict[str, float]
    """By name of the part; one that is missing is 0."""

    @property
    def label(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"


# ---------------------------------------------------------------------------------------------------------------- the charts


def line_chart(title: str, lines: Sequence[Line], *, from_zero: bool = False) -> Markup:
    """Values over steps. `from_zero`: the scale takes in 0, for what is a share or a size."""
    thin = [thinned(line.points) for line in lines]
    steps = [step for points in thin for step, _ in points]
    values = [value for points in thin for _, value in points]
    scale = _scale(min(values), max(values), from_zero=from_zero)
    first, last = min(steps), max(steps)
    # one step alone stands in the middle
    frame = Frame(x=(first, last) if first < last else (first - 1, last + 1), y=(scale[0], scale[-1]))
    dots = max(len(points) for points in thin) <= MOST_DOTS
    marks = [
        _line(frame, line.label if len(lines) > 1 else "", points, number, dots=dots)
        for number, (line, points) in enumerate(zip(lines, thin, strict=True))
    ]
    return _svg(frame, title, _y_axis(frame, scale), _step_axis(frame, whole_ticks(first, last)), *marks)


def stacked_bars(title: str, columns: Sequence[Column], names: Sequence[str]) -> Markup:
    """Parts of a whole for each step, in the order of `names` from the bottom up."""
    shown = merged_columns(columns)
    scale = _scale(0.0, max(sum(column.parts.values()) for column in shown), from_zero=True)
    frame = Frame(x=(0, len(shown)), y=(0, scale[-1]))
    bars: list[Markup] = []
    for place, column in enumerate(shown):
        below = 0.0
        for number, name in enumerate(names):
            value = column.parts.get(name, 0.0)
            text = f"{column.label}: {name} {short(value)} s of {short(sum(column.parts.values()))} s"
            bars.append(_bar(frame, (place + 0.1, place + 0.9), (below, below + value), f"fill s{number}", text))
            below += value
    labels = [
        _text(frame.at(place + 0.5, 0)[0], frame.height - 6, f"{shown[place].first:,}")
        for place in whole_ticks(0, len(shown) - 1)
    ]
    return _svg(frame, title, _y_axis(frame, scale), joined(bars), joined(labels))


def histogram(title: str, values: Sequence[float], *, num_bins: int = 16) -> Markup:
    """How often which values occur (at least one)."""
    scale = _scale(min(values), max(values), from_zero=False)
    low, high = scale[0], scale[-1]
    size = (high - low) / num_bins
    counts = [0] * num_bins
    for value in values:
        counts[min(int((value - low) / size), num_bins - 1)] += 1
    heights = _scale(0, max(counts), from_zero=True)
    frame = Frame(x=(low, high), y=(0, heights[-1]))
    bars = [
        _bar(
            frame,
            (low + (place + 0.06) * size, low + (place + 0.94) * size),
            (0, count),
            "fill s0",
            f"{short(low + place * size)} to {short(low + (place + 1) * size)}: {counted(count, 'answer')}",
        )
        for place, count in enumerate(counts)
    ]
    labels = [_text(frame.at(tick, 0)[0], frame.height - 6, tick_label(tick, scale[1] - scale[0])) for tick in scale]
    return _svg(frame, title, _y_axis(frame, heights), joined(bars), joined(labels))


def reliability(title: str, bins: Sequence[CalibrationBin]) -> Markup:
    """What was foretold against what came true; on the diagonal both agree. A point's area is its number of pairs."""
    frame = Frame(x=(0, 1), y=(0, 1), height=300)
    scale = [0.0, 0.25, 0.5, 0.75, 1.0]
    points = [(one.mean_prob, one.observed_frac, one.count) for one in bins if one.count]
    most = max(one.count for one in bins)
    known = [(prob, share, count) for prob, share, count in points if prob is not None and share is not None]
    (x0, y0), (x1, y1) = frame.at(0, 0), frame.at(1, 1)
    diagonal = element("line", class_="ideal", x1=x0, y1=y0, x2=x1, y2=y1)
    path = _polyline([frame.at(prob, share) for prob, share, _ in known], "line s0")
    dots = []
    for prob, share, count in known:
        x, y = frame.at(prob, share)
        text = f"foretold {prob:.3f}, came true {share:.3f}, {counted(count, 'pair')}"
        dots.append(
            element("circle", element("title", text), class_="bubble", cx=x, cy=y, r=3 + 9 * (count / most) ** 0.5)
        )
    labels = [_text(frame.at(tick, 0)[0], frame.height - 6, tick_label(tick, 0.25)) for tick in scale]
    return _svg(frame, title, _y_axis(frame, scale), joined(labels), diagonal, path, *dots)


# -------------------------------------------------------------------------------------------------------------- many to fewer


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most `most` points: means over equal blocks of neighbours, each at its block's last step."""
    size = -(-len(points) // most)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(block[-1][0], sum(value for _, value in block) / len(block)) for block in blocks]


def merged_columns(columns: Sequence[Column], most: int = MOST_BARS) -> list[Column]:
    """At most `most` columns: means over equal blocks of neighbours."""
    size = -(-len(columns) // most)
    if size == 1:
        return list(columns)
    blocks = [columns[start : start + size] for start in range(0, len(columns), size)]
    return [
        Column(
            first=block[0].first,
            last=block[-1].last,
            parts={
                name: sum(column.parts.get(name, 0.0) for column in block) / len(block)
                for name in {name: None for column in block for name in column.parts}
            },
        )
        for block in blocks
    ]


def _scale(low: float, high: float, *, from_zero: bool) -> list[float]:
    """Ticks that take in both, also where they are one number."""
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.5 * abs(high) or 1.0
        low, high = (0.0, room) if from_zero else (low - room, high + room)
    return ticks(low, high)


# --------------------------------------------------------------------------------------------------------------------- marks


def _svg(frame: Frame, title: str, *parts: Markup) -> Markup:
    box = f"0 0 {frame.width:g} {frame.height:g}"
    return element("svg", *parts, viewBox=box, role="img", aria_label=title)


def _y_axis(frame: Frame, scale: Sequence[float]) -> Markup:
    parts = []
    for tick in scale:
        _, y = frame.at(frame.x[0], tick)
        parts.append(element("line", class_="grid", x1=frame.left, x2=frame.width - frame.right, y1=y, y2=y))
        parts.append(_text(frame.left - 6, y + 3.5, tick_label(tick, scale[1] - scale[0]), "end"))
    return joined(parts)


def _step_axis(frame: Frame, steps: Sequence[int]) -> Markup:
    return joined(_text(frame.at(step, frame.y[0])[0], frame.height - 6, f"{step:,}") for step in steps)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor)


def _line(frame: Frame, label: str, points: Sequence[tuple[int, float]], number: int, *, dots: bool) -> Markup:
    places = [frame.at(step, value) for step, value in points]
    parts = [_polyline(places, f"line s{number}")]
    for at, ((step, value), (x, y)) in enumerate(zip(points, places, strict=True)):
        if dots or at == len(points) - 1:
            parts.append(element("circle", class_=f"dot s{number}", cx=x, cy=y, r=2.6))
        text = f"{label + ', ' if label else ''}step {step}: {short(value)}"
        # wider than what is seen, so that a mouse finds it
        parts.append(element("circle", element("title", text), class_="hit", cx=x, cy=y, r=7))
    return joined(parts)


def _polyline(places: Sequence[tuple[float, float]], class_: str) -> Markup:
    return element("polyline", class_=class_, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))


def _bar(frame: Frame, x: tuple[float, float], y: tuple[float, float], class_: str, text: str) -> Markup:
    """A rectangle from the value x[0] to x[1] and from y[0] to y[1]."""
    left, bottom = frame.at(x[0], y[0])
    right, top = frame.at(x[1], y[1])
    return element(
        "rect", element("title", text), class_=class_, x=left, y=top, width=right - left, height=bottom - top
    )
