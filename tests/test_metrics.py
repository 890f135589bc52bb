import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn import metrics as oracle

from wsi_mil import metrics

PREDICTED = {
    "accuracy": lambda labels, predicted, classes: metrics.accuracy(labels, predicted),
    "balanced accuracy": lambda labels, predicted, classes: metrics.balanced_accuracy(labels, predicted),
    "f1": metrics.f1,
}
SCORED = (metrics.auroc, metrics.auprc, metrics.brier, metrics.log_loss, metrics.ece)


def two_columns(scores):
    scores = np.asarray(scores, dtype=float)
    return np.stack([1 - scores, scores], axis=1)


def sample(classes, bags=60, seed=0, digits=1):
    """Labels of every class, and rounded probabilities, so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, bags - classes)])
    scores = np.round(rng.dirichlet(np.ones(classes), bags) + 0.5 * np.eye(classes)[labels], digits)
    return labels, scores / scores.sum(axis=1, keepdims=True)


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
    np.testing.assert_allclose(metrics.auroc_per_class(labels, scores), each)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0], []])
@pytest.mark.parametrize("figure", [metrics.auroc, metrics.auprc])
def test_a_figure_of_ranks_without_both_classes_is_undefined(labels, figure):
    """Not 1, as DSMIL has it (D1)."""
    assert math.isnan(figure(np.array(labels, dtype=int), two_columns([0.2] * len(labels))))


@pytest.mark.parametrize("figure", [metrics.auroc, metrics.auprc])
def test_a_figure_of_ranks_wants_every_declared_class(figure):
    assert math.isnan(figure(np.array([0, 1, 1]), np.eye(3)))


def test_the_auroc_of_an_absent_class_alone_is_undefined():
    areas = metrics.auroc_per_class(np.array([0, 1, 1]), np.eye(3))
    assert np.isfinite(areas[:2]).all()
    assert math.isnan(areas[2])


def test_balanced_accuracy_does_not_reward_guessing_the_majority():
    assert metrics.balanced_accuracy(np.array([0] * 9 + [1]), np.zeros(10, dtype=int)) == pytest.approx(0.5)


def test_balanced_accuracy_is_over_the_classes_that_occur():
    assert metrics.balanced_accuracy(np.array([1, 1]), np.array([1, 0])) == pytest.approx(0.5)
    assert math.isnan(metrics.balanced_accuracy(np.array([], dtype=int), np.array([], dtype=int)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_figures_are_those_of_scikit_learn(classes, seed):
    labels, scores = sample(classes, seed=seed)
    truth, predicted, names = np.eye(classes)[labels], scores.argmax(axis=1), list(range(classes))
    columns = slice(1, 2) if classes == 2 else slice(None)
    expected = {
        metrics.auroc: oracle.roc_auc_score(truth[:, columns], scores[:, columns], average="macro"),
        metrics.auprc: oracle.average_precision_score(truth[:, columns], scores[:, columns], average="macro"),
        metrics.brier: oracle.brier_score_loss(labels, scores, labels=names, scale_by_half=False),
        metrics.log_loss: oracle.log_loss(labels, scores, labels=names),
    }
    for figure, value in expected.items():
        assert figure(labels, scores) == pytest.approx(value), figure.__name__
    average = {"pos_label": 1} if classes == 2 else {"average": "macro", "labels": names}
    assert metrics.f1(labels, predicted, classes) == pytest.approx(oracle.f1_score(labels, predicted, **average))
    assert metrics.accuracy(labels, predicted) == pytest.approx(oracle.accuracy_score(labels, predicted))
    recall = oracle.balanced_accuracy_score(labels, predicted)
    assert metrics.balanced_accuracy(labels, predicted) == pytest.approx(recall)
    table = oracle.confusion_matrix(labels, predicted, labels=names)
    np.testing.assert_array_equal(metrics.confusion(labels, predicted, classes), table)


def test_sensitivity_and_specificity_are_the_recalls_of_the_two_classes():
    labels, predicted = np.array([1, 1, 1, 0, 0]), np.array([1, 0, 1, 0, 1])
    assert metrics.sensitivity(labels, predicted) == pytest.approx(2 / 3)
    assert metrics.specificity(labels, predicted) == pytest.approx(1 / 2)
    assert math.isnan(metrics.sensitivity(labels[3:], predicted[3:]))
    assert math.isnan(metrics.specificity(labels[:3], predicted[:3]))


def test_a_class_that_is_predicted_but_does_not_occur_is_not_dropped():
    """STAMP takes the classes from the fold and finds F1 = 1 where every prediction is wrong (S6)."""
    labels, predicted = np.zeros(6, dtype=int), np.ones(6, dtype=int)
    assert metrics.f1(labels, predicted, 2) == 0
    assert metrics.f1(labels, predicted, 3) != 1
    assert metrics.confusion(labels, predicted, 3).tolist() == [[0, 6, 0], [0, 0, 0], [0, 0, 0]]
    assert metrics.f1(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 3) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_f1_of_a_class_that_neither_occurs_nor_is_predicted_is_undefined():
    assert math.isnan(metrics.f1(np.array([0, 1]), np.array([0, 1]), 3))
    assert math.isnan(metrics.f1(np.array([0, 0]), np.array([0, 0]), 2))


def test_confusion_refuses_what_is_no_class():
    with pytest.raises(ValueError, match="2 classes are declared"):
        metrics.confusion(np.array([0, 1]), np.array([0, 2]), 2)


@pytest.mark.parametrize(("given", "loss"), [(0.99, 0.01005), (0.01, 4.60517)])
def test_log_loss_of_probabilities_is_their_own_and_not_of_another_softmax(given, loss):
    """STAMP's column `loss` has 0.319 and 1.30 here (S4)."""
    assert metrics.log_loss(np.array([1]), two_columns([given])) == pytest.approx(loss, abs=1e-5)


