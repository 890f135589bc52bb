"""Tables that users write: CSV files with a header, cells as text. The only door to pandas."""

import logging
import math
from pathlib import Path

import pandas as pd

from wsi_mil.errors import TableError

log = logging.getLogger(__name__)


def read_table(path: Path, required: tuple[str, ...], optional: tuple[str, ...], strict: bool = False) -> pd.DataFrame:
    """Read a table. Its rows are named as a spreadsheet shows them: the header is row 1.

    Args:
        path: the file.
        required: columns that it must have.
        optional: columns that it may have; others are ignored with a warning,
        strict: or refused.

    Raises:
        TableError: no such file, no table, no rows; a column is missing, there twice or, if strict, unknown.
    """
    try:
        # the header is read as a row, because pandas takes surplus fields for an index where it knows the header
        cells = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig"
        ).fillna("")
    except FileNotFoundError as error:
        raise TableError(f"{path} does not exist: write it with the columns {_columns(required, optional)}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise TableError(f"{path} is no CSV table: {error}") from error
    cells = cells.apply(lambda column: column.str.strip())
    table = cells[1:].set_axis(cells.loc[0], axis="columns")
    for column in table.columns[table.columns.duplicated()]:
        raise TableError(f"{path} has two columns {column}: take one out")
    ignored = [column for column in table.columns if column not in required + optional]
    if ignored and strict:
        raise TableError(f"{path}: no column is called {', '.join(ignored)}: give {_columns(required, optional)}")
    if ignored:
        log.warning("%s: ignored columns: %s (known: %s)", path, ", ".join(ignored), _columns(required, optional))
    table = table[(table != "").any(axis=1)]  # blank lines say nothing, but count as rows
    missing = [column for column in required if column not in table]
    if missing:
        raise TableError(f"{path} has no column {', '.join(missing)}: it needs {_columns(required, optional)}")
    if table.empty:
        raise TableError(f"{path} has no rows")
    return table.set_axis(table.index + 1)  # rows are named as a spreadsheet shows them: the header is row 1


def _columns(required: tuple[str, ...], optional: tuple[str, ...]) -> str:
    return ",".join([*required, *(f"[{column}]" for column in optional)])


def number_in(path: Path, row: int, column: str, text: str) -> float:
    """The number in a cell.

    Raises:
        TableError: it is none, or not finite.
    """
    try:
        number = float(text)
    except ValueError as error:
        raise TableError(f"{path} row {row}: {column} {text!r} is no number") from error
    if not math.isfinite(number):
        raise TableError(f"{path} row {row}: {column} {text!r} is no number to work with")
    return number
