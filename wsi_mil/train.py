"""Stage 4: cohort + bags -> checkpoint.

`fit` reads, trains and returns; `publish` writes, the checkpoint last, so that its existence means a whole training.
Early stopping, and the choice of the epoch that is kept, look at the validation patients only; the length scales of
the distances and the statistics of the features come from the training patients only.
"""

import csv
import dataclasses
import functools
import logging
import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from wsi_mil import checkpoint, distances, learning, metrics, publishing, store
from wsi_mil.aggregators import Aggregator, build_outputs, infer, params_of
from wsi_mil.aggregators.das_mil import FARTHEST_QUANTILE, length_scales
from wsi_mil.calibration import Calibration, applied, calibrated, doubts
from wsi_mil.checkpoint import Checkpoint, Part, Recipe, patient_hash
from wsi_mil.cohort import Cohort, Member, Unit, split
from wsi_mil.domain import Domain
from wsi_mil.errors import ArtifactStale, TrainingError
from wsi_mil.guards import parse_json
from wsi_mil.learning import Epoch, RunParams
from wsi_mil.predictions import TABLE, Prediction, write_predictions
from wsi_mil.stage import Item, artifact_path
from wsi_mil.tasks import Classification
from wsi_mil.tile_distances import TileDistances
from wsi_mil.train_params import TrainParams, differences, named
from wsi_mil.training_bags import (
    Bags,
    UnitExamples,
    feature_statistics,
    require_memory,
    require_one_recipe,
    slide_facts_of,
)

log = logging.getLogger(__name__)

CHECKPOINT, CARD = "checkpoint.safetensors", "model_card.md"
_TILES_WORTH_THREADS = 1000
_IN_MEMORY = RunParams()


@dataclass(frozen=True)
class Trained:
    """A finished training, in memory."""

    checkpoint: Checkpoint
    cohort: Cohort
    history: tuple[Epoch, ...]
    predictions: tuple[Prediction, ...]
    """Of every member of the cohort: train, val and test."""

    def auroc(self, part: str) -> float:
        """AUROC over one split; nan where the split is empty or has a single class."""
        rows = [row for row in self.predictions if row.split == part]
        if not rows:
            return math.nan
        targets = np.array([self.checkpoint.classes.index(row.label) for row in rows])
        return metrics.auroc(targets, metrics.by_log_odds(np.array([row.probabilities for row in rows])))


def fingerprint(cohort: Cohort, folder: Path, params: TrainParams) -> str:
    """Hash of everything that decides a training: parameters, cohort and bags."""
    prints = [_print(folder, member) for member in cohort.members]
    return store.fingerprint("train", 4, dataclasses.asdict(params), " ".join([cohort.digest, *prints]))


def _print(folder: Path, member: Member) -> str:
    return store.read_fingerprint(artifact_path(folder, member.slide_id))


def is_finished(out: Path, print_: str, params: TrainParams, overwrite: bool = False) -> bool:
    """Tell whether ``out`` already holds this very training.

    Raises:
        ArtifactStale: it holds another one, and overwriting was not asked for.
    """
    path = out / CHECKPOINT
    if overwrite or not path.exists():
        return False
    training = checkpoint.load(path).training
    if training["fingerprint"] == print_:
        return True
    if "learn" not in training["params"]:
        raise ArtifactStale(f"{path} holds the models of a cross-validation: give another --out")
    why = "; ".join(differences(training, params).values())
    why = why or "the labels, the features or the version of wsimil have changed"
    raise ArtifactStale(
        f"{path} was trained otherwise: {why}. Add --overwrite to replace it, or --out for another folder"
    )


