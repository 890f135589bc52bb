"""The bootstrap over patients, paired or not, and what is said of small samples."""

import logging
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from wsi_mil import metrics
from wsi_mil.errors import OptionError
from wsi_mil.metrics import intervals


def two_columns(scores):
    scores = np.asarray(scores, dtype=float)
    return np.stack([1 - scores, scores], axis=1)


def normals(rng, sizes, area):
    """Bags of two normals (others, positive) whose AUROC is known."""
    labels = np.repeat([0, 1], sizes)
    return labels, two_columns(rng.normal(size=len(labels)) + labels * math.sqrt(2) * norm.ppf(area))


def clustered(rng, sizes, area, shared=0.8):
    """One to three bags a patient, alike to one another."""
    labels = np.repeat([0, 1], sizes)
    bags = rng.integers(1, 4, len(labels))
    own = np.repeat(rng.normal(size=len(labels)) * shared + labels * math.sqrt(2) * norm.ppf(area), bags)
    scores = own + rng.normal(size=len(own)) * math.sqrt(1 - shared**2)
    return np.repeat(labels, bags), two_columns(scores), named(np.repeat(np.arange(len(labels)), bags))


def named(numbers):
    return [f"patient {number}" for number in numbers]


def scored(figure, labels, scores, patients, seed, resamples=2000, level=0.95):
    """The interval of a figure of labels and scores."""
    how = metrics.Resampling(seed, resamples, level)
    return metrics.bootstrap(lambda rows: float(figure(labels[rows], scores[rows])), labels, patients, how)


def paired(figure, labels, one, other, patients, seed, resamples=2000):
    """That of a difference."""

    def difference(rows):
        return float(figure(labels[rows], one[rows]) - figure(labels[rows], other[rows]))

    return metrics.bootstrap(difference, labels, patients, metrics.Resampling(seed, resamples))


def by_predictions(labels, scores):
    return metrics.balanced_accuracy(labels, metrics.predict_at(scores, 0.5))


def test_the_same_seed_gives_the_same_interval_and_another_another():
    """STAMP and Patho-Bench do not seed theirs (S7, P2)."""
    labels, scores = normals(np.random.default_rng(0), (20, 20), 0.8)
    first, again, other = (scored(metrics.auroc, labels, scores, named(range(40)), seed, 200) for seed in (3, 3, 4))
    assert first == again
    assert first[1:] != other[1:]


def test_the_value_is_the_figure_and_not_the_mean_of_its_resamples():
    """As Patho-Bench reports (P2)."""
    labels, scores = normals(np.random.default_rng(0), (20, 20), 0.8)
    for figure in (metrics.auroc, metrics.ece, by_predictions):
        assert scored(figure, labels, scores, named(range(40)), 0, 100).value == figure(labels, scores)


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_the_order_of_the_bags_does_not_change_the_interval(seed):
    rng = np.random.default_rng(seed)
    labels, scores, patients = clustered(rng, (12, 8), 0.8)
    order = rng.permutation(len(labels))
    mixed = [patients[index] for index in order]
    interval = scored(metrics.auroc, labels, scores, patients, 0, 100)
    assert scored(metrics.auroc, labels[order], scores[order], mixed, 0, 100) == pytest.approx(interval, nan_ok=True)


def test_a_patient_brings_all_its_bags_and_every_class_that_occurs_is_in_every_resample():
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 2, 2])
    patients = ["a", "a", "b", "c", "c", "c", "d", "d", "e", "both", "both", "f", "g"]
    bag = np.arange(13)
    seen = set()

    def watched(labels, scores):
        count = dict(zip(*np.unique(scores[:, 0], return_counts=True), strict=True))
        drawn = [{count.get(index, 0) for index in bag[np.array(patients) == name]} for name in set(patients)]
        assert all(len(times) == 1 for times in drawn)
        assert set(labels) == {0, 1, 2}
        assert count[9] == 1  # the only patient with classes 0 and 1 is alone in its stratum
        seen.add(tuple(sorted(count.items())))
        return float(scores[:, 0].mean())

    interval = scored(watched, labels, np.stack([bag] * 3, axis=1).astype(float), patients, 0, 300)
    assert len(seen) > 50
    assert interval.low < interval.value < interval.high


