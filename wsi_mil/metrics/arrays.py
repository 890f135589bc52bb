"""The arrays that all figures are made of."""

import numpy as np
from jaxtyping import Float, Int

Labels = Int[np.ndarray, " bags"]
"""Index of the true class of each bag."""
Scores = Float[np.ndarray, "bags classes"]
"""Probability of each declared class, a row per bag."""


def all_occur(labels: Labels, classes: int) -> bool:
    """Whether the labels are the declared classes, each at least once."""
    counts = np.bincount(labels, minlength=classes)
    return len(counts) == classes and bool(counts.all())


def refuse_nan(scores: Scores) -> None:
    """A score that is no number has no rank, and would pass for a figure that is not defined.

    Raises:
        ValueError: there is one.
    """
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} bags have a score that is nan")


def refuse_more_than_two(scores: Scores) -> None:
    """A figure of two classes has no meaning for more.

    Raises:
        ValueError: there are not exactly two columns.
    """
    if scores.shape[1] != 2:
        raise ValueError(f"this is defined for two classes, and the scores have {scores.shape[1]}")
