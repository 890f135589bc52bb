"""Cross-validation, evaluation and comparison, on features with a planted signal."""

import csv
import json
import logging
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from planted import DIM, plant, plant_cohort

from wsi_mil import checkpoint, evaluation, metrics, reasons, studies, train, workflow
from wsi_mil.aggregators import Ensemble, build
from wsi_mil.bags import collate, read_bag
from wsi_mil.calibration import applied, calibrated
from wsi_mil.cohort import Cohort, draw_folds, nested
from wsi_mil.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    ArtifactStale,
    IncompatibleError,
    OptionError,
    TableError,
    TrainingError,
    WsiMilError,
)
from wsi_mil.evaluation import Answers, CrossvalParams, Place, compare, crossval, folded, judge
from wsi_mil.evaluation.comparing import ENOUGH_FOR_DELONG
from wsi_mil.evaluation.search import Kept, search
from wsi_mil.interop import PeerOptions
from wsi_mil.learning import Epoch, LearnParams, RunParams, need
from wsi_mil.metrics import Resampling
from wsi_mil.predict import PredictOptions
from wsi_mil.predictions import Prediction, read_predictions, write_predictions
from wsi_mil.report import study_page
from wsi_mil.train import CHECKPOINT
from wsi_mil.train_params import TrainParams
from wsi_mil.workflow import Folders, LabelTable

QUICK = LearnParams(epochs=6, patience=6, lr=3e-3)
BRIEF = replace(QUICK, epochs=2)
CPU = torch.device("cpu")
FEW = Resampling(0, 100)
TrainedModel = Callable[..., tuple[LabelTable, Folders, Path]]


