"""What a table of labels may not say, each refused by name and row."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from wsi_mil.cohort.members import SPLITS, CohortParams, Member
from wsi_mil.cohort.naming import rows_text, some_names
from wsi_mil.errors import TableError

log = logging.getLogger(__name__)

_WHOLE = re.compile(r"^([+-]?\d+)\.0*$")
"""A whole number as floats are written."""
_PARTS = ("split", "site", "fold")
_MISSING = {
    *("na", "n/a", "<na>", "#na", "#n/a", "nan", "-nan", "null", "--"),
    *("[not available]", "[not applicable]", "[not evaluated]", "[unknown]"),
}
"""How R, pandas, Excel, the GDC and cBioPortal write a cell that is missing, in lower case."""


class Row(NamedTuple):
    """A labelled slide, where its label stands, and the subgroups it is in."""

    number: int
    """The row of the table of labels; slides of one patient share it where that has a row per patient."""
    member: Member
    groups: dict[str, str]


def check_parts(path: Path, rows: Sequence[Row], params: CohortParams) -> None:
    """Refuse splits that there are not, words for a missing cell, columns filled by half, names that differ by case or
    spaces only or are one number, and patients that would be in two parts."""
    for row in rows:
        if row.member.split and row.member.split not in SPLITS:
            raise TableError(f"{path} row {row.number}: split {row.member.split!r} is none of {', '.join(SPLITS)}")
    _refuse_missing(path, rows, params)
    told = any(row.member.patient_id != row.member.slide_id for row in rows)  # else slides stand for their patients
    for what, cells in (
        ("label", [(row, row.member.label) for row in rows]),
        ("patient", [(row, row.member.patient_id) for row in rows if told]),
        ("site", [(row, row.member.site) for row in rows]),
        ("fold", [(row, row.member.fold) for row in rows]),
        *((name, [(row, row.groups[name]) for row in rows]) for name in params.groups),
    ):
        _refuse_lookalikes(path, what, cells)
    for part in _PARTS:
        cells = [(row, str(getattr(row.member, part))) for row in rows]
        _refuse_half(path, part, cells)
        _refuse_divided(path, f"is in several {part}s", "choose one", cells)
    if params.unit == "patient":
        other = "" if params.classes else ", or use --unit slide"  # the unit of a trained model is no choice
        mend = f"all slides of a patient are under one label here: label them alike{other}"
        _refuse_divided(path, "has several labels", mend, [(row, row.member.label) for row in rows])
        for name in params.groups:
            mend = "--unit patient and --by need one: choose it"
            _refuse_divided(path, f"has several values of {name}", mend, [(row, row.groups[name]) for row in rows])


def refuse_unknown_labels(path: Path, rows: Sequence[Row], params: CohortParams) -> None:
    """Refuse labels that are none of the declared classes, such as those of a trained model."""
    unknown = defaultdict(list)
    for row in rows:
        if params.classes and row.member.label not in params.classes:
            unknown[row.member.label].append(row.number)
    for label, numbers in unknown.items():
        what = f"label {label} is none of the classes {', '.join(params.classes)}"
        raise TableError(f"{path} {rows_text(numbers)}: {what}: mend it, or take the slides out")


def refuse_empty(path: Path, rows: Sequence[Row], usable: Sequence[Row], params: CohortParams) -> None:
    """Refuse a table of one class, and classes, splits and folds all slides of which were left out."""
    occurring = {row.member.label for row in rows}
    if len(occurring) < 2 and not params.classes:
        raise TableError(f"{path}: every label is {occurring.pop()}: a model needs two classes to tell apart")
    if not usable:
        raise TableError(f"{path}: none of its slides can be used, all failed or were empty: see summary.csv")
    for what, field in (("split", "split"), ("fold", "fold"), ("class", "label")):
        gone = {getattr(row.member, field) for row in rows} - {getattr(row.member, field) for row in usable}
        if not gone:
            continue
        message = (
            f"{path} {rows_text(row.number for row in rows if getattr(row.member, field) in gone)}:"
            f" {what} {', '.join(sorted(gone))} is empty, all its slides failed or were empty: see summary.csv"
        )
        if what == "class" and params.classes:  # of a model that others trained; its figures without this are nan
            log.warning("%s", message)
            continue
        raise TableError(message)


def _refuse_missing(path: Path, rows: Sequence[Row], params: CohortParams) -> None:
    """Refuse NA and the like, which would be a class, a patient or a site of its own."""
    for what, field in (("label", "label"), ("patient", "patient_id"), ("site", "site"), ("fold", "fold")):
        found = defaultdict(list)
        for row in rows:
            text = getattr(row.member, field)
            if text.lower() in _MISSING and not (field == "label" and text in params.classes):
                found[text].append(row.number)
        for text, numbers in found.items():
            mend = "fill it in, take the row out, or name it otherwise if it is meant"
            raise TableError(f"{path} {rows_text(numbers)}: {what} {text} looks like a missing one: {mend}")


def _refuse_half(path: Path, part: str, cells: Sequence[tuple[Row, str]]) -> None:
    empty = [row for row, text in cells if not text]
    if empty and any(text for _, text in cells):
        slides = some_names([row.member.slide_id for row in empty])
        raise TableError(
            f"{path} {rows_text(row.number for row in empty)}: {part} is empty for {slides}, and filled elsewhere: fill"
            f" it in, or take the column out"
        )


def _refuse_lookalikes(path: Path, what: str, cells: Iterable[tuple[Row, str]]) -> None:
    """Refuse one name written in two ways: a class too many, or a patient who is trained on and tested on."""
    spellings: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, text in cells:
        # A table that passed through floats has 1.0 where another has 1.
        spellings[_WHOLE.sub(r"\1", " ".join(text.casefold().split()))][text].append(row.number)
    for found in spellings.values():
        if len(found) > 1:
            usual = max(found, key=lambda text: len(found[text]))
            numbers = rows_text(number for text, rows in found.items() if text != usual for number in rows)
            told = " and ".join(repr(text) for text in sorted(found))
            alike = "are one number" if any(map(_WHOLE.search, found)) else "differ by case or spaces only"
            raise TableError(f"{path} {numbers}: {what} {told} {alike}: write one way, or rename")


def _refuse_divided(path: Path, what: str, mend: str, cells: Iterable[tuple[Row, str]]) -> None:
    patients: dict[str, list[tuple[Row, str]]] = defaultdict(list)
    for row, text in cells:
        patients[row.member.patient_id].append((row, text))
    for patient_id, found in patients.items():
        values = sorted({text for _, text in found})
        if len(values) > 1:
            numbers = rows_text(row.number for row, _ in found)
            raise TableError(f"{path} {numbers}: patient {patient_id} {what} ({', '.join(values)}): {mend}")
