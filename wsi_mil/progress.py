"""Progress on the screen: a live bar on a terminal, plain log lines elsewhere. Messages go to stderr.

A `Progress` counts slides (or epochs) and, beside them, tiles, so that the line can say tiles per second.
"""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

log = logging.getLogger("wsi_mil")
console = Console(stderr=True)
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts what is done. This base shows nothing: it is what a library call gets."""

    def advance(self, what: str) -> None:
        """One more is done: ``what`` names it."""

    def step(self, tiles: int) -> None:
        """Some tiles of the current one are done."""

    def tell(self, note: str) -> None:
        """Say something beside the counts, in place of what was said before."""


class _Bar(Progress):
    def __init__(self, bar: RichProgress, name: str, total: int) -> None:
        self.bar, self.start, self.tiles, self.note = bar, time.monotonic(), 0, ""
        self.task = bar.add_task(name, total=total, note="")

    def advance(self, what: str) -> None:
        self.bar.advance(self.task)

    def step(self, tiles: int) -> None:
        self.tiles += tiles
        if self.tiles:
            rate = self.tiles / max(time.monotonic() - self.start, 1e-3)
            self.bar.update(self.task, note=", ".join(filter(None, (f"{rate:,.0f} tiles/s", self.note))))

    def tell(self, note: str) -> None:
        self.note = note


class _Lines(Progress):
    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.done = self.tiles = 0
        self.start = self.spoke = time.monotonic()
        self.note = ""

    def advance(self, what: str) -> None:
        self.done += 1
        now = time.monotonic()
        if self.done == self.total or now - self.spoke > _SECONDS_BETWEEN_LINES:
            self.spoke = now
            seconds = max(now - self.start, 1e-3)
            rate = f", {self.tiles / seconds:,.0f} tiles/s" if self.tiles else ""
            left = seconds / self.done * (self.total - self.done)
            note = f", {self.note}" if self.note else ""
            log.info("%s: %d of %d%s%s, %.0f s left", self.name, self.done, self.total, rate, note, left)

    def step(self, tiles: int) -> None:
        self.tiles += tiles

    def tell(self, note: str) -> None:
        self.note = note


@contextmanager
def progress(name: str, total: int) -> Generator[Progress]:
    """Show the progress of ``total`` things called ``name``."""
    if not console.is_terminal:
        yield _Lines(name, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console) as bar:
        yield _Bar(bar, name, total)


def show_messages(debug: bool = False) -> None:
    """Send the package's messages to stderr: through rich on a terminal, as plain lines elsewhere."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if debug else logging.INFO)


_WHOLE = 20


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a short result table to stdout; a row may end early."""
    table = Table()
    # What a row is called is read, and typed: it stays whole unless it is long.
    longest = max((len(row[0]) for row in rows), default=0)
    for index, column in enumerate(header):
        table.add_column(column, overflow="fold", min_width=min(longest, _WHOLE) if index == 0 else None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    stdout = Console()
    stdout.print(title, soft_wrap=True, markup=False, highlight=False)
    stdout.print(table)