def validated(
    root: Path, run: RunParams | None = None, overwrite: bool = False, **changed: object
) -> tuple[evaluation.Validated, ...]:
    base = TrainParams("abmil", learn=BRIEF)
    params = replace(CrossvalParams(base, ("abmil",), folds=3), **changed)
    folders = Folders.under(root)
    cohort = folded(workflow.labelled(LabelTable(root / "labels.csv"), folders), params)
    place = Place(folders.feats, folders.distances, root / "crossval", overwrite)
    return tuple(crossval(cohort, place, params, CPU, run or RunParams()))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Train a model of that name, once, on a planted cohort: the folder that holds both. Nobody changes it."""

    @lru_cache
    def trained(aggregator: str) -> Path:
        root = tmp_path_factory.mktemp(aggregator)
        labels = LabelTable(plant_cohort(root, slides=24, test=8))
        params = TrainParams(aggregator, learn=QUICK)
        assert workflow.train_model(labels, Folders.under(root), params, "cpu") is not None
        return root

    return trained


@pytest.fixture
def trained_model(trainings: Callable[[str], Path], tmp_path: Path) -> TrainedModel:
    """A copy of such a training: its labels, its folders with one for an evaluation, its checkpoint."""

    def copied(aggregator: str = "abmil") -> tuple[LabelTable, Folders, Path]:
        shutil.copytree(trainings(aggregator), tmp_path, dirs_exist_ok=True)
        folders = replace(Folders.under(tmp_path), model=tmp_path / "evaluation")
        return LabelTable(tmp_path / "labels.csv"), folders, tmp_path / "model" / CHECKPOINT

    return copied


def test_every_patient_is_tested_once_by_a_model_that_never_saw_it(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=24)
    (found,) = validated(tmp_path, train=TrainParams("abmil", learn=QUICK))
    assert [row.slide_id for row in found.rows] == [f"s{index:02d}" for index in range(24)]
    answers = Answers.of(found.rows, found.ensemble.classes)
    assert judge("abmil", answers, FEW).figures["AUROC"].value > 0.9
    for fold in ("1", "2", "3"):
        made = checkpoint.load(tmp_path / "crossval" / "abmil" / f"fold-{fold}" / CHECKPOINT)
        tested = {row.patient_id for row in found.rows if row.fold == fold}
        assert not {train.patient_hash(patient) for patient in tested} & set(made.training["patients"])
    assert len(found.ensemble.parts) == 3
    assert len(found.ensemble.training["patients"]) == 24


def test_what_a_round_learns_and_chooses_does_not_depend_on_whom_it_tests(tmp_path: Path) -> None:
    """Nothing of the reported fold takes part in stopping, calibration or the threshold (as it did in STAMP, DSMIL)."""
    labels = LabelTable(plant_cohort(tmp_path, slides=24))
    folders = Folders.under(tmp_path)
    params = TrainParams("abmil", learn=QUICK)
    cohort = draw_folds(workflow.labelled(labels, folders), 3, 0)
    inner = nested(cohort, "2", 0.2, 0)
    before = train.fit(inner, folders.feats, params, folders.distances, CPU).checkpoint
    for member in inner.part("test"):
        plant(folders.feats, member.slide_id, positive=member.label == "neg", seed=int(member.slide_id[1:]))
    after = train.fit(inner, folders.feats, params, folders.distances, CPU).checkpoint
    assert before.parts == after.parts
    assert before.threshold == after.threshold
    assert all(torch.equal(before.state[name], after.state[name]) for name in before.state)


def test_an_interrupted_cross_validation_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_cohort(tmp_path, slides=18)
    validated(tmp_path)
    whole = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "crossval").rglob("*.safetensors")}
    (tmp_path / "crossval").rename(tmp_path / "before")
    fit, rounds = train.fit, []

    def failing(*args: object, **kwargs: object) -> train.Trained:
        if len(rounds) == 1:
            raise KeyboardInterrupt
        rounds.append(1)
        return fit(*args, **kwargs)

    monkeypatch.setattr(train, "fit", failing)
    with pytest.raises(KeyboardInterrupt):
        validated(tmp_path)
    assert not (tmp_path / "crossval" / "abmil" / CHECKPOINT).exists()
    calls = []
    monkeypatch.setattr(train, "fit", lambda *args, **kwargs: calls.append(1) or fit(*args, **kwargs))
    validated(tmp_path)
    assert len(calls) == 2
    assert whole == {
        path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "crossval").rglob("*.safetensors")
    }
    monkeypatch.setattr(train, "fit", failing)
    validated(tmp_path)  # trains nothing
    with pytest.raises(ArtifactStale, match="was trained otherwise"):
        validated(tmp_path, train=TrainParams("abmil", learn=replace(QUICK, epochs=7)))
    assert (tmp_path / "crossval" / "abmil" / CHECKPOINT).exists()  # a run that is refused takes nothing away


def test_an_ensemble_is_the_mean_of_its_calibrated_members(tmp_path: Path) -> None:
    plant(tmp_path, "s", positive=True, seed=0)
    batch = collate([read_bag(tmp_path / "s.h5")])
    torch.manual_seed(0)
    members = [build("abmil", DIM, 3).eval() for _ in range(3)]
    temperatures = (0.5, 1.0, 3.0)
    output = Ensemble(members, temperatures).eval()(batch)
    pairs = list(zip(members, temperatures, strict=True))
    wanted = torch.stack([(m(batch).logits.double() / t).softmax(-1) for m, t in pairs]).mean(0)
    assert torch.allclose(output.logits.softmax(-1), wanted, atol=1e-9)
    assert torch.allclose(output.attention.sum(), torch.tensor(1.0))
    with pytest.raises(IncompatibleError, match="make no ensemble"):
        Ensemble([members[0], build("abmil", DIM, 2)], (1.0, 1.0))
    assert Ensemble([build("abmil", DIM, 2), build("das-mil", DIM, 2)], (1.0, 1.0)).uses_position == "relative"


def test_an_ensemble_comes_back_from_its_checkpoint_and_predicts(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=18)
    (found,) = validated(tmp_path)
    back = checkpoint.load(tmp_path / "crossval" / "abmil" / CHECKPOINT)
    batch = collate([read_bag(tmp_path / "feats" / "s01.h5")])
    with torch.inference_mode():
        assert torch.equal(back.model()(batch).logits, found.ensemble.model()(batch).logits)
    assert back.threshold == pytest.approx(
        np.mean(
            [checkpoint.load(path).threshold for path in sorted((tmp_path / "crossval").glob("*/fold-*/*.safetensors"))]
        )
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"folds": 1}, "--folds 1"),
        ({"trials": -1}, "--search -1"),
        ({"aggregators": ("abmil", "abmil")}, "name each model once"),
        ({"aggregators": ()}, "name each model once"),
        ({"train": TrainParams("das-mil", {"sharpness": 2.0}), "aggregators": ("abmil",)}, "none of abmil has such"),
        ({"aggregators": ("nobody",)}, "--aggregator nobody"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        replace(CrossvalParams(), **changed)


def test_an_option_goes_to_the_models_that_have_it() -> None:
    params = CrossvalParams(
        TrainParams("das-mil", {"sharpness": 2.0, "heads": 2}), ("das-mil", "self-attention", "mean")
    )
    assert params.of("das-mil").options == {"sharpness": 2.0, "heads": 2}
    assert params.of("self-attention").options == {"heads": 2}
    assert params.of("mean").options == {}


def test_an_interrupted_search_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_cohort(tmp_path, slides=18)
    asked: list[TrainParams] = []

    def losing(*given: Any) -> Any:
        asked.append(given[2])
        if len(asked) == stop:
            raise KeyboardInterrupt
        if len(asked) == 3:
            raise TrainingError("the training loss is not finite")
        learn = given[2].learn
        epoch = Epoch(1, learn.lr, 0.0, abs(math.log10(learn.lr) + 3) + learn.weight_decay, {})
        return SimpleNamespace(history=(epoch,))

    monkeypatch.setattr(train, "fit", losing)
    labels, folders = LabelTable(tmp_path / "labels.csv"), Folders.under(tmp_path)
    cohort = nested(folded(workflow.labelled(labels, folders), CrossvalParams(folds=3)), "1", 0.3, 0)
    base, kept = TrainParams("abmil"), Kept(folders.distances, tmp_path / "whole", CPU)
    stop = 0
    best = search(cohort, folders.feats, base, 14, kept)
    whole, asked = asked, []
    stop, kept = 13, kept._replace(out=tmp_path / "halved")
    with pytest.raises(KeyboardInterrupt):
        search(cohort, folders.feats, base, 14, kept)
    stop, asked = 0, asked[:-1]
    assert search(cohort, folders.feats, base, 14, kept) == best
    assert asked == whole
    assert (tmp_path / "halved" / "search.csv").read_bytes() == (tmp_path / "whole" / "search.csv").read_bytes()
    monkeypatch.setitem(sys.modules, "optuna", None)  # nothing is left to try
    assert search(cohort, folders.feats, base, 14, kept) == best
    _is_told_apart(cohort, folders.feats, base, kept)


def _is_told_apart(cohort: Cohort, feats: Path, base: TrainParams, kept: Kept) -> None:
    """Another search is told what was otherwise, and a damaged one that it is."""
    with pytest.raises(ArtifactStale, match=r"of another search: search was 14, now 15\. Add --overwrite"):
        search(cohort, feats, base, 15, kept)
    seeded = replace(base, learn=replace(base.learn, seed=7))
    with pytest.raises(ArtifactStale, match=r"of another search: seed was another\. Add"):
        search(cohort, feats, seeded, 14, kept)
    with pytest.raises(ArtifactStale, match=r"of another search: the labels, the folds, the features or the version"):
        search(replace(cohort, members=cohort.members[1:]), feats, base, 14, kept)
    path = kept.out / "search.json"
    for key, value in (("options", 3), ("trials", None)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        with pytest.raises(ArtifactCorrupt, match=r"search\.json is damaged .* delete it to search anew"):
            search(cohort, feats, base, 14, kept)


def test_a_round_without_a_search_is_not_searched_for_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_cohort(tmp_path, slides=18)
    validated(tmp_path)
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained before it was refused"))
    with pytest.raises(ArtifactStale, match="was trained without --search: add --overwrite"):
        validated(tmp_path, trials=3)
    assert not list(tmp_path.rglob("search.*"))


@pytest.mark.slow
def test_hyper_parameters_are_searched_on_validation_patients_and_kept(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=18)
    (found,) = validated(tmp_path, trials=3)
    for fold in ("1", "2", "3"):
        out = tmp_path / "crossval" / "abmil" / f"fold-{fold}"
        with (out / "search.csv").open() as file:
            trials = list(csv.DictReader(file))
        assert len(trials) == 3
        best = min(trials, key=lambda row: float(row["val_loss"]))
        made = checkpoint.load(out / CHECKPOINT)
        assert made.training["params"]["learn"]["lr"] == pytest.approx(float(best["lr"]))
        assert made.training["best"]["val_loss"] == pytest.approx(float(best["val_loss"]))
        assert float(trials[0]["lr"]) == pytest.approx(QUICK.lr)  # what stood there is tried first
    again = validated(tmp_path, trials=3)[0]
    assert again.rows == found.rows
    with pytest.raises(
        ArtifactStale, match=r"search\.json is of another search: search was 3, now 2\. Add --overwrite"
    ):
        validated(tmp_path, trials=2)


def answers(seed: int, shift: float, count: int = 60, folds: int = 1) -> Answers:
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        label = index % 2
        positive = 1 / (1 + math.exp(-(rng.normal() + shift * (label - 0.5))))
        decided = "b" if positive >= 0.5 else "a"
        fold = str(index // 2 % folds + 1) if folds > 1 else ""
        row = Prediction(
            f"s{index:02d}", "done", (1 - positive, positive), 9, "ab"[label], predicted=decided, fold=fold
        )
        rows.append(row)
    groups = {"site": {row.slide_id: "north" if index % 3 else "south" for index, row in enumerate(rows)}}
    return Answers.of(rows, ("a", "b"), groups)


def test_figures_come_with_intervals_that_hold_them_and_the_same_seed_gives_the_same() -> None:
    judged = judge("m", answers(0, 1.5), FEW)
    for name, (value, low, high) in judged.figures.items():
        assert low <= value <= high or name.startswith("ECE"), name
    again, other = (judge("m", answers(0, 1.5), how).figures for how in (FEW, Resampling(1, 100)))
    assert repr(judged.figures) == repr(again)
    assert repr(judged.figures) != repr(other)
    assert judged.figures["AUROC"] == judged.figures["pooled AUROC"]  # one model answered
    assert [(group.value, group.bags) for group in judged.groups] == [("north", 40), ("south", 20)]


def test_auroc_of_rounds_does_not_compare_across_them() -> None:
    """Scores of one round are all higher than those of another: pooled, that looks like ignorance."""
    rows = []
    for fold, base in (("1", 0.1), ("2", 0.6)):
        for index in range(10):
            positive = base + 0.02 * index
            label = "b" if index >= 5 else "a"
            rows.append(
                Prediction(f"{fold}{index}", "done", (1 - positive, positive), 9, label, predicted="a", fold=fold)
            )
    judged = judge("m", Answers.of(rows, ("a", "b")), FEW)
    assert judged.figures["AUROC"].value == 1.0
    assert 0.6 < judged.figures["AUROC"].low < 0.9  # twenty patients prove no perfection
    assert judged.figures["pooled AUROC"].value < 0.8
    assert judged.rounds == {"1": 1.0, "2": 1.0}


def test_declared_classes_stay_though_nobody_has_them() -> None:
    rows = [Prediction(f"s{index}", "done", (0.2, 0.3, 0.5), 9, "ab"[index % 2], predicted="c") for index in range(8)]
    judged = judge("m", Answers.of(rows, ("a", "b", "c")), FEW)
    assert judged.figures["F1"].value == 0.0
    assert judged.figures["accuracy"].value == 0.0
    assert math.isnan(judged.figures["AUROC"].value)


def test_a_model_compared_with_itself_differs_by_nothing_and_a_better_one_is_told() -> None:
    good, poor = judge("good", answers(0, 3.0), FEW), judge("poor", answers(1, 0.0), FEW)
    same = compare([good, replace(good, name="again")], FEW)[0]
    assert tuple(same.difference) == (0.0, 0.0, 0.0)
    assert same.delong == same.mcnemar == same.holm_delong == same.holm_mcnemar == 1.0
    (found,) = compare([good, poor], FEW)
    assert found.difference.low > 0
    assert found.delong < 0.01
    assert found.mcnemar < 0.05
    three = compare([good, poor, judge("other", answers(2, 1.0), FEW)], FEW)
    assert all(c.holm_delong >= c.delong and c.holm_mcnemar >= c.mcnemar for c in three)
    with pytest.raises(TableError, match="not judged on the same slides"):
        compare([good, judge("less", answers(0, 3.0, count=58), FEW)], FEW)


def test_delongs_test_does_not_compare_across_rounds() -> None:
    """Scores of one round shifted as a whole change pooled AUROC, and say nothing of either model."""
    one = answers(0, 1.5, count=120, folds=2)
    shifted = one.scores.copy()
    shifted[np.array(one.folds) == "2"] *= [1.0, 0.3]
    shifted /= shifted.sum(axis=1, keepdims=True)
    pair = [judge("one", one, FEW), judge("shifted", replace(one, scores=shifted), FEW)]
    assert pair[0].figures["pooled AUROC"].value != pair[1].figures["pooled AUROC"].value
    (same,) = compare(pair, FEW)
    assert same.difference.value == pytest.approx(0.0, abs=1e-12)
    assert same.delong == 1.0
    better = judge("better", answers(1, 3.0, count=120, folds=2), FEW)
    (found,) = compare([better, pair[0]], FEW)
    assert found.delong < 0.05


def test_a_round_without_a_difference_is_as_uncertain_as_another_in_delongs_test() -> None:
    """Of few patients the AUROC of two models is often the same to the last digit, and their order is not."""
    labels = np.tile([0, 0, 0, 0, 1, 1, 1, 1], 2)

    def told(*rounds: Sequence[int]) -> Answers:
        share = np.concatenate(rounds) / 20 + 0.1
        ids = tuple(f"s{row}" for row in range(16))
        scores = np.stack([1 - share, share], axis=1)
        return Answers(ids, ids, labels, scores, labels, ("1",) * 8 + ("2",) * 8, ("a", "b"))

    one, other = told([0, 1, 2, 7, 3, 4, 5, 6], range(8)), told([3, 4, 5, 6, 0, 7, 8, 9], [1, 2, 3, 4, 0, 5, 6, 7])
    assert metrics.auroc(labels[:8], one.scores[:8]) == metrics.auroc(labels[:8], other.scores[:8])
    (pair,) = compare([judge("one", one, FEW), judge("other", other, FEW)], FEW)
    second = metrics.delong_test(labels[8:], one.scores[8:], other.scores[8:])
    assert pair.delong > second.p
    lone = np.array([*range(8), 8, 13, 14])  # a round with one patient of a class: nobody knows how uncertain it is
    swapped = replace(one, scores=one.scores[[*range(13), 14, 13, 15]])
    pairs = [judge(name, found.where(lone), FEW) for name, found in (("one", one), ("swapped", swapped))]
    assert math.isnan(compare(pairs, FEW)[0].delong)


def test_a_patient_with_many_slides_counts_once_in_mcnemar() -> None:
    found = answers(0, 3.0, count=40)
    one = replace(found, patients=("p",) * 8 + found.patients[8:], predicted=found.labels)
    wrong = one.predicted.copy()
    wrong[:8] = 1 - wrong[:8]
    (c,) = compare([judge("one", one, FEW), judge("wrong", replace(one, predicted=wrong), FEW)], FEW)
    assert c.mcnemar == 1.0


def test_rounds_without_a_class_are_told_and_prove_nothing() -> None:
    rows = [
        Prediction(f"{fold}{i}", "done", (1 - p, p), 9, label, predicted="a", fold=fold)
        for fold, labels in (("1", "aaaaabbbbb"), ("2", "a" * 20), ("3", "b" * 20))
        for i, label in enumerate(labels)
        for p in [0.2 + 0.01 * i + 0.4 * (label == "b" and fold == "1")]
    ]
    judged = judge("m", Answers.of(rows, ("a", "b")), FEW)
    assert judged.figures["AUROC"].value == 1.0
    assert judged.figures["AUROC"].low < 0.8  # ten patients, and not fifty
    assert "2 of 3 rounds tested no patient of some class: their 40 patients do not count" in judged.notes[0]


def test_a_fold_with_one_patient_of_a_class_leaves_every_figure_its_interval() -> None:
    found = answers(0, 1.0, count=40, folds=5)
    few = found.where(np.flatnonzero((found.labels == 0) | (np.arange(40) < 18)))
    assert min(sum((few.labels == 1) & (np.array(few.folds) == fold)) for fold in set(few.folds)) == 1
    judged = judge("m", few, FEW)
    for name, (value, low, high) in judged.figures.items():
        assert name.startswith("ECE") or low < value < high, name


def perfect(count: int, bags_each: int = 1) -> Answers:
    found = answers(0, 3.0, count=count)
    scores = np.where(np.eye(2)[found.labels] == 1, 0.8, 0.2)
    owners = tuple(f"p{index // (2 * bags_each)}-{index % 2}" for index in range(count))
    return replace(found, scores=scores, predicted=found.labels, patients=owners, groups={})


def test_of_perfect_decisions_the_limits_are_exact_where_each_bag_is_a_patient() -> None:
    judged = judge("m", perfect(20), FEW)
    for name in ("sensitivity", "specificity"):
        assert tuple(judged.figures[name]) == pytest.approx((1.0, 0.025 ** (1 / 10), 1.0))
    assert judged.figures["accuracy"].low == pytest.approx(0.025 ** (1 / 20))
    (note,) = [note for note in judged.notes if note.startswith("no interval of")]
    assert "balanced accuracy" in note
    assert "sensitivity" not in note


def test_of_several_bags_a_patient_no_limits_are_made_up_and_it_is_said() -> None:
    judged = judge("m", perfect(40, bags_each=2), FEW)
    assert math.isnan(judged.figures["sensitivity"].low)
    (note,) = [note for note in judged.notes if note.startswith("no interval of")]
    assert "sensitivity, specificity" in note
    assert "--unit patient" in note
    some = judge("m", replace(answers(0, 1.0, count=40), patients=perfect(40, 2).patients), FEW)
    assert 0 < some.figures["sensitivity"].low < some.figures["sensitivity"].value  # the bootstrap over patients


def test_of_two_classes_calibration_of_the_positive_one_is_told_beside_the_likeliest(tmp_path: Path) -> None:
    """Half right at 0.5 looks calibrated by the likeliest class whatever the positive one's probability says."""
    rows = [
        Prediction(f"s{index}", "done", (1 - p, p), 9, "b" if index % 2 else "a", predicted="a")
        for index in range(40)
        for p in [0.45 if index < 20 else 0.55]
    ]
    judged = judge("m", Answers.of(rows, ("a", "b")), FEW)
    assert judged.figures["ECE of the positive class"].value == pytest.approx(0.05)
    evaluation.write_study(evaluation.Study((judged,)), tmp_path)
    with (tmp_path / "reliability.csv").open() as file:
        told = {name: [row for row in csv.DictReader(file) if row["of"] == name] for name in ("b",)}
    assert [(float(row["probability"]), float(row["share"]), row["count"]) for row in told["b"]] == [
        (0.45, 0.5, "20"),
        (0.55, 0.5, "20"),
    ]
    page = study_page("t", "l", evaluation.Study((judged,))).decode()
    assert "Reliability of b: share of bags that are b, over its probability" in page
    assert "Intervals of accuracy, sensitivity and specificity are exact" in page
    three = [row._replace(probabilities=(*row.probabilities, 0.0)) for row in rows]
    page = study_page("t", "l", evaluation.Study((judge("m", Answers.of(three, ("a", "b", "c")), FEW),))).decode()
    assert "Reliability of the likeliest class" in page
    assert "positive class at that of" not in page