def test_log_loss_of_a_certain_error_is_finite():
    assert metrics.log_loss(np.array([0]), two_columns([1.0])) == pytest.approx(36.04, abs=0.01)


def test_brier_goes_from_0_to_2():
    assert metrics.brier(np.array([1, 0]), two_columns([1.0, 0.0])) == 0
    assert metrics.brier(np.array([1, 0]), two_columns([0.0, 1.0])) == 2


@pytest.mark.parametrize("figure", SCORED)
def test_figures_of_no_bags_are_undefined(figure):
    assert math.isnan(figure(np.zeros(0, dtype=int), np.zeros((0, 2))))


@pytest.mark.parametrize("figure", [metrics.auroc, metrics.auroc_per_class, metrics.auprc, metrics.ece])
def test_a_score_that_is_nan_does_not_pass_for_an_absent_class(figure):
    with pytest.raises(ValueError, match="1 of 2 bags have a score that is nan"):
        figure(np.array([0, 1]), two_columns([math.nan, 0.2]))


@settings(max_examples=30)
@given(st.integers(2, 4), st.integers(0, 10_000))
def test_the_order_of_the_bags_changes_no_figure(classes, seed):
    labels, scores = sample(classes, seed=seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    for figure in SCORED:
        assert figure(labels[order], scores[order]) == pytest.approx(figure(labels, scores)), figure.__name__
    predicted = metrics.predict_at(scores, 0.5)
    for name, figure in PREDICTED.items():
        expected = figure(labels, predicted, classes)
        assert figure(labels[order], predicted[order], classes) == pytest.approx(expected, nan_ok=True), name


def test_the_area_below_the_steps_of_precision_and_recall_is_auprc() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40), np.round(rng.random((40, 2)), 1)  # with ties
    recall, precision = metrics.precision_recall(labels == 1, scores[:, 1])
    assert (np.diff(recall, prepend=0) * precision).sum() == pytest.approx(metrics.auprc(labels, scores))
    assert recall[-1] == 1
    assert precision[-1] == pytest.approx((labels == 1).mean())
    assert [len(part) for part in metrics.precision_recall(labels > 1, scores[:, 1])] == [0, 0]


def test_sure_bags_are_ordered_by_log_odds_where_their_probability_is_rounded_to_one():
    logits = np.array([[0.0, 40.0], [0.0, 50.0], [40.0, 0.0], [60.0, 0.0], [0.0, 0.3], [0.0, 40.0]])
    scores = softmax(logits, axis=1)
    assert scores[0, 1] == scores[1, 1] == 1.0
    margins = logits[:, 1] - logits[:, 0]
    found = metrics.by_log_odds(scores)
    assert rankdata(found[:, 1]).tolist() == rankdata(margins).tolist()
    assert rankdata(found[:, 0]).tolist() == rankdata(-margins).tolist()
    labels = np.array([0, 1])
    assert metrics.auroc(labels, scores[:2]) == 0.5
    assert metrics.auroc(labels, metrics.by_log_odds(scores[:2])) == 1.0
    assert metrics.by_log_odds(scores[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="score that is nan"):
        metrics.by_log_odds(np.array([[np.nan, 0.5]]))


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_bags_that_are_not_sure_is_that_of_their_probability(seed):
    labels, scores = sample(2, seed=seed)
    order = metrics.by_log_odds(scores)
    for figure in (metrics.auroc, metrics.auprc):
        assert figure(labels, order) == figure(labels, scores)
    for column in (0, 1):
        np.testing.assert_array_equal(rankdata(order[:, column]), rankdata(scores[:, column]))
    three = sample(3, seed=seed)[1]
    assert metrics.by_log_odds(three) is three
