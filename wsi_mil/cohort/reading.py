"""Read a cohort: a table of labels, perhaps one of slides beside it, and what earlier stages made of the slides."""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from wsi_mil.cohort.checks import Row, check_parts, refuse_empty, refuse_unknown_labels
from wsi_mil.cohort.columns import Labels, read_labels, read_owners
from wsi_mil.cohort.members import Cohort, CohortParams, Member, Seen
from wsi_mil.cohort.naming import filled, refuse_duplicates, rows_text, slides_in, some_names
from wsi_mil.errors import TableError

log = logging.getLogger(__name__)

_BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}|C3[LN]-[0-9]{5})(?![A-Z0-9])", re.IGNORECASE)
"""What names the patient in a slide of TCGA or CPTAC."""


def read_cohort(path: Path, seen: Seen, params: CohortParams | None = None, slides_table: Path | None = None) -> Cohort:
    """Read a table of labels and match it with the slides that earlier stages have seen.

    Args:
        path: CSV or Excel (see `wsi_mil.tables`), one row per slide: columns ``slide_id``, the target, and perhaps
            ``patient_id``, ``split`` (train, val, test), ``site``, ``fold`` and columns of subgroups. ``slide`` or
            ``filename`` for slide_id, and ``patient`` or ``case_id`` for patient_id, are read too, in any case.
        seen: what earlier stages made of the slides.
        params: which columns to read, and what makes a bag; None = `CohortParams`' defaults.
        slides_table: a table of slide_id and patient_id; ``path`` has one row per patient then, and no slide_id.

    Returns:
        The slides that can be used, with those left out beside them. A patient without slides is no part of it.

    Raises:
        TableError: a table is missing or inconsistent; the message names the rows.
    """
    params = params or CohortParams()
    labels = read_labels(path, params, by_patient=slides_table is not None)
    rows = _slide_rows(labels, seen, params) if slides_table is None else _patient_rows(labels, slides_table, seen)
    _tell_unlabelled(slides_table or path, rows, seen)
    check_parts(path, rows, params)
    usable = [row for row in rows if row.member.slide_id not in seen.unusable]
    left_out = {slide: seen.unusable[slide] for row in rows if (slide := row.member.slide_id) in seen.unusable}
    for slide_id, reason in left_out.items():
        log.warning("%s: labelled, but left out: %s", slide_id, reason)
    refuse_unknown_labels(path, rows, params)
    refuse_empty(path, rows, usable, params)
    declared = params.classes or tuple(sorted({row.member.label for row in rows}))
    groups = {name: {row.member.slide_id: row.groups[name] for row in usable} for name in params.groups}
    if params.positive and (params.positive not in declared or len(declared) != 2):
        known = ", ".join(declared)
        raise TableError(f"{path}: --positive {params.positive}: name one of two classes (here are {known})")
    members = tuple(row.member for row in usable)
    return Cohort(members, left_out, groups, params.unit, declared, positive=params.positive)


def _slide_rows(labels: Labels, seen: Seen, params: CohortParams) -> list[Row]:
    """The slides of a table with one row per slide."""
    path, table = labels.path, labels.table
    slides = _known_slides(path, filled(path, "slide_id", table.slide_id.items()), seen)
    filled(path, labels.target, table.label.items())
    if "patient_id" in table:
        patients = filled(path, "patient_id", table.patient_id.items())
    elif params.unit == "patient":
        other = ": the model learnt from patients" if params.classes else ", or use --unit slide"
        raise TableError(f"{path} has no column patient_id: add it{other}")
    else:
        patients = slides
        _warn_of_no_patients(path, list(slides.values()))
    return [_row(labels, row, slide_id, patients[row]) for row, slide_id in slides.items()]


def _patient_rows(labels: Labels, slides_table: Path, seen: Seen) -> list[Row]:
    """The slides of a table of slides, with what the table of patients says of their patients."""
    owners, path = read_owners(slides_table), labels.path
    slides = _known_slides(slides_table, filled(slides_table, "slide_id", owners.slide_id.items()), seen)
    patient_of = filled(slides_table, "patient_id", owners.patient_id.items())
    patients = filled(path, "patient_id", labels.table.patient_id.items())
    refuse_duplicates(path, patients, "patient ")
    row_of = {patient_id: row for row, patient_id in patients.items()}
    if lost := [row for row, patient_id in patient_of.items() if patient_id not in row_of]:
        names = some_names(list(dict.fromkeys(patient_of[row] for row in lost)))
        mend = "add them there, or take the slides out here"
        raise TableError(f"{slides_table} {rows_text(lost)}: {path} has no patient {names}: {mend}")
    _warn_of_idle_patients(labels, slides_table, row_of, set(patient_of.values()))
    used = sorted({row_of[patient_id] for patient_id in patient_of.values()})
    filled(path, labels.target, ((row, labels.table.label[row]) for row in used))
    return [_row(labels, row_of[patient_of[at]], slide_id, patient_of[at]) for at, slide_id in slides.items()]


def _row(labels: Labels, row: int, slide_id: str, patient_id: str) -> Row:
    split, site, fold = (labels.table[name][row] if name in labels.table else "" for name in ("split", "site", "fold"))
    member = Member(slide_id, labels.table.label[row], patient_id, split, site, fold)
    return Row(row, member, {str(name): labels.groups[name][row] for name in labels.groups})


def _known_slides(path: Path, named: Mapping[int, str], seen: Seen) -> dict[int, str]:
    slides = slides_in(path, named, [*seen.usable, *seen.unusable, *seen.pending])
    for row, slide_id in slides.items():
        if slide_id in seen.pending:
            raise TableError(f"{path} row {row}: {slide_id} has no features yet: {seen.pending[slide_id]}")
    return slides


def _tell_unlabelled(path: Path, rows: list[Row], seen: Seen) -> None:
    unlabelled = sorted(set(seen.usable) - {row.member.slide_id for row in rows})
    if unlabelled:
        log.warning("%d slides have no label in %s and are left out: %s", len(unlabelled), path, some_names(unlabelled))


def _warn_of_no_patients(path: Path, slides: list[str]) -> None:
    """Say once that slides count as patients, and which of them look as if they shared one."""
    sharing = defaultdict(list)
    for slide_id in slides:
        if found := _BARCODE.match(PurePosixPath(slide_id).name):
            sharing[found[1].upper()].append(slide_id)
    shared = [f"{patient} ({len(found)} slides)" for patient, found in sorted(sharing.items()) if len(found) > 1]
    seem = (
        f"; by their names, slides share a patient: {some_names(shared)}. Add the column, or a patient may be trained"
        f" on and tested on"
    )
    log.warning(
        "%s has no column patient_id: every slide counts as a patient of its own%s", path, seem if shared else ""
    )


def _warn_of_idle_patients(labels: Labels, slides_table: Path, row_of: Mapping[str, int], owners: set[str]) -> None:
    idle = [patient_id for patient_id in row_of if patient_id not in owners]
    if not idle:
        return
    label = labels.table.label
    gone = {label[row_of[name]] for name in idle} - {label[row_of[name]] for name in owners} - {""}
    also = f"; class {', '.join(sorted(gone))} is only theirs, and none of the cohort" if gone else ""
    say = "%s: %d patients have no slide in %s and are left out: %s%s"
    log.warning(say, labels.path, len(idle), slides_table, some_names(idle), also)
