"""Each kind of wrong table, refused by the file's name, the row where there is one, and what is wrong with it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from wsi_mil.cohort import CohortParams, Seen, read_cohort, read_slides_table
from wsi_mil.cohort.owners import read_patients
from wsi_mil.errors import ArtifactCorrupt, TableError
from wsi_mil.predictions import read_predictions

SEEN = Seen({"a", "b", "c", "d", "x/twin", "y/twin"}, {"dead": "cannot be read"}, {"tiled": "run `wsimil extract`"})
PATIENT = CohortParams(unit="patient")


class Wrong(NamedTuple):
    """A table that cannot be meant."""

    text: str | bytes
    """Its rows, divided by spaces; bytes as they stand."""
    told: str
    """What the message says behind the file's name, its rows first."""
    params: CohortParams = CohortParams()
    owners: str = ""
    """A table of slides beside it, whose name the message gives then."""


LABELS = {
    "unknown slide": Wrong("slide_id,label a,x nobody,y", " row 3: no stage has seen a slide nobody"),
    "unknown slide, nearly known": Wrong("slide_id,label a,x B.SVS,y", " row 3: no stage has seen a slide B.SVS (did"),
    "ambiguous slide": Wrong("slide_id,label a,x twin,y", " row 3: twin may be any of x/twin, y/twin"),
    "slide that leads out of its folder": Wrong("slide_id,label a,x ../b,y", " row 3: no stage has seen a slide ../b"),
    "slide twice": Wrong("slide_id,label a,x b,y a.svs,x", " rows 2, 4: a is there 2 times"),
    "slide without features": Wrong("slide_id,label a,x tiled,y", " row 3: tiled has no features yet"),
    "no slide": Wrong("slide_id,label ,x b,y", " row 2: slide_id is empty"),
    "no label": Wrong("slide_id,label a,x b,", " row 3: label is empty"),
    "no patient": Wrong("slide_id,label,patient_id a,x,p b,y,", " row 3: patient_id is empty"),
    "no such split": Wrong("slide_id,label,split a,x,train b,y,valid", " row 3: split 'valid' is none of train"),
    "split filled by half": Wrong("slide_id,label,split a,x,train b,y,", " row 3: split is empty for b"),
    "site filled by half": Wrong("slide_id,label,site a,x,s b,y,", " row 3: site is empty for b"),
    "fold filled by half": Wrong("slide_id,label,fold a,x,1 b,y,", " row 3: fold is empty for b"),
    "patient in two splits": Wrong(
        "slide_id,label,patient_id,split a,x,p,train b,y,p,test", " rows 2, 3: patient p is in several splits"
    ),
    "patient in two sites": Wrong(
        "slide_id,label,patient_id,site a,x,p,s b,y,q,s c,x,p,t", " rows 2, 4: patient p is in several sites"
    ),
    "patient in two folds": Wrong(
        "slide_id,label,patient_id,fold a,x,p,1 b,y,q,2 c,x,p,2", " rows 2, 4: patient p is in several folds"
    ),
    "patient of two labels": Wrong(
        "slide_id,label,patient_id a,x,p b,y,p", " rows 2, 3: patient p has several labels", PATIENT
    ),
    "patient in two subgroups": Wrong(
        "slide_id,label,patient_id,sex a,x,p,f b,y,q,f c,x,p,m",
        " rows 2, 4: patient p has several values of sex",
        CohortParams(unit="patient", groups=("sex",)),
    ),
    "label that the model does not know": Wrong(
        "slide_id,label a,x b,z", " row 3: label z is none of the classes x, y", CohortParams(classes=("x", "y"))
    ),
    "class without a slide that can be used": Wrong("slide_id,label a,x b,x dead,y", " row 4: class y is empty"),
    "split without such a slide": Wrong(
        "slide_id,label,split a,x,train b,y,train dead,y,val", " row 4: split val is empty"
    ),
    "fold without such a slide": Wrong("slide_id,label,fold a,x,1 b,y,1 dead,x,2", " row 4: fold 2 is empty"),
    "one class": Wrong("slide_id,label a,x b,x", ": every label is x"),
    "no column of slides": Wrong("image,label a,x", " has no column slide_id"),
    "no column of labels": Wrong("slide_id a", " has no column label"),
    "no column of patients": Wrong("slide_id,label a,x b,y", " has no column patient_id", PATIENT),
    "column twice": Wrong("slide_id,label,label a,x,x", " has two columns label"),
    "two columns of slides": Wrong("slide_id,filename,label a,a,x", ": the columns slide_id and filename both mean"),
    "no rows": Wrong("slide_id,label", " has no rows"),
    "nothing": Wrong("", " is no CSV table"),
    "too many cells": Wrong("slide_id,label a,x,too,many", " is no CSV table"),
    "no UTF-8": Wrong(b"slide_id,label\na,\xff\xfe\n", " is no CSV table in UTF-8"),
    "unknown patient": Wrong(
        "patient,label p,x q,y", " rows 3, 5: ", owners="patient,slide p,a r,b q,c z,d"
    ),
    "slide of two patients": Wrong(
        "patient,label p,x q,y", " rows 2, 4: a is there 2 times", owners="patient,slide p,a q,b q,a"
    ),
    "slide of nobody": Wrong("patient,label p,x q,y", " row 3: patient_id is empty", owners="patient,slide p,a ,b"),
}  # fmt: skip
SLIDES = {
    "unknown slide": Wrong("slide,mpp nobody,1", " row 2: no stage has seen a slide nobody"),
    "slide twice": Wrong("slide,mpp a,1 b,1 a,1", " rows 2, 4: a is there 2 times"),
    "no slide": Wrong("slide,mpp a,1 ,1", " row 3: slide is empty"),
    "resolution that is no number": Wrong("slide,mpp a,half", " row 2: mpp 'half' is no number"),
    "resolution with a comma": Wrong("slide;mpp a;0,25", " row 2: mpp '0,25' is no number: write it with a point"),
    "resolution that is not finite": Wrong("slide,mpp a,inf", " row 2: mpp 'inf' is no number to work with"),
    "setting that is no number": Wrong("slide,min_coverage a,x", " row 2: min_coverage 'x' is no number"),
    "unknown column": Wrong("slide,mppp a,1", ": no column is called mppp"),
}


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else "\n".join(content.split(" ")).encode())
    return path


