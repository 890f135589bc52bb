"""What `algorithmic_tests.py` has measured: rows, the CSV file that keeps them, and the page that shows their table."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from row_files import read_rows

from wsi_mil.errors import OptionError, StorageError, TableError
from wsi_mil.publishing import marked, replacing_text

LEARNT, ABOVE_CHANCE, COLLAPSED = 0.9, 0.6, 0.5
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


class Row(NamedTuple):
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
    """How large the sets were: "full", or "quick" for the tiny ones of --quick."""

    @property
    def verdict(self) -> str:
        """By the rule of Raff and Holt; it takes less learning to fail than to pass."""
        if self.result < COLLAPSED:
            return "**fails**" if self.train > ABOVE_CHANCE else "not learnt"
        return "passes" if self.train > LEARNT else "not learnt"


def rows_kept(path: Path) -> list[Row]:
    """The rows of an earlier run. Without them a page would lose all but what is measured now: that is refused.

    Raises:
        OptionError: there is no such file.
        TableError: it is damaged, or says something twice.
    """
    if not path.exists():
        raise OptionError(f"--keep: there is no {path}: give the file of an earlier run by --out, or leave --keep out")
    rows = read_rows(path, Row)
    for (test, model, seed), count in Counter(row[:3] for row in rows).items():
        if count > 1:
            raise TableError(f"{path}: {model}, {test}, seed {seed} again: delete one")
    return rows


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