def test_no_resample_is_without_a_rare_class():
    """Where Patho-Bench turns N/A as soon as one is (P2)."""
    labels, scores = normals(np.random.default_rng(1), (50, 3), 0.6)
    interval = scored(metrics.auroc, labels, scores, named(range(53)), 0, 500)
    assert interval.low < interval.value < interval.high


def test_resamples_on_which_a_figure_is_undefined_are_counted_and_not_dropped(caplog):
    labels, scores = normals(np.random.default_rng(0), (10, 10), 0.8)
    highest = scores[:, 1].max()

    def fragile(labels, scores):
        return metrics.auroc(labels, scores) if highest in scores[:, 1] else math.nan

    with caplog.at_level(logging.WARNING):
        interval = scored(fragile, labels, scores, named(range(20)), 0, 1000)
    assert interval.value == metrics.auroc(labels, scores)
    assert np.isnan(interval[1:]).all()
    count = int(caplog.messages[0].split("on ")[1].split(" ")[0])
    assert 300 < count < 400  # the chance of not being drawn is (9/10)^10, about 0.35


@pytest.mark.parametrize(
    ("labels", "patients"),
    [
        ([0, 0, 0, 1], "abcd"),
        ([0, 0, 1, 1], "abcc"),
    ],
)
def test_with_one_patient_of_a_class_there_is_a_value_and_no_interval(labels, patients):
    labels, scores = np.array(labels), two_columns([0.1, 0.6, 0.4, 0.9])
    interval = scored(metrics.auroc, labels, scores, list(patients), 0, 100)
    assert interval.value == metrics.auroc(labels, scores)
    assert np.isnan(interval[1:]).all()


def test_an_absent_class_has_neither_value_nor_interval():
    scores = two_columns([0.1, 0.6, 0.4])
    assert np.isnan(scored(metrics.auroc, np.zeros(3, int), scores, list("abc"), 0, 100)).all()
    assert np.isnan(scored(metrics.auroc, np.zeros(0, int), scores[:0], [], 0, 100)).all()
    assert np.isnan(paired(metrics.auroc, np.zeros(3, int), scores, scores, list("abc"), 0)).all()


def test_a_figure_that_is_the_same_in_all_resamples_claims_no_certainty():
    labels, scores = np.arange(20) % 2, two_columns(np.arange(20) % 2)
    interval = scored(metrics.auroc, labels, scores, named(range(20)), 0, 100)
    assert interval.value == 1
    assert np.isnan(interval[1:]).all()


def test_limits_that_meet_claim_no_certainty():
    labels, scores = np.arange(40) % 2, two_columns(np.arange(40) / 40)

    def coarse(labels, scores):
        return float(scores[:, 1].mean() > 0.3)  # less in hardly any resample

    interval = scored(coarse, labels, scores, named(range(40)), 0, 500)
    assert interval.value == 1
    assert np.isnan(interval[1:]).all()


def test_limits_are_corrected_for_skewness():
    """Efron's example of why: of a variance, percentiles lie too low."""
    values = np.random.default_rng(0).normal(size=25)
    scores, drawn = np.stack([values, values], axis=1), []

    def variance(labels, scores):
        drawn.append(float(scores[:, 0].var()))
        return drawn[-1]

    interval = scored(variance, np.zeros(25, int), scores, named(range(25)), 0, 1000)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert interval.low > low * 1.05
    assert interval.high > high * 1.05


def test_every_bag_has_an_owner():
    with pytest.raises(ValueError, match="3 bags, and 2 patients"):
        scored(metrics.auroc, np.array([0, 1, 2]), np.eye(3), ["a", "b"], 0)


@pytest.mark.parametrize(
    ("flag", "options"),
    [("--seed", {"seed": -1}), ("--resamples", {"resamples": 10}), ("--level", {"level": 95.0})],
)
def test_options_that_make_no_sense_are_refused_by_name(flag, options):
    labels, scores = normals(np.random.default_rng(0), (5, 5), 0.8)
    with pytest.raises(OptionError, match=flag):
        scored(metrics.auroc, labels, scores, named(range(10)), **{"seed": 0, **options})


