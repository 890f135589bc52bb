"""Figures of merit of one model's answers, each with its interval over patients."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from wsi_mil import metrics
from wsi_mil.evaluation.answers import Answers
from wsi_mil.metrics import Interval, Resampling


class Arrays(NamedTuple):
    """Of `Answers`, what figures are computed from."""

    labels: Int[np.ndarray, " bags"]
    scores: Float64[np.ndarray, "bags classes"]
    order: Float64[np.ndarray, "bags classes"]
    """What orders the bags by each class (`metrics.by_log_odds`)."""
    predicted: Int[np.ndarray, " bags"]
    folds: Int[np.ndarray, " bags"]

    @classmethod
    def of(cls, answers: Answers) -> "Arrays":
        """Those of some answers."""
        _, folds = np.unique(answers.folds, return_inverse=True)
        return cls(answers.labels, answers.scores, metrics.by_log_odds(answers.scores), answers.predicted, folds)

    def at(self, rows: Int[np.ndarray, " rows"]) -> "Arrays":
        """Those of some rows, with repeats."""
        return Arrays(*(column[rows] for column in self))


Figure = Callable[[Arrays], float]


def rounds(found: Arrays) -> list[float]:
    """AUROC within each round of cross-validation; nan where a round lacks a class."""
    inside = [found.folds == fold for fold in np.unique(found.folds)]
    return [metrics.auroc(found.labels[rows], found.order[rows]) for rows in inside]


def mean_auroc(found: Arrays) -> float:
    """AUROC within each round of cross-validation, averaged over the rounds (Forman and Scholz 2010).

    Scores of different models are on no common scale, so that a pair of patients from different rounds says nothing of
    either model. A round that lacks a class has no AUROC and does not count; without cross-validation there is one.
    """
    defined = [value for value in rounds(found) if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _pooled(figure: Callable[..., float], found: Arrays) -> float:
    return figure(found.labels, found.scores)


def _ordered(figure: Callable[..., float], found: Arrays) -> float:
    return figure(found.labels, found.order)


def _decided(figure: Callable[..., float], found: Arrays) -> float:
    return figure(found.labels, found.predicted, found.scores.shape[1])


def _of_two(figure: Callable[..., float], found: Arrays) -> float:
    return figure(found.labels, found.predicted) if found.scores.shape[1] == 2 else math.nan


def _ece_of_positive(found: Arrays) -> float:
    return metrics.ece(found.labels, found.scores, of=1) if found.scores.shape[1] == 2 else math.nan


def _balanced_accuracy(found: Arrays) -> float:
    """Undefined where a declared class is absent: the mean recall of the others is another figure."""
    absent = set(range(found.scores.shape[1])) - set(found.labels.tolist())
    return math.nan if absent else metrics.balanced_accuracy(found.labels, found.predicted)


FIGURES: Mapping[str, Figure] = {
    "AUROC": mean_auroc,
    "pooled AUROC": partial(_ordered, metrics.auroc),
    "AUPRC": partial(_ordered, metrics.auprc),
    "balanced accuracy": _balanced_accuracy,
    "accuracy": lambda found: metrics.accuracy(found.labels, found.predicted),
    "F1": partial(_decided, metrics.f1),
    "sensitivity": partial(_of_two, metrics.sensitivity),
    "specificity": partial(_of_two, metrics.specificity),
    "Brier": partial(_pooled, metrics.brier),
    "log loss": partial(_pooled, metrics.log_loss),
    "ECE": partial(_pooled, metrics.ece),
    "ECE of the positive class": _ece_of_positive,
}
"""Every figure of a classification. Those of decisions are at each model's own threshold; those that speak of a
positive class, the last of two, are nan where there are more."""
_PROPORTIONS = {"accuracy": None, "sensitivity": 1, "specificity": 0}
"""Figures that are a share of bags, with the class whose bags these are."""


class Group(NamedTuple):
    """Some of the bags, such as those of one site."""

    column: str
    value: str
    patients: int
    bags: int
    auroc: Interval
    accuracy: Interval
    """Balanced."""


@dataclass(frozen=True)
class Judged:
    """One model's answers with their figures."""

    name: str
    answers: Answers
    figures: Mapping[str, Interval]
    rounds: Mapping[str, float]
    """AUROC of each round of cross-validation."""
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    """What one should bear in mind, as whole sentences."""


def judge(name: str, answers: Answers, how: Resampling) -> Judged:
    """Compute every figure of a model's answers."""
    names = np.unique(answers.folds).tolist()
    figures = {figure: _with_limits(figure, answers, how, f" of {name}") for figure in FIGURES}
    return Judged(
        name=name,
        answers=answers,
        figures=figures,
        rounds=dict(zip(names, rounds(Arrays.of(answers)), strict=True)) if len(names) > 1 else {},
        groups=tuple(_groups(name, answers, how)),
        notes=(
            *_undefined_rounds(answers),
            *_alike(figures, answers),
            *metrics.small_sample_notes(answers.labels, answers.patients, answers.classes),
        ),
    )


