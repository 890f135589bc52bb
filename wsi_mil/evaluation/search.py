"""Hyper-parameters tried on validation patients, by Optuna's tree-structured Parzen estimator (arXiv 1907.10902).

A trial is a whole training on the training part, judged by the lowest loss on the validation part: test patients have
no say. What is known to be sensible is tried first.
"""

import csv
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from wsi_mil import publishing, store, train
from wsi_mil.aggregators import params_of
from wsi_mil.changes import changes
from wsi_mil.cohort import Cohort
from wsi_mil.errors import ArtifactCorrupt, ArtifactStale, OptionError, TrainingError
from wsi_mil.guards import read_table_of_json
from wsi_mil.learning import RunParams, best_epoch
from wsi_mil.train import CHECKPOINT
from wsi_mil.train_params import TrainParams, named

log = logging.getLogger(__name__)

_ONE_DEVICE = RunParams()
_LR = (1e-4, 1e-2)
_DECAY = (1e-4, 1e-1)
_DROPOUT = (0.0, 0.5)
_TABLE = "search.json"


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
        ArtifactCorrupt: what lies there is damaged.
        ArtifactStale: another search lies there, or a round without one, and overwriting was not asked for.
        TrainingError: no trial could be trained.
    """
    print_ = store.fingerprint("search", 2, {"trials": trials}, train.fingerprint(cohort, feats, base))
    asked = {"fingerprint": print_, "options": {"search": trials} | named(base)}
    tried = _before(kept, asked)
    study: Any = _study(base, tried) if len(tried) < trials else None
    for number in range(len(tried), trials):
        # each trial from a seed of its own, so that a search that was interrupted finds what it would have found
        study.sampler = _optuna().samplers.TPESampler(seed=(base.learn.seed + number) % 2**32)
        tried.append(_try(study, lambda trial: _loss(cohort, feats, _drawn(base, trial), kept)))
        _keep(kept.out, asked, tried)
    trained = [trial for trial in tried if trial["val_loss"] is not None]
    if not trained:
        raise TrainingError(f"--search {trials}: no trial could be trained: see the messages above")
    best = min(trained, key=lambda trial: trial["val_loss"])
    log.info("of %d trials the best on validation: %s", trials, best)
    return _changed(base, best)


def _before(kept: Kept, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials of this search that lie there; refuses what is of another, before anything is trained."""
    table = kept.out / _TABLE
    done = read_table_of_json(table, "delete it to search anew") if table.exists() else {}
    if done and not (isinstance(done.get("trials"), list) and isinstance(done.get("options", {}), dict)):
        raise ArtifactCorrupt(f"{table} is damaged (it holds no trials, or no options): delete it to search anew")
    if done.get("fingerprint") == asked["fingerprint"]:
        return list(done["trials"])
    if kept.overwrite:
        return []
    if done:
        raise ArtifactStale(
            f"{table} is of another search: {_why_otherwise(done, asked)}. Add --overwrite to replace it, or --out"
            " for another folder"
        )
    if (kept.out / CHECKPOINT).exists():
        raise ArtifactStale(
            f"{kept.out} was trained without --search: add --overwrite to replace it, or --out for another folder"
        )
    return []


def _why_otherwise(done: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    if "options" not in done:  # older ones do not tell
        return (
            f"it is of {len(done['trials'])} trials, and the options, the labels, the folds or the features were others"
        )
    changed = changes(done["options"], asked["options"])
    if changed.pop("seed", ""):
        changed["seed"] = "seed was another"  # that of a round tells nobody anything
    return "; ".join(changed.values()) or "the labels, the folds, the features or the version of wsimil have changed"


def _keep(out: Path, asked: Mapping[str, Any], tried: list[dict[str, Any]]) -> None:
    with publishing.replacing_text(out / "search.csv") as file:
        writer = csv.DictWriter(file, list(tried[0]))
        writer.writeheader()
        writer.writerows(tried)
    with publishing.replacing_text(out / _TABLE) as file:
        json.dump({**asked, "trials": tried}, file, indent=1)


def _optuna() -> Any:
    """The package Optuna.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise OptionError("--search needs Optuna: pip install 'wsi-mil[search]'") from error
    return optuna


def _study(base: TrainParams, tried: Sequence[Mapping[str, Any]]) -> Any:
    """A study that knows the trials of before; without any, what is known to be sensible comes first."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    if not tried:
        study.enqueue_trial({name: value for name, value in _now(base).items() if _within(name, value)})
    ranges = {name: _range(name) for name in _now(base)}
    states = optuna.trial.TrialState
    for trial in tried:
        params, loss = {name: trial[name] for name in ranges}, trial["val_loss"]
        state = states.FAIL if loss is None else states.COMPLETE
        study.add_trial(optuna.trial.create_trial(state=state, params=params, distributions=ranges, value=loss))
    return study


def _range(name: str) -> Any:
    return _optuna().distributions.FloatDistribution(*_RANGES[name], log=name not in _LINEAR)


def _try(study: Any, loss_of: Callable[[Any], float]) -> dict[str, Any]:
    """Run one trial. A learning rate that is too high for a model is a bad trial, and not the end of the search."""
    trial = study.ask()
    try:
        loss: float | None = loss_of(trial)
        study.tell(trial, loss)
    except TrainingError as error:
        log.warning("a trial could not be trained: %s", error)
        loss = None
        study.tell(trial, state=_optuna().trial.TrialState.FAIL)
    return {**trial.params, "val_loss": loss}


def _now(base: TrainParams) -> dict[str, float]:
    """What is searched, as it stands."""
    found = {"lr": base.learn.lr, "weight_decay": base.learn.weight_decay}
    dropout = getattr(params_of(base.aggregator, base.options), "dropout", None)
    return found if dropout is None or "dropout" in base.options else found | {"dropout": dropout}


def _within(name: str, value: float) -> bool:
    low, high = _RANGES[name]
    return low <= value <= high


_RANGES = {"lr": _LR, "weight_decay": _DECAY, "dropout": _DROPOUT}
_LINEAR = ("dropout",)


def _drawn(base: TrainParams, trial: Any) -> TrainParams:
    drawn = {name: trial.suggest_float(name, *_RANGES[name], log=name not in _LINEAR) for name in _now(base)}
    return _changed(base, drawn)


def _changed(base: TrainParams, drawn: dict[str, float]) -> TrainParams:
    learn = replace(base.learn, lr=drawn["lr"], weight_decay=drawn["weight_decay"])
    options = base.options | ({"dropout": drawn["dropout"]} if "dropout" in drawn else {})
    return replace(base, learn=learn, options=options)


def _loss(cohort: Cohort, feats: Path, params: TrainParams, kept: Kept) -> float:
    history = train.fit(cohort, feats, params, kept.distances, kept.device, kept.run).history
    return best_epoch(history).val_loss
