"""What every page is made of: sections of text, tables, charts and pictures."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wsi_mil.pages import render

Cells = tuple[str, ...]
_MOST_ROWS = 40  # what is longer is folded: it opens by a click, and for a printer
COLOURS = 6
"""How many the page has."""


class Picture(NamedTuple):
    """An image with its caption."""

    caption: str
    data: bytes
    """PNG or JPEG."""

    @property
    def source(self) -> str:
        """The image as a data URI."""
        kind = "png" if self.data.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


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


class Chart(NamedTuple):
    """Lines over the epochs, or over what ``ends`` says."""

    caption: str
    curves: tuple[Curve, ...]
    least_top: float = 0.0
    """The upper edge is at least here."""
    width: int = 640
    height: int = 240
    ends: tuple[str, str] = ("", "")
    """What is written at the left end and at the right; unless told, the first epoch and the last."""
    diagonal: bool = False
    """Whether a line leads from corner to corner: what chance does, or what would be perfect."""
    ticks: tuple[Tick, ...] = ()
    """What is written along the lower edge instead of ``ends``."""
    levels: tuple[Tick, ...] = ()
    """What is written along the left edge, each with a line; unless told, 0 and the upper edge's value."""
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
    def written(self) -> tuple[str, str]:
        """What stands below the left and the right end."""
        return self.ends if any(self.ends) else ("epoch 1", str(len(self.curves[0].values)))

    @property
    def levels_written(self) -> tuple[Tick, ...]:
        """What stands at the left edge."""
        return self.levels or (Tick(0, "0"), Tick(1, f"{self.top:.2g}"))

    @property
    def coloured(self) -> list[tuple[Curve, int]]:
        """Each curve with its colour."""
        colours = (place if curve.colour is None else curve.colour for place, curve in enumerate(self.curves))
        return [(curve, colour % COLOURS) for curve, colour in zip(self.curves, colours, strict=True)]

    @property
    def marked(self) -> list[tuple[Mark, int]]:
        """Each mark with its colour."""
        return [(mark, mark.colour % COLOURS) for mark in self.marks]

    def points(self, curve: Curve) -> str:
        """A curve as the points of an SVG polyline: x over the whole width, 0 at the lower edge."""
        step = 1 / max(len(curve.values) - 1, 1)
        places = curve.at or tuple(index * step for index in range(len(curve.values)))
        pairs = zip(places, curve.values, strict=True)
        heights = ((x * self.width, self.height - value * self.height / self.top) for x, value in pairs)
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in heights if math.isfinite(y))


@dataclass(frozen=True)
class Section:
    """A part of a page; what is empty is left out."""

    heading: str
    text: str = ""
    header: Cells = ()
    rows: Sequence[Cells] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()
    points: Sequence[str] = ()
    """Sentences that stand each for itself."""

    @property
    def holds(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.text or self.rows or self.charts or self.pictures or self.points)


def page(title: str, lead: str, sections: Sequence[Section]) -> bytes:
    """Render a page."""
    return render("report.html", title=title, lead=lead, sections=sections, most_rows=_MOST_ROWS)


def figure(title: str, charts: Sequence[Chart]) -> bytes:
    """Render charts, one below the other, as an SVG file of their own."""
    tops = [70 + sum(chart.height + 90 for chart in charts[:index]) for index in range(len(charts))]
    width = max(max(chart.width + 80, 60 + 8 * len(chart.caption)) for chart in charts)  # captions are one line each
    height = tops[-1] + charts[-1].height + 60
    return render("figure.svg", title=title, charts=list(zip(charts, tops, strict=True)), width=width, height=height)


def number(value: float) -> str:
    """A figure with three decimals, or a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{value:.3f}"