def test_what_is_not_defined_is_an_empty_cell(tmp_path: Path) -> None:
    found = answers(0, 1.0, count=8, folds=2)
    judged = judge("m", replace(found, labels=found.labels * 0), FEW)
    evaluation.write_study(evaluation.Study((judged,)), tmp_path)
    text = (tmp_path / "metrics.csv").read_text()
    assert "nan" not in text
    assert "AUROC,,," in text


def test_few_patients_make_delongs_test_promise_too_much_and_it_is_said() -> None:
    def notes(count: int) -> list[str]:
        pair = [judge("one", answers(0, 1.0, count), FEW), judge("other", answers(1, 1.0, count), FEW)]
        study = evaluation.Study(tuple(pair), compare(pair, FEW))
        return [note for note in study.notes if "DeLong" in note]

    assert notes(2 * ENOUGH_FOR_DELONG) == []
    (note,) = notes(2 * ENOUGH_FOR_DELONG - 2)
    assert note.startswith(f"{ENOUGH_FOR_DELONG - 1} patients of the rarer class")


def test_a_round_that_tests_one_patient_of_a_class_leaves_no_p_and_it_is_said() -> None:
    def lonely(seed: int) -> Answers:
        found = answers(seed, 1.0, count=60, folds=2)
        second = np.array(found.folds) == "2"
        positive = np.flatnonzero(second & (found.labels == 1))
        return found.where(np.setdiff1d(np.arange(60), positive[1:]))

    pair = [judge("one", lonely(0), FEW), judge("other", lonely(1), FEW)]
    study = evaluation.Study(tuple(pair), compare(pair, FEW))
    assert math.isnan(study.comparisons[0].delong)
    (note,) = [note for note in study.notes if "DeLong" in note]
    assert note.startswith("round 2 tests one patient of some class")


