"""Whether probabilities mean what they say, and temperature scaling (Guo et al., ICML 2017), which mends most of it."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from wsi_mil.metrics.arrays import Labels, Scores, refuse_nan

TEMPERATURES = (0.1, 100.0)
"""Sharpening is bounded closely, because a few bags that happen to be right ask for it; flattening is harmless."""
_OF_NOTHING = float(np.log(np.finfo(np.float32).smallest_subnormal))  # where a softmax in float32 gives 0


class Reliability(NamedTuple):
    """A reliability curve, from the least probable bags to the most; bins without bags are left out."""

    confidence: Float[np.ndarray, " bins"]
    """Mean probability of the class that is looked at."""
    accuracy: Float[np.ndarray, " bins"]
    """Share of bags whose true class that is."""
    count: Int[np.ndarray, " bins"]
    """Number of bags."""


def reliability(labels: Labels, scores: Scores, bins: int = 10, of: int | None = None) -> Reliability:
    """How often a class is the true one, against how probable it was said to be.

    Bins hold equally many bags (bags of equal confidence stay together), not equally wide ranges of probability, so
    that no point of the curve rests on one bag. With as many bins in use, the error they show of calibrated and
    overconfident models is as near the truth or nearer (measured on 40 to 400 bags; Roelofs et al., AISTATS 2022, find
    the same).

    Args:
        labels: index of each bag's true class.
        scores: probabilities.
        bins: at most so many points.
        of: the class to look at, such as the positive one of two, whose probability is what a clinician is told; None:
            of each bag the likeliest, which is confidence in what is decided and the usual figure in machine learning.

    Raises:
        ValueError: a score is nan, or bins is below 1.
    """
    refuse_nan(scores)
    if bins < 1:
        raise ValueError(f"{bins} bins: give at least 1")
    sure = (scores.max(axis=1, initial=0.0) if of is None else scores[:, of]).astype(np.float64)
    right = (scores.argmax(axis=1) if of is None else of) == labels
    twice = np.round(2 * rankdata(sure)).astype(np.int64)  # the mean rank of a tie may be a half
    place = (twice - 1) * bins // (2 * max(len(labels), 1))
    count = np.bincount(place, minlength=bins)
    held = count > 0
    sums = (np.bincount(place, weights=column, minlength=bins)[held] for column in (sure, right))
    confidence, accuracy = (total / count[held] for total in sums)
    return Reliability(confidence, accuracy, count[held])


def ece(labels: Labels, scores: Scores, bins: int = 10, of: int | None = None) -> float:
    """Expected calibration error: the mean over bags of |confidence - accuracy| in their bin of `reliability`.

    It is never negative, so that chance adds to it: in 10 bins a perfectly calibrated model shows about 1 / sqrt(bags),
    and a resample shows more than its sample: do not trust a bootstrap interval of it.

    Args:
        labels: index of each bag's true class.
        scores: probabilities.
        bins: as of `reliability`.
        of: as of `reliability`: None, of each bag the likeliest class.

    Returns:
        From 0 to 1; nan without bags.

    Raises:
        ValueError: a score is nan, or bins is below 1.
    """
    curve = reliability(labels, scores, bins, of)
    if not len(labels):
        return math.nan
    return float(np.sum(np.abs(curve.confidence - curve.accuracy) * curve.count) / len(labels))


def fit_temperature(labels: Labels, scores: Scores) -> float:
    """The temperature at which `calibrate` gives the true classes the greatest likelihood.

    The mean log loss is convex in 1 / temperature, so there is one minimum, which is sought between 0.1 and 100. If
    every bag is right (or there is none), ever sharper probabilities are ever likelier, and nothing can be told: the
    temperature is then 1, which leaves the probabilities as they are. If the scores are no better than chance it is
    high, and the probabilities become nearly equal, as they should.

    Args:
        labels: of validation bags, never of those that are reported.
        scores: probabilities; those that are 0 count as 1.4e-45, the least that float32 can tell from it.

    Raises:
        ValueError: a score is nan.
    """
    logs = _logs(scores)
    if not (np.take_along_axis(logs, labels[:, None], axis=1) < 0).any():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logs / math.exp(log_temperature)
        return float(np.mean(logsumexp(scaled, axis=1) - np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]))

    bounds = (math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]))
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def calibrate(scores: Scores, temperature: float) -> Float64[np.ndarray, "bags classes"]:
    """Probabilities at a temperature, softmax(log p / temperature): above 1 less sure, below 1 surer.

    The order of the classes of a bag stays, and so does what is likeliest. At 1 they come back as they are.

    Raises:
        ValueError: the temperature is not positive, or a score is nan.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature of {temperature}: give a positive number")
    refuse_nan(scores)
    return scores.astype(np.float64) if temperature == 1 else softmax(_logs(scores) / temperature, axis=1)


def _logs(scores: Scores) -> Float64[np.ndarray, "bags classes"]:
    """Logs relative to the likeliest class, whose own is exactly 0, so that rounding never puts another above it."""
    refuse_nan(scores)
    shares = scores.astype(np.float64)
    shares = shares / shares.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        logs = np.log(shares)
    known = np.isfinite(logs)
    return np.where(known, logs, np.minimum(_OF_NOTHING, logs.min(axis=1, where=known, initial=0.0)[:, None]))
