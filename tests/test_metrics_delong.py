"""DeLong's interval and test against their definition, published figures, and samples whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binomtest, norm

from wsi_mil import metrics

CT_OTHERS, CT_POSITIVE = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
"""Ratings 1 to 5 of CT images (Hanley and McNeil, Radiology 143:29, 1982, table I)."""


def two_columns(scores):
    scores = np.asarray(scores, dtype=float)
    return np.stack([-scores, scores], axis=1)


def kernel(labels, scores):
    """One for each pair (positive, other) in the right order, a half for a tie: O(n * m), as it is defined."""
    positive, others = scores[labels == 1, 1], scores[labels == 0, 1]
    return np.array([[float(x > y) + 0.5 * float(x == y) for y in others] for x in positive])


def slow_variance(pairs):
    """DeLong's S10 / m + S01 / n."""
    m, n = pairs.shape
    return np.var(pairs.mean(axis=1), ddof=1) / m + np.var(pairs.mean(axis=0), ddof=1) / n


def slow_clustered_variance(labels, pairs, patients):
    """Obuchowski's, from its formulas, patient by patient."""
    m, n, area = *pairs.shape, pairs.mean()
    owners = np.array(patients)
    mine, theirs = owners[labels == 1], owners[labels == 0]
    names = sorted(set(patients))
    v10 = [pairs.mean(axis=1)[mine == name].sum() - (mine == name).sum() * area for name in names]
    v01 = [pairs.mean(axis=0)[theirs == name].sum() - (theirs == name).sum() * area for name in names]
    i10, i01, i = len(set(mine)), len(set(theirs)), len(names)
    s10 = i10 / ((i10 - 1) * m) * sum(v**2 for v in v10)
    s01 = i01 / ((i01 - 1) * n) * sum(v**2 for v in v01)
    s11 = i / (i - 1) * sum(a * b for a, b in zip(v10, v01, strict=True))
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def error_of(interval):
    """The standard error that limits on the scale of log odds were made of."""
    spread = (logit(interval.high) - logit(interval.low)) / (2 * norm.isf(0.025))
    return spread * interval.value * (1 - interval.value)


