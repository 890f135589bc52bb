import datetime
from collections.abc import Sequence
from pathlib import Path

import pytest
from openpyxl import Workbook

from wsi_mil import tables
from wsi_mil.errors import TableError
from wsi_mil.tables import number_in, read_sheet, read_table


def workbook(path: Path, *sheets: Sequence[Sequence[object]], hidden: int | None = None, shown_as: str = "") -> Path:
    """Write a workbook; ``shown_as`` is the format of the numbers in its first column."""
    book = Workbook()
    for index, rows in enumerate(sheets):
        sheet = book.worksheets[0] if index == 0 else book.create_sheet()
        for row in rows:
            sheet.append(row)
        if index == hidden:
            sheet.sheet_state = "hidden"
        for cell in sheet["A"] if shown_as else ():
            cell.number_format = shown_as
    book.save(path)
    return path


def read(path: Path) -> dict[int, dict[str, str]]:
    return read_table(path, required=("patient", "label"), optional=("age",)).to_dict(orient="index")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_separates_the_columns_is_told_by_the_header(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "labels.csv"
    rows = [["patient", "label"], ["1", "x"], ['"a, b; c\td"', "y"]]
    path.write_text("\n".join(separator.join(row) for row in rows) + "\n")
    assert read(path) == {2: {"patient": "1", "label": "x"}, 3: {"patient": "a, b; c\td", "label": "y"}}


def test_other_separators_within_names_confuse_nobody(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("patient,label,size; mm; or; so\n1,x,\n")
    assert read(path) == {2: {"patient": "1", "label": "x"}}
    path.write_text("patient;label;a, b, c, d\n1;x;\n")
    assert read(path) == {2: {"patient": "1", "label": "x"}}
    path.write_text("patent;lable\n1;x\n")
    with pytest.raises(TableError, match="has no column patient, label: it needs"):
        read(path)
    assert list(read_sheet(path, {"patient"}, "").table.columns) == ["patent", "lable"]


def test_excel_is_read_as_a_person_sees_it(tmp_path: Path) -> None:
    rows = [["patient", "label", "age"], [12, "x", 12.0], [None, None, None], [" 7 ", True, 0.1 + 0.2], ["NA", 3, None]]
    assert read(workbook(tmp_path / "labels.xlsx", rows)) == {
        2: {"patient": "12", "label": "x", "age": "12"},
        4: {"patient": "7", "label": "TRUE", "age": "0.3"},
        5: {"patient": "NA", "label": "3", "age": ""},
    }
    padded = workbook(tmp_path / "padded.XLSX", [["patient", "label"], [12, "x"], [123456, "y"]], shown_as="0000")
    assert [row["patient"] for row in read(padded).values()] == ["0012", "123456"]


def test_cells_that_are_no_text_are_refused_where_they_are_used(tmp_path: Path) -> None:
    header, day = ["patient", "label", "age", "seen"], datetime.datetime(2024, 2, 1)
    unused = workbook(tmp_path / "unused.xlsx", [header, [1, "x", 60, day], [2, "y", 61, "=1+1"]])
    assert list(read(unused)) == [2, 3]
    for cell, message in [
        (day, r"row 3: patient is a date or time \(2024-02-01 00:00:00\): .*format the column as text"),
        ("=A2+1", "row 3: patient is a formula that has no result yet: open"),
        ("#N/A", "row 3: patient is the error #N/A: mend"),
    ]:
        with pytest.raises(TableError, match=message):
            read(workbook(tmp_path / "used.xlsx", [header, [1, "x", 60, ""], [cell, "y", 61, ""]]))


def test_one_visible_sheet_has_content(tmp_path: Path) -> None:
    table = [["patient", "label"], [1, "x"]]
    assert list(read(workbook(tmp_path / "a.xlsx", [], table, [["x", "y"]], hidden=2))) == [2]
    with pytest.raises(TableError, match=r"has several sheets with content \(Sheet, Sheet1\): leave one"):
        read(workbook(tmp_path / "b.xlsx", table, table))
    with pytest.raises(TableError, match="has no visible sheet with content"):
        read(workbook(tmp_path / "c.xlsx", []))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"patient,label\n1,x\n")
    with pytest.raises(TableError, match="cannot be read as an Excel workbook: if it has a password"):
        read(tmp_path / "a.xlsx")
    (tmp_path / "a.xls").write_bytes(b"")
    with pytest.raises(TableError, match=r"a\.xls is no table that can be read: save it as \.xlsx or CSV"):
        read(tmp_path / "a.xls")
    (tmp_path / "a.csv").write_bytes("patient,label\n1,größer\n".encode("cp1252"))
    with pytest.raises(TableError, match="is no CSV table in UTF-8: save it as that"):
        read(tmp_path / "a.csv")
    with pytest.raises(TableError, match=r"b\.xlsx does not exist: write it with the columns patient,label,\[age\]"):
        read(tmp_path / "b.xlsx")
    with pytest.raises(
        TableError, match=r"is a folder: name a table in it, CSV or \.xlsx, with the columns patient,label"
    ):
        read(tmp_path)


def test_columns_without_a_name_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(",patient,label,,\n0,1,x,,\n")
    assert read(path) == {2: {"patient": "1", "label": "x"}}
    assert caplog.messages == [f"{path}: column 1 has no name and is ignored"]


def test_of_many_ignored_columns_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("patient,label," + ",".join(f"c{i}" for i in range(20)) + "\n1,x" + "," * 20 + "\n")
    read(path)
    assert "ignored columns: c0, c1, c2, c3, c4, c5, c6, c7 and 12 more (known: patient,label,[age])" in caplog.text


def test_numbers() -> None:
    assert number_in(Path("t"), 2, "mpp", "0.25") == 0.25
    with pytest.raises(TableError, match="t row 2: mpp '0,25' is no number: write it with a point"):
        number_in(Path("t"), 2, "mpp", "0,25")


def test_what_the_disk_refuses_is_not_told_as_a_damaged_workbook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labels.xlsx").write_bytes(b"PK")

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tables, "ZipFile", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        read_table(tmp_path / "labels.xlsx", required=("slide",), optional=())
