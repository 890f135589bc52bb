"""Hyper-parameters tried on validation patients, by Optuna's tree-structured Parzen estimator (arXiv 1907.10902).

A trial is a whole training on the training part, judged by the lowest loss on the validation part: test patients have
no say. What is known to be sensible is tried first.
"""

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from wsi_mil import publishing, store, train
from wsi_mil.aggregators import params_of
from wsi_mil.cohort import Cohort
from wsi_mil.errors import ArtifactStale, OptionError, TrainingError
from wsi_mil.guards import read_table_of_json
from wsi_mil.learning import RunParams, best_epoch
from wsi_mil.train import TrainParams

log = logging.getLogger(__name__)

_ONE_DEVICE = RunParams()
_LR = (1e-4, 1e-2)
_DECAY = (1e-4, 1e-1)
_DROPOUT = (0.0, 0.5)


class Kept(NamedTuple):
    """Where distances lie, where the trials are kept, and where and how they run."""

    distances: Path
    out: Path
    device: torch.device
    overwrite: bool = False
    """Replace another search."""
    run: RunParams = _ONE_DEVICE
    """How many devices share a trial."""


def search(cohort: Cohort, feats: Path, base: TrainParams, trials: int, kept: Kept) -> TrainParams:
    """Choose learning rate, weight decay and (where the model has one) dropout.

    Args:
        cohort: with its train and val split drawn.
        feats: where the bags lie.
        base: what is tried first, and what all trials share.
        trials: how many.
        kept: ``<out>/search.csv`` lists the trials; those that lie there of the same search are not run again.

    Returns:
        The parameters of the trial of lowest validation loss.

    Raises:
        ArtifactStale: another search lies there, and overwriting was not asked for.
        TrainingError: no trial could be trained.
    """
    print_ = store.fingerprint("search", 1, {"trials": trials}, train.fingerprint(cohort, feats, base))
    table = kept.out / "search.json"
    done: dict[str, Any] = read_table_of_json(table, "delete it to search anew") if table.exists() else {}
    if done.get("fingerprint") != print_:
        if done and not kept.overwrite:
            raise ArtifactStale(
                f"{table} is of another search ({len(done['trials'])} trials): add --overwrite to replace it, or --out"
                " for another folder"
            )
        study = _study(base, trials)
        # a learning rate that is too high for a model is a bad trial, and not the end of the search
        study.optimize(
            lambda trial: _loss(cohort, feats, _drawn(base, trial), kept), n_trials=trials, catch=(TrainingError,)
        )
        if all(trial.value is None for trial in study.trials):
            raise TrainingError(f"--search {trials}: no trial could be trained: see the messages above")
        tried = [{**trial.params, "val_loss": trial.value} for trial in study.trials]
        done = {"fingerprint": print_, "best": study.best_params, "trials": tried}
        with publishing.replacing_text(kept.out / "search.csv") as file:
            writer = csv.DictWriter(file, list(tried[0]))
            writer.writeheader()
            writer.writerows(tried)
        with publishing.replacing_text(table) as file:
            json.dump(done, file, indent=1)
    log.info("of %d trials the best on validation: %s", trials, done["best"])
    return _changed(base, done["best"])


def _study(base: TrainParams, trials: int) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise OptionError(f"--search {trials} needs Optuna: pip install 'wsi-mil[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=base.learn.seed))
    study.enqueue_trial({name: value for name, value in _now(base).items() if _within(name, value)})
    return study


def _now(base: TrainParams) -> dict[str, float]:
    """What is searched, as it stands."""
    found = {"lr": base.learn.lr, "weight_decay": base.learn.weight_decay}
    dropout = getattr(params_of(base.aggregator, base.options), "dropout", None)
    return found if dropout is None or "dropout" in base.options else found | {"dropout": dropout}


def _within(name: str, value: float) -> bool:
    low, high = _RANGES[name]
    return low <= value <= high


_RANGES = {"lr": _LR, "weight_decay": _DECAY, "dropout": _DROPOUT}


def _drawn(base: TrainParams, trial: Any) -> TrainParams:
    drawn = {name: trial.suggest_float(name, *_RANGES[name], log=name != "dropout") for name in _now(base)}
    return _changed(base, drawn)


def _changed(base: TrainParams, drawn: dict[str, float]) -> TrainParams:
    learn = replace(base.learn, lr=drawn["lr"], weight_decay=drawn["weight_decay"])
    options = base.options | ({"dropout": drawn["dropout"]} if "dropout" in drawn else {})
    return replace(base, learn=learn, options=options)


def _loss(cohort: Cohort, feats: Path, params: TrainParams, kept: Kept) -> float:
    history = train.fit(cohort, feats, params, kept.distances, kept.device, kept.run).history
    return best_epoch(history).val_loss
