"""Whose the slides are, where a table beside them says so."""

from pathlib import Path

from wsi_mil.cohort.columns import read_owners
from wsi_mil.cohort.naming import Names, filled, refuse_duplicates


def read_patients(path: Path, slides: list[str]) -> dict[str, str]:
    """Read the patients of some slides off a table slide_id,patient_id; rows of other slides say nothing here.

    Args:
        path: CSV or Excel; its columns may be called as in a table of labels.
        slides: slide_ids; the table may write them as it may write those of a table of labels.

    Returns:
        By slide_id, the patient; slides that are not in the table are left out.

    Raises:
        TableError: the table is missing or inconsistent; the message names the rows.
    """
    table = read_owners(path)
    named = filled(path, "slide_id", table.slide_id.items())
    known = Names(slides)
    rows = {row: found for row, name in named.items() if (found := known.find(path, row, name)) is not None}
    refuse_duplicates(path, rows)
    patients = filled(path, "patient_id", ((row, table.patient_id[row]) for row in rows))
    return {slide_id: patients[row] for row, slide_id in rows.items()}