def test_a_wider_level_makes_a_wider_interval():
    labels, scores = normals(np.random.default_rng(0), (20, 20), 0.8)
    narrow, wide = (scored(metrics.auroc, labels, scores, named(range(40)), 0, 400, level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def area(labels, scores):
    """The AUROC without checks of shapes, which take longer than it does."""
    others = np.sort(scores[labels == 0, 1])
    return np.searchsorted(others, scores[labels == 1, 1]).mean() / len(others)


def coverage(draw, simulations, resamples=100):
    """How many samples have an interval that holds the true AUROC, 0.8, and how many there are."""
    held = []
    for seed in range(simulations):
        labels, scores, patients = draw(np.random.default_rng(seed))
        interval = scored(area, labels, scores, patients, seed, resamples)
        held.append(interval.low <= 0.8 <= interval.high)
    return sum(held), simulations


def believable(held, of, promised=0.95, slack=0.02):
    """Whether so many hits may come from a true coverage within slack of what is promised."""
    low, high = binomtest(held, of).proportion_ci(0.99)
    return low <= promised + slack and high >= promised - slack


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held, of = coverage(lambda rng: (*normals(rng, (25, 25), 0.8), named(range(50))), 60)
    assert believable(held, of)


@pytest.mark.slow
def test_intervals_of_patients_with_several_bags_hold_the_truth_too():
    held, of = coverage(lambda rng: clustered(rng, (40, 40), 0.8), 1000, 400)
    assert believable(held, of)

    def as_if_independent(rng):
        labels, scores, _ = clustered(rng, (40, 40), 0.8)
        return labels, scores, named(range(len(labels)))

    assert not believable(*coverage(as_if_independent, 1000, 400))  # so this test can tell


@pytest.mark.slow
def test_two_thousand_resamples_take_seconds():
    labels, scores = normals(np.random.default_rng(0), (200, 200), 0.8)
    start = time.process_time()
    scored(metrics.auroc, labels, scores, named(range(400)), 0)
    assert time.process_time() - start < 10  # checks of shapes included


@pytest.mark.parametrize("patients", [60, 400])
def test_limits_of_many_patients_are_those_of_few_and_take_no_square_of_them(patients, monkeypatch):
    """Of 60 patients a class each is a group of its own, so that nothing may differ but rounding."""
    rng = np.random.default_rng(3)
    labels, scores = normals(rng, (patients, patients), 0.9)
    scores = two_columns(np.exp(4 * scores[:, 1]))  # skewed, as log loss is
    asked = []

    def figure(rows):
        asked.append(len(rows))
        return float(np.mean(scores[rows, 1]))

    how = metrics.Resampling(0, 400)
    each = metrics.bootstrap(figure, labels, named(range(2 * patients)), how)
    asked.clear()
    monkeypatch.setattr(intervals, "_ALONE", 50)
    groups = metrics.bootstrap(figure, labels, named(range(2 * patients)), how)
    assert len(asked) <= 400 + 2 * 200 + 3
    width = each.high - each.low
    near = 1e-9 if patients <= 200 else 0.03 * width
    assert groups == pytest.approx(each, abs=near)
    monkeypatch.setattr(intervals, "_acceleration", lambda *_: 0.0)
    plain = metrics.bootstrap(figure, labels, named(range(2 * patients)), how)
    assert abs(plain.high - each.high) > near  # so that this test can tell


def test_a_paired_interval_is_narrower_than_what_the_two_alone_would_give():
    rng = np.random.default_rng(0)
    labels, scores = normals(rng, (40, 40), 0.8)
    near = two_columns(scores[:, 1] + rng.normal(0, 0.1, 80))
    alone = scored(metrics.auroc, labels, scores, named(range(80)), 0, 300)
    both = paired(metrics.auroc, labels, scores, near, named(range(80)), 0, 300)
    assert both.value == pytest.approx(metrics.auroc(labels, scores) - metrics.auroc(labels, near))
    assert both.low <= both.value <= both.high
    assert both.high - both.low < (alone.high - alone.low) / 3


def test_a_paired_interval_turns_with_the_models():
    rng = np.random.default_rng(0)
    labels, one = normals(rng, (30, 30), 0.9)
    other = two_columns(rng.normal(size=60) + labels)
    there = paired(metrics.auroc, labels, one, other, named(range(60)), 0, 300)
    back = paired(metrics.auroc, labels, other, one, named(range(60)), 0, 300)
    assert (-back.value, -back.high, -back.low) == pytest.approx(there)


def test_two_perfect_models_that_differ_claim_no_certainty():
    labels = np.arange(20) % 2
    one, other = two_columns(labels), two_columns(0.1 * labels + np.arange(20) / 1000)
    assert metrics.auroc(labels, other) == 1
    difference = paired(metrics.auroc, labels, one, other, named(range(20)), 0, 100)
    assert difference.value == 0
    assert np.isnan(difference[1:]).all()


def test_mcnemar_is_a_binomial_test_of_where_the_models_disagree():
    correct_a = np.array([True] * 30 + [True] * 9 + [False] * 2 + [False] * 5)
    correct_b = np.array([True] * 30 + [False] * 9 + [True] * 2 + [False] * 5)
    assert metrics.mcnemar(correct_a, correct_b) == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert metrics.mcnemar(correct_b, correct_a) == metrics.mcnemar(correct_a, correct_b)
    assert metrics.mcnemar(correct_a, correct_a) == 1


def test_holm_by_hand_in_the_order_given():
    np.testing.assert_allclose(metrics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(metrics.holm([0.6, 0.7]), [1, 1])
    assert metrics.holm([]).tolist() == []


def test_holm_counts_a_test_that_could_not_tell():
    adjusted = metrics.holm([math.nan, 0.01])
    assert math.isnan(adjusted[0])
    assert adjusted[1] == pytest.approx(0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.randoms())
def test_holm_keeps_order_and_lowers_nothing(p_values, random):
    adjusted = metrics.holm(p_values)
    assert (adjusted >= p_values).all()
    assert (adjusted <= np.minimum(1, np.array(p_values) * len(p_values))).all()  # never worse than Bonferroni
    order = random.sample(range(len(p_values)), len(p_values))
    np.testing.assert_array_equal(metrics.holm([p_values[index] for index in order]), adjusted[order])


def test_what_is_too_small_is_said_with_class_and_count():
    labels = np.array([0] * 12 + [1] * 4 + [2])
    patients = [*named(range(12)), "a", "a", "b", "c", "d"]
    notes = metrics.small_sample_notes(labels, patients, ["benign", "atypical", "in situ", "invasive"])
    assert [note.split(":")[0] for note in notes] == ["class atypical", "class in situ", "class invasive", "17 bags"]
    assert "3 patients" in notes[0]
    assert "no interval" in notes[1]
    assert "not defined" in notes[2]


def test_of_a_large_sample_nothing_is_said():
    assert metrics.small_sample_notes(np.arange(400) % 2, named(range(400)), ["a", "b"]) == []


@pytest.mark.parametrize("bags", [40, 100, 400])
def test_the_calibration_error_that_chance_makes_is_about_what_is_said(bags):
    rng, seen = np.random.default_rng(0), []
    for _ in range(60):
        positive = 1 / (1 + np.exp(-rng.normal(0, 2, bags)))
        seen.append(metrics.ece((rng.random(bags) < positive).astype(int), two_columns(positive)))
    assert metrics.notes.chance_ece(bags) == pytest.approx(np.mean(seen), rel=0.15)


@pytest.mark.parametrize(("hits", "trials"), [(10, 10), (0, 10), (3, 7), (1, 1)])
def test_exact_limits_are_those_at_which_what_was_seen_is_just_improbable(hits: int, trials: int) -> None:
    found = metrics.exact(hits, trials)
    assert found.value == hits / trials
    low, high = (0.0 if hits == 0 else found.low), (1.0 if hits == trials else found.high)
    assert (found.low, found.high) == (low, high)
    assert hits == 0 or binom.sf(hits - 1, trials, low) == pytest.approx(0.025)
    assert hits == trials or binom.cdf(hits, trials, high) == pytest.approx(0.025)


def test_exact_limits_of_nobody_are_undefined() -> None:
    assert np.isnan(metrics.exact(0, 0)).all()
