"""What every page is made of: sections of text, tables, charts and pictures."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from wsi_mil.pages import render
from wsi_mil.report.chart import Chart

Cells = tuple[str, ...]
MOST_BYTES = 6_000_000
"""Of the pictures of a page: written as text they take a third more, and a page stays below 10 MB."""
_MOST_ROWS = 40  # what is longer is folded: it opens by a click, and for a printer
_NARROW = 44  # letters that fit beside each other on a telephone
_QUALITY = 88


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


class Table(NamedTuple):
    """Rows below a header; the first cell of each names it."""

    caption: str
    header: Cells
    rows: Sequence[Cells]

    @property
    def is_long(self) -> bool:
        """Whether it is folded."""
        return len(self.rows) > _MOST_ROWS

    @property
    def is_wide(self) -> bool:
        """Whether a narrow screen shows each row as a list, cell below cell, since they do not fit side by side."""
        words = [max(cell.split(), key=len, default="") for cell in self.header]  # a header may run over several lines
        return sum(max(map(len, column)) + 2 for column in zip(words, *self.rows, strict=True)) > _NARROW


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
    tables: Sequence[Table] = ()
    """Small tables that lie side by side where there is room."""
    commands: Sequence[str] = ()
    """What can be typed."""

    @property
    def table(self) -> Table:
        """``header`` and ``rows``."""
        return Table(self.heading, self.header, self.rows)

    @property
    def small_tables(self) -> list[Table]:
        """Those that have rows."""
        return [table for table in self.tables if table.rows]

    @property
    def holds(self) -> bool:
        """Whether there is anything in it."""
        parts = (self.text, self.rows, self.charts, self.pictures, self.points, self.small_tables, self.commands)
        return any(parts)


NOTHING = Section("")
"""Is left out."""


def page(title: str, lead: str, sections: Sequence[Section]) -> bytes:
    """Render a page."""
    return render("report.html", title=title, lead=lead, sections=sections)


def figure(title: str, charts: Sequence[Chart]) -> bytes:
    """Render charts, one below the other, as an SVG file of their own."""
    tops = [100 + sum(chart.height + 130 for chart in charts[:index]) for index in range(len(charts))]
    width = max(max(chart.width + 80, 60 + 8 * len(chart.caption)) for chart in charts)  # captions are one line each
    height = tops[-1] + charts[-1].height + 80
    return render("figure.svg", title=title, charts=list(zip(charts, tops, strict=True)), width=width, height=height)


def number(value: float) -> str:
    """A figure with three decimals, or a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def as_jpeg(image: Image.Image) -> bytes:
    """A picture as a page holds it: a tenth of the size of a PNG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