def _alike(figures: Mapping[str, Interval], answers: Answers) -> Iterator[str]:
    """A word on figures without limits though there are patients to draw: all resamples are alike, or some lack it."""
    patients = np.asarray(answers.patients)
    if any(len(np.unique(patients[answers.labels == label])) < 2 for label in np.unique(answers.labels)):
        return  # which `small_sample_notes` tells
    names = [
        name
        for name, found in figures.items()
        if not name.startswith("ECE") and math.isfinite(found.value) and math.isnan(found.low)
    ]
    if names:
        exact = "" if _one_bag_each(answers) else "; an exact one asks for one bag a patient (train --unit patient)"
        yield (
            f"no interval of {', '.join(names)}, which does not make it certain: drawing patients anew gives always"
            f" the same, or sometimes nothing{exact}"
        )


def _one_bag_each(answers: Answers) -> bool:
    return answers.patient_count == len(answers)


def _undefined_rounds(answers: Answers) -> Iterator[str]:
    """A word on rounds that lack a class, so that their patients say nothing of AUROC."""
    found = Arrays.of(answers)
    undefined = np.isnan(np.array(rounds(found)))
    if len(undefined) > 1 and undefined.any():
        lost = len({answers.patients[row] for row in np.flatnonzero(undefined[found.folds])})
        yield (
            f"{int(undefined.sum())} of {len(undefined)} rounds tested no patient of some class: their {lost} patients"
            " do not count in AUROC, but do in pooled AUROC"
        )


def _with_limits(name: str, answers: Answers, how: Resampling, whose: str) -> Interval:
    """A figure with the limits that hold the truth most often (`docs/decisions.md`); the log says ``whose`` it is."""
    if name.startswith("ECE"):  # resamples are all further off than the sample, so that theirs say nothing
        return Interval(FIGURES[name](Arrays.of(answers)), math.nan, math.nan)
    two = len(answers.classes) == 2
    if name == "pooled AUROC" and two:
        order = metrics.by_log_odds(answers.scores)
        return metrics.delong_interval(answers.labels, order, answers.patients, how.level)
    if name == "AUROC" and two:
        return _auroc(answers, how, whose)
    if name in _PROPORTIONS and _one_bag_each(answers) and (two or name == "accuracy"):
        return _proportion(answers, _PROPORTIONS[name], how)
    return interval(FIGURES[name], answers, how, name + whose)


def _proportion(answers: Answers, label: int | None, how: Resampling) -> Interval:
    """The share of bags that were decided rightly, of one class or of all, where bags are patients."""
    chosen = np.ones(len(answers), dtype=bool) if label is None else answers.labels == label
    hits = int((answers.predicted[chosen] == answers.labels[chosen]).sum())
    return metrics.exact(hits, int(chosen.sum()), how.level)


def _auroc(answers: Answers, how: Resampling, whose: str) -> Interval:
    """AUROC of two classes: by DeLong's method where one model answered, by the bootstrap where each round has its own.

    Where every round is perfect, resamples are, too; what is known then is how many patients there are.
    """
    if len(set(answers.folds)) == 1:
        order = metrics.by_log_odds(answers.scores)
        return metrics.delong_interval(answers.labels, order, answers.patients, how.level)
    found = interval(mean_auroc, answers, how, f"AUROC{whose}")
    if found.value < 1 or not math.isnan(found.low):
        return found
    arrays = Arrays.of(answers)
    counted = answers.where(~np.isnan(np.array(rounds(arrays)))[arrays.folds])
    return metrics.delong_interval(counted.labels, np.eye(2)[counted.labels], counted.patients, how.level)


def interval(figure: Figure, answers: Answers, how: Resampling, name: str = "the figure") -> Interval:
    """A figure with its 95% interval: patients are drawn anew within their classes.

    Not within rounds, too: of the two patients of a class that a round may have, resamples know half the spread.
    """
    found = Arrays.of(answers)
    return metrics.bootstrap(lambda rows: figure(found.at(rows)), found.labels, answers.patients, how, name)


def _groups(name: str, answers: Answers, how: Resampling) -> Iterator[Group]:
    for column, values in answers.groups.items():
        for value in sorted(set(values)):
            some = answers.where(np.array([other == value for other in values]))
            whose = f" of {name}, {column} {value}"
            figures = (_with_limits(figure, some, how, whose) for figure in ("AUROC", "balanced accuracy"))
            yield Group(column, value, len(set(some.patients)), len(some), *figures)
