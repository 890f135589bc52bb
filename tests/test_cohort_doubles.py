"""One slide under two names is noticed by what it holds."""

from dataclasses import replace
from pathlib import Path

import pytest
from planted import plant, plant_cohort

from wsi_mil import checkpoint, store, studies, workflow
from wsi_mil.answering import Question, answers
from wsi_mil.cohort import Cohort, Member, check_doubles
from wsi_mil.errors import TableError
from wsi_mil.evaluation import CrossvalParams
from wsi_mil.evaluation.known import known_to
from wsi_mil.interop import PeerOptions
from wsi_mil.learning import LearnParams, RunParams
from wsi_mil.metrics import Resampling
from wsi_mil.stage import Item
from wsi_mil.train_params import TrainParams
from wsi_mil.workflow import Folders, LabelTable, labelled

BRIEF = TrainParams("abmil", learn=LearnParams(epochs=1))
DOUBLE = "slides s01 and copy/b hold the same, and are of the patients copy/b and s01"


def cohort_of(*members: tuple[str, str]) -> Cohort:
    return Cohort(tuple(Member(slide_id, "x", patient_id) for slide_id, patient_id in members), {})


def test_the_same_content_of_two_patients_is_refused_and_of_one_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    contents = {"a": {"1", "slide"}, "copy/b": {"2", "slide"}, "c": {"3"}, "d": {"3"}}
    whole = cohort_of(("a", "p"), ("copy/b", "p"), ("c", "q"), ("d", "q"))
    check_doubles(Path("t.csv"), whole, contents)
    [message] = caplog.messages
    assert message.startswith("t.csv: slides that hold the same count twice: a and copy/b (patient p), c and d (pati")
    several = cohort_of(("a", "p"), ("copy/b", "q"), ("c", "q"), ("d", "r"))
    with pytest.raises(TableError, match=r"slides a and copy/b hold the same, and .* p and q \(and 1 more such\)"):
        check_doubles(Path("t.csv"), several, contents)
    check_doubles(Path("t.csv"), cohort_of(("a", "p"), ("c", "q")), contents)
    assert len(caplog.messages) == 1


def add_copy(root: Path, row: str) -> LabelTable:
    """Beside the cohort a copy of slide s01 under another name."""
    plant(root / "feats", "copy/b", positive=True, seed=1)
    labels = root / "labels.csv"
    labels.write_text(labels.read_text() + row + "\n")
    return LabelTable(labels)


def test_train_and_crossval_refuse_a_slide_under_the_names_of_two_patients(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    labels, folders = add_copy(tmp_path, "copy/b,pos"), Folders.under(tmp_path)
    with pytest.raises(TableError, match=DOUBLE):
        workflow.train_model(labels, folders, BRIEF, "cpu")
    assert not folders.model.exists()
    params = CrossvalParams(BRIEF, ("abmil",))
    with pytest.raises(TableError, match=DOUBLE):
        studies.cross_validate(labels, folders, params, Resampling(0, 100), "cpu", RunParams(), PeerOptions())


def test_slides_that_were_tiled_otherwise_are_known_by_their_tiles(tmp_path: Path) -> None:
    """Another resolution or setting, and the features are others."""
    plant_cohort(tmp_path)
    folders = Folders.under(tmp_path)
    for name, seed in (("s01", 1), ("copy/b", 77)):
        plant(folders.feats, name, positive=True, seed=seed, upstream=f"{seed + 500:032x}")
        made = {"stage": "tile", "fingerprint": f"{seed + 500:032x}", "upstream": f"{'ab' * 16} mpp={seed}.0"}
        plant(folders.tiles, name, positive=True, seed=seed, **made)
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text() + "copy/b,pos\n")
    with pytest.raises(TableError, match=DOUBLE):
        workflow.train_model(LabelTable(table), folders, BRIEF, "cpu")


def test_a_slide_of_training_is_no_test_under_another_name(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    folders = Folders.under(tmp_path)
    assert workflow.train_model(LabelTable(tmp_path / "labels.csv"), folders, BRIEF, "cpu") is not None
    made = checkpoint.load(folders.model / "checkpoint.safetensors")
    new = replace(folders, feats=tmp_path / "new")
    for name, positive, seed in (("copy/b", True, 1), ("new", False, 99)):
        plant(new.feats, name, positive=positive, seed=seed)
    (tmp_path / "new.csv").write_text("slide_id,label\ncopy/b,pos\nnew,neg\n")
    cohort = labelled(LabelTable(tmp_path / "new.csv"), new)
    assert known_to(made, cohort, new.feats).patients == {"copy/b"}
    silent = known_to(replace(made, training={}), cohort, new.feats)
    assert silent.sentence(cohort).startswith("The model does not say whom it learnt from")
    assert silent.split("new", "") == ""
    rows = answers(made, [Question((Item(name, new.feats / f"{name}.h5"),)) for name in ("copy/b", "new")], "cpu")
    told = ["in training under another name" in " ".join(row.warnings) for row in rows]
    assert told == [True, False]
    assert store.read_fingerprint(new.feats / "copy/b.h5") == store.read_fingerprint(folders.feats / "s01.h5")
