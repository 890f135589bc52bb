from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_mil.cohort import Cohort, Member, Seen, read_cohort, read_slides_table, split
from wsi_mil.errors import OptionError, TableError

SEEN = Seen(
    usable={"a", "b", "sub/c", "TCGA-01.x", "sub/twin", "other/twin"},
    unusable={"dead": "cannot be read"},
    pending={"tiled": "run `wsimil extract`"},
)


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_slides_are_named_with_or_without_extension_and_folder(tmp_path: Path) -> None:
    text = "slide_id,label\na.svs,x\nb,y\nc.ome.tif,x\nTCGA-01.x.svs,y\nsub/twin,x\nother/twin.tif,y\n"
    cohort = read_cohort(table(tmp_path, text), SEEN)
    assert [member.slide_id for member in cohort.members] == ["a", "b", "sub/c", "TCGA-01.x", "sub/twin", "other/twin"]
    assert cohort.classes == ("x", "y")
    assert [member.patient_id for member in cohort.members] == [member.slide_id for member in cohort.members]


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        "\ufeffslide_id, label ,patient_id,split\r\n a , x,p1,train\r\nb,None,p2,test\r\n", encoding="utf-8"
    )
    cohort = read_cohort(path, SEEN)
    assert cohort.members == (Member("a", "x", "p1", "train"), Member("b", "None", "p2", "test"))


def test_slides_that_failed_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cohort = read_cohort(table(tmp_path, "slide_id,label\na,x\nb,y\ndead,x\n"), SEEN)
    assert [member.slide_id for member in cohort.members] == ["a", "b"]
    assert cohort.left_out == {"dead": "cannot be read"}
    assert "dead: labelled, but left out: cannot be read" in caplog.messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,label\na,x\nb,y\nnobody,x\n", "row 4: no stage has seen a slide nobody"),
        ("slide_id,label\na,x\nB.SVS,y\n", r"slide B\.SVS \(did you mean b\?\): add it"),
        ("slide_id,label\na,x\nTwin,y\n", r"slide Twin \(did you mean other/twin or sub/twin\?\): add"),
        ("slide_id,label\na,x\ntwin,y\n", "row 3: twin may be any of other/twin, sub/twin"),
        ("slide_id,label\na,x\nb,y\na.svs,x\n", "rows 2, 4: a is there 2 times"),
        ("slide_id,label\na,x\nb,\n", "row 3: label is empty: fill it in"),
        ("slide_id,label\n,x\nb,y\n,x\n", "rows 2, 4: slide_id is empty"),
        ("slide_id,label,patient_id\na,x,\nb,y,p\n", "row 2: patient_id is empty"),
        ("slide_id,label,split\na,x,train\nb,y,valid\n", "row 3: split 'valid' is none of train, val, test"),
        ("slide_id,label,split\na,x,train\nb,y,\n", "row 3: split is empty for b"),
        (
            "slide_id,label,patient_id,split\na,x,p,train\nb,y,p,test\n",
            r"rows 2, 3: patient p is in several splits \(test, train\)",
        ),
        ("slide_id,label\na,x\nb,x\n", "every label is x"),
        ("slide_id,label\na,x\nb,x\ndead,y\n", "row 4: class y is empty"),
        ("slide_id,label\na,x\ntiled,y\n", "row 3: tiled has no features yet: run `wsimil extract`"),
        ("image,label\na,x\n", "no column slide_id: .* and has image, label"),
        ("slide_id\na\n", "no column label: name one by --target, of slide_id"),
        ("slide_id,label,label\na,x,x\nb,y,y\n", "two columns label"),
        ("slide_id,label\n", "has no rows"),
        ("", "no CSV table"),
        ("slide_id,label\na,x,too,many\n", "no CSV table.* saw 4"),
    ],
)
def test_a_wrong_table_is_refused_by_name_and_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_cohort(table(tmp_path, text), SEEN)


def test_a_missing_table_is_refused_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"does not exist: write it with the columns slide_id,label,\[patient_id\]"):
        read_cohort(tmp_path / "labels.csv", SEEN)


def test_what_is_ignored_or_taken_for_granted_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_cohort(table(tmp_path, "slide_id,label,age\na,x,p\nb,y,p\n"), SEEN)
    text = " ".join(caplog.messages)
    assert "ignored columns: age" in text
    assert "no column patient_id: every slide counts as a patient of its own" in text


def test_slides_without_a_label_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_cohort(table(tmp_path, "slide_id,label\na,x\nb,y\n"), SEEN)
    assert "4 slides have no label in" in caplog.text
    assert "left out: TCGA-01.x, other/twin, sub/c, ..." in caplog.text


def test_blank_lines_are_passed_over_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    text = "slide_id,label\n\na,x\n\nb,y\n{}\n"
    assert len(read_cohort(table(tmp_path, text.format("")), SEEN).members) == 2
    with pytest.raises(TableError, match="row 6: no stage has seen a slide nobody"):
        read_cohort(table(tmp_path, text.format("nobody,x")), SEEN)


