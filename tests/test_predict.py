import csv
import dataclasses
import errno
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import plant, plant_cohort

from wsi_mil import cli, devices, publishing, train, workflow
from wsi_mil import predict as predictor
from wsi_mil.asked import find_bags, nameable
from wsi_mil.bags import collate, read_bag
from wsi_mil.checkpoint import Checkpoint, Part, Recipe, load, save
from wsi_mil.encoders import Encoder, load_encoder
from wsi_mil.errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactStale,
    IncompatibleError,
    OptionError,
    TableError,
)
from wsi_mil.extract import ExtractParams
from wsi_mil.learning import LearnParams
from wsi_mil.predict import PredictOptions, predict_bags
from wsi_mil.predictions import Prediction, entered, read_predictions, write_predictions
from wsi_mil.slides import SlideFile
from wsi_mil.stage import Item
from wsi_mil.stain import stain_recipe
from wsi_mil.train import CHECKPOINT
from wsi_mil.train_params import TrainParams
from wsi_mil.workflow import Folders, LabelTable


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    labels, folders = plant_cohort(root), Folders.under(root)
    for seed, name in ((0, "model"), (1, "other")):
        params = TrainParams("das-mil", learn=LearnParams(epochs=2, seed=seed))
        trained = train.fit(
            workflow.labelled(LabelTable(labels), folders),
            folders.feats,
            params,
            folders.distances,
            torch.device("cpu"),
        )
        train.publish(trained, root / name, {})
    return root


def test_predictions_are_those_of_the_model(root: Path, tmp_path: Path) -> None:
    path = root / "model" / CHECKPOINT
    rows = predict_bags(path, find_bags(root / "feats"), PredictOptions(tmp_path))
    model = load(path).model()
    for row in rows:
        logits = model(collate([read_bag(root / "feats" / f"{row.slide_id}.h5")])).logits
        np.testing.assert_allclose(row.probabilities, logits.softmax(dim=1)[0].detach().numpy(), rtol=1e-5)
    with (tmp_path / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["slide_id"] for row in table] == [f"s{index:02d}" for index in range(24)]
    assert float(table[0]["p_neg"]) + float(table[0]["p_pos"]) == pytest.approx(1, abs=1e-5)
    assert table[0]["predicted"] == ("neg" if float(table[0]["p_neg"]) > 0.5 else "pos")


def test_training_recorded_the_same_predictions(root: Path, tmp_path: Path) -> None:
    rows = predict_bags(root / "model" / CHECKPOINT, find_bags(root / "feats"), PredictOptions(tmp_path))
    recorded = {row.slide_id: row.probabilities for row in read_predictions(root / "model" / "predictions.csv")[0]}
    for row in rows:
        assert row.probabilities == pytest.approx(recorded[row.slide_id], abs=1e-5)


def test_a_slide_that_no_file_can_be_called_after_fails_alone(tmp_path: Path) -> None:
    slides = [SlideFile("good", tmp_path / "good.svs"), SlideFile("x" * 300, tmp_path / "x.svs")]
    named, unnamed = nameable([*slides, SlideFile("caf\udce9", tmp_path / "y.svs")])
    assert named == slides[:1]
    assert list(unnamed) == ["x" * 300, "caf\\udce9"]
    assert "is not UTF-8" in str(unnamed["caf\\udce9"])


def test_a_bag_that_no_file_can_be_called_after_fails_alone(root: Path, tmp_path: Path) -> None:
    bags = [*find_bags(root / "feats")[:2], Item("caf\udce9", root / "feats" / "s00.h5")]
    rows = predict_bags(root / "model" / CHECKPOINT, bags, PredictOptions(tmp_path))
    assert [row.status for row in rows] == ["failed", "done", "done"]
    table = read_predictions(tmp_path / "predictions.csv")[0]
    assert next((row.slide_id, row.status) for row in table) == ("caf\\udce9", "failed")
    assert "is not UTF-8" in table[0].error


def test_the_command_tells_slides_that_are_empty_and_those_that_fail(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "feats", "void", positive=True, seed=1, tiles=0)
    plant(tmp_path / "feats", "good", positive=True, seed=2)
    options = ["--model", root / "model", "--out", tmp_path / "out"]

    def call() -> int:
        try:
            cli.main([str(word) for word in ("predict", "--bags", tmp_path / "feats", *options)])
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    assert call() == 0
    told = capsys.readouterr().out
    assert "empty" in told
    assert "good" in told
    (tmp_path / "feats" / "bad.h5").write_bytes(b"nothing")
    assert call() == 1
    told = capsys.readouterr()
    assert "failed: bad:" in told.err
    assert "void" in told.out


