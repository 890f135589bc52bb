"""What an answer comes with: spread, time, warnings, the patient; as a table, as JSON, and on the screen."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import plant, plant_cohort

from wsi_mil import checkpoint, cli, store, train, workflow
from wsi_mil.aggregators import infer
from wsi_mil.answering import Question, answers, notes
from wsi_mil.asked import find_bags
from wsi_mil.bags import as_one, read_bag
from wsi_mil.cohort import CohortParams
from wsi_mil.learning import LearnParams
from wsi_mil.predict import PredictOptions, predict_bags, told_as_object
from wsi_mil.predictions import Prediction, read_predictions
from wsi_mil.stage import Item
from wsi_mil.train import CHECKPOINT
from wsi_mil.train_params import TrainParams
from wsi_mil.workflow import Folders, LabelTable


def fitted(root: Path, seed: int, unit: str = "slide") -> checkpoint.Checkpoint:
    folders, params = Folders.under(root), TrainParams("mean", learn=LearnParams(epochs=2, seed=seed))
    cohort = workflow.labelled(LabelTable(root / "labels.csv", params=CohortParams(unit=unit)), folders)
    return train.fit(cohort, folders.feats, params, folders.distances, torch.device("cpu")).checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve slides, a model of them, another, and the ensemble of both."""
    root = tmp_path_factory.mktemp("answers")
    plant_cohort(root, slides=12)
    made = [fitted(root, seed) for seed in (0, 1)]
    checkpoint.save(root / "one" / CHECKPOINT, made[0])
    checkpoint.save(root / "both" / CHECKPOINT, checkpoint.ensemble(made, made[0].training))
    plant(root / "new", "fresh", positive=True, seed=100)
    return root


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of two slides each, and a model of patients."""
    root = tmp_path_factory.mktemp("patients")
    plant_cohort(root, slides=12)
    rows = [f"s{index:02d},{'neg' if index < 6 else 'pos'},p{index // 2}" for index in range(12)]
    (root / "labels.csv").write_text("\n".join(["slide_id,label,patient_id", *rows]) + "\n")
    checkpoint.save(root / "model" / CHECKPOINT, fitted(root, 0, "patient"))
    return root


def predicted(root: Path, bags: Path, out: Path, model: str = "one", **options: object) -> dict[str, Prediction]:
    rows = predict_bags(root / model / CHECKPOINT, find_bags(bags), PredictOptions(out, **options))
    return {row.slide_id: row for row in rows}


def test_the_spread_is_that_of_the_members_calibrated_probabilities(root: Path, tmp_path: Path) -> None:
    made, bag = checkpoint.load(root / "both" / CHECKPOINT), read_bag(root / "new" / "fresh.h5")
    row = predicted(root, root / "new", tmp_path, "both")["fresh"]
    each = []
    for index, part in enumerate(made.parts):
        state = {n.removeprefix(f"{index}."): t for n, t in made.state.items() if n.startswith(f"{index}.")}
        each.append(infer(dataclasses.replace(made, parts=(part,), state=state).model(), bag).probabilities)
    assert row.probabilities == tuple(infer(made.model(), bag).probabilities)  # to the bit
    assert row.probabilities == pytest.approx(np.mean(each, axis=0))
    assert row.spread == pytest.approx(np.std([p[made.classes.index(row.predicted)] for p in each]))
    assert row.spread > 0
    assert predicted(root, root / "new", tmp_path / "one")["fresh"].spread is None


def test_slides_of_the_training_are_warned_of_by_whatever_path_they_were_named(root: Path, tmp_path: Path) -> None:
    plant(tmp_path / "new", "x", positive=True, seed=1, slide_path="/slides/s03.svs")
    rows = predicted(root, root / "feats", tmp_path / "a") | predicted(root, tmp_path / "new", tmp_path / "b")
    told = "a slide of this name was in training, so this is no test of the model"
    assert all(told in row.warnings for row in rows.values())
    assert predicted(root, root / "new", tmp_path / "c")["fresh"].warnings == ()


def test_slides_unlike_training_are_warned_of_in_the_row_and_in_the_log(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant(tmp_path / "new", "coarse", positive=True, seed=100, mpp_x=1.0, mpp_y=1.0)
    plant(tmp_path / "new", "small", positive=True, seed=101, tiles=3)
    plant(tmp_path / "new", "stained", positive=True, seed=102)
    path = tmp_path / "new" / "stained.h5"
    made = store.read(path)
    made.arrays["features"] += np.float16(5)
    store.write(path, made)
    rows = predicted(root, tmp_path / "new", tmp_path / "out")
    assert rows["coarse"].warnings == ("unlike training: 1 um/px, and 0.5 there",)
    assert rows["small"].warnings == ("unlike training: 3 tiles, and 30 there",)
    (told,) = rows["stained"].warnings
    assert told.startswith("unlike training: its features are ")
    assert f"stained: {told}" in caplog.text
    table, *_ = read_predictions(tmp_path / "out" / "predictions.csv")
    assert {row.slide_id: row.warnings for row in table} == {name: row.warnings for name, row in rows.items()}


def test_a_patient_of_the_training_is_warned_of_where_it_is_known(patients: Path, tmp_path: Path) -> None:
    plant(tmp_path / "new", "later", positive=True, seed=77)
    plant(tmp_path / "new", "other", positive=True, seed=78)
    (tmp_path / "p.csv").write_text("slide_id,patient_id\nlater.svs,p1\nother,somebody\nelsewhere,p1\n")
    known = predicted(patients, tmp_path / "new", tmp_path / "a", "model", patients=tmp_path / "p.csv")
    assert known["later"].warnings == ("patient p1 was in training, so this is no test of the model",)
    assert (known["later"].patient_id, known["other"].patient_id) == ("p1", "somebody")
    assert known["other"].warnings == ()
    assert predicted(patients, tmp_path / "new", tmp_path / "b", "model")["later"].warnings == ()


def test_a_model_of_patients_answers_for_patients_where_they_are_known(
    patients: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index, name in enumerate(("a", "b", "c", "lone")):
        plant(tmp_path / "new", name, positive=True, seed=60 + index)
    plant(tmp_path / "new", "void", positive=True, seed=70, tiles=0)
    plant(tmp_path / "new", "torn", positive=True, seed=71)
    (tmp_path / "new" / "torn.h5").write_bytes(b"torn")
    owners = [f"{name},q" for name in ("a", "b", "void", "torn")]
    (tmp_path / "p.csv").write_text("\n".join(["slide_id,patient_id", *owners, "c,r"]) + "\n")
    rows = predicted(patients, tmp_path / "new", tmp_path / "out", "model", patients=tmp_path / "p.csv")
    assert {name: (row.status, row.patient_id) for name, row in rows.items()} == {
        "a; b": ("done", "q"),
        "c": ("done", "r"),
        "lone": ("done", ""),
        "void": ("empty", "q"),
        "torn": ("failed", "q"),
    }
    bag = as_one([read_bag(tmp_path / "new" / f"{name}.h5") for name in "ab"], "q")
    model = checkpoint.load(patients / "model" / CHECKPOINT).model()
    assert rows["a; b"].probabilities == tuple(infer(model, bag).probabilities)
    assert rows["a; b"].tiles == 60
    assert rows["a; b"].warnings[-1] == "without torn, void of the same patient, failed or empty"
    assert "p.csv does not say whose these are: lone" in caplog.text
    assert "is asked about each slide alone here: lone. Say whose they are by --patients TABLE" in caplog.text


def test_time_before_counts_and_slides_that_failed_before_are_missed(root: Path) -> None:
    made = checkpoint.load(root / "one" / CHECKPOINT)
    question = Question((Item("fresh", root / "new" / "fresh.h5"),), "q", ("gone",))
    (row,) = answers(made, [question], "cpu", {"fresh": 40.0, "else": 9.0})
    assert row.seconds is not None
    assert 40 <= row.seconds < 49
    assert row.warnings == ("without gone of the same patient, failed or empty",)


def test_a_model_that_tells_too_little_says_so_once_and_still_answers(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = checkpoint.load(root / "one" / CHECKPOINT)
    enough = {**made.training, "val_patients": {"neg": 40, "pos": 40}}
    made = dataclasses.replace(made, training=enough, parts=(made.parts[0]._replace(temperature=1.0),))
    old = dataclasses.replace(made, domain=None, training={})
    assert [note.split(",")[0] for note in notes(old)] == [
        "the model does not say what slides it learnt from",
        "the model does not say whom it learnt from",
    ]
    assert notes(made) == []
    few = dataclasses.replace(made.domain, slides=4) if made.domain else None
    assert notes(dataclasses.replace(made, domain=few)) == [
        "the model learnt from 4 slides, too few to tell whether a slide is like them"
    ]
    checkpoint.save(tmp_path / "old" / CHECKPOINT, old)
    rows = predicted(tmp_path, root / "feats", tmp_path / "out", "old")
    assert {row.status for row in rows.values()} == {"done"}
    assert not any(row.warnings for row in rows.values())
    assert caplog.text.count("cannot tell whether a slide is like them") == 1
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["notes"]) == 2


def test_json_tells_too_that_a_temperature_is_not_to_be_relied_on(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = checkpoint.load(root / "one" / CHECKPOINT)
    few = dataclasses.replace(made, training={**made.training, "val_patients": {"neg": 1, "pos": 40}})
    checkpoint.save(tmp_path / "few" / CHECKPOINT, few)
    rows = predicted(tmp_path, root / "feats", tmp_path / "out", "few")
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())["notes"]
    assert told == notes(few)
    assert told[0].startswith("temperature and threshold are not to be relied on: validation has few patients (1 of ")
    assert told_as_object(tmp_path / "few" / CHECKPOINT, list(rows.values()))["notes"] == told
    assert caplog.text.count("not to be relied on") == 1


@pytest.fixture
def call(root: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`wsimil predict` of some bags: exit code, stdout, stderr."""

    def run(bags: Path, out: Path, *more: object, model: str = "both") -> tuple[int, str, str]:
        words = ("predict", "--bags", bags, "--model", root / model, "--out", out, "--device", "cpu", *more)
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capfd.readouterr()

    return run