def fit(
    cohort: Cohort,
    folder: Path,
    params: TrainParams,
    distances_folder: Path,
    device: torch.device,
    run: RunParams = _IN_MEMORY,
) -> Trained:
    """Train an aggregator.

    Args:
        cohort: labelled slides; where no split is given, one is drawn.
        folder: where the bags lie.
        params: how to train.
        distances_folder: where the artifacts of `wsimil distances` lie; what is absent or damaged there is
            made; where those of other features lie, they are counted anew in memory and nothing is written.
        device: where to train.
        run: how to go about it; ``run.folder`` is where an interrupted training is gone on with.

    Raises:
        IncompatibleError: the bags were not all made in the same way.
        TrainingError: the loss is not finite, or the largest bag will not fit into memory.
        ArtifactStale: another training was interrupted in ``run.folder``.
    """
    print_ = fingerprint(cohort, folder, params)
    run = dataclasses.replace(run, fingerprint=print_, options=named(params))
    cohort = split(cohort, params.val_fraction, params.learn.seed)
    bags = Bags(folder, cohort.units, learning.processes_here(run.devices))
    require_one_recipe(bags)
    pairs = functools.cache(lambda: _pairs(cohort, folder, distances_folder))
    options = dict(params.options)
    if _wants_length_scales(params):
        options["length_scales_um"] = _length_scales(pairs(), params)
    train, val = (UnitExamples(bags, _units(cohort, part), cohort.classes) for part in ("train", "val"))
    task = Classification.balanced(cohort.classes, train.targets)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(params.learn.seed)
        model = build_outputs(params.aggregator, bags.dim, task.outputs, **options)
        statistics = feature_statistics(example.bag for example in train)
        model.fit_features(statistics.mean, statistics.std)
        model.to(device)
        require_memory(model, bags, train.units, params.learn.max_tiles, run.devices)
        with _threads_for(statistics.tiles / len(train)):
            history = learning.learn(model, task, train, val, params.learn, run)
            scores = np.stack([infer(model, bags[unit.bag_id]).probabilities for unit in cohort.units])
    targets = np.array([cohort.classes.index(unit.label) for unit in cohort.units])
    val_rows = np.array([unit.split == "val" for unit in cohort.units])
    calibration = calibrated(targets[val_rows], scores[val_rows], _shares(train.targets, task.outputs))
    training = _facts(cohort, folder, params, print_, history)
    if model.uses_position != "none" and pairs().sum():
        training["distances"] = TileDistances.of(pairs(), distances.BIN_UM).record()
    made = _checkpoint(model, cohort, store.read_attrs(bags.first), training, calibration)
    made = dataclasses.replace(made, domain=Domain.of(slide_facts_of(bags, train.units + val.units)))
    rows = zip(cohort.units, applied(scores, calibration).tolist(), strict=True)
    predictions = tuple(_prediction(made, unit, row, bags.tiles(unit.bag_id)) for unit, row in rows)
    return Trained(made, cohort, tuple(history), predictions)


def _facts(cohort: Cohort, folder: Path, params: TrainParams, print_: str, history: list[Epoch]) -> dict[str, Any]:
    """What a checkpoint says of how it was trained."""
    learnt_from = [member for member in cohort.members if member.split in ("train", "val")]
    return {
        "params": dataclasses.asdict(params),
        "fingerprint": print_,
        "cohort": cohort.digest,
        "patients": sorted({patient_hash(member.patient_id) for member in learnt_from}),
        "trained_slides": sorted(patient_hash(member.slide_id) for member in learnt_from),
        "trained_features": sorted({patient_hash(_print(folder, member)) for member in learnt_from}),
        "val_patients": {
            name: len({m.patient_id for m in cohort.part("val") if m.label == name}) for name in cohort.classes
        },
        "label_shuffle": cohort.shuffled,
        "slides": dict(Counter(member.split for member in cohort.members)),
        "best": learning.best_epoch(history).row(),
        "versions": checkpoint.versions(),
    }


def _shares(targets: list[int], classes: int) -> tuple[float, ...]:
    """How frequent each class is; each the same where they all are, so that rounding changes nothing."""
    counts = np.bincount(targets, minlength=classes)
    return tuple((counts / counts.sum()).tolist())


def _units(cohort: Cohort, part: str) -> list[Unit]:
    return [unit for unit in cohort.units if unit.split == part]


def require_memory_for(
    cohort: Cohort, folder: Path, params: TrainParams, device: torch.device, devices: int = 1
) -> None:
    """Refuse a cohort some bag of which will not fit when its turn comes to be trained on, or to be tested.

    Raises:
        TrainingError: as `require_memory`.
    """
    bags = Bags(folder, cohort.units, learning.processes_here(devices))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        outputs = Classification(cohort.classes).outputs
        model = build_outputs(params.aggregator, bags.dim, outputs, **params.options).to(device)
    require_memory(model, bags, cohort.units, params.learn.max_tiles, devices)