def test_models_whose_figures_are_replaced_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("das-mil", "das-mil", "abmil"):
        assert not caplog.messages
        evaluation.write_study(evaluation.Study((judge(name, answers(0, 1.0, count=8), FEW),)), tmp_path)
    (message,) = caplog.messages
    assert "no more of das-mil: `wsimil compare`" in message


def test_a_folder_of_a_judging_takes_nothing_else(tmp_path: Path) -> None:
    evaluation.refuse_judged(tmp_path)
    evaluation.claim(tmp_path, {"command": "evaluate"})
    with pytest.raises(ArtifactStale, match="holds the results of `wsimil evaluate`: give another --out"):
        evaluation.refuse_judged(tmp_path)


def test_each_round_starts_from_a_seed_of_its_own_that_all_models_share() -> None:
    params = CrossvalParams(TrainParams("abmil", learn=QUICK), ("abmil", "mean"))
    seeds = [params.of_round(name, fold).learn.seed for name in ("abmil", "mean") for fold in ("1", "2", "B")]
    assert len(set(seeds[:3])) == 3
    assert seeds[:3] == seeds[3:]
    other = CrossvalParams(TrainParams("abmil", learn=replace(QUICK, seed=1)), ("abmil",))
    assert other.of_round("abmil", "1").learn.seed not in seeds