def test_empty_slides_have_a_row_without_probabilities_and_bad_ones_fail_alone(root: Path, tmp_path: Path) -> None:
    plant(tmp_path / "new", "good", positive=True, seed=50)
    plant(tmp_path / "new", "void", positive=True, seed=51, tiles=0)
    plant(tmp_path / "new", "other", positive=True, seed=52, encoder="uni")
    plant(tmp_path / "new", "torn", positive=True, seed=53)
    (tmp_path / "new" / "torn.h5").write_bytes((tmp_path / "new" / "torn.h5").read_bytes()[:5000])
    rows = {
        row.slide_id: row
        for row in predict_bags(
            root / "model" / CHECKPOINT, find_bags(tmp_path / "new"), PredictOptions(tmp_path / "out")
        )
    }
    assert {slide_id: row.status for slide_id, row in rows.items()} == {
        "good": "done",
        "void": "empty",
        "other": "failed",
        "torn": "failed",
    }
    assert rows["void"].probabilities == ()
    assert rows["void"].error == "no tissue was found"
    assert "encoder is uni and not toy" in rows["other"].error
    assert "torn.h5 is damaged" in rows["torn"].error


def test_the_table_grows_and_another_model_is_refused(root: Path, tmp_path: Path) -> None:
    options, anew = PredictOptions(tmp_path), PredictOptions(tmp_path, overwrite=True)
    predict_bags(root / "model" / CHECKPOINT, find_bags(root / "feats" / "s01.h5"), options)
    rows = predict_bags(root / "model" / CHECKPOINT, find_bags(root / "feats" / "s00.h5"), options)
    assert [row.slide_id for row in rows] == ["s00"]
    assert [row.slide_id for row in read_predictions(tmp_path / "predictions.csv")[0]] == ["s00", "s01"]
    with pytest.raises(ArtifactStale, match="made by another model"):
        predict_bags(root / "other" / CHECKPOINT, find_bags(root / "feats" / "s00.h5"), options)
    predict_bags(root / "model" / CHECKPOINT, find_bags(root / "feats" / "s00.h5"), anew)
    assert [row.slide_id for row in read_predictions(tmp_path / "predictions.csv")[0]] == ["s00", "s01"]
    predict_bags(root / "other" / CHECKPOINT, find_bags(root / "feats" / "s00.h5"), anew)
    assert [row.slide_id for row in read_predictions(tmp_path / "predictions.csv")[0]] == ["s00"]


def test_predictions_of_one_folder_at_the_same_time_lose_no_row(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*rows: Any) -> list[Prediction]:
        time.sleep(0.05)  # between reading the table and writing it anew
        return entered(*rows)

    monkeypatch.setattr(predictor, "entered", slowly)
    names = [f"s{index:02d}" for index in range(8)]

    def predict(name: str) -> list[Prediction]:
        return predict_bags(
            root / "model" / CHECKPOINT, find_bags(root / "feats" / f"{name}.h5"), PredictOptions(tmp_path)
        )

    with ThreadPoolExecutor(len(names)) as pool:
        told = list(pool.map(predict, names))
    assert [row.slide_id for rows in told for row in rows] == names
    assert [row.slide_id for row in read_predictions(tmp_path / "predictions.csv")[0]] == names


def test_a_disk_that_knows_no_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with publishing.alone(tmp_path):
        assert "knows no locks (No locks available): let no two commands write there" in caplog.text


def test_a_damaged_table_is_replaced_when_that_is_asked_for(root: Path, tmp_path: Path) -> None:
    path, bags = root / "model" / CHECKPOINT, find_bags(root / "feats" / "s00.h5")
    predict_bags(path, bags, PredictOptions(tmp_path))
    table = tmp_path / "predictions.csv"
    table.write_bytes(table.read_bytes().replace(b"done", b"\xff"))
    with pytest.raises(ArtifactCorrupt, match=r"is damaged .* predict again with --overwrite"):
        predict_bags(path, bags, PredictOptions(tmp_path))
    predict_bags(path, bags, PredictOptions(tmp_path, overwrite=True))
    assert [row.slide_id for row in read_predictions(table)[0]] == ["s00"]
    table.write_text("notes,of mine\n1,2\n")
    with pytest.raises(TableError, match="is no table of predictions"):
        predict_bags(path, bags, PredictOptions(tmp_path, overwrite=True))


