"""What a benchmark leaves behind: a Markdown table, a CSV file, a picture. `bench_attention.py` uses it."""

import csv
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_mil.publishing import replacing_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Columns = dict[str, str | float | None]
"""One line of a table by the names of its columns; None = not measured."""
COLOURS = {
    "sdpa": "black",
    "published": "#d62728",
    "reference": "#ff9f1c",
    "tiled": "#1f77b4",
    "numba": "#2ca02c",
    "triton": "#9467bd",
}
DASHES = {"none": "-", "shared": "-", "three": "--"}


def show(value: str | float | None) -> str:
    """A cell: three digits are all that a measurement says."""
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(table: list[Columns]) -> Iterator[str]:
    """The table, line by line."""
    yield "| " + " | ".join(table[0]) + " |"
    yield "|" + " --: |" * len(table[0])
    for line in table:
        yield "| " + " | ".join(map(show, line.values())) + " |"


def write_csv(table: list[Columns], path: Path) -> None:
    """The table, with all digits; what was not measured is empty. The file is whole at any moment."""
    with replacing_text(path) as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)


def cpu_model() -> str:
    """The processor's name, as Linux tells it."""
    found = re.search(r"(?:model name|CPU implementer)\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown"


def can_draw() -> bool:
    """Whether there will be a picture."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(table: list[Columns], path: Path) -> None:
    """Time (left) and memory (right) against n, a row of panels per dtype and number of heads, a line per variant."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((str(line["dtype"]), str(line["heads"])) for line in table))
    figure = Figure(figsize=(11, 0.5 + 3.6 * len(groups)), layout="constrained")
    grid = figure.subplots(len(groups), 2, squeeze=False, sharex=True, sharey="col")
    for axes, (dtype, heads) in zip(grid, groups, strict=True):
        lines = [line for line in table if (line["dtype"], line["heads"]) == (dtype, heads)]
        title = f"{heads} head{'s' if heads != '1' else ''}, {dtype}"
        _panel(axes[0], lines, "forward+backward ms", f"{title}: time of forward + backward, ms")
        _panel(axes[1], lines, "memory MB", f"{title}: memory above the inputs, MB")
    for axis in grid[-1]:
        axis.set_xlabel("tiles (hollow: forward only)")
    _set_ticks(grid[0, 0], sorted({int(str(line["n"])) for line in table}))
    named = {}
    for axis in grid.flat:
        named |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named.keys(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def _panel(axis: "Axes", lines: list[Columns], column: str, title: str) -> None:
    """One line per variant; a hollow marker by itself is a case without backward."""
    axis.set(xscale="log", yscale="log")
    axis.set_title(title, loc="left", fontsize=10)
    axis.tick_params(axis="x", which="minor", length=0)
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.grid(which="major", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    for name, phi in dict.fromkeys((str(line["variant"]), str(line["phi"])) for line in lines):
        mine = [line for line in lines if (line["variant"], line["phi"]) == (name, phi)]
        label = name if phi == "none" else f"{name}, {phi} phi"
        for whole in (True, False):
            drawn = [line for line in mine if (line["forward+backward ms"] is not None) == whole]
            axis.plot(
                [int(str(line["n"])) for line in drawn],
                [line["forward ms"] if line[column] is None else line[column] for line in drawn],
                color=COLOURS[name],
                linestyle=DASHES[phi] if whole else "none",
                marker="o",
                markersize=4,
                markerfacecolor=COLOURS[name] if whole else "white",
                label=label if whole else None,
            )


def _set_ticks(axis: "Axes", sizes: list[int]) -> None:
    """Ticks at the sizes measured, on all panels, which share this axis."""
    axis.set_xticks(sizes, [f"{size / 1024:.0f}k" if size % 1024 == 0 else f"{size:,}" for size in sizes])
    axis.xaxis.set_minor_formatter("")
