"""Models compared on the same patients."""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from wsi_mil import metrics
from wsi_mil.errors import TableError
from wsi_mil.evaluation.answers import Answers
from wsi_mil.evaluation.figures import Arrays, Figure, Judged, mean_auroc
from wsi_mil.metrics import Interval, Resampling

log = logging.getLogger(__name__)

ENOUGH_FOR_DELONG = 30
"""Patients of the rarer class from which on the p of DeLong's test is about what it says."""


class Comparison(NamedTuple):
    """Two models on the same bags."""

    first: str
    second: str
    difference: Interval
    """AUROC of the first less that of the second, with the interval of a paired bootstrap over patients."""
    delong: float
    """p that the AUROC are equal, by DeLong's test; nan where there are more than two classes."""
    mcnemar: float
    """p that both are right equally often: McNemar's exact test over patients. Who has several bags counts once, for
    the model that is right on more of them."""
    holm_delong: float = math.nan
    """The former p, adjusted for the number of comparisons after Holm (1979)."""
    holm_mcnemar: float = math.nan
    """The latter, likewise."""


def compare(judged: Sequence[Judged], how: Resampling) -> tuple[Comparison, ...]:
    """Compare every pair of models.

    Raises:
        TableError: they were not judged on the same bags.
    """
    found = [_compared(first, second, how) for first, second in combinations(judged, 2)]
    delong, mcnemar = (metrics.holm([getattr(c, test) for c in found]).tolist() for test in ("delong", "mcnemar"))
    adjusted = zip(found, delong, mcnemar, strict=True)
    return tuple(c._replace(holm_delong=one, holm_mcnemar=other) for c, one, other in adjusted)


def comparison_notes(judged: Sequence[Judged]) -> Iterator[str]:
    """A word on a test that rests on more patients than there are (simulated: `docs/decisions.md`)."""
    answers = judged[0].answers
    if len(answers.classes) != 2:
        return
    fewest, folds = min(_patients_of(answers)), np.array(answers.folds)
    lonely = [fold for fold in sorted(set(answers.folds)) if 1 in _patients_of(answers.where(folds == fold))]
    if any(lonely):
        yield (
            f"round {', '.join(lonely)} tests one patient of some class, which tells nothing of how much AUROC varies:"
            " where models differ there, DeLong's test has no p. Ask for fewer --folds"
        )
    elif lonely:  # there are no rounds
        yield "one patient alone is of some class: DeLong's test has no p"
    elif 0 < fewest < ENOUGH_FOR_DELONG:
        yield (
            f"{fewest} patients of the rarer class: with fewer than {ENOUGH_FOR_DELONG} the p of DeLong's test is"
            " rough: where 5 % are promised, 0 to 8 % of simulated samples showed a difference that is none, most where"
            " the other class is much larger. A p near 0.05 decides nothing, and a large one does not show that"
            " models are alike"
        )


def _patients_of(answers: Answers) -> list[int]:
    """How many patients have a bag of each class."""
    owners = np.asarray(answers.patients)
    return [len(np.unique(owners[answers.labels == label])) for label in range(len(answers.classes))]


def _compared(first: Judged, second: Judged, how: Resampling) -> Comparison:
    one, other = first.answers, second.answers
    if one.ids != other.ids or not np.array_equal(one.labels, other.labels):
        raise TableError(f"{first.name} and {second.name} were not judged on the same slides: nothing can be compared")
    delong = _delong(one, other) if len(one.classes) == 2 else math.nan
    difference = lost(mean_auroc, one, [other], how, f"the difference in AUROC of {first.name} and {second.name}")
    return Comparison(first.name, second.name, difference, delong, metrics.mcnemar(*_rather_right(one, other)))


def _rather_right(one: Answers, other: Answers) -> tuple[np.ndarray, np.ndarray]:
    """For each patient whether the first model is right on more bags, and whether the second is."""
    gained = (one.predicted == one.labels).astype(np.int64) - (other.predicted == other.labels)
    _, owner = np.unique(one.patients, return_inverse=True)
    sums = np.bincount(owner, weights=gained)
    return sums > 0, sums < 0


def _delong(one: Answers, other: Answers) -> float:
    """p of DeLong's test; of several rounds, whose patients differ, of the mean of their differences.

    Rounds that lack a class do not count, as in the figure. Models of different rounds have no round in common to be
    compared in, so that p is undefined.
    """
    if one.folds != other.folds:
        log.warning("no p of DeLong's test: the models were not judged in the same rounds")
        return math.nan
    tests = []
    for fold in sorted(set(one.folds)):
        rows = np.array([found == fold for found in one.folds])
        a, b = one.where(rows), other.where(rows)
        first, second = (metrics.by_log_odds(found.scores) for found in (a, b))
        tests.append(metrics.delong_test(a.labels, first, second, a.patients))
    tests = [test for test in tests if not math.isnan(test.difference)]
    if len(tests) == 1:
        return tests[0].p
    if not tests:
        return math.nan
    widths = np.array([_width(test) for test in tests])
    mean, width = float(np.mean([test.difference for test in tests])), float(np.sqrt(np.sum(widths**2))) / len(tests)
    if width == 0:
        return 1.0 if mean == 0 else math.nan
    return float(2 * norm.sf(abs(mean) / (width / (2 * norm.isf(0.025)))))


def _width(test: metrics.Difference) -> float:
    """Of the limits of a round's difference: 0 where two models are both perfect, which limits do not tell."""
    return 0.0 if test.p == 1 and math.isnan(test.high) else test.high - test.low


def lost(
    figure: Figure, one: Answers, others: Sequence[Answers], how: Resampling, name: str = "the figure"
) -> Interval:
    """A figure less the mean of it over other answers to the same bags, with the interval of a paired bootstrap.

    Answers that are the same everywhere lose nothing, which is certain.
    """
    if all(np.array_equal(one.scores, other.scores) and one.folds == other.folds for other in others):
        value = figure(Arrays.of(one))
        return Interval(value - value, value - value, value - value)  # nan stays nan
    first, *rest = (Arrays.of(found) for found in (one, *others))

    def difference(rows: np.ndarray) -> float:
        return figure(first.at(rows)) - float(np.mean([figure(found.at(rows)) for found in rest]))

    return metrics.bootstrap(difference, first.labels, one.patients, how, name)
