"""Tables that users write, read as text: CSV and Excel. The only door to pandas and openpyxl.

Rows are named as a spreadsheet shows them: the header is row 1. A CSV file (UTF-8) is separated by commas, semicolons
or tabs: by the one under which the header holds most of the columns that are looked for. An Excel workbook (.xlsx)
has one visible sheet with content. Its numbers are read as they were typed: 12 as "12", and as "0012" where the cell's
format is 0000. A cell that is used and holds no text or number (a date, an error, a formula without a result) is
refused, because what stands in it is rarely what was meant: Excel makes a date of the patient 1-2.
"""

import csv
import datetime
import io
import logging
import math
import warnings
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from errno import EINVAL
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile, ZipFile

import pandas as pd

from wsi_mil.errors import TableError
from wsi_mil.guards import require_plain_xml

if TYPE_CHECKING:
    from openpyxl.workbook import Workbook

log = logging.getLogger(__name__)

Table = pd.DataFrame
"""For annotations elsewhere."""
_SEPARATORS = ",;\t"
_OTHER_SPREADSHEETS = (".xls", ".xlsb", ".ods", ".numbers")
_NAMES_SHOWN = 8
# What a damaged archive turns into.
_BAD_ARCHIVE = (BadZipFile, EOFError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError, zlib.error)
_MOST_UNPACKED = 1 << 28
"""Bytes of a workbook: a million rows of labels have a quarter of that."""
_MOST_CELLS = 20_000_000
_NO_WORKBOOK = "cannot be read as an Excel workbook: if it has a password, take that off; else save it anew, or as CSV"


@dataclass(frozen=True)
class Sheet:
    """A table as it was found."""

    path: Path
    table: pd.DataFrame
    """Stripped text by row number and column; blank rows and columns without a name are gone."""
    doubts: Mapping[tuple[int, str], str]
    """By row and column, the cells that hold no text: what each is, and what to do about it."""

    def take(self, columns: Mapping[str, str]) -> pd.DataFrame:
        """Return some columns under names of one's own.

        Args:
            columns: by new name, the column.

        Raises:
            TableError: a cell in them holds no text.
        """
        for (row, column), what in self.doubts.items():
            if column in columns.values() and row in self.table.index:
                raise TableError(f"{self.path} row {row}: {column} is {what}")
        return pd.DataFrame({name: self.table[column] for name, column in columns.items()}, index=self.table.index)


def read_table(path: Path, required: tuple[str, ...], optional: tuple[str, ...], strict: bool = False) -> pd.DataFrame:
    """Read the columns of a table that one knows by name.

    Args:
        path: the file.
        required: columns that it must have.
        optional: columns that it may have; others are ignored with a warning,
        strict: or refused.

    Raises:
        TableError: no such file, no table, no rows; a column is missing, there twice or, if strict, unknown.
    """
    known = required + optional
    wanted = ",".join([*required, *(f"[{column}]" for column in optional)])
    sheet = read_sheet(path, known, wanted)
    ignored = [column for column in sheet.table.columns if column not in known]
    if ignored and strict:
        raise TableError(f"{path}: no column is called {', '.join(ignored)}: give {wanted}")
    tell_ignored(path, ignored, wanted)
    missing = [column for column in required if column not in sheet.table]
    if missing:
        raise TableError(f"{path} has no column {', '.join(missing)}: it needs {wanted}")
    require_rows(sheet)
    return sheet.take({column: column for column in known if column in sheet.table})


def read_sheet(path: Path, known: Collection[str], wanted: str) -> Sheet:
    """Read a whole table.

    Args:
        path: a file of CSV, or a workbook (.xlsx).
        known: names that columns may have, in lower case: they tell what separates the columns.
        wanted: the columns to have, for the message that there is no file.

    Raises:
        TableError: no such file, no table, two columns of one name, several sheets with content.
    """
    if path.suffix.lower() in _OTHER_SPREADSHEETS:
        raise TableError(f"{path} is no table that can be read: save it as .xlsx or CSV")
    if path.is_dir():
        raise TableError(f"{path} is a folder: name a table in it, CSV or .xlsx, with the columns {wanted}")
    if not path.exists():
        raise TableError(f"{path} does not exist: write it with the columns {wanted}")
    cells, doubts = _read_workbook(path) if path.suffix.lower() == ".xlsx" else (_read_csv(path, known), {})
    # Letters with accents have two spellings, which look alike: Excel writes one, names of files may have the other.
    stripped = [[normalize("NFC", cell.strip()) for cell in row] for row in cells.to_numpy()]  # by column it is slow
    cells = pd.DataFrame(stripped, cells.index, cells.columns, dtype=object)
    names = dict(enumerate(cells.loc[0]))
    table = cells[1:]
    nameless = [column for column, name in names.items() if not name]
    for column in nameless:
        if (table[column] != "").any():
            log.warning("%s: column %d has no name and is ignored", path, column + 1)
    table = table.drop(columns=nameless)
    table = table.set_axis([names[column] for column in table.columns], axis="columns")
    for column in table.columns[table.columns.duplicated()]:
        raise TableError(f"{path} has two columns {column}: take one out")
    table = table[(table != "").any(axis=1)]  # blank lines say nothing, but count as rows
    named = {(row + 1, names[column]): what for (row, column), what in doubts.items() if row}
    return Sheet(path, table.set_axis(table.index + 1), named)


