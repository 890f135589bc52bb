"""Cross-validation, nested by construction.

Every round tests on patients that had no part in it: the weights are learnt on some of the others, and whatever else is
chosen (epoch, hyper-parameters, temperature, threshold) is chosen on the rest of them. Each round is a training of its
own, published in its own folder, so that an interrupted cross-validation goes on where it stopped.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from wsi_mil import checkpoint, store, train
from wsi_mil.aggregators import aggregator_class
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import Cohort, draw_folds, nested, shuffled_labels
from wsi_mil.errors import ArtifactStale, OptionError, TableError
from wsi_mil.evaluation.patients import PATIENTS, by_patient
from wsi_mil.evaluation.record import REPORT
from wsi_mil.evaluation.rounds import PREFIX, refuse_leftover, remove_leftover, why_otherwise
from wsi_mil.evaluation.search import Kept, search
from wsi_mil.evaluation.study import TABLES
from wsi_mil.explain import DISTANCE_FILES
from wsi_mil.learning import RunParams
from wsi_mil.predictions import TABLE, Prediction, read_predictions, write_predictions
from wsi_mil.tile_distances import TileDistances, merged
from wsi_mil.train import CARD, CHECKPOINT
from wsi_mil.train_params import TrainParams

log = logging.getLogger(__name__)

_ONE_DEVICE = RunParams()


@dataclass(frozen=True)
class CrossvalParams:
    """Everything that decides a cross-validation, beside the data."""

    train: TrainParams = field(default_factory=TrainParams)
    """How each model is trained; its aggregator is the first of ``aggregators``."""
    aggregators: tuple[str, ...] = ("das-mil",)
    """The models to judge, all on the same folds."""
    folds: int | None = None
    """How many rounds; 0 = as many as the column ``fold`` of the table names; None = as `draw_folds` has it."""
    by_site: bool = False
    """Whether all patients of a site are tested in one round."""
    label_shuffle: bool = False
    """Whether labels are dealt anew among the patients first: a sound protocol then finds nothing."""
    trials: int = 0
    """Hyper-parameters to try in each round, on its validation patients; 0 = none."""

    def __post_init__(self) -> None:
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            raise OptionError(f"--folds {self.folds}: give at least 2, or 0 for the table's column fold")
        if self.trials < 0:
            raise OptionError(f"--search {self.trials}: give a number of trials, 0 for none")
        if len(set(self.aggregators)) < len(self.aggregators) or not self.aggregators:
            raise OptionError(f"--aggregator {' --aggregator '.join(self.aggregators)}: name each model once")
        for key in self.train.options:
            if not any(key in _known(name) for name in self.aggregators):
                raise OptionError(f"--option {key}: none of {', '.join(self.aggregators)} has such an option")
        for name in self.aggregators:
            self.of(name)

    def of(self, aggregator: str) -> TrainParams:
        """How one of the models is trained: with those of the options that it has."""
        known = _known(aggregator)
        options = {key: value for key, value in self.train.options.items() if key in known}
        return replace(self.train, aggregator=aggregator, options=options)

    def of_round(self, aggregator: str, fold: str) -> TrainParams:
        """How one of the models is trained in one round: from a seed of its own."""
        base = self.of(aggregator)
        return replace(base, learn=replace(base.learn, seed=round_seed(base.learn.seed, fold)))


class Validated(NamedTuple):
    """One model, judged on every patient by a round that knew nothing of them."""

    aggregator: str
    rows: list[Prediction]
    """Predictions of every bag by the round that tested it, in the order of the table."""
    ensemble: Checkpoint
    """The models of all rounds together."""
    patients: list[Prediction]
    """Likewise of every patient (`by_patient`); none where no patient has several bags."""


class Place(NamedTuple):
    """Where a cross-validation reads and writes."""

    feats: Path
    distances: Path
    out: Path
    overwrite: bool = False
    """Replace rounds that were trained otherwise, and remove those of other folds."""


def folded(cohort: Cohort, params: CrossvalParams) -> Cohort:
    """The cohort with its folds drawn, and its labels dealt anew where that is asked for."""
    seed = params.train.learn.seed
    if params.label_shuffle:
        cohort = shuffled_labels(cohort, seed)
    return draw_folds(cohort, params.folds, seed, params.by_site)


def round_seed(seed: int, fold: str) -> int:
    """The seed of one round: its initial weights, orders and dropout are its own, and the same for every model.

    Rounds of one seed would all share the luck of one start. The seed and the name of the fold decide it, so that a
    round can be trained again alone.
    """
    return int(np.random.SeedSequence([seed, *fold.encode()]).generate_state(1)[0])


def crossval(
    cohort: Cohort, place: Place, params: CrossvalParams, device: torch.device, run: RunParams = _ONE_DEVICE
) -> Iterator[Validated]:
    """Judge each model on every patient.

    Args:
        cohort: labelled slides with folds (`folded`).
        place: where features lie and results go: ``<out>/<aggregator>/fold-<k>/`` is one training, beside them lie
            ``predictions.csv``, of each bag by the round that tested it, ``patients.csv``, of each patient where some
            have several bags, and ``checkpoint.safetensors``, all rounds.
        params: how to go about it.
        device: where to train.
        run: how many devices share a round; its folder is that of the round.

    Raises:
        OptionError: torchrun started it.
        ArtifactStale: a round was trained otherwise, or there are some of other folds, and overwriting was not asked
            for.
        TableError: some round would lack a class.
        TrainingError: some bag will not fit into memory.
    """
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        raise OptionError(
            "crossval starts its own processes: start it without torchrun, and several GPUs share a round by --devices"
        )
    rounds = cohort.folds
    _require_folders(rounds)
    cohorts = [nested(cohort, fold, params.train.val_fraction, params.train.learn.seed) for fold in rounds]
    for aggregator in params.aggregators:  # before the first round of the first: the largest bag may be of a later one
        if place.overwrite or not (place.out / aggregator / TABLE).exists():
            train.require_memory_for(cohort, place.feats, params.of(aggregator), device, run.devices)
    for aggregator in params.aggregators if not place.overwrite else ():
        refuse_leftover(place.out / aggregator, rounds)
    for aggregator in params.aggregators:
        out = place.out / aggregator
        made = {}
        for fold, inner in zip(rounds, cohorts, strict=True):
            log.info("%s, round %s of %d", aggregator, fold, len(rounds))
            where = place._replace(out=out / f"{PREFIX}{fold}")
            made[fold] = _round(inner, where, params.of_round(aggregator, fold), params, device, run)
        remove_leftover(out, rounds)  # not before all of these are there
        yield _published(aggregator, cohort, made, out, params)


def _require_folders(folds: Sequence[str]) -> None:
    """Refuse names of folds that make no folders, or one folder for two."""
    for fold in folds:
        if not re.fullmatch(r"\w[\w.-]*", fold):
            raise TableError(f"fold {fold!r} in the table of labels: use letters, digits, dots and hyphens only")
    if len({fold.lower() for fold in folds}) < len(folds):
        raise TableError(f"folds {', '.join(folds)} differ by case only: name them otherwise")


def _round(
    cohort: Cohort, place: Place, base: TrainParams, params: CrossvalParams, device: torch.device, run: RunParams
) -> Path:
    """The folder of one round, trained now unless it was before."""
    chosen = base
    if params.trials:
        kept = Kept(place.distances, place.out, device, place.overwrite, run)
        chosen = search(cohort, place.feats, base, params.trials, kept)
    print_ = train.fingerprint(cohort, place.feats, chosen)
    if not _is_finished(place, print_, cohort, chosen, params):
        _discard_whole(place.out.parent, place.overwrite)
        run = replace(run, folder=place.out, overwrite=place.overwrite)
        train.publish(train.fit(cohort, place.feats, chosen, place.distances, device, run), place.out, {})
    return place.out


def _discard_whole(out: Path, overwritten: bool) -> None:
    """Until all rounds are there, nothing stands for them, nor for rounds that are overwritten."""
    for name in (*TABLES, REPORT) if overwritten else ():
        (out.parent / name).unlink(missing_ok=True)
    for name in (CHECKPOINT, TABLE, PATIENTS, CARD, *DISTANCE_FILES):
        (out / name).unlink(missing_ok=True)


def _is_finished(place: Place, print_: str, cohort: Cohort, chosen: TrainParams, params: CrossvalParams) -> bool:
    try:
        return train.is_finished(place.out, print_, chosen)
    except ArtifactStale as error:
        if place.overwrite:
            return False
        training = checkpoint.load(place.out / CHECKPOINT).training
        if "learn" not in training["params"]:  # no round at all
            raise
        before, remedy = training.get("label_shuffle", False), "or add --overwrite to replace it"
        if before == params.label_shuffle:
            why = why_otherwise(place.out, cohort, chosen, params)
            raise ArtifactStale(f"{place.out} was trained otherwise: {why}. Give another --out, {remedy}") from error
        had, has = ("were dealt anew", "are as in the table") if before else ("were as in the table", "are dealt anew")
        raise ArtifactStale(
            f"{place.out} was trained otherwise: labels {had} (--label-shuffle), and now {has}. Keep the two apart by"
            f" --out, {remedy}"
        ) from error


def _published(
    aggregator: str, cohort: Cohort, rounds: dict[str, Path], out: Path, params: CrossvalParams
) -> Validated:
    """Put the rounds together, as they lie on disk: in one run or in several, the same bytes come of it."""
    model_of = {fold: checkpoint.load(path / CHECKPOINT) for fold, path in rounds.items()}
    models = list(model_of.values())
    tested: dict[str, Prediction] = {}
    for fold, path in rounds.items():
        rows, _, _ = read_predictions(path / TABLE)
        tested |= {row.slide_id: row._replace(fold=fold) for row in rows if row.split == "test"}
    prints = " ".join(made.training["fingerprint"] for made in models)
    training = {
        "params": asdict(params),
        "fingerprint": store.fingerprint("crossval", 1, asdict(params), prints),
        "cohort": cohort.digest,
        "patients": sorted({patient for made in models for patient in made.training["patients"]}),
        "trained_slides": sorted({slide for made in models for slide in made.training["trained_slides"]}),
        "trained_features": sorted({one for made in models for one in made.training.get("trained_features", ())}),
        "slides": {"cross-validated": len(cohort.members)},
        "rounds": [made.training for made in models],
        "versions": checkpoint.versions(),
    }
    if (distances := merged(TileDistances.recorded(made.training) for made in models)) is not None:
        training["distances"] = distances.record()
    whole = checkpoint.ensemble(models, training)
    rows = [tested[unit.bag_id] for unit in cohort.units]
    write_predictions(out / TABLE, rows, whole.classes, "cross-validation")
    if patients := by_patient(rows, lambda row: model_of[row.fold].decide(row.probabilities)):
        write_predictions(out / PATIENTS, patients, whole.classes, "cross-validation")
    if not params.label_shuffle:  # a model of labels that were dealt anew is of no use, and could be mistaken for one
        checkpoint.save(out / CHECKPOINT, whole)
    return Validated(aggregator, rows, whole, patients)


def _known(aggregator: str) -> set[str]:
    """The options that a model has."""
    return {field.name for field in fields(aggregator_class(aggregator).Params)}
