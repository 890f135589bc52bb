"""Thresholds, temperatures and reliability."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from wsi_mil import metrics
from wsi_mil.metrics.calibration import TEMPERATURES

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def two_columns(scores):
    scores = np.asarray(scores, dtype=float)
    return np.stack([1 - scores, scores], axis=1)


def gain(labels, scores, threshold):
    predicted = metrics.predict_at(scores, threshold)
    return metrics.sensitivity(labels, predicted) + metrics.specificity(labels, predicted) - 1


def test_the_threshold_is_the_middle_of_the_gap():
    labels, scores = np.array([0, 0, 1, 1]), two_columns([0.1, 0.3, 0.7, 0.9])
    assert metrics.choose_threshold(labels, scores) == pytest.approx(0.5)
    assert metrics.choose_threshold(labels, two_columns([0.1, 0.2, 0.3, 0.9])) == pytest.approx(0.25)


@settings(max_examples=60)
@given(PROBABILITIES, st.integers(0, 2**30))
def test_no_threshold_is_better_than_the_chosen_one(positive, bits):
    labels = np.array([bits >> place & 1 for place in range(len(positive))])
    scores = two_columns(positive)
    chosen = metrics.choose_threshold(labels, scores)
    assert 0 <= chosen <= 1
    if 0 < labels.sum() < len(labels):
        best = max(0, *(gain(labels, scores, threshold) for threshold in positive))
        reached = gain(labels, scores, chosen)
        assert reached == pytest.approx(best) or (best == 0 and chosen == 0.5)
    else:
        assert chosen == 0.5


def test_of_equally_good_thresholds_the_balanced_one_is_chosen_then_the_lowest():
    # above 0.2: both positives and one of two negatives; above 0.6: one positive and no negative
    labels, scores = np.array([0, 1, 0, 1]), two_columns([0.2, 0.4, 0.6, 0.8])
    assert metrics.choose_threshold(labels, scores) == pytest.approx(0.3)
    # above 0.2: recall 1 and 1/3; above 0.5: 2/3 and 2/3; above 0.8: 1/3 and 1
    labels, scores = np.array([0, 1, 0, 1, 0, 1]), two_columns([0.2, 0.4, 0.45, 0.55, 0.8, 0.9])
    assert metrics.choose_threshold(labels, scores) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "scores"), [([1, 1], [0.2, 0.9]), ([], []), ([0, 1], [0.4, 0.4]), ([1, 0], [0.2, 0.7])]
)
def test_where_no_threshold_is_better_than_chance_it_is_a_half(labels, scores):
    assert metrics.choose_threshold(np.array(labels, dtype=int), two_columns(scores)) == 0.5


@pytest.mark.parametrize("low", [0.3, np.nextafter(0.3, 1)])  # of the two middles one is rounded down
def test_between_neighbouring_numbers_the_threshold_still_parts_them(low):
    scores = two_columns([low, np.nextafter(low, 1)])
    threshold = metrics.choose_threshold(np.array([0, 1]), scores)
    assert metrics.predict_at(scores, threshold).tolist() == [0, 1]


def test_a_threshold_is_for_two_classes_and_more_take_the_likeliest():
    assert metrics.predict_at(two_columns([0.3, 0.4]), 0.4).tolist() == [0, 1]
    assert metrics.predict_at(np.array([[0.3, 0.3, 0.4]]), 0.9).tolist() == [2]
    with pytest.raises(ValueError, match="two classes"):
        metrics.choose_threshold(np.array([0, 1, 2]), np.eye(3))
    with pytest.raises(ValueError, match="threshold of nan"):
        metrics.predict_at(two_columns([0.3]), math.nan)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_is_found_again(classes, true):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1).clip(max=classes - 1)
    found = metrics.fit_temperature(labels, softmax(logits * true, axis=1))
    assert found == pytest.approx(true, rel=0.05)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_no_temperature_is_better_than_the_fitted_one(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.dirichlet(np.ones(3), 12), rng.integers(0, 3, 12)
    fitted = metrics.fit_temperature(labels, scores)
    if fitted == 1:
        assert (scores.argmax(axis=1) == labels).all()
        return
    losses = [
        metrics.log_loss(labels, metrics.calibrate(scores, temperature)) for temperature in np.geomspace(*TEMPERATURES)
    ]
    assert metrics.log_loss(labels, metrics.calibrate(scores, fitted)) <= min(losses) + 1e-6


@pytest.mark.parametrize(("labels", "positive"), [([0, 1], [0.2, 0.9]), ([], []), ([0, 1], [0.5, 0.5])])
def test_where_every_bag_is_right_the_temperature_cannot_be_told_and_is_1(labels, positive):
    assert metrics.fit_temperature(np.array(labels, dtype=int), two_columns(positive)) == 1


def test_the_temperature_stays_within_bounds():
    nearly = metrics.fit_temperature(np.arange(40) % 2, two_columns([0.05, 0.95] * 19 + [0.05, 0.499999]))
    wrong = metrics.fit_temperature(np.array([1, 0]), two_columns([0.1, 0.9]))
    assert TEMPERATURES[0] <= nearly < 0.2
    assert 90 < wrong <= TEMPERATURES[1]


def test_a_certain_error_is_mended_and_not_infinite():
    scores = two_columns([1.0, 1.0, 1.0, 0.0])
    fitted = metrics.fit_temperature(np.array([1, 1, 0, 0]), scores)
    assert metrics.log_loss(np.array([1, 1, 0, 0]), metrics.calibrate(scores, fitted)) < np.log(2) + 0.01


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_calibration_keeps_what_is_likeliest_and_sums_to_one(seed, temperature):
    scores = np.random.default_rng(seed).dirichlet([0.05] * 4, 20).round(3)
    scores = scores / scores.sum(axis=1, keepdims=True)
    calibrated = metrics.calibrate(scores, temperature)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    likeliest = np.take_along_axis(calibrated, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(likeliest, calibrated.max(axis=1))


@given(PROBABILITIES)
def test_a_temperature_of_1_changes_nothing(positive):
    np.testing.assert_array_equal(metrics.calibrate(two_columns(positive), 1.0), two_columns(positive))
    np.testing.assert_allclose(metrics.calibrate(two_columns(positive), 1 + 1e-12), two_columns(positive), atol=1e-9)


def test_calibration_divides_the_logits():
    logits = np.array([-30.0, -1.0, 0.0, 2.0])
    calibrated = metrics.calibrate(two_columns(expit(logits)), 2.5)
    np.testing.assert_allclose(calibrated[:, 1], expit(logits / 2.5), rtol=1e-10)
    assert metrics.calibrate(np.array([[0.0, 0.0, 1.0]], np.float32), 0.5)[0] == pytest.approx([0, 0, 1], abs=1e-80)


@pytest.mark.parametrize("gap", [120.0, 300.0, 700.0])
def test_probabilities_of_an_overconfident_model_keep_their_distance(gap: float) -> None:
    """An ensemble divides logits; what its threshold was chosen on has to be the same."""
    scores = softmax(np.array([[0.0, gap], [gap, 0.0]]), axis=1)
    np.testing.assert_allclose(metrics.calibrate(scores, 100.0), softmax([[0.0, gap / 100], [gap / 100, 0.0]], axis=1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_has_to_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        metrics.calibrate(two_columns([0.5]), temperature)


def test_reliability_by_hand():
    labels, scores = np.array([1, 0, 1, 0]), two_columns([0.6, 0.7, 0.8, 0.1])
    curve = metrics.reliability(labels, scores, bins=2)
    np.testing.assert_allclose(curve.confidence, [0.65, 0.85])
    np.testing.assert_allclose(curve.accuracy, [0.5, 1.0])
    assert curve.count.tolist() == [2, 2]
    assert metrics.ece(labels, scores, bins=2) == pytest.approx((0.15 + 0.15) / 2)


@settings(max_examples=50)
@given(PROBABILITIES, st.integers(1, 15))
def test_bins_hold_every_bag_once_and_equal_confidences_stay_together(positive, bins):
    scores = two_columns(positive)
    curve = metrics.reliability(np.zeros(len(positive), dtype=int), scores, bins)
    assert curve.count.sum() == len(positive)
    assert len(curve.count) <= min(bins, len(set(scores.max(axis=1))))
    assert (np.diff(curve.confidence) > 0).all()


def test_bins_hold_equally_many_bags():
    scores = two_columns(np.linspace(0.5, 1, 101)[:100])
    assert metrics.reliability(np.ones(100, dtype=int), scores, 10).count.tolist() == [10] * 10


def test_ece_tells_overconfidence_and_calibration_removes_it():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, 4000)
    labels = (rng.random(4000) < expit(logits)).astype(int)
    overconfident = two_columns(expit(4 * logits))
    mended = metrics.calibrate(overconfident, metrics.fit_temperature(labels, overconfident))
    assert metrics.ece(labels, overconfident) > 0.15
    assert metrics.ece(labels, mended) < 0.03


def test_equally_full_bins_are_nearer_the_truth_than_equally_wide_ones():
    """Of two classes five bins of ten equally wide ones are in use, so five are compared with them."""
    rng, ours, theirs = np.random.default_rng(0), [], []
    logits = rng.normal(0, 2, 100_000)
    truth = np.abs(expit(np.abs(2 * logits)) - expit(np.abs(logits))).mean()
    for _ in range(300):
        logits = rng.normal(0, 2, 40)
        labels, scores = (rng.random(40) < expit(logits)).astype(int), two_columns(expit(2 * logits))
        ours.append(metrics.ece(labels, scores, bins=5))
        theirs.append(equally_wide_ece(labels, scores))
    assert abs(np.mean(ours) - truth) < abs(np.mean(theirs) - truth)


def equally_wide_ece(labels, scores, bins=10):
    sure, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return sum(abs((sure - right)[place == k].sum()) for k in range(bins)) / len(labels)


def test_there_is_at_least_one_bin():
    with pytest.raises(ValueError, match="0 bins"):
        metrics.reliability(np.array([0]), two_columns([0.1]), 0)


def test_a_class_that_is_looked_at_has_its_own_curve() -> None:
    """Confidence may be right while the positive class's probability is not: errors of both kinds cancel out."""
    scores = np.array([[0.8, 0.2]] * 10 + [[0.2, 0.8]] * 10)
    labels = np.array([0] * 6 + [1] * 4 + [1] * 10)  # 0.2 happens in 4 of 10, 0.8 in all: 0.8 confidence is right
    assert metrics.ece(labels, scores) == pytest.approx(0.0)
    assert metrics.ece(labels, scores, of=1) == pytest.approx(0.2)
    curve = metrics.reliability(labels, scores, of=1)
    assert curve.confidence.tolist() == pytest.approx([0.2, 0.8])
    assert curve.accuracy.tolist() == pytest.approx([0.4, 1.0])
