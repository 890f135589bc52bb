"""Rounds that lie in the folder of a cross-validation: which are of another one, and what was otherwise then."""

import csv
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_mil import checkpoint, publishing
from wsi_mil.changes import changes
from wsi_mil.cohort import Cohort, some_names
from wsi_mil.errors import ArtifactStale, WsiMilError
from wsi_mil.learning import RESUME
from wsi_mil.train import CHECKPOINT
from wsi_mil.train_params import TrainParams, differences

if TYPE_CHECKING:
    from wsi_mil.evaluation.crossval import CrossvalParams

log = logging.getLogger(__name__)

PREFIX = "fold-"
_OWN = ("folds", "by_site", "trials")
"""What a cross-validation has besides the training of its rounds, as far as it decides one."""


def leftover(out: Path, folds: Sequence[str]) -> list[Path]:
    """Rounds of ours, finished or interrupted, that a cross-validation of these folds does not have."""
    kept = {f"{PREFIX}{fold}".lower() for fold in folds}  # some disks tell no case apart
    return [path for path in sorted(out.glob(f"{PREFIX}*")) if path.name.lower() not in kept and _is_round(path)]


def _is_round(path: Path) -> bool:
    """Whether a folder is a round under its own name, and no copy of one that somebody keeps."""
    if (path / CHECKPOINT).is_file():
        return path.name.removeprefix(PREFIX) in _folds_in(path)
    return (path / RESUME).is_file() and all(one.name == RESUME or one.name.startswith(".") for one in path.iterdir())


def refuse_leftover(out: Path, folds: Sequence[str]) -> None:
    """Refuse rounds that nobody could tell from those of this cross-validation later.

    Raises:
        ArtifactStale: names them.
    """
    if others := leftover(out, folds):
        before = _folds_in(others[0])
        of = f"of a cross-validation with the folds {some_names(before)}" if before else "of another cross-validation"
        names = ", ".join(path.name for path in others)
        raise ArtifactStale(
            f"{out} holds {names} {of}, and this one has {some_names(list(folds))}: add --overwrite to remove them, or"
            " give another --out"
        )


def remove_leftover(out: Path, folds: Sequence[str]) -> None:
    """Remove the rounds that this cross-validation does not have, as --overwrite says."""
    if others := leftover(out, folds):
        for path in others:
            publishing.remove(path)
        log.info("%s: removed rounds of another cross-validation: %s", out, ", ".join(path.name for path in others))


def why_otherwise(folder: Path, cohort: Cohort, chosen: TrainParams, params: "CrossvalParams") -> str:
    """What was otherwise when the round in a folder was trained.

    The seed of a round tells nobody anything, so it is that of the whole that is named, where that is known.

    Args:
        folder: of the round.
        cohort: that of this round now.
        chosen: how it would be trained now.
        params: those of the cross-validation now.
    """
    training = checkpoint.load(folder / CHECKPOINT).training
    changed = differences(training, chosen)
    if changed.pop("seed", ""):
        changed["seed"] = "seed was another"
    before = _of_the_whole(folder.parent)
    now: dict[str, Any] = {name: getattr(params, name) for name in _OWN} | {"seed": params.train.learn.seed}
    now["folds"] = len(cohort.folds)
    if not before and (count := len(_folds_in(folder))):
        before, now = {"folds": count}, {"folds": len(cohort.folds)}
    changed |= changes(before, {name: now[name] for name in before})
    if changed:
        return "; ".join(changed.values())
    if training["cohort"] != cohort.digest:
        return "the labels, or who is in which fold, have changed"
    return "the features or the version of wsimil have changed"


def _of_the_whole(out: Path) -> dict[str, Any]:
    """What the finished cross-validation in a folder was asked for; nothing where there is none."""
    with suppress(WsiMilError, OSError, KeyError, TypeError):
        made = checkpoint.load(out / CHECKPOINT)
        asked = made.training["params"]
        before = {name: asked[name] for name in _OWN} | {"seed": asked["train"]["learn"]["seed"]}
        return before | {"folds": len(made.parts)}  # as asked for it is 0 where the table named them
    return {}


def _folds_in(folder: Path) -> list[str]:
    """The folds that there were when a round was trained; none where it does not tell."""
    with suppress(OSError, ValueError, KeyError, csv.Error), (folder / "splits.csv").open(encoding="utf-8") as file:
        return sorted({row["fold"] for row in csv.DictReader(file)} - {""})
    return []