def test_json_on_stdout_is_one_object_and_nothing_else(root: Path, tmp_path: Path, call) -> None:
    shutil.copytree(root / "new", tmp_path / "new")
    plant(tmp_path / "new", "void", positive=True, seed=5, tiles=0)
    (tmp_path / "new" / "torn.h5").write_bytes(b"torn")
    code, told, said = call(tmp_path / "new", tmp_path / "out", "--json", "-")
    made = json.loads(told)
    assert code == 1
    assert "failed: torn" in said
    assert (made["classes"], made["unit"], made["made_by"][:8]) == (["neg", "pos"], "slide", "wsi_mil ")
    assert made["model"] == checkpoint.digest(root / "both" / CHECKPOINT)
    assert made["threshold"] == checkpoint.load(root / "both" / CHECKPOINT).threshold
    fresh, torn, void = made["slides"]
    assert sum(fresh["probabilities"].values()) == pytest.approx(1)
    assert fresh["probabilities"].keys() == {"neg", "pos"}
    assert (fresh["status"], fresh["warnings"], fresh["tiles"]) == ("done", [], 30)
    assert fresh["spread"] >= 0
    assert (torn["status"], torn["probabilities"], torn["spread"]) == ("failed", None, None)
    assert (void["status"], void["probabilities"], void["error"]) == ("empty", None, "no tissue was found")
    kept = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert made == kept | {key: made[key] for key in ("files", "explained")}
    assert (made["files"]["json"], made["explained"]) == (str(tmp_path / "out" / "predictions.json"), [])


