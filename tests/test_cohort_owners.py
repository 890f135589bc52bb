from pathlib import Path

import pytest

from wsi_mil.cohort.owners import read_patients
from wsi_mil.errors import TableError
from wsi_mil.tables import read_table


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_slides_have_the_patients_that_the_table_says_and_other_rows_say_nothing(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", "FILENAME,PATIENT", "a.svs,one", "x/b.h5,two", "elsewhere,three", "c,one")
    assert read_patients(path, ["a", "x/b", "sub/c", "unknown"]) == {"a": "one", "x/b": "two", "sub/c": "one"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["slide_id,label", "a,x"], "has no column patient_id"),
        (["slide_id,patient_id", "a,"], "row 2: patient_id is empty"),
        (["slide_id,patient_id", "a,one", "a.svs,two"], "rows 2, 3: a is there 2 times"),
        (["slide_id,patient_id", "b,one"], "row 2: b may be any of x/b, y/b"),
    ],
)
def test_a_table_that_leaves_a_doubt_is_refused(rows: list[str], told: str, tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", *rows)
    with pytest.raises(TableError, match=told):
        read_patients(path, ["a", "x/b", "y/b"])


def test_an_empty_cell_of_another_slide_is_no_matter(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", "slide_id,patient_id", "a,one", "other,")
    assert len(read_table(path, required=("slide_id",), optional=("patient_id",))) == 2
    assert read_patients(path, ["a"]) == {"a": "one"}
