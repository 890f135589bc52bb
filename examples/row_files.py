"""CSV files of rows that a script goes on from: whole at any moment, and refused by file and line where damaged."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_mil.errors import TableError
from wsi_mil.publishing import replacing_text


def read_rows(path: Path, kind: type[Any]) -> list[Any]:
    """The rows of an earlier run; none if there was none.

    Args:
        path: the file that `write_rows` wrote.
        kind: a NamedTuple whose fields are texts, numbers, or numbers that may be missing (``float | None``).

    Raises:
        TableError: the file is not such a table, or was cut off or changed by hand.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        try:
            if tuple(lines.fieldnames or ()) != kind._fields:
                raise TableError(f"{path} is no table of {','.join(kind._fields)}: give another --out")
            return [_row(line, kind) for line in lines]
        except (ValueError, csv.Error) as error:
            raise TableError(f"{path}, line {lines.line_num}: {error}: mend or delete the line") from None


def _row(line: dict[str, str], kind: type[Any]) -> Any:
    """A row of the kind.

    Raises:
        ValueError: cells are missing, or are no numbers where these are due.
    """
    if None in line or None in line.values():
        raise ValueError("it has more or fewer cells than the first line")
    return kind(**{name: _cell(line[name], of) for name, of in kind.__annotations__.items()})


def _cell(text: str, of: Any) -> Any:
    if of == float | None:
        return float(text) if text else None
    return of(text)


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write a file anew from rows of one kind, with all digits; it is whole at any moment."""
    with replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(rows[0]._fields)
        writer.writerows(rows)