def tell_ignored(path: Path, ignored: list[str], wanted: str) -> None:
    """Warn of columns that say nothing here."""
    if ignored:
        more = f" and {len(ignored) - _NAMES_SHOWN} more" if len(ignored) > _NAMES_SHOWN else ""
        log.warning("%s: ignored columns: %s%s (known: %s)", path, ", ".join(ignored[:_NAMES_SHOWN]), more, wanted)


def require_rows(sheet: Sheet) -> None:
    """Refuse a table that is nothing but a header."""
    if sheet.table.empty:
        raise TableError(f"{sheet.path} has no rows")


def number_in(path: Path, row: int, column: str, text: str) -> float:
    """The number in a cell.

    Raises:
        TableError: it is none, or not finite.
    """
    try:
        number = float(text)
    except ValueError as error:
        mend = ": write it with a point" if "," in text else ""
        raise TableError(f"{path} row {row}: {column} {text!r} is no number{mend}") from error
    if not math.isfinite(number):
        raise TableError(f"{path} row {row}: {column} {text!r} is no number to work with")
    return number


def _read_csv(path: Path, known: Collection[str]) -> pd.DataFrame:
    """The cells, the header being row 0: pandas takes surplus fields for an index where it knows the header."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # once, because it may be a pipe
        separator = _separator(text.partition("\n")[0], known)
        return pd.read_csv(
            io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
        ).fillna("")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise TableError(f"{path} is no CSV table: {error}") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is no CSV table in UTF-8: save it as that, or as .xlsx ({error})") from error


def _separator(header: str, known: Collection[str]) -> str:
    def names(separator: str) -> tuple[int, int]:
        found = next(csv.reader([header], delimiter=separator), [])
        return sum(name.strip().lower() in known for name in found), len(found)

    return max(_SEPARATORS, key=names)  # the first of equals is the comma


def _read_workbook(path: Path) -> tuple[pd.DataFrame, dict[tuple[int, int], str]]:
    """The cells of the sheet with content, and which of them hold no text, by row and column from 0."""
    _require_small(path)
    formulas, results = (_open_workbook(path, results) for results in (False, True))
    _require_few_cells(path, formulas)
    filled = {
        sheet.title: sheet
        for sheet in formulas.worksheets
        if sheet.sheet_state == "visible" and any(cell.value is not None for row in sheet.iter_rows() for cell in row)
    }
    if len(filled) != 1:
        what = f"several sheets with content ({', '.join(filled)})" if filled else "no visible sheet with content"
        raise TableError(f"{path} has {what}: leave one, or save the one that counts as CSV")
    [name] = filled
    rows: list[list[str]] = []
    doubts = {}
    for above, row in zip(filled[name].iter_rows(), results[name].iter_rows(), strict=True):
        rows.append([])
        for typed, cell in zip(above, row, strict=True):
            text, doubt = _shown(cell.value, cell.data_type, cell.number_format if cell.value is not None else "")
            if typed.data_type == "f" and cell.value is None:
                doubt = "a formula that has no result yet: open the workbook in Excel and save it"
            if doubt:
                doubts[len(rows) - 1, len(rows[-1])] = doubt
            rows[-1].append(text)
    return pd.DataFrame(rows, dtype=str), doubts


def _require_small(path: Path) -> None:
    """Refuse a workbook that would fill the memory once unpacked, or declares entities."""
    try:
        with ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
            if size > _MOST_UNPACKED:
                raise TableError(f"{path} would unpack to {size >> 20:,} MB, no table of labels does: save it as CSV")
            for part in archive.infolist():  # all: what is XML, and of which kind, says no name but another part
                require_plain_xml(archive.read(part))
    except _BAD_ARCHIVE as error:
        if isinstance(error, OSError) and error.errno not in (None, EINVAL):  # the disk's, no damage
            raise
        raise TableError(f"{path} {_NO_WORKBOOK} ({error})") from error


def _require_few_cells(path: Path, workbook: "Workbook") -> None:
    """Refuse a sheet with a cell far out: every cell before it would be looked at."""
    for sheet in workbook.worksheets:
        if sheet.max_row * sheet.max_column > _MOST_CELLS:
            last = sheet.dimensions.rpartition(":")[2]
            mend = "no table of labels does: delete what lies far out, or save it as CSV"
            raise TableError(f"{path}: {sheet.title} reaches to cell {last}, {mend}")


def _open_workbook(path: Path, results: bool) -> "Workbook":
    from openpyxl import load_workbook  # slow, and rarely needed

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # they tell what saving would lose, and nothing is saved
            return load_workbook(path, data_only=results)
    except (BadZipFile, KeyError, ValueError, ParseError, TypeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not openpyxl's word for damage
            raise
        raise TableError(f"{path} {_NO_WORKBOOK} ({error})") from error


def _shown(value: object, data_type: str, number_format: str) -> tuple[str, str]:
    """What a cell shows, and what is doubtful about it."""
    match value:
        case None:
            return "", ""
        case bool():
            return str(value).upper(), ""
        case int() | float():
            return _number(value, number_format), ""
        case datetime.date() | datetime.time() | datetime.timedelta():
            mend = "if none was meant, format the column as text and type it again"
            return str(value), f"a date or time ({value}): {mend}, or write it as text"
        case _ if data_type == "e":
            return str(value), f"the error {value}: mend or empty it"
        case _:
            return str(value), ""


def _number(value: int | float, number_format: str) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.15g}"  # Excel keeps 15 digits
    padded = len(number_format) if set(number_format) == {"0"} else 0
    return f"{int(value):0{padded}d}"
