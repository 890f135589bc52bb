import csv
import itertools
import json
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from planted import DIM, plant, plant_cohort

from wsi_mil import checkpoint, learning, publishing, store, train, training_bags, workflow
from wsi_mil.aggregators import AGGREGATORS, build, params_of
from wsi_mil.bags import collate, read_bag
from wsi_mil.calibration import calibrated, doubts
from wsi_mil.checkpoint import Part
from wsi_mil.errors import (
    ArtifactError,
    ArtifactStale,
    IncompatibleError,
    OptionError,
    TableError,
    TrainingError,
    WeightsError,
)
from wsi_mil.learning import LearnParams, RunParams, need
from wsi_mil.tile_distances import TileDistances
from wsi_mil.train import CHECKPOINT, Trained
from wsi_mil.train_params import TrainParams
from wsi_mil.weights import save_tensors
from wsi_mil.workflow import Folders, LabelTable

QUICK = LearnParams(epochs=12, patience=12, lr=3e-3)


def fit(root: Path, aggregator: str = "abmil", **learn: object) -> Trained:
    folders = Folders.under(root)
    params = TrainParams(aggregator, learn=replace(QUICK, **learn))
    cohort = workflow.labelled(LabelTable(root / "labels.csv"), folders)
    return train.fit(cohort, folders.feats, params, folders.distances, torch.device("cpu"))


@pytest.mark.parametrize("aggregator", ["das-mil", "das-mil-paper", "abmil"])
def test_a_planted_signal_is_learnt_and_found_on_test_slides(tmp_path: Path, aggregator: str) -> None:
    plant_cohort(tmp_path, slides=40, test=16)
    trained = fit(tmp_path, aggregator)
    assert trained.auroc("test") > 0.9
    assert len(trained.cohort.part("test")) == 16
    assert trained.history[-1].train_loss < trained.history[0].train_loss


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=12)
    before = torch.random.get_rng_state()
    made = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        made.append(train.publish(fit(tmp_path, "das-mil", epochs=2, seed=seed), tmp_path / name, {}).read_bytes())
    assert made[0] == made[1] != made[2]
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's generator is left alone