def publish(trained: Trained, out: Path, files: dict[str, bytes]) -> Path:
    """Write a training into a folder: tables, given files, and last of all the checkpoint; return its path.

    What it would have been gone on with is removed.
    """
    (out / CHECKPOINT).unlink(missing_ok=True)  # from here on what lies here belongs to no whole training
    with publishing.replacing_text(out / "history.csv") as file:
        rows = [epoch.row() for epoch in trained.history]
        csv.writer(file).writerows([rows[0].keys(), *(row.values() for row in rows)])
    with publishing.replacing_text(out / "splits.csv") as file:
        csv.writer(file).writerows([Member._fields, *trained.cohort.members])
    write_predictions(out / TABLE, trained.predictions, trained.checkpoint.classes, "this")
    for name, data in files.items():
        publishing.write_bytes(out / name, data)
    checkpoint.save(out / CHECKPOINT, trained.checkpoint)
    learning.discard(out)
    made = trained.checkpoint
    if doubt := doubts(made.parts[0].temperature, made.training["val_patients"]):
        log.warning("%s: %s", out / CHECKPOINT, doubt)
    return out / CHECKPOINT


def _checkpoint(
    model: Aggregator, cohort: Cohort, attrs: dict[str, Any], training: dict[str, Any], calibration: Calibration
) -> Checkpoint:
    return Checkpoint(
        aggregator=training["params"]["aggregator"],
        parts=(Part(dataclasses.asdict(model.params), calibration.temperature, calibration.prior),),
        dim=model.dim,
        classes=cohort.classes,
        recipe=Recipe.of(attrs),
        encoder_weights=attrs["encoder_weights"],
        tile_params=parse_json(attrs["tile_params"]),
        extract_params=parse_json(attrs["params"]),
        training=training,
        state=model.state_dict(),
        threshold=calibration.threshold,
        unit=cohort.unit,
    )


def _wants_length_scales(params: TrainParams) -> bool:
    fields = {field.name for field in dataclasses.fields(params_of(params.aggregator, params.options))}
    return "length_scales_um" in fields and "length_scales_um" not in params.options


def _pairs(cohort: Cohort, folder: Path, distances_folder: Path) -> Int[np.ndarray, " _"]:
    """Pairs of tiles of the training patients by distance (`distances.histogram`)."""
    items = [Item(member.slide_id, artifact_path(folder, member.slide_id)) for member in cohort.part("train")]
    return distances.merge(distances.histograms(items, distances_folder))


def _length_scales(counts: Int[np.ndarray, " _"], params: TrainParams) -> tuple[float, ...]:
    """From one tile step to nearly the whole section, in equal ratios, as the training patients' tiles lie."""
    if not counts.sum():
        raise TrainingError(
            "no training slide has two tiles, so there is no distance to learn from: make smaller tiles by `wsimil tile"
            " --tile-um`, or give `wsimil train --option length_scales_um`"
        )
    nearest, farthest = (distances.quantile(counts, share) for share in (0.0, FARTHEST_QUANTILE))
    nearest = max(nearest, distances.BIN_UM)  # tiles may lie in one place, and no length is 0
    return length_scales(nearest, max(nearest, farthest), params_of(params.aggregator, params.options).heads)


@contextmanager
def _threads_for(tiles_per_bag: float) -> Generator[None]:
    """Let torch use one thread for small bags: more cost them more than they give, and tenfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if tiles_per_bag >= _TILES_WORTH_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prediction(made: Checkpoint, unit: Unit, probabilities: list[float], tiles: int) -> Prediction:
    # no fold: the table's folds are for cross-validation, which says itself which round tested a bag
    known: dict[str, Any] = {"label": unit.label, "split": unit.split, "patient_id": unit.patient_id}
    decided = made.decide(probabilities)
    return Prediction(unit.bag_id, "done", tuple(probabilities), tiles, predicted=decided, **known)