def test_an_answer_for_a_patient_takes_the_place_of_those_for_some_slides() -> None:
    before = [Prediction("a; b", "done", (1.0,)), Prediction("c", "failed"), Prediction("d", "done", (1.0,))]
    now = [Prediction("a; b; c", "done", (1.0,))]
    assert [row.slide_id for row in entered(before, now, of_patients=True)] == ["a; b; c", "d"]
    assert len(entered(before, now, of_patients=False)) == 4  # a slide may be called so
    lost = [Prediction("a; b; c", "failed"), Prediction("d", "failed")]
    assert [row.status for row in entered(now + before[2:], lost, of_patients=True)] == ["done", "done"]


def test_no_slide_of_a_patient_has_two_answers() -> None:
    """The table of patients was corrected, or a slide of a patient failed."""
    before = [Prediction("a; b; c", "done", (1.0,)), Prediction("d", "done", (1.0,))]

    def names(*now: Prediction) -> list[str]:
        return [row.slide_id for row in entered(before, now, of_patients=True)]

    parted = Prediction("a; b", "done", (1.0,)), Prediction("c; d", "done", (1.0,))
    assert names(*parted) == names(*parted[::-1]) == ["a; b", "c; d"]
    lost = parted[0], Prediction("c", "failed")
    assert names(*lost) == names(*lost[::-1]) == ["a; b; c", "d"]  # the answer of before knew more
    blank = parted[0], Prediction("c", "empty")
    assert names(*blank) == names(*blank[::-1]) == ["a; b", "c", "d"]


def test_a_failure_takes_no_earlier_answer_away(root: Path, tmp_path: Path) -> None:
    options, path = PredictOptions(tmp_path / "out"), root / "model" / CHECKPOINT
    shutil.copytree(root / "feats", tmp_path / "feats")
    (before, *_) = predict_bags(path, find_bags(tmp_path / "feats" / "s03.h5"), options)
    (tmp_path / "feats" / "s03.h5").write_bytes(b"torn")
    rows = {row.slide_id: row for row in predict_bags(path, find_bags(tmp_path / "feats"), options)}
    assert rows["s03"].status == "failed"
    table = {row.slide_id: row for row in read_predictions(tmp_path / "out" / "predictions.csv")[0]}
    assert table["s03"].status == "done"
    assert table["s03"].probabilities == pytest.approx(before.probabilities, abs=1e-5)


def test_a_bag_is_called_by_its_slide_whatever_its_file_is_called(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "feats" / "s03.h5", tmp_path / "renamed.h5")
    (row,) = predict_bags(root / "model" / CHECKPOINT, find_bags(tmp_path / "renamed.h5"), PredictOptions(tmp_path))
    assert row.slide_id == "s03"


def checkpoint_of(encoder: Encoder, **extract: object) -> Checkpoint:
    """A checkpoint as if trained on features of an encoder."""
    made = dataclasses.asdict(ExtractParams.of(encoder)) | extract
    told = {key: made.get(key) for key in ("preprocessing", "network")}
    recipe = Recipe(encoder.name, encoder.weights_sha256, 256.0, 160, **told)
    return Checkpoint("mean", (Part({}),), encoder.dim, ("a", "b"), recipe, encoder.weights, {}, made, {}, {})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_model_trained_on_a_gpus_features_predicts_on_a_cpu(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="wsi_mil")
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: False)
    model = checkpoint_of(load_encoder("timm:test_vit", "random:0"), precision=precision)
    assert predictor._encoder(model, tmp_path, PredictOptions()).precision == "fp32"
    assert f"trained on features in {precision}, which this device is not made for: fp32 instead" in caplog.text


def test_tiles_that_would_be_prepared_otherwise_than_in_training_are_refused(tmp_path: Path) -> None:
    encoder = load_encoder("timm:test_vit", "random:0")
    old = checkpoint_of(encoder, preprocessing=None, network=None)  # as checkpoints of version 0.1 have it
    for model in (checkpoint_of(encoder), old):
        assert predictor._encoder(model, tmp_path, PredictOptions()).weights_sha256 == encoder.weights_sha256
    changed = checkpoint_of(encoder, preprocessing=dict(encoder.preprocessing) | {"resize_px": 256})
    with pytest.raises(IncompatibleError, match=r"preprocessing is .*'resize_px': 256.*: extract and train again"):
        predictor._encoder(changed, tmp_path, PredictOptions())


def test_a_network_that_would_use_the_same_weights_otherwise_than_in_training_is_refused(tmp_path: Path) -> None:
    encoder = load_encoder("timm:test_vit", "random:0")
    changed = checkpoint_of(encoder, network=dict(encoder.network) | {"pooling": "cls"})
    with pytest.raises(IncompatibleError, match=r"network is .* and not .*'pooling': 'cls'.*: extract and train again"):
        predictor._encoder(changed, tmp_path, PredictOptions())