def test_the_kept_epoch_is_the_one_of_lowest_validation_loss(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    trained = fit(tmp_path, epochs=8, lr=0.05)
    best = learning.best_epoch(trained.history)
    val = [row for row in trained.predictions if row.split == "val"]
    classes = trained.checkpoint.classes
    loss = np.mean([-math.log(row.probabilities[classes.index(row.label)]) for row in val])  # classes are balanced
    assert loss == pytest.approx(best.val_loss, rel=1e-4)
    assert best.val_loss == min(epoch.val_loss for epoch in trained.history)


def test_training_stops_when_validation_does_not_get_better(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    trained = fit(tmp_path, epochs=200, patience=3, lr=0.1)
    best = learning.best_epoch(trained.history)
    assert len(trained.history) == best.epoch + 4 < 200


def test_statistics_and_length_scales_come_from_training_patients_only(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=24, test=8)
    before = fit(tmp_path, "das-mil", epochs=1)
    for index in range(16, 24):  # other test slides: far tiles, other features
        plant(tmp_path / "feats", f"s{index:02d}", bool(index % 2), seed=100 + index, tiles=20, mpp_x=5.0, mpp_y=5.0)
    after = fit(tmp_path, "das-mil", epochs=1)
    for name, tensor in before.checkpoint.state.items():
        assert torch.equal(tensor, after.checkpoint.state[name]), name
    assert before.checkpoint.options == after.checkpoint.options


@pytest.mark.parametrize("what", ["labels", "features"])
def test_test_slides_decide_nothing(tmp_path: Path, what: str) -> None:
    """Neither weights nor the epoch that is kept, nor calibration, nor what a model takes for its own domain: what was
    chosen by test slides could not be tested on them."""
    labels = plant_cohort(tmp_path, slides=24, test=8)
    before = fit(tmp_path, epochs=6, lr=0.02)
    if what == "labels":
        lines = labels.read_text().splitlines()
        lines = [
            *lines[:-8],
            *(line.replace("neg,", "pos,") for line in lines[-8:-1]),
            lines[-1].replace("pos,", "neg,"),
        ]
        labels.write_text("\n".join(lines) + "\n")
    else:
        for index in range(16, 24):
            plant(tmp_path / "feats", f"s{index:02d}", not index % 2, seed=100 + index, tiles=20)
    after = fit(tmp_path, epochs=6, lr=0.02)
    assert before.history == after.history
    assert before.auroc("test") != after.auroc("test")
    assert before.checkpoint.parts == after.checkpoint.parts  # temperature and prior too
    assert before.checkpoint.threshold == after.checkpoint.threshold
    assert before.checkpoint.domain is not None
    assert before.checkpoint.domain.header() == after.checkpoint.domain.header()
    for name, tensor in before.checkpoint.state.items():
        assert torch.equal(tensor, after.checkpoint.state[name]), name


def test_a_bag_that_does_not_fit_into_memory_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_cohort(tmp_path)
    monkeypatch.setattr(need, "PROBED", (4, 8, 16))
    monkeypatch.setattr(need, "available_memory", lambda: 10_000)
    with pytest.raises(TrainingError, match=r"^s23 has 30 tiles, .* add --max-tiles"):
        fit(tmp_path)
    with pytest.raises(TrainingError, match=r"^s23 has 30 tiles, and to ask a model about all of them takes about"):
        fit(tmp_path, max_tiles=16, epochs=1)
    monkeypatch.setattr(training_bags, "available_memory", lambda: 0)  # keeps no bags in memory
    monkeypatch.setattr(need, "available_memory", lambda: 60_000)  # enough to ask about all, and to train on some
    with pytest.raises(TrainingError, match=r"^s23 has 30 tiles, .* add --max-tiles"):
        fit(tmp_path)
    assert fit(tmp_path, max_tiles=16, epochs=1).history


def test_bags_that_are_only_validated_or_tested_are_looked_into_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_cohort(tmp_path, test=8)
    plant(tmp_path / "feats", "s22", positive=False, seed=22, tiles=90)
    monkeypatch.setattr(need, "PROBED", (8, 16, 32))
    monkeypatch.setattr(need, "available_memory", lambda: 10_000)
    with pytest.raises(TrainingError, match=r"^s22 has 90 tiles, and to ask .*`wsimil tile --max-tiles`"):
        fit(tmp_path)


def test_bags_too_many_for_memory_are_read_again_and_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_cohort(tmp_path, slides=12)
    read: list[Path] = []
    monkeypatch.setattr(training_bags, "read_bag", lambda path: (read.append(path), read_bag(path))[1])
    states = []
    for free in (1 << 40, 0):
        monkeypatch.setattr(training_bags, "available_memory", lambda free=free: free)
        read.clear()
        states.append(fit(tmp_path, epochs=3).checkpoint.state)
        assert (len(read) == 12) == (free > 0)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_bags_are_kept_only_where_all_processes_can_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_cohort(tmp_path, slides=4)
    cohort = workflow.labelled(LabelTable(tmp_path / "labels.csv"), Folders.under(tmp_path))
    size = 2 * sum(path.stat().st_size for path in (tmp_path / "feats").glob("*.h5"))
    monkeypatch.setattr(training_bags, "available_memory", lambda: 4 * 3 * size + 4)
    reserved = [training_bags.Bags(tmp_path / "feats", cohort.units, count).reserved for count in (1, 2, 3)]
    assert reserved == [size, 3 * size, 0]  # who starts two processes keeps them too


@pytest.mark.slow
def test_a_cohort_is_learnt_from_by_two_processes(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=12)
    labels, folders = tmp_path / "labels.csv", Folders.under(tmp_path)
    params = TrainParams("abmil", {"dropout": 0.0}, learn=replace(QUICK, epochs=3))
    trained = [
        workflow.train_model(
            LabelTable(labels), replace(folders, model=tmp_path / f"on{devices}"), params, "cpu", run=run
        )
        for devices in (1, 2)
        for run in [RunParams(devices)]
    ]
    one, two = (made.checkpoint.state for made in trained if made is not None)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert {path.name for path in folders.model.with_name("on2").iterdir()} == {
        path.name for path in folders.model.with_name("on1").iterdir()
    }


def test_length_scales_run_from_one_tile_step_to_the_section(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    scales = fit(tmp_path, "das-mil", epochs=1).checkpoint.options["length_scales_um"]
    assert scales[0] == pytest.approx(224, abs=16)  # 448 px at 0.5 um/px
    assert 1200 < scales[-1] < 10 * 224 * math.sqrt(2)
    ratios = [b / a for a, b in itertools.pairwise(scales)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert store.read(tmp_path / "distances" / "s00.h5").attrs["stage"] == "distances"  # made on the way


def test_tiles_in_one_place_do_not_make_a_length_of_nothing() -> None:
    counts = np.array([3, 0, 0, 5, 9, 2])
    scales = train._length_scales(counts, TrainParams("das-mil"))
    assert scales[0] == pytest.approx(16)
    assert scales[-1] > 64
    assert train._length_scales(np.array([7, 0]), TrainParams("das-mil")) == pytest.approx([16.0] * len(scales))


def test_a_folder_of_a_cross_validation_is_no_place_for_a_training(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    made = fit(tmp_path, "mean", epochs=1).checkpoint
    checkpoint.save(tmp_path / CHECKPOINT, replace(made, training=made.training | {"params": {"train": {}}}))
    with pytest.raises(ArtifactStale, match="holds the models of a cross-validation: give another --out"):
        train.is_finished(tmp_path, "other", TrainParams("mean"))


def test_the_published_model_trains_without_length_scales(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    trained = fit(tmp_path, "das-mil-paper", epochs=6)
    assert "length_scales_um" not in trained.checkpoint.options
    assert trained.history[-1].train_loss < trained.history[0].train_loss
    path = train.publish(trained, tmp_path / "model", {})
    assert checkpoint.load(path).model().params == params_of("das-mil-paper", {})


def test_a_loss_that_is_not_finite_stops_with_a_word(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    with pytest.raises(TrainingError, match="--lr"):
        fit(tmp_path, lr=1e30, epochs=20)


def test_publishing_writes_all_tables_and_the_checkpoint_rebuilds_the_model(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    trained = fit(tmp_path, "das-mil", epochs=2)
    path = train.publish(trained, tmp_path / "model", {"report.html": b"page"})
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert names == {"checkpoint.safetensors", "history.csv", "splits.csv", "predictions.csv", "report.html"}
    with (tmp_path / "model" / "history.csv").open() as file:
        assert list(csv.DictReader(file))[1].keys() == set(trained.history[1].row())
    back = checkpoint.load(path)
    assert replace(back, state={}) == replace(trained.checkpoint, state={}, parts=back.parts)
    assert back.parts[0].temperature == trained.checkpoint.parts[0].temperature
    (model,) = back.members()
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained.checkpoint.state[name])
    assert (back.dim, back.classes) == (DIM, ("neg", "pos"))
    assert back.recipe.tile_um == 256.0


def test_the_checkpoint_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_cohort(tmp_path)
    trained = fit(tmp_path, epochs=1)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        train.publish(trained, tmp_path / "model", {"report.html": b""})
    assert not (tmp_path / "model" / CHECKPOINT).exists()


def test_a_finished_training_is_not_repeated_and_another_is_refused(tmp_path: Path) -> None:
    labels = plant_cohort(tmp_path, slides=12)
    folders, params = Folders.under(tmp_path), TrainParams("abmil", learn=replace(QUICK, epochs=1))
    assert workflow.train_model(LabelTable(labels), folders, params, "cpu") is not None
    assert workflow.train_model(LabelTable(labels), folders, params, "cpu") is None
    other = TrainParams("abmil", learn=replace(QUICK, epochs=2))
    with pytest.raises(ArtifactStale, match=r"epochs was 1, now 2\. Add --overwrite"):
        workflow.train_model(LabelTable(labels), folders, other, "cpu")
    assert workflow.train_model(LabelTable(labels), folders, other, "cpu", overwrite=True) is not None


def test_bags_of_different_make_are_refused_with_both_named(tmp_path: Path) -> None:
    plant_cohort(tmp_path)
    plant(tmp_path / "feats", "s03", positive=True, seed=3, encoder="resnet50", tile_um=128.0)
    with pytest.raises(IncompatibleError, match=r"s03\.h5.* resnet50 and not toy; tile_um is 128\.0 and not 256"):
        fit(tmp_path)


@pytest.mark.parametrize("key", ["tile_params", "params"])
def test_bags_made_with_other_options_are_refused(tmp_path: Path, key: str) -> None:
    plant_cohort(tmp_path)
    plant(tmp_path / "feats", "s03", positive=True, seed=3, **{key: '{"min_coverage": 0.05}'})
    with pytest.raises(IncompatibleError, match=r"s03\.h5 was made with .*0\.05.*make one of them again"):
        fit(tmp_path)


def test_features_of_other_tiles_than_those_that_lie_there_are_refused(tmp_path: Path) -> None:
    labels = plant_cohort(tmp_path)
    store.write(tmp_path / "tiles" / "s03.h5", store.Artifact({}, {"stage": "tile", "fingerprint": "new"}))
    with pytest.raises(ArtifactStale, match=r"s03\.h5 was made from other tiles"):
        workflow.labelled(LabelTable(labels), Folders.under(tmp_path))


def test_what_holds_no_features_is_refused_by_name(tmp_path: Path) -> None:
    labels = plant_cohort(tmp_path)
    with h5py.File(tmp_path / "feats" / "foreign.h5", "w") as file:
        file["features"] = [[1.0]]
    with pytest.raises(ArtifactError, match=r"foreign\.h5 holds no features of wsimil: name a folder"):
        workflow.labelled(LabelTable(labels), Folders.under(tmp_path))


def test_publishing_over_another_training_leaves_no_mixture_that_counts_as_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_cohort(tmp_path)
    train.publish(fit(tmp_path, epochs=1), tmp_path / "model", {})
    other = fit(tmp_path, epochs=3)
    monkeypatch.setattr(checkpoint, "save", lambda path, made: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train.publish(other, tmp_path / "model", {})
    assert not (tmp_path / "model" / CHECKPOINT).exists()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_comes_back_from_its_checkpoint(tmp_path: Path, name: str) -> None:
    model = build(name, DIM, 3).eval()
    recipe = checkpoint.Recipe("toy", "0", 256.0, 224)
    made = checkpoint.Checkpoint(
        name, (Part(asdict(model.params)),), DIM, ("a", "b", "c"), recipe, "built-in", {}, {}, {}, model.state_dict()
    )
    checkpoint.save(tmp_path / "c.safetensors", made)
    plant(tmp_path, "s", positive=True, seed=0)
    batch = collate([read_bag(tmp_path / "s.h5")])
    before, after = model(batch), checkpoint.load(tmp_path / "c.safetensors").model()(batch)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.attention, after.attention)


# Unknown to wsimil 0.1.0.
LATER_OPTIONS = {"projection", "attention_dropout", "separate_phi", "mix", "value_dim", "scale_by_input"}
SELF_ATTENTION = {"query", "key", "value", "project.0", "mix.0", "classify"}


@pytest.mark.parametrize(
    ("name", "own"),
    [("self-attention", set()), ("das-mil", {"log_theta_um", "log_slope", "key_table", "value_table"})],
)
def test_checkpoints_of_the_first_version_still_load(tmp_path: Path, name: str, own: set[str]) -> None:
    model = build(name, DIM, 2)
    known = {"feature_mean", "feature_std", *own, *(f"{layer}.weight" for layer in SELF_ATTENTION)}
    known |= {f"{layer}.bias" for layer in SELF_ATTENTION if layer not in ("query", "key", "value")}
    assert set(model.state_dict()) == known
    options = {key: value for key, value in asdict(model.params).items() if key not in LATER_OPTIONS}
    recipe = checkpoint.Recipe("toy", "0", 256.0, 224)
    made = checkpoint.Checkpoint(
        name, (Part(options),), DIM, ("a", "b"), recipe, "built-in", {}, {}, {}, model.state_dict()
    )
    checkpoint.save(tmp_path / "c.safetensors", made)
    assert checkpoint.load(tmp_path / "c.safetensors").model().params == model.params


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    model = build("abmil", DIM, 2)
    recipe = checkpoint.Recipe("toy", "0", 256.0, 224)
    made = checkpoint.Checkpoint(
        "das-mil", (Part({}),), DIM, ("a", "b"), recipe, "built-in", {}, {}, {}, model.state_dict()
    )
    checkpoint.save(tmp_path / "c.safetensors", made)
    with pytest.raises(WeightsError, match="another version of wsimil"):
        checkpoint.load(tmp_path / "c.safetensors").model()
    save_tensors(tmp_path / "d.safetensors", made.state, {"wsi_mil": '{"recipe": {}, "classes": []}'})
    with pytest.raises(WeightsError, match="another version of wsimil"):
        checkpoint.load(tmp_path / "d.safetensors")


def test_empty_slides_are_left_out_and_unseen_ones_refused(tmp_path: Path) -> None:
    labels = plant_cohort(tmp_path)
    plant(tmp_path / "feats", "s04", positive=False, seed=4, tiles=0)
    assert "s04" in workflow.labelled(LabelTable(labels), Folders.under(tmp_path)).left_out
    labels.write_text(labels.read_text() + "ghost,pos\n")
    with pytest.raises(TableError, match="no stage has seen a slide ghost"):
        workflow.labelled(LabelTable(labels), Folders.under(tmp_path))


def test_a_slide_that_is_tiled_but_not_extracted_is_refused_with_the_command(tmp_path: Path) -> None:
    labels = plant_cohort(tmp_path)
    store.write(tmp_path / "tiles" / "late.h5", store.Artifact({"coords": np.zeros((1, 2), np.int64)}))
    labels.write_text(labels.read_text() + "late,pos\n")
    with pytest.raises(TableError, match="late has no features yet: run `wsimil extract`"):
        workflow.labelled(LabelTable(labels), Folders.under(tmp_path))


def test_a_checkpoint_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="wsimil train"):
        checkpoint.load(tmp_path / "none.safetensors")
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {"wsi": json.dumps({})})
    with pytest.raises(WeightsError, match="no checkpoint of wsimil"):
        checkpoint.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: TrainParams("nothing"), "--aggregator nothing"),
        (lambda: TrainParams(val_fraction=1.5), "--val-fraction"),
        (lambda: LearnParams(epochs=0), "--epochs 0"),
        (lambda: LearnParams(bags_per_step=0), "--bags-per-step 0"),
        (lambda: LearnParams(lr=-1.0), "--lr"),
        (lambda: LearnParams(weight_decay=-1.0), "--weight-decay"),
        (lambda: LearnParams(seed=-1), "--seed -1"),
        (lambda: LearnParams(clip=-1.0), "--clip -1"),
        (lambda: LearnParams(max_tiles=-1), "--max-tiles -1"),
        (lambda: LearnParams(precision="half"), "--precision half: give auto, fp32, bf16, fp16"),
        (lambda: TrainParams(options={"foo": 1}), "--option foo: das-mil has no such option; it has hidden"),
        (lambda: TrainParams(options={"heads": "abc"}), "--option heads=abc: give a whole number"),
        (lambda: TrainParams(options={"heads": True}), "--option heads=True: give a whole number"),
        (lambda: TrainParams(options={"dropout": "x"}), "--option dropout=x: give a number"),
        (lambda: TrainParams(options={"length_scales_um": 5}), "--option length_scales_um=5: give a list of numbers"),
    ],
)
def test_options_are_checked(make: object, flag: str) -> None:
    with pytest.raises(OptionError, match=flag):
        make()


def test_models_that_use_positions_record_how_far_apart_tiles_lie(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=12)
    told = {name: fit(tmp_path, name, epochs=1) for name in ("das-mil", "relative-discrete", "abmil")}
    assert "distances" not in told["abmil"].checkpoint.training
    recorded = [TileDistances.recorded(told[name].checkpoint.training) for name in ("das-mil", "relative-discrete")]
    slides = len(told["das-mil"].cohort.part("train"))
    assert [one.pairs.sum() for one in recorded if one is not None] == [slides * 30 * 29 // 2] * 2
    path = tmp_path / "made.safetensors"
    checkpoint.save(path, told["das-mil"].checkpoint)
    again = TileDistances.recorded(checkpoint.load(path).training)
    assert again is not None
    assert again.record() == recorded[0].record()


def test_few_validation_patients_are_told_once_and_in_the_card(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels, folders = LabelTable(plant_cohort(tmp_path)), Folders.under(tmp_path)
    with caplog.at_level(logging.WARNING):
        workflow.train_model(labels, folders, TrainParams("mean", learn=replace(QUICK, epochs=1)), "cpu")
    told = [line for line in caplog.messages if "not to be relied on" in line]
    assert len(told) == 1
    assert "few patients (2 of class neg, 2 of class pos" in told[0]
    card = (tmp_path / "model" / "model_card.md").read_text()
    assert "But temperature and threshold are not to be relied on: validation has few patients (2 of class neg" in card


def test_a_temperature_at_its_bound_is_doubted_and_one_within_is_not() -> None:
    enough = {"neg": 10, "pos": 30}
    assert doubts(1.0, enough) == doubts(0.2, enough) == doubts(1.0, {}) == ""
    assert doubts(0.1003, enough).endswith("not to be relied on: the temperature ended at its bound, 0.1")
    assert doubts(99.9, {"neg": 9, "pos": 30}).endswith(
        "few patients (9 of class neg; from 10 on they begin to tell) and the temperature ended at its bound, 100"
    )
    labels = np.array([0, 1] * 40)
    chance = np.full((80, 2), [0.99, 0.01])
    assert doubts(calibrated(labels, chance, (0.5, 0.5)).temperature, enough)
