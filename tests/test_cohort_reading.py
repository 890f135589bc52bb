"""Tables of labels: as other programs write them, with patients, sites and folds, and what they may not say."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tables import workbook

from wsi_mil.checkpoint import patient_hash
from wsi_mil.cohort import Cohort, CohortParams, Member, Seen, read_cohort, tell_classes
from wsi_mil.cohort.naming import slides_in
from wsi_mil.errors import OptionError, TableError

SEEN = Seen(usable={"a", "b", "c", "d"}, unusable={"dead": "cannot be read"}, pending={"tiled": "run `wsimil extract`"})


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(tmp_path: Path, text: str, params: CohortParams | None = None, slides: str = "", seen: Seen = SEEN) -> Cohort:
    path = write(tmp_path / "labels.csv", text.replace(" ", "\n") + "\n")
    beside = write(tmp_path / "slides.csv", slides.replace(" ", "\n") + "\n") if slides else None
    return read_cohort(path, seen, params, beside)


@pytest.mark.parametrize("slide", ["slide_id", "Slide", "FILENAME", "filename"])
@pytest.mark.parametrize("patient", ["patient_id", "PATIENT", "case_id", "Patient"])
def test_columns_are_known_by_the_names_other_programs_give_them(tmp_path: Path, slide: str, patient: str) -> None:
    cohort = read(tmp_path, f"{patient},{slide},Label,SITE p,a.h5,x,s q,b,y,t")
    assert cohort.members == (Member("a", "x", "p", site="s"), Member("b", "y", "q", site="t"))


def test_the_same_table_from_excel(tmp_path: Path) -> None:
    rows = [["FILENAME", "PATIENT", "grade", "fold"], ["a.h5", 12, 1, 1], ["b.svs", 13, 2, 2]]
    cohort = read_cohort(workbook(tmp_path / "labels.xlsx", rows), SEEN, CohortParams(target="grade"))
    assert cohort.members == (Member("a", "1", "12", fold="1"), Member("b", "2", "13", fold="2"))


def test_the_target_and_subgroups_are_columns_of_ones_choice(tmp_path: Path) -> None:
    text = "slide_id,Grade,label,sex,site a,hi,x,f,s b,lo,x,,t dead,lo,x,m,t"
    cohort = read(tmp_path, text, CohortParams(target="grade", groups=("sex", "site")))
    assert [member.label for member in cohort.members] == ["hi", "lo"]
    assert cohort.groups == {"sex": {"a": "f", "b": ""}, "site": {"a": "s", "b": "t"}}
    assert cohort.left_out == {"dead": "cannot be read"}
    by_site = read(tmp_path, text, CohortParams(target="site"))
    assert by_site.members == (Member("a", "s", "a", site="s"), Member("b", "t", "b", site="t"))
    exact = read(tmp_path, "slide_id,Grade,grade a,1,x b,2,y", CohortParams(target="grade"))
    assert exact.classes == ("x", "y")


PATIENT = CohortParams(unit="patient")
REFUSED = [
    (
        "slide_id,label a,x b,NA c,y d,NA",
        CohortParams(),
        "rows 3, 5: label NA looks like a missing one: fill it in, take",
    ),
    ("slide_id,label a,x b,y c,nan", CohortParams(), "row 4: label nan looks like a missing one"),
    ("slide_id,label,patient a,x,p b,y,N/A c,x,N/A", CohortParams(), "rows 3, 4: patient N/A looks like a missing one"),
    ("slide_id,label,site a,x,s b,y,null", CohortParams(), "row 3: site null looks like a missing one"),
    ("slide_id,filename,label a,a,x b,b,y", CohortParams(), "columns slide_id and filename both mean slide_id: take"),
    ("slide_id,case_id,PATIENT,label a,p,p,x", CohortParams(), "case_id and PATIENT both mean patient_id"),
    ("slide_id,label a,x", CohortParams(target="grade"), "no column grade: name one by --target, of slide_id, label"),
    (
        "slide_id,Gr,GR a,x,y",
        CohortParams(target="gr"),
        "several columns gr: name one by --target, of slide_id, Gr, GR",
    ),
    ("slide_id,label a,x", CohortParams(groups=("sex",)), "no column sex: name one by --by, of slide_id, label"),
    ("slide_id,label,site a,x,s b,y, c,x,s d,y,", CohortParams(), "rows 3, 5: site is empty for b, d, and filled else"),
    ("slide_id,label,fold a,x,1 b,y,", CohortParams(), "row 3: fold is empty for b, and filled elsewhere: fill it in"),
    (
        "slide_id,label,patient_id,site a,x,p,s b,x,q,s c,y,p,t",
        CohortParams(),
        r"rows 2, 4: patient p is in several sites \(s, t\): choose one",
    ),
    (
        "slide_id,label,patient_id,fold a,x,p,1 b,x,q,2 c,y,p,2",
        CohortParams(),
        r"rows 2, 4: patient p is in several folds \(1, 2\): choose one",
    ),
    (
        "slide_id,label,patient_id a,x,p b,x,q c,y,p",
        PATIENT,
        r"rows 2, 4: patient p has several labels \(x, y\): all slides of a patient are under one label here",
    ),
    (
        "slide_id,label,patient_id,sex a,x,p,f b,y,q,f c,x,p,m",
        CohortParams(unit="patient", groups=("sex",)),
        r"rows 2, 4: patient p has several values of sex \(f, m\)",
    ),
    ("slide_id,label a,x b,y", PATIENT, "no column patient_id: add it, or use --unit slide"),
    (
        "slide_id,label a,x b,z c,y d,z",
        CohortParams(classes=("x", "y")),
        "rows 3, 5: label z is none of the classes x, y: mend",
    ),
    ("slide_id,label a,x b,y c,x d,X", CohortParams(), "row 5: label 'X' and 'x' differ by case or spaces only: write"),
    (
        "slide_id,label,patient_id a,x,p1 b,y,q c,x,P1 d,x,p1",
        CohortParams(),
        "row 4: patient 'P1' and 'p1' differ by case or spaces only",
    ),
    (
        "slide_id,label,patient_id a,x,a b,y,q c,x,A",
        CohortParams(),
        "row 4: patient 'A' and 'a' differ by case or spaces only",
    ),
    ("slide_id,label a,1 b,0 c,1.0 d,1", CohortParams(), r"row 4: label '1' and '1\.0' are one number: write one way"),
    (
        "slide_id,label,patient_id a,x,7.0 b,y,8 c,x,7",
        CohortParams(),
        r"row 4: patient '7' and '7\.0' are one number: write one way",
    ),
    ("slide_id,label,site a,x,N b,y,N c,y,n", CohortParams(), "row 4: site 'N' and 'n' differ by case or spaces only"),
    (
        "slide_id,label,fold a,x,1 b,y,2 c,y,1.0",
        CohortParams(),
        r"row 4: fold '1' and '1\.0' are one number: write one",
    ),
    (
        "slide_id,label,sex a,x,F b,y,F c,y,f",
        CohortParams(groups=("sex",)),
        "row 4: sex 'F' and 'f' differ by case or spaces only",
    ),
    (
        "slide_id,outcome,label a,N,x b,p,y c,n,x",
        CohortParams(target="outcome", groups=("label",)),
        "row 4: label 'N' and 'n' differ by case or spaces only",
    ),
    ("slide_id,label,fold a,x,1 b,y,1 dead,x,2", CohortParams(), "row 4: fold 2 is empty, all its slides failed"),
]


@pytest.mark.parametrize(("text", "params", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused_by_row(tmp_path: Path, text: str, params: CohortParams, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(tmp_path, text, params)


def test_a_table_none_of_whose_slides_can_be_used_is_refused_as_that(tmp_path: Path) -> None:
    """It was told that a split is empty, of a table without splits."""
    seen = Seen(usable=set(), unusable={"a": "cannot be read", "b": "it is empty: no tissue"}, pending={})
    with pytest.raises(TableError, match=r"labels\.csv: none of its slides can be used, all failed or were empty: see"):
        read(tmp_path, "slide_id,label a,x b,y", seen=seen)


def test_slides_that_differ_by_case_are_patients_of_their_own_where_none_are_named(tmp_path: Path) -> None:
    seen = Seen(usable={"a", "A"}, unusable={}, pending={})
    assert len(read(tmp_path, "slide_id,label a,x A,y", seen=seen).patients) == 2


def test_no_row_of_a_table_walks_over_all_slides(tmp_path: Path) -> None:
    """Of 10,000 rows each did, which took an hour where slides lie in folders."""

    class Watched(list):
        walks = 0

        def __iter__(self) -> Iterator[str]:
            self.walks += 1
            return super().__iter__()

        def __contains__(self, name: object) -> bool:
            self.walks += 1
            return super().__contains__(name)

    slides = Watched(f"folder{index % 7}/s{index}" for index in range(50))
    named = {row: f"s{row}.svs" for row in range(50)}
    found = slides_in(tmp_path, named, slides)
    assert found == {row: f"folder{row % 7}/s{row}" for row in range(50)}
    assert slides.walks < 10  # types are checked too


def test_a_column_that_subgroups_are_told_by_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "slide_id,label,patient_id,site,age a,x,p,s,1 b,y,q,s,2 c,x,r,t,3 d,y,u,t,4"
    read(tmp_path, text, CohortParams(groups=("site",)))
    (told,) = [line for line in caplog.messages if "ignored columns: age" in line]
    assert told.count("site") == 1


def test_many_rows_are_counted(tmp_path: Path) -> None:
    slides = [f"s{i}" for i in range(20)]
    text = "slide_id,label " + " ".join(f"{slide}," for slide in slides)
    with pytest.raises(TableError, match=r"rows 2, 3, 4, 5, 6, 7, 8, 9, \.\.\. \(20 in all\): label is empty"):
        read(tmp_path, text, seen=Seen(slides, {}, {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "case"}, "--unit case: give slide or patient"),
        ({"target": ""}, "--target: name a column"),
        ({"groups": ("sex", "sex")}, "--by sex: name columns of the table of labels, each once"),
        ({"groups": ("",)}, "--by : name columns"),
        ({"target": "sex", "groups": ("sex",)}, "--by sex: this is the target"),
        ({"classes": ("x",)}, "classes x: name two or more, each once"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CohortParams(**options)


def test_slides_of_a_patient_form_one_bag(tmp_path: Path) -> None:
    cohort = read(tmp_path, "slide_id,label,patient_id a,x,p b,y,q c,x,p", PATIENT)
    assert cohort.unit == "patient"
    assert {name: [m.slide_id for m in members] for name, members in cohort.patients.items()} == {
        "p": ["a", "c"],
        "q": ["b"],
    }


def test_declared_classes_stay_where_nobody_has_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cohort = read(tmp_path, "slide_id,label a,x b,x dead,y", CohortParams(classes=("x", "y", "z")))
    assert cohort.classes == ("x", "y", "z")
    assert "row 4: class y is empty" in caplog.text


def test_a_class_that_a_model_was_taught_may_be_called_anything(tmp_path: Path) -> None:
    assert read(tmp_path, "slide_id,label a,NA b,x", CohortParams(classes=("NA", "x"))).classes == ("NA", "x")


def test_without_patients_one_warning_names_slides_that_seem_to_share_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slides = [
        "TCGA-AA-0001-01Z-00-DX1.f",
        "x/TCGA-AA-0001-01Z-00-DX2.g",
        "TCGA-AA-0002-01Z",
        "C3L-00001-21",
        "C3L-00001-22",
    ]
    text = "slide_id,label " + " ".join(f"{slide},{'xy'[i % 2]}" for i, slide in enumerate(slides))
    read(tmp_path, text, seen=Seen(slides, {}, {}))
    [message] = caplog.messages
    assert "every slide counts as a patient of its own; by their names" in message
    assert "share a patient: C3L-00001 (2 slides), TCGA-AA-0001 (2 slides). Add the column" in message
    caplog.clear()
    read(tmp_path, "slide_id,label a,x b,y c,x d,y")
    [message] = caplog.messages
    assert message.endswith("every slide counts as a patient of its own")


def test_a_table_of_slides_beside_one_of_patients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = "PATIENT,isMSIH,SITE,sex p,no,s,f q,yes,t,m idle,yes,t,m rare,maybe,t,m void,,t,m"
    slides = "PATIENT,FILENAME q,c.h5 p,a.h5 p,b.h5 q,d.h5 q,dead"
    cohort = read(tmp_path, labels, CohortParams(target="isMSIH", unit="patient", groups=("sex",)), slides)
    assert cohort.members == (
        Member("c", "yes", "q", site="t"),
        Member("a", "no", "p", site="s"),
        Member("b", "no", "p", site="s"),
        Member("d", "yes", "q", site="t"),
    )
    assert cohort.groups == {"sex": {"c": "m", "a": "f", "b": "f", "d": "m"}}
    assert cohort.classes == ("no", "yes")
    assert "3 patients have no slide in" in caplog.text
    assert "left out: idle, rare, void; class maybe is only theirs, and none of the cohort" in caplog.text
    assert "counts as a patient" not in caplog.text


@pytest.mark.parametrize(
    ("labels", "slides", "message"),
    [
        ("patient,label p,x q,y", "patient,slide p,a r,b q,c z,d", "slides.csv rows 3, 5: .* no patient r, z: add"),
        ("patient,label p,x q,y p,x", "patient,slide p,a q,b", r"labels.csv rows 2, 4: patient p is there 2 times"),
        ("patient,label p,x q,y", "patient,slide p,a q,b q,a.svs", r"slides.csv rows 2, 4: a is there 2 times"),
        ("patient,label p,x q,", "patient,slide p,a q,b", r"labels.csv row 3: label is empty"),
        ("patient,label p,x q,y", "patient,slide p,a ,b", r"slides.csv row 3: patient_id is empty"),
        ("patient,label p,x q,y", "patient,image p,a q,b", "no column slide_id: .* has patient, image"),
        ("patient,label p,x q,y", "patient,slide p,a q,tiled", r"slides.csv row 3: tiled has no features yet"),
        ("patient,label,slide p,x,a q,y,b", "patient,slide p,a q,b", "a column slide, and a table of slides beside"),
        ("slide,label a,x b,y", "patient,slide p,a q,b", "a table of slides beside it"),
        ("name,label a,x b,y", "patient,slide p,a q,b", "labels.csv has no column patient_id"),
        ("patient,label,site p,x,s q,y,", "patient,slide p,a q,b", "labels.csv row 3: site is empty for b"),
    ],
)  # fmt: skip
def test_two_tables_that_disagree_are_refused_by_row(tmp_path: Path, labels: str, slides: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(tmp_path, labels, slides=slides)


def test_digests_that_trainings_recorded_stay_true() -> None:
    """The values were made before there were sites, folds and patients as bags."""
    plain = Cohort((Member("b", "x", "p2"), Member("a", "y", "p1")), {})
    assert plain.digest == "6a6d48ad019e5f477eed7f5708dcf677"
    divided = Cohort((Member("b", "x", "p2", "train"), Member("a", "y", "p1", "test")), {})
    assert divided.digest == "015a7466d20a78470aedf53e0fd5d1ca"
    members = plain.members
    others = [
        Cohort(members, {}, unit="patient"),
        Cohort(tuple(member._replace(site="s") for member in members), {}),
        Cohort(tuple(member._replace(fold="1") for member in members), {}),
    ]
    assert len({plain.digest, *(other.digest for other in others)}) == 4
    assert Cohort(members, {}, {"sex": {"a": "f", "b": "m"}}).digest == plain.digest


def test_numbers_that_are_written_one_way_are_classes_like_others(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    for classes in (("0.0", "1.0"), ("0", "1"), ("0.5", "1.5"), ("01", "1")):
        path.write_text(f"slide_id,label\na,{classes[0]}\nb,{classes[1]}\n")
        assert read_cohort(path, Seen(["a", "b"], {}, {})).classes == classes


def test_classes_are_told_with_how_many_patients_each_has(caplog: pytest.LogCaptureFixture) -> None:
    members = [
        Member(f"s{at}", label, f"p{at // 2}") for at, label in enumerate(["no", "no", "yes", "yes", "no", "no"])
    ]
    with caplog.at_level(logging.INFO, "wsi_mil"):
        tell_classes(Cohort(tuple(members), {}))
        tell_classes(Cohort((*members, Member("t", "0.5", "q")), {}))
    assert caplog.messages == [
        "2 classes: no (2 patients), yes (1 patient); yes is the positive one",
        "3 classes: 0.5 (1 patient), no (2 patients), yes (1 patient)",
    ]


def test_letters_with_accents_are_one_however_they_are_spelt(tmp_path: Path) -> None:
    """A disk may have A and a dot above where a table has one letter."""
    whole, parts = "Müller", "Mu\u0308ller"
    seen = Seen(usable={f"{parts}/a", "b", parts}, unusable={}, pending={})
    text = f"slide_id,label,patient_id {whole},x,{whole} {whole}/a.svs,x,{parts} b,y,q"
    cohort = read(tmp_path, text, seen=seen)
    assert [member.slide_id for member in cohort.members] == [parts, f"{parts}/a", "b"]
    assert set(cohort.patients) == {whole, "q"}
    assert patient_hash(whole) == patient_hash(parts)


def test_names_in_options_and_models_are_found_however_accents_are_spelt(tmp_path: Path) -> None:
    whole, parts = "réponse", "re\u0301ponse"
    text = f"slide_id,{whole} a,{parts} b,non"
    cohort = read(tmp_path, text, CohortParams(target=parts, positive=parts))
    assert cohort.classes == ("non", whole)
    judged = read(tmp_path, text, CohortParams(target=whole, classes=("non", parts)))  # of a model of before
    assert [member.label for member in judged.members] == [parts, "non"]


def test_slides_that_differ_by_the_spelling_of_accents_only_are_refused(tmp_path: Path) -> None:
    seen = Seen(usable={"\xe9", "e\u0301"}, unusable={}, pending={})
    with pytest.raises(TableError, match=r"accents are spelt in two ways: rename '(\\xe9|e\\u0301)'"):
        read(tmp_path, "slide_id,label \xe9,x e\u0301,y", seen=seen)
