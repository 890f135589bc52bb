"""The arrays that all figures are made of."""

import numpy as np
from jaxtyping import Float, Float64, Int

Labels = Int[np.ndarray, " bags"]
"""Index of the true class of each bag."""
Scores = Float[np.ndarray, "bags classes"]
"""Probability of each declared class, a row per bag."""

_SURE = 0.999


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


def by_log_odds(scores: Scores) -> Scores:
    """What figures of order are made of: of two classes, numbers that order bags by their log odds.

    A probability beside 1 is rounded: from logits 37 apart on it is 1 in float64, and sure bags would tie. What is left
    for the other class is not rounded there, and tells them apart.

    Args:
        scores: probabilities that sum to 1.

    Returns:
        Ranks within each column, the same where bags are; of more than two classes the scores as they are.

    Raises:
        ValueError: a score is nan.
    """
    refuse_nan(scores)
    if scores.shape[1] != 2:
        return scores
    return np.stack([_ranks(scores[:, 0], scores[:, 1]), _ranks(scores[:, 1], scores[:, 0])], axis=1)


def _ranks(own: Float[np.ndarray, " bags"], other: Float[np.ndarray, " bags"]) -> Float64[np.ndarray, " bags"]:
    # Further below 1 a tie is one, and what differs in the last digit of the rest came of rounding.
    left = np.where(own > _SURE, -other, 0.0)
    rising = np.lexsort((left, own))
    differ = (np.diff(own[rising]) != 0) | (np.diff(left[rising]) != 0)
    ranks = np.empty(len(own))
    ranks[rising] = np.concatenate([[0], np.cumsum(differ)])[: len(own)]
    return ranks
