"""Tests of whether one model is better than another."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest


def mcnemar(correct_a: Bool[np.ndarray, " bags"], correct_b: Bool[np.ndarray, " bags"]) -> float:
    """Exact test of whether two models are right equally often (McNemar, Psychometrika 12:153, 1947).

    Of the bags on which exactly one model is right, each is as likely to be that one: a binomial test, two-sided. Bags
    count as independent: give one for each patient.

    Returns:
        p; 1 if the models are never right one without the other.
    """
    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(correct_b & ~correct_a))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> Float[np.ndarray, " tests"]:
    """Adjust the p of several tests, so that the chance of any false finding stays (Holm, Scand. J. Stat. 6:65, 1979).

    Args:
        p_values: one for each test that was made; nan where it could not tell, which counts as a test all the same.

    Returns:
        The adjusted p, in the order given, at most 1.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")  # nan last
    stepped = given[order] * np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
