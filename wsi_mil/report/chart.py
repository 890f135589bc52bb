"""Charts of lines, as the pages and the figures draw them. Curves differ by colour and by the shape of their signs."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

COLOURS = 6
"""How many the page has; each has a sign of its own, for printers and for eyes that do not tell colours apart."""
SIGNS = "●■▲◆▼✚"
"""Of each colour, as text."""
_SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.5,-3.5h7v7h-7z",
    "M0,-4.5L4.5,3.5H-4.5z",
    "M0,-5L5,0L0,5L-5,0z",
    "M0,4.5L4.5,-3.5H-4.5z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
)
"""The same as SVG paths around their middle."""
_EACH = 12  # a curve of no more points has a sign at each
_SPREAD = 3  # signs along a longer one
_TICKS = 5


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    values: tuple[float, ...]
    at: tuple[float, ...] = ()
    """Where each value is, from 0 at the left edge to 1 at the right; unless told, evenly spread."""
    colour: int | None = None
    """Which of the page's six colours; unless told, that of its place among the curves."""
    dashed: bool = False


class Bar(NamedTuple):
    """A grey bar behind the curves: all are shares of the chart's width and height."""

    left: float
    right: float
    height: float


class Tick(NamedTuple):
    """Something written beside an axis."""

    at: float
    """From 0 at the left, or lower, edge to 1 at the other."""
    text: str


class Mark(NamedTuple):
    """A vertical line."""

    at: float
    """From 0 at the left edge to 1 at the right."""
    colour: int
    """As that of a curve."""


class Place(NamedTuple):
    """Where a sign is drawn, in the units of the chart."""

    x: float
    y: float


class Chart(NamedTuple):
    """Lines over the epochs, or over what ``across`` says."""

    caption: str
    curves: tuple[Curve, ...]
    least_top: float = 0.0
    """The upper edge is at least here."""
    width: int = 340
    """As drawn at the width of a telephone, where writing stays 11 px high; a desk shows it half as large again."""
    height: int = 190
    across: str = "epoch"
    """What is written below the lower edge."""
    up: str = ""
    """What is written above the left edge: what the height means."""
    diagonal: bool = False
    """Whether a line leads from corner to corner: what chance does, or what would be perfect."""
    ticks: tuple[Tick, ...] = ()
    """What is written along the lower edge; unless told, numbers of epochs."""
    levels: tuple[Tick, ...] = ()
    """What is written along the left edge, each with a line; unless told, 0, the upper edge's value and its half."""
    bars: tuple[Bar, ...] = ()
    """What stands behind the curves."""
    marks: tuple[Mark, ...] = ()
    """Where something is."""

    @property
    def top(self) -> float:
        """The value at the upper edge."""
        values = [value for curve in self.curves for value in curve.values if math.isfinite(value)]
        return max([*values, self.least_top]) or 1.0

    @property
    def ticks_written(self) -> tuple[Tick, ...]:
        """What stands at the lower edge: of epochs the first and then round numbers."""
        if self.ticks:
            return self.ticks
        last = max((len(curve.values) for curve in self.curves), default=1)
        step = next(size * 10**power for power in range(9) for size in (1, 2, 5) if last <= _TICKS * size * 10**power)
        shown = [epoch for epoch in range(step, last + 1, step) if epoch > 1 or last == 1]
        return tuple(Tick((epoch - 1) / max(last - 1, 1), str(epoch)) for epoch in dict.fromkeys([1, *shown]))

    @property
    def levels_written(self) -> tuple[Tick, ...]:
        """What stands at the left edge."""
        return self.levels or tuple(Tick(share, f"{share * self.top:.2g}") for share in (0, 0.5, 1))

    @property
    def coloured(self) -> list[tuple[Curve, int]]:
        """Each curve with its colour."""
        colours = (place if curve.colour is None else curve.colour for place, curve in enumerate(self.curves))
        return [(curve, colour % COLOURS) for curve, colour in zip(self.curves, colours, strict=True)]

    @property
    def named(self) -> list[tuple[str, int, str]]:
        """What the key holds: sign, colour and name of each curve that has a name."""
        return [
            (("┅" if curve.dashed else "") + SIGNS[colour], colour, curve.name)
            for curve, colour in self.coloured
            if curve.name
        ]

    @property
    def marked(self) -> list[tuple[Mark, int]]:
        """Each mark with its colour."""
        return [(mark, mark.colour % COLOURS) for mark in self.marks]

    def points(self, curve: Curve) -> str:
        """A curve as the points of an SVG polyline: x over the whole width, 0 at the lower edge."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self._corners(curve))

    def signs(self, curve: Curve, colour: int) -> list[Place]:
        """Where the sign of a curve stands: at each of a few points, else at some along it, each colour elsewhere."""
        corners = self._corners(curve)
        if len(corners) <= _EACH:
            return [Place(*corner) for corner in corners]
        spread = _SPREAD if len(self.curves) <= 2 * COLOURS else 1
        shares = (np.arange(spread) + (colour + 0.5) / COLOURS) / spread
        along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
        nearest = np.abs(along - shares[:, None] * along[-1]).argmin(axis=1)  # a sign says that there is a point
        return [Place(float(x), float(y)) for x, y in corners[np.unique(nearest)]]

    def shape(self, colour: int) -> str:
        """The sign of a colour as an SVG path."""
        return _SHAPES[colour]

    def _corners(self, curve: Curve) -> Float64[np.ndarray, "corners 2"]:
        """The points of a curve that are numbers, in the units of the chart."""
        step = 1 / max(len(curve.values) - 1, 1)
        places = curve.at or tuple(index * step for index in range(len(curve.values)))
        x, values = np.array(places, float) * self.width, np.array(curve.values, float)
        corners = np.stack([x, self.height - values * self.height / self.top], axis=1)
        return corners[np.isfinite(values)]


SHARES = (Tick(0, "0"), Tick(0.5, "0.5"), Tick(1, "1"))
"""What is written along an axis of shares."""
