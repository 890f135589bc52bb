"""What turns a model's probabilities into calibrated ones and into decisions, chosen on validation bags."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from wsi_mil import metrics
from wsi_mil.metrics.arrays import Labels, Scores
from wsi_mil.metrics.calibration import TEMPERATURES
from wsi_mil.metrics.notes import FEW_PATIENTS

_AT_BOUND = 1.01  # the search for a temperature ends beside its bounds and not on them


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


def doubts(temperature: float, val_patients: Mapping[str, int]) -> str:
    """Why a temperature and a threshold are not to be relied on, in one sentence; "" where nothing speaks against them.

    Args:
        temperature: as `calibrated` found it.
        val_patients: by class how many validation patients chose it; none where that is not known.
    """
    low, high = TEMPERATURES
    reasons = []
    if few := {name: count for name, count in val_patients.items() if count < FEW_PATIENTS}:
        told = ", ".join(f"{count} of class {name}" for name, count in few.items())
        reasons.append(f"validation has few patients ({told}; from {FEW_PATIENTS} on they begin to tell)")
    if not low * _AT_BOUND < temperature < high / _AT_BOUND:
        reasons.append(f"the temperature ended at its bound, {low if temperature < 1 else high:g}")
    return f"temperature and threshold are not to be relied on: {' and '.join(reasons)}" if reasons else ""