def test_devices_share_the_rounds_and_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_cohort(tmp_path, slides=18)
    fit, given = train.fit, []

    def watched(*args: object) -> train.Trained:
        given.append(args[5])
        return fit(*args[:5], replace(args[5], devices=1))

    monkeypatch.setattr(train, "fit", watched)
    validated(tmp_path, RunParams(devices=2), train=TrainParams("abmil", learn=replace(QUICK, epochs=1)), trials=1)
    assert [run.devices for run in given] == [2] * 6
    rounds = [run.folder and run.folder.name for run in given]
    assert rounds == [None, "fold-1", None, "fold-2", None, "fold-3"]


def test_rounds_of_shuffled_labels_and_of_true_ones_are_not_mixed(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=18)
    quick = TrainParams("abmil", learn=replace(QUICK, epochs=1))
    validated(tmp_path, train=quick)
    with pytest.raises(ArtifactStale, match=r"labels were as in the table \(--label-shuffle\), and now are dealt anew"):
        validated(tmp_path, train=quick, label_shuffle=True)


def test_a_round_of_other_folds_or_seed_is_refused_with_what_was_otherwise(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=18)
    quick = TrainParams("abmil", learn=replace(QUICK, epochs=1))
    validated(tmp_path, train=quick)
    with pytest.raises(ArtifactStale, match=r"fold-1 was trained otherwise: folds was 3, now 4\. Give another --out"):
        validated(tmp_path, train=quick, folds=4)
    seeded = replace(quick, learn=replace(quick.learn, seed=7))
    with pytest.raises(ArtifactStale, match=r"otherwise: seed was 0, now 7\. Give"):
        validated(tmp_path, train=seeded)
    with pytest.raises(ArtifactStale, match=r"otherwise: epochs was 1, now 2; seed was 0, now 7\. Give"):
        validated(tmp_path, train=replace(seeded, learn=replace(seeded.learn, epochs=2)))
    (tmp_path / "crossval" / "abmil" / CHECKPOINT).unlink()  # as one that was interrupted
    with pytest.raises(ArtifactStale, match=r"otherwise: seed was another; folds was 3, now 4\. Give"):
        validated(tmp_path, train=seeded, folds=4)
    plant(tmp_path / "feats", "s00", positive=True, seed=99)
    with pytest.raises(ArtifactStale, match=r"otherwise: the features or the version of wsimil have changed\. Give"):
        validated(tmp_path, train=quick)


def test_overwritten_rounds_leave_no_figures_of_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_cohort(tmp_path, slides=18)
    quick = TrainParams("abmil", learn=replace(QUICK, epochs=1))
    validated(tmp_path, train=quick)
    stale = [tmp_path / "crossval" / name for name in ("metrics.csv", "reliability.csv", "report.html")]
    for path in stale:
        path.write_text("of the rounds before")
    validated(tmp_path, train=quick)  # the same again changes nothing
    assert all(path.exists() for path in stale)
    monkeypatch.setattr(train, "fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        validated(tmp_path, overwrite=True, train=replace(quick, learn=replace(quick.learn, seed=5)))
    assert not any(path.exists() for path in stale)


def test_one_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "again").symlink_to("run")
    with pytest.raises(OptionError, match="name two different runs"):
        studies.compare_runs([tmp_path / "run", tmp_path / "again"], tmp_path / "out", FEW)


def test_rounds_of_other_folds_are_named_and_removed_by_overwriting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant_cohort(tmp_path, slides=18)
    quick, out = TrainParams("abmil", learn=replace(QUICK, epochs=1)), tmp_path / "crossval" / "abmil"
    validated(tmp_path, train=quick)
    (out / "fold-notes").mkdir()  # somebody else's
    shutil.copytree(out / "fold-3", out / "fold-3 of May")
    for name in ("fold-1", "fold-2"):
        shutil.rmtree(out / name)
    with pytest.raises(
        ArtifactStale,
        match=r"abmil holds fold-3 of .* with the folds 1, 2, 3, and this one has 1, 2: add --ov",
    ):
        validated(tmp_path, train=quick, folds=2)
    assert (out / CHECKPOINT).exists()
    caplog.set_level(logging.INFO)
    validated(tmp_path, train=quick, folds=2, overwrite=True)
    assert sorted(path.name for path in out.glob("fold-*")) == ["fold-1", "fold-2", "fold-3 of May", "fold-notes"]
    assert f"{out}: removed rounds of another cross-validation: fold-3" in caplog.messages
    assert len(checkpoint.load(out / CHECKPOINT).parts) == 2


def test_a_large_bag_is_found_before_the_first_round_whichever_tests_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_cohort(tmp_path, slides=18)
    plant(tmp_path / "feats", "s07", positive=True, seed=7, tiles=90)
    monkeypatch.setattr(need, "PROBED", (8, 16, 32))
    monkeypatch.setattr(need, "available_memory", lambda: 10_000)
    with pytest.raises(TrainingError, match=r"^s07 has 90 tiles, and to train on all of them"):
        validated(tmp_path)
    assert not (tmp_path / "crossval").exists()


