import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_mil import metrics


def two_columns(scores):
    scores = np.asarray(scores, dtype=float)
    return np.stack([1 - scores, scores], axis=1)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    labels, scores = np.array([0, 0, 1, 1]), two_columns([0.1, 0.4, 0.35, 0.8])
    assert metrics.auroc(labels, scores) == pytest.approx(0.75)


def test_auroc_counts_ties_as_half():
    assert metrics.auroc(np.array([0, 1, 0, 1]), two_columns([0.5] * 4)) == pytest.approx(0.5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=4, max_size=30))
def test_auroc_of_the_other_class_and_of_any_monotone_scale_is_the_same(ranks):
    labels = np.arange(len(ranks)) % 2
    scores = np.array(ranks) / 20
    area = metrics.auroc(labels, two_columns(scores))
    assert metrics.auroc(1 - labels, two_columns(scores)[:, ::-1]) == pytest.approx(area)
    assert metrics.auroc(labels, two_columns(scores**3)) == pytest.approx(area)


def test_auroc_of_several_classes_is_the_mean_of_each_against_the_rest():
    labels = np.array([0, 1, 2, 0, 1, 2])
    scores = np.array([[8, 1, 1], [1, 8, 1], [4, 2, 4], [5, 1, 4], [6, 3, 1], [1, 1, 8]]) / 10
    each = [metrics.auroc((labels == c).astype(int), two_columns(scores[:, c])) for c in range(3)]
    assert metrics.auroc(labels, scores) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0], []])
def test_auroc_without_both_classes_is_undefined(labels):
    assert math.isnan(metrics.auroc(np.array(labels, dtype=int), two_columns([0.2] * len(labels))))


def test_auroc_wants_every_declared_class():
    assert math.isnan(metrics.auroc(np.array([0, 1, 1]), np.eye(3)))


def test_balanced_accuracy_does_not_reward_guessing_the_majority():
    assert metrics.balanced_accuracy(np.array([0] * 9 + [1]), np.zeros(10, dtype=int)) == pytest.approx(0.5)


def test_balanced_accuracy_is_over_the_classes_that_occur():
    assert metrics.balanced_accuracy(np.array([1, 1]), np.array([1, 0])) == pytest.approx(0.5)
    assert math.isnan(metrics.balanced_accuracy(np.array([], dtype=int), np.array([], dtype=int)))
