"""From probabilities to classes."""

import math

import numpy as np
from jaxtyping import Int

from wsi_mil.metrics.arrays import Labels, Scores, refuse_more_than_two, refuse_nan

NEUTRAL = 0.5
"""The threshold where validation bags cannot tell a better one: the likelier of two classes."""


def choose_threshold(labels: Labels, scores: Scores) -> float:
    """The threshold of greatest sensitivity + specificity (Youden, Cancer 3:32, 1950), of two classes.

    Only the gaps between neighbouring scores differ, and the threshold is the middle of one. Of gaps that are equally
    good, the one where sensitivity and specificity differ least is taken, then the lowest. 0.5 if there is none better
    than chance, as when a class is absent or all scores are the same.

    Args:
        labels: of validation bags, never of those that are reported.
        scores: theirs, calibrated if those to be judged are.

    Raises:
        ValueError: there are not two classes, or a score is nan.
    """
    refuse_more_than_two(scores)
    refuse_nan(scores)
    values, place = np.unique(scores[:, 1].astype(np.float64), return_inverse=True)
    below = np.array([np.cumsum(np.bincount(place[labels == label], minlength=len(values))) for label in (0, 1)])
    if not len(values) or not below[:, -1].all():
        return NEUTRAL
    negatives, positives = (int(count) for count in below[:, -1])
    right_below, wrong_below = below[0, :-1] * positives, below[1, :-1] * negatives  # integers: ties are exact
    gain = right_below - wrong_below
    if gain.max(initial=0) <= 0:
        return NEUTRAL
    imbalance = np.abs((positives * negatives - wrong_below) - right_below)
    gap = int(np.lexsort((imbalance, -gain))[0])
    low, high = values[gap], values[gap + 1]
    middle = low + (high - low) / 2
    return float(middle if middle > low else high)  # between neighbouring floats there is no middle


def predict_at(scores: Scores, threshold: float) -> Int[np.ndarray, " bags"]:
    """Of two classes, 1 from a threshold on; of more, the likeliest, to which a threshold means nothing.

    Raises:
        ValueError: the threshold of two classes, or a score, is nan.
    """
    refuse_nan(scores)
    if scores.shape[1] != 2:
        return scores.argmax(axis=1)
    if math.isnan(threshold):
        raise ValueError("a threshold of nan would call every bag negative")
    return (scores[:, 1] >= threshold).astype(np.int64)
