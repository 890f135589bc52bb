"""Progress on the screen: a live bar on a terminal, plain log lines elsewhere. Messages go to stderr.

A `Progress` counts slides (or epochs) and, beside them, tiles, so that the line can say tiles per second.
"""

import logging
import math
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from wsi_mil.executors import is_first_rank

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
    if not is_first_rank():
        yield Progress()
        return
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


class Epochs:
    """Tells the epochs of a training. This base shows nothing."""

    def tell(self, figures: Mapping[str, int | float], best: bool, bags_per_s: float) -> None:
        """One epoch is over.

        Args:
            figures: what there is to say, by name; the first is the number of the epoch, from 0.
            best: whether it is the best so far.
            bags_per_s: how fast it trained.
        """


class _EpochLines(Epochs):
    """A line for an epoch, at most one in some seconds; the last one always."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.first = total, done
        self.start = self.spoke = time.monotonic()

    def tell(self, figures: Mapping[str, int | float], best: bool, bags_per_s: float) -> None:
        (number, *shown), now = _cells(figures), time.monotonic()
        done = int(number) + 1
        if done < self.total and now - self.spoke < _SECONDS_BETWEEN_LINES:
            return
        self.spoke = now
        told = ", ".join(
            f"{name.replace('_', ' ')} {cell}" for name, cell in zip(list(figures)[1:], shown, strict=True)
        )
        left = (now - self.start) / max(done - self.first, 1) * (self.total - done)
        mark = ", the best so far" if best else ""
        log.info("epoch %d of %d: %s%s, %.1f bags/s, %.0f s left", done, self.total, told, mark, bags_per_s, left)


class _EpochTable(Epochs):
    """A table that grows, its last lines in sight, the best so far always among them."""

    def __init__(self, live: Live, total: int, done: int) -> None:
        self.live, self.total, self.first, self.start = live, total, done, time.monotonic()
        self.rows: list[list[str]] = []
        self.best: list[str] = []

    def tell(self, figures: Mapping[str, int | float], best: bool, bags_per_s: float) -> None:
        number, *shown = _cells(figures)
        row = [str(int(number) + 1), *shown, f"{bags_per_s:.1f}"]
        self.rows.append(row)
        self.best = row if best else self.best
        self.live.update(self._table(list(figures)), refresh=True)

    def _table(self, names: list[str]) -> Table:
        seconds, done = time.monotonic() - self.start, int(self.rows[-1][0])
        left = timedelta(seconds=round(seconds / max(done - self.first, 1) * (self.total - done)))
        table = Table(caption=f"{done} of at most {self.total} epochs, {left} left at most; * the best so far")
        for name in ("", *names, "bags/s"):
            table.add_column(name.removeprefix("val_").replace("_", " "), justify="right")
        room = max(console.height - 8, 3)
        for row in [] if self.best in self.rows[-room:] or not self.best else [self.best]:
            table.add_row("*", *row, style="bold", end_section=True)
        for row in self.rows[-room:]:
            table.add_row("*" if row is self.best else "", *row, style="bold" if row is self.best else None)
        return table


def _cells(figures: Mapping[str, int | float]) -> list[str]:
    return ["–" if math.isnan(value) else f"{value:.4g}" for value in figures.values()]


@contextmanager
def epochs(total: int, done: int = 0) -> Generator[Epochs]:
    """Show the epochs of a training: a live table on a terminal, plain lines elsewhere; nothing on ranks but the first.

    Args:
        total: how many there are at most.
        done: how many were done before.
    """
    if not is_first_rank():
        yield Epochs()
    elif not console.is_terminal:
        yield _EpochLines(total, done)
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield _EpochTable(live, total, done)


@contextmanager
def silent() -> Generator[None]:
    """Keep progress and messages of what is done meanwhile off the screen; what it raises still tells."""
    quiet, disabled = console.quiet, logging.root.manager.disable
    console.quiet = True
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        console.quiet = quiet
        logging.disable(disabled)


def is_talking() -> bool:
    """Whether `show_messages` was called."""
    return bool(log.handlers)


def show_messages(debug: bool = False) -> None:
    """Send the package's messages to stderr: through rich on a terminal, as plain lines elsewhere."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
    log.handlers = [handler]
    level = logging.DEBUG if debug else logging.INFO
    log.setLevel(level if is_first_rank() else logging.ERROR)


_WHOLE = 20
_UNBOUNDED = 1 << 20
"""Characters of a line where nobody looks: programs that read a table want each row on one line."""
_BESIDE_CELL = 3  # a line, and a space on either side


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a short result table to stdout; a row may end early.

    On a terminal cells are folded, and columns for which there is no room follow in a table of their own, under the
    names of the rows. Elsewhere every row is one line, as wide as it is.
    """
    stdout = Console()
    if not stdout.is_terminal:
        stdout = Console(width=_UNBOUNDED)
    stdout.print(title, soft_wrap=True, markup=False, highlight=False)
    for columns in _side_by_side(header, rows, stdout.width):
        shown = [[row[at] for at in columns if at < len(row)] for row in rows]
        stdout.print(_table_of([header[at] for at in columns], shown))


def _table_of(header: list[str], rows: list[list[str]]) -> Table:
    table = Table()
    # What a row is called is read, and typed: it stays whole unless it is long.
    longest = max((cell_len(row[0]) for row in rows), default=0)
    for index, column in enumerate(header):
        table.add_column(column, overflow="fold", min_width=min(longest, _WHOLE) if index == 0 else None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _side_by_side(header: list[str], rows: list[list[str]], room: int) -> list[list[int]]:
    """Columns, by number, of each of the tables that have room for their words, but for very long ones."""
    cells = [[name, *(row[at] for row in rows if at < len(row))] for at, name in enumerate(header)]
    needs = [min(max(map(cell_len, " ".join(column).split()), default=0), _WHOLE) + _BESIDE_CELL for column in cells]
    first = max(needs[0], min(max((cell_len(row[0]) for row in rows), default=0), _WHOLE) + _BESIDE_CELL)
    tables, left = [[0]], room - 1 - first
    for at, need in enumerate(needs[1:], start=1):
        if need > left and len(tables[-1]) > 1:
            tables.append([0])
            left = room - 1 - first
        tables[-1].append(at)
        left -= need
    return tables