def test_bags_of_another_network_are_refused_and_those_that_tell_none_are_not(root: Path) -> None:
    attrs = read_bag(root / "feats" / "s03.h5").attrs
    of = {
        pooling: Recipe.of(attrs | {"params": json.dumps({"network": {"pooling": pooling}} if pooling else {})})
        for pooling in ("", "cls", "map")
    }
    of["cls"].require(of["cls"], "a.h5")
    of["cls"].require(of[""], "a.h5")
    of[""].require(of["map"], "a.h5")
    with pytest.raises(IncompatibleError, match=r"a.h5 was made otherwise .*: network is {'pooling': 'map'} and not"):
        of["cls"].require(of["map"], "a.h5")


def test_a_stain_that_was_normalised_otherwise_is_refused_and_bags_before_the_choice_had_none(
    root: Path, tmp_path: Path
) -> None:
    attrs = read_bag(root / "feats" / "s03.h5").attrs
    of = {
        method: Recipe.of(attrs | {"params": json.dumps({"stain": stain_recipe(method)} if method else {})})
        for method in ("", "none", "macenko")
    }
    of["none"].require(of[""], "a.h5")
    of[""].require(of["none"], "a.h5")
    for one, other in (("", "macenko"), ("macenko", "none")):
        with pytest.raises(IncompatibleError, match=rf"stain is {other} and not {one or 'none'}$"):
            of[one].require(of[other], "a.h5")
    encoder = load_encoder("timm:test_vit", "random:0")
    changed = stain_recipe("macenko") | {"target_maxima": [2.0, 1.0]}
    model = checkpoint_of(encoder)
    model = dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, stain=changed))
    with pytest.raises(IncompatibleError, match=r"stain is .*1.9705, 1.0308.* and not .*2.0, 1.0.*: extract and train"):
        predictor._encoder(model, tmp_path, PredictOptions())


def test_a_checkpoint_keeps_its_stain_and_one_from_before_the_choice_had_none(root: Path, tmp_path: Path) -> None:
    model = load(root / "model" / CHECKPOINT)
    assert model.recipe.stain == stain_recipe()
    recipe = dataclasses.replace(model.recipe, stain=stain_recipe("reinhard"))
    save(tmp_path / "reinhard.safetensors", dataclasses.replace(model, recipe=recipe))
    assert load(tmp_path / "reinhard.safetensors").recipe == recipe
    (row,) = predict_bags(
        tmp_path / "reinhard.safetensors", find_bags(root / "feats" / "s03.h5"), PredictOptions(tmp_path / "out")
    )
    assert (row.status, "stain is none and not reinhard" in row.error) == ("failed", True)


def test_folders_of_several_encoders_are_not_predicted_from_at_once(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(root / "feats", tmp_path / "feats" / name)
    with pytest.raises(ArtifactError, match=r"name one of them, such as --bags .*feats/one"):
        find_bags(tmp_path / "feats")


def test_an_empty_folder_of_bags_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="wsimil extract"):
        find_bags(tmp_path)


def test_a_table_of_predictions_comes_back(tmp_path: Path) -> None:
    rows = [
        Prediction("a", "done", (0.25, 0.75), 10, "x", "val", predicted="y", patient_id="p", fold="3"),
        Prediction(
            "a2", "done", (0.25, 0.75), 10, predicted="y", spread=0.125, seconds=1.5, warnings=("old, pale", "x")
        ),
        Prediction("b,c", "failed", error='it says "no"'),
    ]
    write_predictions(tmp_path / "p.csv", rows, ("x", "y"), "abc")
    assert read_predictions(tmp_path / "p.csv") == (rows, ("x", "y"), "abc")


def test_a_table_of_the_first_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "slide_id,status,predicted,p_x,p_y,tiles,label,split,error,model\na,done,y,0.25,0.75,10,x,val,,abc\n"
    )
    wanted = Prediction("a", "done", (0.25, 0.75), 10, "x", "val", predicted="y")
    assert read_predictions(tmp_path / "p.csv") == ([wanted], ("x", "y"), "abc")


def test_a_model_decides_at_its_threshold_and_at_the_most_probable_without_one() -> None:
    recipe = Recipe("toy", "0", 256.0, 224)
    made = Checkpoint("mean", (Part({}),), 6, ("x", "y"), recipe, "built-in", {}, {}, {}, {}, threshold=0.3)
    assert [made.decide(p) for p in ((0.75, 0.25), (0.7, 0.3), (0.1, 0.9), ())] == ["x", "y", "y", ""]
    assert replace(made, threshold=None).decide((0.7, 0.3)) == "x"
