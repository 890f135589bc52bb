"""What `algorithmic_tests.py` has measured: rows, the CSV file that keeps them, and the page that shows their table."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from bench_report import Columns

from wsi_mil.errors import OptionError, StorageError, TableError
from wsi_mil.publishing import marked, replacing_text

LEARNT, ABOVE_CHANCE, COLLAPSED = 0.9, 0.6, 0.5
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SIZES = ("full", "quick")
"""What a row's sets can be: those of the figures, or the tiny ones of --quick."""


@dataclass(frozen=True)
class Row:
    """What was measured: AUROC, or on collages accuracy, over the bags of each part."""

    test: str
    model: str
    seed: int
    train: float
    result: float
    """On the test bags."""
    plain: float | None
    """On bags without the trap."""
    best: float | None
    unplaced: float | None
    seconds: float
    sizes: str
    """How large the sets were: one of `SIZES` in a file."""

    def columns(self) -> Columns:
        """The row of the CSV file."""
        return {field.name: _cell(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def read(cls, line: dict[str, str]) -> "Row":
        """The row that `columns` wrote.

        Raises:
            ValueError: a cell is missing or says what it cannot say.
        """
        if None in line or None in line.values():
            raise ValueError("it has more or fewer cells than the first line")
        if line["sizes"] not in SIZES:
            raise ValueError(f"sizes is {line['sizes']!r}, neither {SIZES[0]} nor {SIZES[1]}")
        figures = {name: float(line[name]) if line[name] else None for name in ("plain", "best", "unplaced")}
        train, result, seconds = (float(line[name]) for name in ("train", "result", "seconds"))
        seed = int(line["seed"])
        return cls(line["test"], line["model"], seed, train, result, **figures, seconds=seconds, sizes=line["sizes"])

    @property
    def verdict(self) -> str:
        """By the rule of Raff and Holt; it takes less learning to fail than to pass."""
        if self.result < COLLAPSED:
            return "**fails**" if self.train > ABOVE_CHANCE else "not learnt"
        return "passes" if self.train > LEARNT else "not learnt"


def _cell(value: str | float | None) -> str | float | None:
    return str(value) if isinstance(value, int) else value


def read_rows(path: Path) -> list[Row]:
    """The rows of an earlier run. Without them a page would lose all but what is measured now: that is refused.

    Raises:
        OptionError: there is no such file.
        TableError: a line is damaged, or says what another one says too.
    """
    if not path.exists():
        raise OptionError(f"--keep: there is no {path}: give the file of an earlier run by --out, or leave --keep out")
    rows: dict[tuple[str, str, int], Row] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in _numbered(csv.DictReader(file), path):
            if (key := (row.test, row.model, row.seed)) in rows:
                raise TableError(f"{path}, line {number}: {row.model}, {row.test}, seed {row.seed} again: delete one")
            rows[key] = row
    return list(rows.values())


def _numbered(reader: "csv.DictReader[str]", path: Path) -> Iterator[tuple[int, Row]]:
    """Rows, and the lines of the file that they end in."""
    columns = [field.name for field in fields(Row)]
    try:
        if reader.fieldnames != columns:
            raise TableError(
                f"{path}, line 1: the columns must be {','.join(columns)}: give another --out, or add what an older"
                f" file lacks (sizes: {SIZES[0]}, or {SIZES[1]} for rows of --quick)"
            )
        for line in reader:
            yield reader.line_num, Row.read(line)
    except (ValueError, csv.Error) as error:
        told = f"{path}, line {reader.line_num}: damaged ({error}): delete the line, or give another --out"
        raise TableError(told) from None


def check_out(path: Path, keep: bool) -> None:
    """Refuse an --out that rows cannot be written to, or that holds those of another run that are not to be kept.

    Raises:
        OptionError: it is a folder, or is there already.
        StorageError: nothing can be written beside it.
    """
    if path.is_dir():
        raise OptionError(f"--out {path} is a folder: give a file, such as {path / 'mil-tests.csv'}")
    if path.exists() and not keep:
        raise OptionError(f"--out {path} is there already: give --keep to add to it, or another --out")
    _check_place("--out", path)


def check_page(page: Path) -> None:
    """Refuse a page that cannot take a table.

    Raises:
        OptionError: it is not there, or does not hold both markers.
        StorageError: nothing can be written beside it.
    """
    _around(page)
    _check_place("--page", page)


def _check_place(option: str, path: Path) -> None:
    try:
        with marked(path.parent):
            pass
    except OSError as error:
        told = (
            f"{option} {path} cannot be written ({error.strerror}): make or allow its folder, or give another {option}"
        )
        raise StorageError(told) from error


def replace_table(page: Path, lines: list[str]) -> None:
    """Put a table between the two markers of a page.

    Raises:
        OptionError: it is not there, or does not hold both markers.
        StorageError: it cannot be written.
    """
    before, after = _around(page)
    with replacing_text(page) as file:
        file.write("\n".join([before + BEGIN, *lines, END + after]))


def _around(page: Path) -> tuple[str, str]:
    """What a page holds before its table, and after."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise OptionError(f"--page {page} cannot be read ({why}): give a page that is there") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    # once each: of several tables it would be unclear which to replace
    if not begin or not end or text.count(BEGIN) + text.count(END) > 2:
        raise OptionError(f"--page {page}: it must hold the lines {BEGIN} and {END}, once, in this order")
    return before, after