def sample(seed, bags=30, levels=8):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 0, 1, 1], rng.integers(0, 2, bags - 4)])
    one, other = (rng.integers(0, levels, bags) + 2 * labels for _ in range(2))  # with ties
    patients = [f"p{number}" for number in rng.integers(0, bags // 2, bags)]
    patients[:4] = ["w", "x", "y", "z"]
    return labels, two_columns(one), two_columns(other), patients


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_is_that_of_the_definition(seed):
    labels, scores, _, patients = sample(seed)
    pairs = kernel(labels, scores)
    interval = metrics.delong_interval(labels, scores)
    assert interval.value == pytest.approx(pairs.mean())
    assert error_of(interval) == pytest.approx(math.sqrt(slow_variance(pairs)))
    by_patient = metrics.delong_interval(labels, scores, patients)
    assert by_patient.value == interval.value
    assert error_of(by_patient) == pytest.approx(math.sqrt(slow_clustered_variance(labels, pairs, patients)))


@pytest.mark.parametrize("seed", range(8))
def test_the_test_is_that_of_the_definition(seed):
    labels, one, other, patients = sample(seed)
    pairs = kernel(labels, one) - kernel(labels, other)
    for owners, variance in (
        (None, slow_variance(pairs)),
        (patients, slow_clustered_variance(labels, pairs, patients)),
    ):
        found, z = metrics.delong_test(labels, one, other, owners), norm.isf(0.025)
        assert found.difference == pytest.approx(pairs.mean())
        assert found.low == pytest.approx(pairs.mean() - z * math.sqrt(variance))
        assert found.high == pytest.approx(pairs.mean() + z * math.sqrt(variance))
        assert found.p == pytest.approx(2 * norm.cdf(-abs(pairs.mean()) / math.sqrt(variance)))


def test_published_area_and_error_are_found_again():
    """Stata's manual, `roctab`, gives these ratings 0.8932, error 0.0307, limits 0.83295 and 0.95339 on the area."""
    ratings = np.concatenate([np.repeat(range(1, 6), counts) for counts in (CT_OTHERS, CT_POSITIVE)])
    interval = metrics.delong_interval(np.repeat([0, 1], [58, 51]), two_columns(ratings))
    half = norm.isf(0.025) * error_of(interval)
    assert interval.value == pytest.approx(0.8932, abs=5e-5)
    assert error_of(interval) == pytest.approx(0.0307, abs=5e-5)
    assert (interval.value - half, interval.value + half) == pytest.approx((0.83295, 0.95339), abs=1e-5)


def test_patients_of_one_bag_each_are_as_if_not_given():
    labels, one, other, _ = sample(0)
    owners = [str(number) for number in range(len(labels))]
    assert metrics.delong_interval(labels, one, owners) == metrics.delong_interval(labels, one)
    assert metrics.delong_test(labels, one, other, owners) == metrics.delong_test(labels, one, other)


def test_copies_of_bags_tell_nothing_new():
    labels, scores, _, _ = sample(0)
    owners = [str(number) for number in range(len(labels))]
    once = metrics.delong_interval(labels, scores, owners)
    thrice = metrics.delong_interval(np.tile(labels, 3), np.tile(scores, (3, 1)), owners * 3)
    assert thrice == pytest.approx(once)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_order_of_bags_and_monotone_scales_change_nothing(seed):
    labels, one, other, patients = sample(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    mixed = [patients[index] for index in order]
    interval, found = metrics.delong_interval(labels, one, patients), metrics.delong_test(labels, one, other, patients)
    assert metrics.delong_interval(labels[order], one[order], mixed) == pytest.approx(interval)
    assert metrics.delong_interval(labels, expit(one / 3), patients) == pytest.approx(interval)
    assert metrics.delong_test(labels[order], one[order], other[order], mixed) == pytest.approx(found, nan_ok=True)
    turned = metrics.delong_test(labels, other, one, patients)
    assert (-turned.difference, -turned.high, -turned.low, turned.p) == pytest.approx(found, nan_ok=True)
    assert interval.value == pytest.approx(metrics.auroc(labels, one))


def test_patients_that_cancel_out_leave_no_interval_without_width():
    """Each patient's bags lie as high as the others' on average: the variance is 0, and rounding is not to hide it."""
    sevenths = [2, 2, 5, 5, 4, 2, 5, 5, 4, 2, 5, 2, 5, 4, 2, 1, 2, 2, 4, 5, 1, 2, 2, 4, 5]
    patients = [f"p{bag // 5}" for bag in range(25)]
    interval = metrics.delong_interval(np.repeat([1, 0], [15, 10]), two_columns(np.array(sevenths) / 7), patients)
    assert interval.value == pytest.approx(0.66)
    assert interval.low < 0.5
    assert interval.high > 0.8


@given(st.integers(0, 10_000))
def test_the_difference_of_a_model_with_itself_is_nothing(seed):
    labels, scores, _, patients = sample(seed)
    assert metrics.delong_test(labels, scores, scores, patients) == (0, 0, 0, 1)
    assert metrics.delong_test(labels, scores, expit(scores / 3)) == (0, 0, 0, 1)


@pytest.mark.parametrize(("patients", "low"), [(5, 0.6), (20, 0.8), (100, 0.95)])
def test_a_perfect_model_is_not_certain_to_be(patients, low):
    labels = np.arange(patients) % 2
    interval = metrics.delong_interval(labels, two_columns(labels))
    assert interval.value == interval.high == 1
    assert low - 0.25 < interval.low < low + 0.05
    hopeless = metrics.delong_interval(labels, two_columns(1 - labels))
    assert (hopeless.value, hopeless.low) == (0, 0)
    assert hopeless.high == pytest.approx(1 - metrics.delong_interval(1 - labels, two_columns(1 - labels)).low)


def test_the_limit_of_a_perfect_model_solves_newcombes_equation():
    low = metrics.delong_interval(np.repeat([0, 1], [12, 8]), two_columns(np.repeat([0, 1], [12, 8]))).low
    variance = low * (1 - low) * (1 + 9 * ((1 - low) / (2 - low) + low / (1 + low))) / (12 * 8)
    assert 1 - low == pytest.approx(norm.isf(0.025) * math.sqrt(variance))


def test_equal_scores_tell_nothing():
    interval = metrics.delong_interval(np.arange(20) % 2, two_columns(np.zeros(20)))
    assert interval.value == 0.5
    assert interval.low < 0.3
    assert interval.high > 0.7


def test_two_perfect_models_that_differ_claim_no_certainty():
    labels = np.arange(20) % 2
    found = metrics.delong_test(labels, two_columns(labels), two_columns(labels + np.arange(20) / 100))
    assert (found.difference, found.p) == (0, 1)
    assert np.isnan([found.low, found.high]).all()
    found = metrics.delong_test(labels, two_columns(labels), two_columns(1 - labels))
    assert found.difference == 1
    assert np.isnan([found.low, found.high, found.p]).all()


def test_an_absent_class_has_nothing_and_one_patient_no_limits():
    scores = two_columns([0.1, 0.2, 0.3, 0.15])
    assert np.isnan(metrics.delong_interval(np.zeros(4, int), scores)).all()
    assert np.isnan(metrics.delong_test(np.zeros(4, int), scores, -scores)).all()
    labels = np.array([0, 0, 1, 1])
    assert metrics.delong_interval(labels, scores, list("abcc"))[0] == 0.75
    assert np.isnan(metrics.delong_interval(labels, scores, list("abcc"))[1:]).all()
    found = metrics.delong_test(labels, scores, -scores, list("abcc"))
    assert found.difference == 0.5
    assert np.isnan(found[1:]).all()


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="two classes"):
        metrics.delong_interval(np.array([0, 1, 2]), np.eye(3))
    with pytest.raises(ValueError, match="nan"):
        metrics.delong_test(np.array([0, 1]), two_columns([0, 1]), two_columns([math.nan, 1]))
    with pytest.raises(ValueError, match="2 bags, and 1 patients"):
        metrics.delong_interval(np.array([0, 1]), two_columns([0, 1]), ["a"])


def drawn(seed, sizes, area, shared=0.0):
    """One to three bags a patient if they share something, else one; two models of the same AUROC."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], sizes)
    bags = rng.integers(1, 4, len(labels)) if shared else np.ones(len(labels), int)
    patients = [str(number) for number in np.repeat(np.arange(len(labels)), bags)]
    own = rng.normal(size=(2, len(labels))) * shared + labels * math.sqrt(2) * norm.ppf(area)
    scores = np.repeat(own, bags, axis=1) + rng.normal(size=(2, len(patients))) * math.sqrt(1 - shared**2)
    return np.repeat(labels, bags), *map(two_columns, scores), patients


def coverage(sizes, area, shared=0.0, simulations=200, heed=True):
    """Shares of samples in which the interval holds the truth, and in which the test finds no difference."""
    held = np.zeros(2, int)
    for seed in range(simulations):
        labels, one, other, patients = drawn(seed, sizes, area, shared)
        owners = patients if heed else None
        interval = metrics.delong_interval(labels, one, owners)
        held += interval.low <= area <= interval.high, metrics.delong_test(labels, one, other, owners).p > 0.05
    return [binomtest(int(count), simulations).proportion_ci(0.99) for count in held]


@pytest.mark.parametrize(
    ("sizes", "area", "shared"), [((15, 15), 0.9, 0.0), ((30, 60), 0.7, 0.0), ((40, 40), 0.8, 0.8)]
)
def test_intervals_hold_the_truth_and_tests_find_nothing_in_chance_as_often_as_they_say(sizes, area, shared):
    for low, high in coverage(sizes, area, shared):
        assert low <= 0.97
        assert high >= 0.93


def test_bags_of_a_patient_taken_for_independent_promise_too_much():
    assert coverage((40, 40), 0.8, 0.8, heed=False)[0].high < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("area", [0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize(("sizes", "shared"), [((8, 8), 0.0), ((10, 50), 0.0), ((100, 100), 0.0), ((30, 30), 0.8)])
def test_coverage_over_sizes_and_areas(sizes, area, shared):
    low, high = coverage(sizes, area, shared, 3000)[0]
    assert low <= 0.99
    assert high >= 0.92


@pytest.mark.slow
def test_a_hundred_thousand_bags_take_no_square_of_them():
    labels, one, other, _ = drawn(0, (50_000, 50_000), 0.8)
    interval, found = metrics.delong_interval(labels, one), metrics.delong_test(labels, one, other)
    assert interval.high - interval.low < 0.01
    assert abs(found.difference) < 0.01