def test_json_goes_to_a_file_and_the_table_to_the_screen(root: Path, tmp_path: Path, call) -> None:
    code, told, _ = call(root / "new", tmp_path / "out", "--json", tmp_path / "deep" / "a.json")
    assert code == 0
    assert json.loads((tmp_path / "deep" / "a.json").read_text())["slides"][0]["slide_id"] == "fresh"
    assert all(word in told for word in ("fresh", "spread", "predictions.csv"))
    threshold = checkpoint.load(root / "both" / CHECKPOINT).threshold
    assert f"pos is decided for from a probability of {threshold:.3g} on" in told
    assert "warnings" not in told
    assert "warnings" in call(root / "feats", tmp_path / "out")[1]
    assert "spread" not in call(root / "new", tmp_path / "one", model="one")[1]
    made = json.loads((tmp_path / "out" / "predictions.json").read_text())
    with (tmp_path / "out" / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["slide_id"] for row in made["slides"]] == [row["slide_id"] for row in table]  # all, of both calls
    assert len(table) == 13
    for row, slide in zip(table, made["slides"], strict=True):
        assert (float(row["spread"]), float(row["seconds"])) == (slide["spread"], slide["seconds"])
        assert row["warnings"] == "; ".join(slide["warnings"])
        assert float(row["p_pos"]) == slide["probabilities"]["pos"]


def test_a_wrong_input_leaves_stdout_empty(root: Path, tmp_path: Path, call) -> None:
    assert call(tmp_path / "none", tmp_path / "out", "--json", "-")[:2] == (2, "")
    code, told, said = call(root / "new", tmp_path / "out", "--json", tmp_path)
    assert (code, told) == (2, "")
    assert "is a folder: name a file, or - for stdout" in said
