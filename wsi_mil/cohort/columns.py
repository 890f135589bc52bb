"""The columns of a table of labels, as we and as other programs call them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from wsi_mil.cohort.members import CohortParams
from wsi_mil.errors import TableError
from wsi_mil.tables import Sheet, Table, read_sheet, require_rows, tell_ignored

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "slide_id": ("slide_id", "slide", "filename"),
    "patient_id": ("patient_id", "patient", "case_id"),
    "split": ("split",),
    "site": ("site",),
    "fold": ("fold",),
}
"""By our name of a column, in lower case, what it may be called: STAMP has PATIENT and FILENAME, CLAM case_id."""
_SLIDES_KNOWN = (*SYNONYMS["slide_id"], *SYNONYMS["patient_id"])


class Labels(NamedTuple):
    """A table of labels under our names."""

    path: Path
    table: Table
    """Columns label, and of slide_id, patient_id, split, site and fold those that there are."""
    groups: Table
    """The columns of subgroups."""
    target: str
    """What the table calls the column of labels."""


def read_labels(path: Path, params: CohortParams, by_patient: bool) -> Labels:
    """Read a table of labels, one row per slide, or ``by_patient`` one row per patient."""
    required = ("patient_id" if by_patient else "slide_id",)
    optional = ("split", "site", "fold") if by_patient else ("patient_id", "split", "site", "fold")
    others = [name for name in optional if name not in params.groups]
    wanted = ",".join([*required, params.target, *(f"[{name}]" for name in others), *params.groups])
    asked = (params.target.lower(), *(group.lower() for group in params.groups))
    sheet = read_sheet(path, {*asked, *(name for names in SYNONYMS.values() for name in names)}, wanted)
    ours = _own_columns(sheet)
    if by_patient and "slide_id" in ours:
        raise TableError(
            f"{path} has a column {ours['slide_id']}, and a table of slides beside it needs one row per patient: leave"
            f" one of the two out"
        )
    _require(sheet, ours, required, wanted)
    ours["label"] = _asked_for(sheet, "--target", params.target)
    groups = {group: _asked_for(sheet, "--by", group) for group in params.groups}
    taken = {*ours.values(), *groups.values()}
    tell_ignored(path, [column for column in sheet.table.columns if column not in taken], wanted)
    require_rows(sheet)
    spelt = {normalize("NFC", name): name for name in params.classes}  # as the model calls them
    table = sheet.take(ours)
    return Labels(
        path, table.assign(label=[spelt.get(text, text) for text in table.label]), sheet.take(groups), ours["label"]
    )


def read_owners(path: Path) -> Table:
    """Read a table of slides: columns slide_id and patient_id."""
    wanted = "slide_id,patient_id"
    sheet = read_sheet(path, _SLIDES_KNOWN, wanted)
    ours = {name: column for name, column in _own_columns(sheet).items() if name in ("slide_id", "patient_id")}
    _require(sheet, ours, ("slide_id", "patient_id"), wanted)
    tell_ignored(path, [column for column in sheet.table.columns if column not in ours.values()], wanted)
    require_rows(sheet)
    return sheet.take(ours)


def _own_columns(sheet: Sheet) -> dict[str, str]:
    """By our name, the column that is meant."""
    found = {}
    for name, synonyms in SYNONYMS.items():
        columns = [column for column in sheet.table.columns if column.lower() in synonyms]
        if len(columns) > 1:
            raise TableError(
                f"{sheet.path}: the columns {' and '.join(columns)} both mean {name}: take one out, or rename it"
            )
        if columns:
            found[name] = columns[0]
    return found


def _require(sheet: Sheet, ours: Mapping[str, str], required: tuple[str, ...], wanted: str) -> None:
    if missing := [name for name in required if name not in ours]:
        there = ", ".join(sheet.table.columns)
        raise TableError(f"{sheet.path} has no column {', '.join(missing)}: it needs {wanted}, and has {there}")


def _asked_for(sheet: Sheet, flag: str, name: str) -> str:
    """The column of that name, or the only one that is called so but for case."""
    columns = list(sheet.table.columns)
    found = [name] if name in columns else [column for column in columns if column.lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    what = "several columns" if found else "no column"
    raise TableError(f"{sheet.path} has {what} {name}: name one by {flag}, of {', '.join(columns)}")