def test_there_are_more_than_20_kinds_of_which_most_name_their_row() -> None:
    kinds = [*LABELS.values(), *SLIDES.values()]
    assert len(kinds) >= 40
    assert sum(kind.told.startswith(" row") for kind in kinds) >= 30


@pytest.mark.parametrize("kind", LABELS)
def test_a_wrong_table_of_labels_is_refused_by_name_and_row(kind: str, tmp_path: Path) -> None:
    wrong = LABELS[kind]
    labels = written(tmp_path / "labels.csv", wrong.text)
    owners = written(tmp_path / "owners.csv", wrong.owners) if wrong.owners else None
    with pytest.raises(TableError) as refused:
        read_cohort(labels, SEEN, wrong.params, owners)
    assert str(refused.value).startswith(f"{owners or labels}{wrong.told}")


@pytest.mark.parametrize("kind", SLIDES)
def test_a_wrong_table_of_slides_is_refused_by_name_and_row(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "slides.csv", SLIDES[kind].text)
    with pytest.raises(TableError) as refused:
        read_slides_table(path, {"a", "b"}, ("min_coverage",))
    assert str(refused.value).startswith(f"{path}{SLIDES[kind].told}")


def test_a_wrong_table_of_patients_names_its_row(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "slide_id,patient_id a,p a.svs,q")
    with pytest.raises(TableError, match=r"p\.csv rows 2, 3: a is there 2 times"):
        read_patients(path, ["a"])


@pytest.mark.parametrize("damage", [(b"12", b"many"), (b"0.75", b"high"), (b"done", b"\xff")])
def test_a_damaged_table_of_predictions_is_named(damage: tuple[bytes, bytes], tmp_path: Path) -> None:
    from seeds import predictions

    [path] = predictions(tmp_path)
    path.write_bytes(path.read_bytes().replace(*damage))
    with pytest.raises(ArtifactCorrupt, match="is damaged"):
        read_predictions(path)