def test_a_named_split_that_nothing_is_left_of_is_refused(tmp_path: Path) -> None:
    text = "slide_id,label,split\na,x,train\nb,y,train\ndead,x,val\n"
    with pytest.raises(TableError, match="row 4: split val is empty"):
        read_cohort(table(tmp_path, text), SEEN)


def cohort_of(patients: dict[str, list[str]]) -> Cohort:
    members = [Member(f"{p}-{i}", label, p) for p, labels in patients.items() for i, label in enumerate(labels)]
    return Cohort(tuple(members), {})


@given(
    labels=st.lists(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3), min_size=6, max_size=40),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_no_patient_is_ever_in_two_splits(labels: list[list[str]], fraction: float, seed: int) -> None:
    cohort = cohort_of({f"p{i}": found for i, found in enumerate(labels)})
    try:
        divided = split(cohort, fraction, seed)
    except TableError:
        return  # too few patients of some class
    splits = {member.patient_id: set() for member in divided.members}
    for member in divided.members:
        splits[member.patient_id].add(member.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {member.split for member in divided.members} == {"train", "val"}
    for part in ("train", "val"):
        assert {member.label for member in divided.part(part)} == set(cohort.classes)


def test_the_split_is_stratified_and_follows_the_seed() -> None:
    cohort = cohort_of({f"p{i}": ["x" if i < 60 else "y"] for i in range(80)})
    one = split(cohort, 0.25, seed=1)
    assert Counter(member.label for member in one.part("val")) == {"x": 15, "y": 5}
    assert split(cohort, 0.25, seed=1) == one
    assert split(cohort, 0.25, seed=2) != one


def test_what_the_table_says_of_splits_is_kept(tmp_path: Path) -> None:
    members = [Member(f"s{i}", "xy"[i % 2], f"p{i}", "test" if i < 4 else "train") for i in range(20)]
    divided = split(Cohort(tuple(members), {}), 0.25, seed=0)
    assert [member.slide_id for member in divided.part("test")] == ["s0", "s1", "s2", "s3"]
    assert len(divided.part("val")) == 4
    named = [member._replace(split="val") if member.slide_id in ("s4", "s5") else member for member in members]
    assert [m.slide_id for m in split(Cohort(tuple(named), {}), 0.25, seed=0).part("val")] == ["s4", "s5"]


def test_a_class_of_one_patient_cannot_be_divided() -> None:
    with pytest.raises(TableError, match="class y has one patient"):
        split(cohort_of({"p": ["x"], "q": ["x"], "r": ["y"]}), 0.2, seed=0)
    with pytest.raises(OptionError, match="--val-fraction"):
        split(cohort_of({"p": ["x"], "q": ["y"]}), 1.0, seed=0)


def test_a_class_that_one_patient_alone_counts_for_but_others_have_is_divided() -> None:
    """Ten patients have a slide of each class and count for the rarer one; a lost slide leaves one with the other."""
    cohort = cohort_of({f"p{i}": ["normal", "tumour"] for i in range(10)} | {"only": ["tumour"]})
    divided = split(cohort, 0.3, seed=0)
    assert {member.patient_id for member in divided.part("val")} < {f"p{i}" for i in range(10)}
    assert {member.label for member in divided.part("val")} == {"normal", "tumour"}


def test_the_digest_follows_labels_and_splits_but_not_order() -> None:
    cohort = cohort_of({f"p{i}": ["xy"[i % 2]] for i in range(6)})
    assert Cohort(cohort.members[::-1], {}).digest == cohort.digest
    assert Cohort((cohort.members[0]._replace(label="y"), *cohort.members[1:]), {}).digest != cohort.digest


def test_the_slides_table_chooses_and_gives_resolutions(tmp_path: Path) -> None:
    path = table(tmp_path, "slide,mpp,min_coverage\na.svs,0.25,\nsub/c,,0.3\n")
    assert read_slides_table(path, SEEN.usable, ("min_coverage",)) == {
        "a": {"mpp": 0.25},
        "sub/c": {"min_coverage": 0.3},
    }
    with pytest.raises(TableError, match=r"no column is called min_covrage: give slide,\[mpp\],\[min_coverage\]"):
        read_slides_table(table(tmp_path, "slide,min_covrage\na,1\n"), SEEN.usable, ("min_coverage",))
    with pytest.raises(TableError, match="row 2: mpp 'nan' is no number to work with"):
        read_slides_table(table(tmp_path, "slide,mpp\na,nan\n"), SEEN.usable)
    with pytest.raises(TableError, match="row 2: mpp 'half' is no number"):
        read_slides_table(table(tmp_path, "slide,mpp\na,half\n"), SEEN.usable)