def test_evaluating_looks_into_memory_first(
    tmp_path: Path, trained_model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, folders, model = trained_model("mean")
    monkeypatch.setattr(need, "PROBED", (4, 8, 16))
    monkeypatch.setattr(need, "available_memory", lambda: 1_000)
    with pytest.raises(TrainingError, match=r"^s23 has 30 tiles, and to ask a model about all of them"):
        studies.evaluate_model(model, labels, folders, studies.Asked(device="cpu"), FEW, PeerOptions())


def test_patients_with_several_slides_are_judged_once_each_too(
    tmp_path: Path, trained_model: TrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    labels, folders, model = trained_model("mean")
    rows = labels.path.read_text().splitlines()
    owners = ["patient_id", *(f"p{index // 4}-{index % 2}" for index in range(24))]
    labels.path.write_text("\n".join(f"{row},{own}" for row, own in zip(rows, owners, strict=True)) + "\n")
    asked = studies.Asked("test", device="cpu")
    study = studies.evaluate_model(model, labels, folders, asked, FEW, PeerOptions())
    assert [(found.name, len(found.answers)) for found in study.judged] == [("mean", 8), ("mean per patient", 4)]
    patients, _, _ = read_predictions(tmp_path / "evaluation" / "patients.csv")
    slides, _, _ = read_predictions(tmp_path / "evaluation" / "predictions.csv")
    assert [(row.patient_id, row.slide_id, row.tiles) for row in patients[:2]] == [
        ("p4-0", "s16; s18", 60),
        ("p4-1", "s17; s19", 60),
    ]
    assert patients[0].probabilities == pytest.approx(
        np.mean([slides[0].probabilities, slides[2].probabilities], axis=0)
    )
    made = checkpoint.load(model)
    assert [row.predicted for row in patients] == [made.decide(row.probabilities) for row in patients]
    assert "mean of the calibrated probabilities" in (tmp_path / "evaluation" / "report.html").read_text()
    with (tmp_path / "evaluation" / "metrics.csv").open() as file:
        told = [row for row in csv.DictReader(file) if row["model"] == "mean per patient" and row["figure"] == "AUROC"]
    assert [(row["patients"], row["bags"]) for row in told] == [("4", "4")]
    with caplog.at_level(logging.WARNING):
        mixed = [*slides, slides[0]._replace(slide_id="x", label="pos")]
        left = evaluation.by_patient(mixed, lambda row: made.decide(row.probabilities))
    assert [row.patient_id for row in left] == ["p4-1", "p5-0", "p5-1"]
    assert "p4-0: of patients with several labels" in caplog.text
    assert evaluation.by_patient(slides[:2], lambda row: row.label) == []


def test_a_cross_validation_answers_once_for_each_patient_too(tmp_path: Path) -> None:
    labels = plant_cohort(tmp_path, slides=24)
    rows = labels.read_text().splitlines()
    owners = ["patient_id", *(f"p{index // 4:02d}-{index % 2}" for index in range(24))]
    labels.write_text("\n".join(f"{row},{own}" for row, own in zip(rows, owners, strict=True)) + "\n")
    params = CrossvalParams(TrainParams("mean", learn=replace(QUICK, epochs=1)), ("mean",), folds=3)
    folders = replace(Folders.under(tmp_path), model=tmp_path / "crossval")
    study = studies.cross_validate(LabelTable(labels), folders, params, FEW, "cpu", RunParams(), PeerOptions())
    assert [(found.name, len(found.answers)) for found in study.judged] == [("mean", 24), ("mean per patient", 12)]
    out = tmp_path / "crossval" / "mean"
    slides, patients = (read_predictions(out / name)[0] for name in ("predictions.csv", "patients.csv"))
    assert len({row.patient_id for row in patients}) == len(patients) == 12
    for row in patients:
        own = [slide for slide in slides if slide.patient_id == row.patient_id]
        assert {slide.fold for slide in own} == {row.fold}
        assert row.probabilities == pytest.approx(np.mean([slide.probabilities for slide in own], axis=0))
        assert row.predicted == checkpoint.load(out / f"fold-{row.fold}" / CHECKPOINT).decide(row.probabilities)


def test_models_of_different_rounds_have_no_delong_test() -> None:
    one = answers(0, 1.0, count=60, folds=2)
    other = replace(answers(1, 1.0, count=60, folds=3), ids=one.ids)
    (found,) = compare([judge("one", one, FEW), judge("other", other, FEW)], FEW)
    assert math.isnan(found.delong)
    assert np.isfinite(found.difference).all()


@pytest.mark.parametrize("fold", ["A/1", "../x", ".hidden"])
def test_folds_that_make_no_folder_are_refused(tmp_path: Path, fold: str) -> None:
    labels = plant_cohort(tmp_path, slides=16)
    rows = labels.read_text().splitlines()
    folds = ["fold", *(fold if index % 4 < 2 else "B" for index in range(16))]
    labels.write_text("\n".join(f"{row},{own}" for row, own in zip(rows, folds, strict=True)) + "\n")
    with pytest.raises(TableError, match="use letters, digits"):
        validated(tmp_path, folds=0)


def test_a_model_of_shuffled_labels_is_not_left_behind(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=18)
    validated(tmp_path, label_shuffle=True)
    assert not (tmp_path / "crossval" / "abmil" / CHECKPOINT).exists()


@pytest.mark.slow
def test_a_trial_that_diverges_is_a_bad_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_cohort(tmp_path, slides=18)
    fit, calls = train.fit, []

    def sometimes(*args: object, **kwargs: object) -> train.Trained:
        calls.append(1)
        if len(calls) == 2:
            raise TrainingError("the training loss is not finite")
        return fit(*args, **kwargs)

    monkeypatch.setattr(train, "fit", sometimes)
    (found,) = validated(tmp_path, trials=3)
    assert len(found.rows) == 18
    with (tmp_path / "crossval" / "abmil" / "fold-1" / "search.csv").open() as file:
        assert [row["val_loss"] for row in csv.DictReader(file)].count("") == 1


def test_what_a_model_says_of_itself_is_not_written_over(tmp_path: Path, trained_model: TrainedModel) -> None:
    labels, folders, model = trained_model()
    for folder in (tmp_path / "model",):
        with pytest.raises(OptionError, match="holds a model and its own predictions"):
            studies.evaluate_model(
                model, labels, replace(folders, model=folder), studies.Asked(device="cpu"), FEW, PeerOptions()
            )


def test_patients_are_known_again_by_their_slides(
    tmp_path: Path, trained_model: TrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    labels, folders, model = trained_model()
    rows = labels.path.read_text().splitlines()
    named = [f"{rows[0]},patient_id", *(f"{row},person-{index}" for index, row in enumerate(rows[1:]))]
    labels.path.write_text("\n".join(named) + "\n")
    with caplog.at_level(logging.WARNING):
        studies.evaluate_model(model, labels, folders, studies.Asked(device="cpu"), FEW, PeerOptions())
    assert "16 of 24 patients took part in training" in caplog.text
    told = read_predictions(tmp_path / "evaluation" / "predictions.csv")[0]
    assert Counter(row.split for row in told) == {"train": 16, "test": 8}  # of training and validation, and the others
    told, _, _ = read_predictions(tmp_path / "evaluation" / "predictions.csv")
    assert sum(row.split == "train" for row in told) == 16


def test_probabilities_speak_of_the_frequencies_of_training() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.1).astype(np.int64)
    seen = rng.normal(labels * 2.0, 1.0)
    balanced = 1 / (1 + np.exp(-(2.0 * seen - 2.0)))  # the posterior where both classes are equally frequent
    scores = np.stack([1 - balanced, balanced], axis=1)
    found = calibrated(labels[:2000], scores[:2000], (0.9, 0.1))
    assert found.temperature == pytest.approx(1.0, abs=0.15)
    assert applied(scores, found)[2000:, 1].mean() == pytest.approx(0.1, abs=0.02)
    assert scores[2000:, 1].mean() > 0.2


def test_slides_named_like_slides_of_training_are_told(
    tmp_path: Path, trained_model: TrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Who tiles from one folder higher up has other slide_ids for the same files; features made otherwise hide it."""
    labels, folders, model = trained_model()
    shutil.rmtree(folders.feats)
    rows = ["slide_id,label"]
    for index in range(10, 20):  # of which s16 to s19 were tested
        plant(folders.feats, f"site/s{index}", positive=bool(index % 2), seed=100 + index)
        rows.append(f"site/s{index},{'pos' if index % 2 else 'neg'}")
    labels.path.write_text("\n".join(rows) + "\n")
    with caplog.at_level(logging.WARNING):
        studies.evaluate_model(model, labels, folders, studies.Asked(device="cpu"), FEW, PeerOptions())
    told = "6 slides are named like slides of training, but for folders (site/s10, site/s11, site/s12, ...)"
    assert told in caplog.text
    assert f"No patient of these names took part in training. {told}" in (folders.model / "report.html").read_text()
    rows_, _, _ = read_predictions(folders.model / "predictions.csv")
    assert {row.split for row in rows_} == {"test"}  # other sites have slides of the same names, too


def test_folds_of_the_table_are_no_rounds_of_one_model(tmp_path: Path) -> None:
    plant_cohort(tmp_path, slides=24, test=12)
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    folds = ["fold", *(str(index // 2 % 3) for index in range(24))]
    (tmp_path / "labels.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, folds, strict=True)) + "\n")
    labels, folders = LabelTable(tmp_path / "labels.csv"), Folders.under(tmp_path)
    assert workflow.train_model(labels, folders, TrainParams("abmil", learn=BRIEF), "cpu") is not None
    assert {row.fold for row in read_predictions(tmp_path / "model" / "predictions.csv")[0]} == {""}
    asked, out = studies.Asked("test", device="cpu"), replace(folders, model=tmp_path / "evaluation")
    studies.evaluate_model(tmp_path / "model" / CHECKPOINT, labels, out, asked, FEW, PeerOptions())
    study = studies.compare_runs([tmp_path / "model", tmp_path / "evaluation"], tmp_path / "out", FEW)
    assert study.comparisons[0].difference.value == 0.0
    assert study.comparisons[0].delong == 1.0


def test_runs_agree_on_patients_in_whatever_order_they_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that was told of no patients would count their slides as independent."""
    one, other = answers(0, 2.0), answers(1, 0.5)

    def rows_of(found: Answers, patient: Callable[[int], str]) -> list[Prediction]:
        pairs = zip(found.ids, found.scores, found.labels, found.predicted, strict=True)
        return [
            Prediction(name, "done", tuple(p), 1, "ab"[label], predicted="ab"[said], patient_id=patient(index))
            for index, (name, p, label, said) in enumerate(pairs)
        ]

    named = run_folder(tmp_path, "named", rows_of(one, lambda index: f"p{index // 4}"))
    lone = run_folder(tmp_path, "lone", rows_of(other, lambda index: f"s{index:02d}"))
    forth = studies.compare_runs([named, lone], tmp_path / "forth", FEW).comparisons[0]
    assert f"{lone} was told of no patients: bags are of the patients that {named} names" in caplog.text
    back = studies.compare_runs([lone, named], tmp_path / "back", FEW).comparisons[0]
    assert (back.delong, back.mcnemar) == pytest.approx((forth.delong, forth.mcnemar))
    assert (back.difference.low, back.difference.high) == pytest.approx((-forth.difference.high, -forth.difference.low))
    moved = run_folder(tmp_path, "moved", rows_of(other, lambda index: f"p{index // 5}"))
    with pytest.raises(TableError, match=r"moved and .*named do not agree on the patient of s04, s08, s09, \.\.\."):
        studies.compare_runs([named, moved], tmp_path / "no", FEW)


def test_answers_and_models_take_no_place_of_what_came_of_judging(tmp_path: Path, trained_model: TrainedModel) -> None:
    labels, folders, model = trained_model()
    studies.evaluate_model(model, labels, folders, studies.Asked("test", device="cpu"), FEW, PeerOptions())
    validated(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.csv")}
    for out, told in {
        "evaluation": "holds the results of `wsimil evaluate`: give another --out",
        "crossval": "holds the results of `wsimil crossval`: give another --out",
        "model": "holds a model and its own predictions: give another folder",
    }.items():
        options = PredictOptions(tmp_path / out)
        with pytest.raises(WsiMilError, match=f"{out} {told}"):
            reasons.answer(model, reasons.Asked(bags=folders.feats), options, None)
    with pytest.raises(ArtifactStale, match="holds the results of `wsimil crossval`"):
        workflow.train_model(labels, replace(folders, model=tmp_path / "crossval"), TrainParams("abmil"), "cpu")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.csv")} == before
    validated(tmp_path)  # and may be gone on with


def run_folder(root: Path, name: str, rows: list[Prediction], classes: tuple[str, ...] = ("a", "b")) -> Path:
    from wsi_mil.predictions import write_predictions

    write_predictions(root / name / "predictions.csv", rows, classes, "x")
    return root / name


def test_runs_are_compared_on_what_both_have_whatever_the_order_of_their_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = answers(0, 2.0)
    rows = [
        Prediction(name, "done", tuple(scores), 1, "ab"[label], predicted="ab"[decided])
        for name, scores, label, decided in zip(found.ids, found.scores, found.labels, found.predicted, strict=True)
    ]
    turned = [row._replace(probabilities=row.probabilities[::-1]) for row in rows]
    one, other = run_folder(tmp_path, "one", rows), run_folder(tmp_path, "two", turned[:-4], ("b", "a"))
    with caplog.at_level(logging.WARNING):
        study = studies.compare_runs([one, other], tmp_path / "out", FEW)
    assert "4 of 60 bags are not in every run" in caplog.text
    assert study.comparisons[0].difference.value == 0.0
    assert study.comparisons[0].mcnemar == 1.0
    assert (tmp_path / "out" / "report.html").exists()
    studies.compare_runs([one, other], tmp_path / "out", FEW)
    with pytest.raises(ArtifactStale, match=r"out holds another result: resampling was .* Add --overwrite"):
        studies.compare_runs([one, other], tmp_path / "out", Resampling(1, 100))
    studies.compare_runs([one, other], tmp_path / "out", Resampling(1, 100), overwrite=True)
    (tmp_path / "out" / "study.json").unlink()
    with pytest.raises(ArtifactStale, match=r"holds metrics.csv, and nothing says what it is of"):
        studies.compare_runs([one, other], tmp_path / "out", FEW)
    with pytest.raises(OptionError, match=r"\(one per model\).*such as .*one, .*out, .*two|such as .*one, .*two"):
        studies.compare_runs([one, tmp_path], tmp_path / "out", FEW)
    with (tmp_path / "out" / "comparison.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    wrong = [row._replace(label="b" if row.label == "a" else "a") for row in rows[:3]] + rows[3:]
    with pytest.raises(TableError, match="do not agree on the label of s00, s01, s02"):
        studies.compare_runs([one, run_folder(tmp_path, "three", wrong)], tmp_path / "out", FEW)
    alien = run_folder(tmp_path, "four", [row._replace(slide_id=f"x{row.slide_id}") for row in rows])
    with pytest.raises(TableError, match="no slide in common"):
        studies.compare_runs([one, alien], tmp_path / "out", FEW)
    with pytest.raises(OptionError, match="name two different runs"):
        studies.compare_runs([one], tmp_path / "out", FEW)
    trained = [row._replace(split="train") for row in rows]
    with pytest.raises(TableError, match="holds no test slide"):
        studies.compare_runs([one, run_folder(tmp_path, "five", trained)], tmp_path / "out", FEW)
    some = run_folder(tmp_path, "six", [*trained[:4], *rows[4:]])  # an evaluation on a table without splits
    with caplog.at_level(logging.INFO):
        study = studies.compare_runs([one, some], tmp_path / "out", FEW, overwrite=True)
    assert len(study.judged[0].answers) == 56
    assert "predictions.csv: 4 of 60 slides took part in training, and are left out" in caplog.text


def test_evaluating_says_who_was_trained_on_and_agrees_with_training(
    tmp_path: Path, trained_model: TrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    labels, folders, model = trained_model()
    with caplog.at_level(logging.WARNING):
        study = studies.evaluate_model(model, labels, folders, studies.Asked(device="cpu"), FEW, PeerOptions())
    assert "16 of 24 patients took part in training" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        asked = studies.Asked("test", device="cpu")
        with pytest.raises(ArtifactStale, match=r"cohort was \w+, now \w+; .*; split was none, now test\. Add --ov"):
            studies.evaluate_model(model, labels, folders, asked, FEW, PeerOptions())
        assert len(read_predictions(tmp_path / "evaluation" / "predictions.csv")[0]) == 24  # nothing is taken away
        asked = replace(asked, overwrite=True)
        study = studies.evaluate_model(model, labels, folders, asked, FEW, PeerOptions())
    assert "took part in training" not in caplog.text
    rows, _, _ = read_predictions(tmp_path / "evaluation" / "predictions.csv")
    told, _, _ = read_predictions(tmp_path / "model" / "predictions.csv")
    wanted = {row.slide_id: row for row in told if row.split == "test"}
    for row in rows:
        assert row.probabilities == pytest.approx(wanted[row.slide_id].probabilities, abs=1e-12)
    assert [row.predicted for row in rows] == [wanted[row.slide_id].predicted for row in rows]
    assert len(study.judged[0].answers) == 8
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {
        "metrics.csv", "predictions.csv", "reliability.csv", "report.html", "study.json",
    }  # fmt: skip
    before = {path.name: path.read_bytes() for path in (tmp_path / "evaluation").iterdir()}
    studies.evaluate_model(model, labels, folders, replace(asked, overwrite=False), FEW, PeerOptions())  # the very same
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "evaluation").iterdir()}
    with pytest.raises(ArtifactStale, match="resampling was"):
        studies.evaluate_model(model, labels, folders, studies.Asked("test"), Resampling(1, 100), PeerOptions())
    with pytest.raises(TableError, match="--split val"):
        studies.evaluate_model(model, labels, folders, studies.Asked("val"), FEW, PeerOptions())


def test_a_folder_of_several_runs_is_told_apart_from_one_run(tmp_path: Path) -> None:
    for name in ("abmil", "mean"):
        (tmp_path / "crossval" / name).mkdir(parents=True)
        (tmp_path / "crossval" / name / CHECKPOINT).touch()
    with pytest.raises(
        ArtifactMissing, match=r"holds runs and is none itself: name one with --model: \S+/abmil, \S+/mean$"
    ):
        workflow.checkpoint_at(tmp_path / "crossval")
    with pytest.raises(ArtifactMissing, match="train a model with"):
        workflow.checkpoint_at(tmp_path / "nowhere")


def test_labels_that_the_model_was_not_taught_are_refused(tmp_path: Path, trained_model: TrainedModel) -> None:
    labels, folders, model = trained_model()
    labels.path.write_text(labels.path.read_text().replace("s00,neg", "s00,other"))
    with pytest.raises(TableError, match="row 2: label other is none of the classes neg, pos"):
        studies.evaluate_model(model, labels, folders, studies.Asked(), FEW, PeerOptions())


def test_figures_tell_bags_apart_whose_probabilities_are_rounded_to_one(tmp_path: Path) -> None:
    """As they come back from a table of predictions."""
    logits = [0.0, 39.0, 38.0, 5.0, 60.0, 45.0]
    shares = [(math.exp(-own) / (1 + math.exp(-own)), 1 / (1 + math.exp(-own))) for own in logits]
    assert [share[1] for share in shares].count(1.0) == 4
    rows = [
        Prediction(f"s{at}", "done", share, 9, "ab"[at // 3], predicted="b", patient_id=f"p{at}")
        for at, share in enumerate(shares)
    ]
    write_predictions(tmp_path / "predictions.csv", rows, ("a", "b"), "model")
    found = judge("one", Answers.of(read_predictions(tmp_path / "predictions.csv")[0], ("a", "b")), FEW)
    assert found.figures["AUROC"].value == found.figures["pooled AUROC"].value == pytest.approx(7 / 9)
    both = compare([found, found], FEW)
    assert both[0].difference.value == 0.0


def test_what_has_no_interval_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    few = answers(0, 1.0, count=8)
    lonely = replace(few, folds=tuple(str(index // 2) for index in range(8)))
    judge("abmil", lonely, FEW)
    told = [message for message in caplog.messages if message.startswith("no interval of ")]
    assert len(told) == len(set(told))
    assert not any("the figure" in message for message in told)
    assert any(message.startswith("no interval of AUROC of abmil: it is not defined on ") for message in told)
