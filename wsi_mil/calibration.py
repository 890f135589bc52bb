"""What turns a model's probabilities into calibrated ones and into decisions, chosen on validation bags."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from wsi_mil import metrics
from wsi_mil.metrics.arrays import Labels, Scores


class Calibration(NamedTuple):
    """Chosen after the weights, and before anything is tested."""

    prior: tuple[float, ...]
    """What the probability of each class is multiplied by: its share of the training bags. Training weighs all classes
    alike, so that a model speaks of a world in which they are equally frequent."""
    temperature: float
    """What logits are divided by."""
    threshold: float | None
    """Of two classes, the least calibrated probability of the last that decides for it; None of more."""


def with_prior(scores: Scores, prior: Sequence[float]) -> Float64[np.ndarray, "bags classes"]:
    """Probabilities in a world of other frequencies of the classes (Saerens et al. 2002, equation 2.4)."""
    shifted = scores.astype(np.float64) * np.asarray(prior)
    return shifted / shifted.sum(axis=1, keepdims=True)


def applied(scores: Scores, calibration: Calibration) -> Float64[np.ndarray, "bags classes"]:
    """Calibrated probabilities of a model's own."""
    return metrics.calibrate(with_prior(scores, calibration.prior), calibration.temperature)


def calibrated(labels: Labels, scores: Scores, prior: tuple[float, ...]) -> Calibration:
    """The calibration that suits validation bags best.

    Args:
        labels: index of their true classes.
        scores: the model's own probabilities, one column per class.
        prior: share of each class among the training bags.
    """
    found = Calibration(prior, metrics.fit_temperature(labels, with_prior(scores, prior)), None)
    if scores.shape[1] != 2:
        return found
    return found._replace(threshold=metrics.choose_threshold(labels, applied(scores, found)))
