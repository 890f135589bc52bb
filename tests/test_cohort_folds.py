"""Rounds of a cross-validation: patients and sites are never divided, classes are spread evenly, seeds decide."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from wsi_mil.cohort import Cohort, Member, draw_folds, nested, shuffled_labels
from wsi_mil.cohort.balance import deal
from wsi_mil.errors import OptionError, TableError

SEEDS = st.integers(0, 999)
PATIENTS = st.lists(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3), max_size=40)
"""The labels of each patient's slides."""


def cohort_of(patients: list[list[str]], sites: list[int] | None = None, folds: list[int] | None = None) -> Cohort:
    members = [
        Member(f"p{p}-{i}", label, f"p{p}", "", f"site{sites[p]}" if sites else "", str(folds[p]) if folds else "")
        for p, labels in enumerate(patients)
        for i, label in enumerate(labels)
    ]
    return Cohort(tuple(members), {})


def balanced(count: int = 40, sites: int = 0) -> Cohort:
    return cohort_of(
        [["x" if i % 4 else "y"] for i in range(count)], [i // 4 % sites for i in range(count)] if sites else None
    )


def patients_by(cohort: Cohort, field: str) -> dict[str, set[str]]:
    found = defaultdict(set)
    for member in cohort.members:
        found[getattr(member, field)].add(member.patient_id)
    return dict(found)


def is_partition(parts: dict[str, set[str]], cohort: Cohort) -> bool:
    return sorted(name for part in parts.values() for name in part) == sorted(cohort.patients)


@given(patients=PATIENTS, k=st.integers(2, 6), seed=SEEDS, fraction=st.floats(0.05, 0.6))
@settings(max_examples=100)
def test_no_patient_is_in_two_folds_nor_in_two_parts_of_a_round(
    patients: list[list[str]], k: int, seed: int, fraction: float
) -> None:
    patients = patients + [[label] for label in "xyz" for _ in range(8)]  # so that every round has all it needs
    cohort = draw_folds(cohort_of(patients), k, seed)
    assert cohort.folds == tuple(str(i) for i in range(1, k + 1))
    assert is_partition(patients_by(cohort, "fold"), cohort)
    for fold in cohort.folds:
        divided = nested(cohort, fold, fraction, seed)
        parts = patients_by(divided, "split")
        assert parts.keys() == {"train", "val", "test"}
        assert is_partition(parts, cohort)
        assert parts["test"] == patients_by(cohort, "fold")[fold]
        for part in ("train", "val"):
            assert {member.label for member in divided.part(part)} == set(cohort.classes)


@given(counts=st.lists(st.integers(8, 25), min_size=2, max_size=4), k=st.integers(2, 6), seed=SEEDS)
@settings(max_examples=100)
def test_folds_are_even_within_one_patient_of_each_class_and_of_all(counts: list[int], k: int, seed: int) -> None:
    labels = "wxyz"[: len(counts)]
    patients = [[label] for label, count in zip(labels, counts, strict=True) for _ in range(count)]
    cohort = draw_folds(cohort_of(patients), k, seed)
    for label in [*labels, None]:
        sizes = [sum(m.fold == fold and label in (None, m.label) for m in cohort.members) for fold in cohort.folds]
        assert max(sizes) - min(sizes) <= 1


@given(seed=SEEDS, extra=st.lists(st.integers(0, 39), max_size=10))
@settings(max_examples=30)
def test_the_seed_decides_whatever_the_order_and_the_slides_per_patient(seed: int, extra: list[int]) -> None:
    cohort = balanced()
    more = [replace_id(cohort.members[i], f"more{n}") for n, i in enumerate(extra)]
    other = Cohort((*more, *cohort.members[::-1]), {})
    drawn, again = draw_folds(cohort, 5, seed), draw_folds(other, 5, seed)
    assert patients_by(drawn, "fold") == patients_by(again, "fold")
    one, two = (nested(folds, "3", 0.25, seed) for folds in (drawn, again))
    assert patients_by(one, "split") == patients_by(two, "split")


def replace_id(member: Member, slide_id: str) -> Member:
    return member._replace(slide_id=slide_id)


def test_other_seeds_draw_otherwise() -> None:
    cohort = balanced()
    assert len({draw_folds(cohort, 5, seed).digest for seed in range(10)}) == 10
    drawn = draw_folds(cohort, 5, 0)
    assert len({nested(drawn, "1", 0.25, seed).digest for seed in range(10)}) == 10


def test_validation_is_stratified_and_follows_its_own_fold_only() -> None:
    drawn = draw_folds(balanced(80), 5, 0)
    divided = nested(drawn, "2", 0.25, 7)
    assert Counter(member.label for member in divided.part("val")) == {"x": 12, "y": 4}
    assert Counter(member.label for member in divided.part("test")) == {"x": 12, "y": 4}
    merged = replace(drawn, members=tuple(m._replace(fold="1" if m.fold == "3" else m.fold) for m in drawn.members))
    assert [m.split for m in nested(merged, "2", 0.25, 7).members] == [m.split for m in divided.members]
    same_rest = [nested(renamed(drawn, name), name, 0.25, 7) for name in ("2", "8")]
    assert [m.split for m in same_rest[0].members] != [m.split for m in same_rest[1].members]


def renamed(cohort: Cohort, name: str) -> Cohort:
    return replace(cohort, members=tuple(m._replace(fold=name if m.fold == "2" else m.fold) for m in cohort.members))


@given(
    patients=st.lists(st.tuples(st.integers(0, 11), st.sampled_from("xy")), max_size=60),
    k=st.integers(2, 4),
    seed=SEEDS,
)
@settings(max_examples=100)
def test_no_site_is_in_two_folds(patients: list[tuple[int, str]], k: int, seed: int) -> None:
    patients = patients + [(site, label) for site in range(12) for label in "xxyy"]  # so that all rounds have all
    cohort = cohort_of([[label] for _, label in patients], [site for site, _ in patients])
    cohort = draw_folds(cohort, k, seed, by_site=True)
    assert len(cohort.folds) == k
    folds_of = defaultdict(set)
    for member in cohort.members:
        folds_of[member.site].add(member.fold)
    assert all(len(found) == 1 for found in folds_of.values())
    assert is_partition(patients_by(cohort, "fold"), cohort)


def test_validation_is_of_sites_of_its_own_where_there_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    cohort = draw_folds(balanced(120, sites=15), 5, 0, by_site=True)
    for fold in cohort.folds:
        divided = nested(cohort, fold, 0.25, 0)
        sites = [{member.site for member in divided.part(part)} for part in ("train", "val", "test")]
        assert sum(map(len, sites)) == len(set.union(*sites)) == 15
        assert 0.15 <= len(divided.part("val")) / (120 - len(divided.part("test"))) <= 0.35
    assert not caplog.messages
    few = draw_folds(balanced(40, sites=2), 2, 0, by_site=True)
    divided = nested(few, "1", 0.25, 0)
    assert {member.site for member in divided.part("val")} == {member.site for member in divided.part("train")}
    assert caplog.messages == ["fold 1: too few sites are left to validate on sites of their own; patients are drawn"]


@pytest.mark.parametrize(("alone", "k"), [(1, 5), (2, 2)])
def test_folds_are_drawn_where_few_patients_have_one_class_alone(alone: int, k: int) -> None:
    cohort = draw_folds(cohort_of([["x", "y"]] * 10 + [["y"]] * alone), k, 0)
    for fold in cohort.folds:
        divided = nested(cohort, fold, 0.3, 0)
        assert all({member.label for member in divided.part(part)} == {"x", "y"} for part in ("train", "val", "test"))


def test_a_test_fold_of_sites_may_lack_a_class(caplog: pytest.LogCaptureFixture) -> None:
    labels = ["x"] * 12 + ["y", "y", "y", "y", "y", "y"] + ["x"] * 6
    cohort = cohort_of([[label] for label in labels], [i // 6 for i in range(24)])
    with pytest.raises(TableError, match=r"when fold \d is tested, fewer than two patients of class y are left"):
        draw_folds(cohort, 4, 0, by_site=True)
    assert not caplog.messages
    labels[0:2] = ["y", "y"]
    cohort = draw_folds(cohort_of([[label] for label in labels], [i // 6 for i in range(24)]), 4, 0, by_site=True)
    lacking = [message for message in caplog.messages if "has no patient of class" in message]
    assert len(lacking) == 3
    assert all("only figures over all folds together are defined" in message for message in lacking)


def unevenness(counts: np.ndarray, dealt: np.ndarray, k: int) -> float:
    weights = counts / counts.sum(axis=0)
    return sum(np.square(weights[dealt == part].sum(axis=0) - 1 / k).sum() for part in range(k))


def test_sites_are_dealt_more_evenly_than_a_greedy_deal() -> None:
    """Over 40 cohorts with sites as unlike in size as those of TCGA, against scikit-learn's StratifiedGroupKFold."""
    ours, theirs = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sizes = np.ceil(rng.lognormal(1.5, 1.2, size=25)).astype(int)
        positive = rng.binomial(sizes, rng.beta(1, 3, size=25))
        counts = np.stack([sizes - positive, positive], axis=1)
        sites = np.repeat(np.arange(25), sizes)
        labels = np.concatenate([[1] * p + [0] * (n - p) for n, p in zip(sizes, positive, strict=True)])
        dealt = np.zeros(25, dtype=int)
        for fold, (_, test) in enumerate(StratifiedGroupKFold(5).split(labels, labels, sites)):
            dealt[np.unique(sites[test])] = fold
        ours.append(unevenness(counts, deal(counts, np.full(5, 0.2), rng), 5))
        theirs.append(unevenness(counts, dealt, 5))
    ratio = np.array(ours) / np.array(theirs)
    assert ratio.max() <= 1
    assert np.median(ratio) < 2 / 3


@given(counts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=7), seed=SEEDS)
@settings(max_examples=30)
def test_no_single_move_or_swap_improves_a_deal_and_no_part_is_empty(counts: list[tuple[int, int]], seed: int) -> None:
    table, k = np.array(counts), 3
    assume(table.sum(axis=0).min() > 0)
    dealt = deal(table, np.full(k, 1 / k), np.random.default_rng(seed))
    assert set(dealt.tolist()) == set(range(k))
    assert (deal(table, np.full(k, 1 / k), np.random.default_rng(seed)) == dealt).all()
    reached = unevenness(table, dealt, k)
    for one in range(len(dealt)):
        for other in range(one):
            swapped = dealt.copy()
            swapped[[one, other]] = dealt[[other, one]]
            assert unevenness(table, swapped, k) >= reached - 1e-9
        for part in range(k):
            moved = dealt.copy()
            moved[one] = part
            assert len(set(moved.tolist())) < k or unevenness(table, moved, k) >= reached - 1e-9


def test_many_sites_are_dealt_in_no_time() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, size=(400, 3))
    dealt = deal(counts, np.full(5, 0.2), rng)
    assert np.ptp([counts[dealt == part].sum(axis=0) for part in range(5)], axis=0).max() <= 1


def test_folds_that_the_table_names_are_followed() -> None:
    named = cohort_of([["x" if i % 2 else "y"] for i in range(12)], folds=[i // 4 * 5 for i in range(12)])
    for k in (0, 3):
        assert draw_folds(named, k, seed=k) == named
    assert draw_folds(named, 0, 0).folds == ("0", "5", "10")
    with pytest.raises(
        TableError, match=r"the column fold names 3 folds \(0, 5, 10\), and --folds is 5: give --folds 0"
    ):
        draw_folds(named, 5, 0)
    with pytest.raises(TableError, match="--by-site needs the column site"):
        draw_folds(named, 0, 0, by_site=True)
    with pytest.raises(TableError, match=r"the column fold has site site0 in several folds \(0, 10, 5\)"):
        draw_folds(replace(named, members=tuple(m._replace(site="site0") for m in named.members)), 0, 0, by_site=True)
    with pytest.raises(TableError, match=r"names one fold only \(7\)"):
        draw_folds(cohort_of([["x"], ["y"]], folds=[7, 7]), 0, 0)
    lacking = cohort_of([["x" if i < 4 or i % 2 else "y"] for i in range(12)], folds=[i // 4 for i in range(12)])
    with pytest.raises(TableError, match=r"fold 0 has no patient of class y to test: ask for fewer --folds, or name"):
        draw_folds(lacking, 0, 0)


def test_what_cannot_be_drawn_is_refused() -> None:
    cohort = cohort_of([["x"]] * 10 + [["y"]] * 3, [0] * 10 + [1] * 3)
    for k in (-1, 0, 1):
        with pytest.raises(OptionError, match=f"--folds {k}: give 2 or more, or 0 where the table"):
            draw_folds(cohort, k, 0)
    with pytest.raises(
        TableError, match="class y has 3 patients, fewer than 5 folds: ask for fewer by --folds, or label more"
    ):
        draw_folds(cohort, 5, 0)
    with pytest.raises(TableError, match="class z has 0 patients"):
        draw_folds(replace(cohort, declared=("x", "y", "z")), 2, 0)
    with pytest.raises(TableError, match=r"there are 2 sites \(site0, site1\), fewer than --folds 3"):
        draw_folds(cohort, 3, 0, by_site=True)
    with pytest.raises(TableError, match="is tested, fewer than two patients of class y are left"):
        draw_folds(cohort_of([["x"]] * 10 + [["y"]] * 2), 2, 0)
    drawn = draw_folds(cohort, 3, 0)
    with pytest.raises(OptionError, match="fold 4: there is none of that name, but 1, 2, 3"):
        nested(drawn, "4", 0.2, 0)
    with pytest.raises(OptionError, match="none at all"):
        nested(cohort, "1", 0.2, 0)
    with pytest.raises(OptionError, match="--val-fraction 1"):
        nested(drawn, "1", 1.0, 0)


def test_what_the_table_says_of_splits_is_not_used_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    cohort = balanced()
    given_ = replace(cohort, members=tuple(m._replace(split="train") for m in cohort.members))
    drawn = draw_folds(given_, 5, 0)
    assert "its column split is not used" in caplog.text
    assert nested(drawn, "1", 0.25, 0).members == nested(draw_folds(cohort, 5, 0), "1", 0.25, 0).members


@given(patients=PATIENTS, seed=SEEDS)
@settings(max_examples=60)
def test_shuffling_moves_labels_from_patient_to_patient(patients: list[list[str]], seed: int) -> None:
    patients = [[labels[0]] * len(labels) for labels in patients]
    cohort = cohort_of(patients)
    shuffled = shuffled_labels(cohort, seed)
    before, after = ({p: {m.label for m in ms} for p, ms in c.patients.items()} for c in (cohort, shuffled))
    assert all(len(found) == 1 for found in after.values())
    assert Counter(min(found) for found in after.values()) == Counter(min(found) for found in before.values())
    assert [m._replace(label="") for m in shuffled.members] == [m._replace(label="") for m in cohort.members]
    assert shuffled.classes == cohort.classes
    assert shuffled_labels(Cohort(cohort.members[::-1], {}), seed).members[::-1] == shuffled.members


def test_named_folds_keep_their_rare_patients_when_labels_are_shuffled() -> None:
    folds = [p % 5 for p in range(30)]
    cohort = cohort_of([["pos" if p < 5 else "neg"] for p in range(30)], folds=folds)
    for seed in range(10):
        shuffled = shuffled_labels(cohort, seed)
        draw_folds(shuffled, 0, seed)  # refuses folds that lack a class
        assert shuffled.members != cohort.members


def test_shuffled_labels_say_nothing_of_the_true_ones() -> None:
    cohort = cohort_of([["x", "x"] if i % 2 else ["y"] for i in range(100)])
    agree = [
        np.mean(
            [a.label == b.label for a, b in zip(cohort.members, shuffled_labels(cohort, seed).members, strict=True)]
        )
        for seed in range(40)
    ]
    assert abs(np.mean(agree) - 0.5) < 0.03
    assert len(set(agree)) > 1


def test_patients_with_several_labels_hand_them_on_in_turn() -> None:
    cohort = cohort_of([["x", "y"]] * 3 + [["x", "x"]] * 3 + [["y", "y"]] * 3)
    for seed in range(20):
        mixed = [len({m.label for m in members}) == 2 for members in shuffled_labels(cohort, seed).patients.values()]
        assert sum(mixed) == 3
    single = cohort_of([["x", "y"]] + [["z"]] * 3)
    assert shuffled_labels(single, 1).classes == ("x", "y", "z")


def test_where_nobody_says_how_many_folds_the_column_does_or_there_are_five() -> None:
    named = cohort_of([["x" if i % 2 else "y"] for i in range(24)], folds=[i % 3 for i in range(24)])
    assert draw_folds(named, None, 0).folds == ("0", "1", "2")
    assert len(draw_folds(balanced(), None, 0).folds) == 5
    assert len(draw_folds(balanced(80, sites=8), None, 0, by_site=True).folds) == 5
    assert len(draw_folds(balanced(48, sites=3), None, 0, by_site=True).folds) == 3
    one = cohort_of([["x" if i % 2 else "y"] for i in range(24)], folds=["7"] * 24)
    with pytest.raises(TableError, match=r"the column fold names one fold only \(7\)"):
        draw_folds(one, None, 0)
    with pytest.raises(TableError, match="--by-site: every patient is of site site0, and rounds need two sites"):
        draw_folds(balanced(48, sites=1), None, 0, by_site=True)
    with pytest.raises(TableError, match="--by-site needs the column site"):
        draw_folds(balanced(), None, 0, by_site=True)
    with pytest.raises(TableError, match="class y has 2 patients, fewer than 5 folds: ask for fewer by --folds"):
        draw_folds(balanced(8), None, 0)
