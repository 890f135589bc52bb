"""Bags with a known rule: they are what they claim to be, the best answers are the best, and known verdicts hold."""

import csv
import dataclasses
import importlib
import itertools
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from wsi_mil.aggregators import AGGREGATORS
from wsi_mil.bags import collate
from wsi_mil.errors import ArtifactCorrupt, ArtifactMissing, OptionError
from wsi_mil.learning import Examples, LearnParams

EXAMPLES = Path(__file__).parents[1] / "examples"
UNPLACED = ("abmil", "max", "mean", "self-attention")
"""Models that ignore positions: by attention, by maximum, by mean, and by attention among tiles before a maximum."""
TRAPPED = ("single concept", "multi-concept", "false frequency")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As the scripts have it: on small bags several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bags(load):
    return load("algorithmic_bags")


@pytest.fixture
def script(load):
    return load("algorithmic_tests")


def counts_of(bags, example):
    return Counter({kind: int((example.bag.attrs["kinds"] == kind).sum()) for kind in bags.Kind})


def run_main(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of the whole suite
    module.main()


# ---- the three tests of Raff and Holt


@pytest.mark.parametrize("part", ["train", "val", "test", "plain"])
@pytest.mark.parametrize("name", TRAPPED)
def test_labels_are_what_the_rule_says_and_half_of_them_are_positive(bags, name, part):
    test = bags.RAFF_HOLT[name]
    drawn = test.draw(part, 200, seed=3)
    assert isinstance(drawn, Examples)
    assert drawn.targets == [int(test.rule(counts_of(bags, example))) for example in drawn]
    assert sum(drawn.targets) == 100


@pytest.mark.parametrize("name", TRAPPED[:2])
def test_poison_is_one_instance_of_the_bags_it_is_meant_for(bags, name):
    for part, poisoned in {"train": {0}, "val": {0}, "test": {1}, "plain": set()}.items():
        for bag, target in bags.RAFF_HOLT[name].draw(part, 60, seed=0):
            assert (bag.attrs["kinds"] == bags.Kind.POISON).sum() == (target in poisoned)


@pytest.mark.parametrize("part", ["train", "test"])
def test_counts_take_every_value_they_may_and_no_other(bags, part):
    drawn = {name: bags.RAFF_HOLT[name].draw(part, 1200, seed=1) for name in TRAPPED}

    def seen(name, positive, *kinds):
        chosen = (counts_of(bags, example) for example in drawn[name] if example.target == positive)
        return {tuple(counts[kind] for kind in kinds) for counts in chosen}

    background, first, second = bags.Kind.BACKGROUND, bags.Kind.FIRST, bags.Kind.SECOND
    assert seen("single concept", 0, background, first, second) == {(10, 0, 0)}
    assert {sum(pair) for pair in seen("single concept", 1, first, second)} == {1, 2, 3}
    assert {(0, 3), (1, 2), (2, 1), (3, 0)} <= seen("single concept", 1, first, second)
    assert seen("multi-concept", 0, first, second) == {(1, 0), (0, 1)}
    assert seen("multi-concept", 1, first, second) == {(1, 1), (2, 2), (3, 3)}
    assert seen("multi-concept", 0, background) == {(count,) for count in range(1, 10)}
    assert seen("false frequency", 1, first, second) == set(itertools.product((1, 2), repeat=2))
    often = range(35, 45) if part == "test" else range(1, 3)
    assert seen("false frequency", 0, first, second) == {pair for n in often for pair in ((n, 0), (0, n))}


@pytest.mark.parametrize("name", TRAPPED)
def test_features_are_distributed_as_their_kind_says(bags, name):
    test = bags.RAFF_HOLT[name]
    drawn = test.draw("train", 400, seed=2)
    features = torch.cat([example.bag.features for example in drawn]).numpy()
    kinds = np.concatenate([example.bag.attrs["kinds"] for example in drawn])
    for kind in np.unique(kinds):
        wanted, got = test.kinds[bags.Kind(kind)], features[kinds == kind]
        tolerance = 4.5 * wanted.std / math.sqrt(len(got))
        np.testing.assert_allclose(got.mean(axis=0), wanted.mean, atol=tolerance)
        np.testing.assert_allclose(got.std(axis=0), wanted.std, atol=tolerance)
        correlations = np.corrcoef(got.T)[~np.eye(test.dim, dtype=bool)]
        assert abs(correlations).max() < 5.0 / math.sqrt(len(got))


@pytest.mark.parametrize("name", TRAPPED)
def test_neither_the_order_nor_the_place_of_an_instance_tells_what_it_is(bags, name):
    concept, ranks, coords = [], [], []
    for bag, _ in bags.RAFF_HOLT[name].draw("train", 400, seed=5):
        concept.append(bag.attrs["kinds"] != bags.Kind.BACKGROUND)
        ranks.append(np.linspace(0, 1, len(bag.features)))
        coords.append(bag.coords_um.numpy())
        assert len(torch.unique(bag.coords_um, dim=0)) == len(bag.coords_um)
    concept = np.concatenate(concept)
    for values in (np.concatenate(ranks), *np.concatenate(coords).T):
        assert abs(np.corrcoef(concept, values)[0, 1]) < 4.0 / math.sqrt(len(concept))


@pytest.mark.parametrize("name", TRAPPED)
def test_seeds_and_parts_decide_the_bags(bags, name):
    def features(part, seed):
        return torch.cat([example.bag.features for example in bags.RAFF_HOLT[name].draw(part, 6, seed)])

    assert torch.equal(features("train", 0), features("train", 0))
    different = [features(part, seed)[:20] for part, seed in itertools.product(("train", "val", "plain"), (0, 1))]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(different, 2))


def test_no_concept_alone_solves_the_third_test_and_counting_is_the_trap(bags):
    def auroc(part, score):
        drawn = bags.FALSE_FREQUENCY.draw(part, 1000, seed=0)
        return roc_auc_score(drawn.targets, [score(counts_of(bags, example)) for example in drawn])

    first, second = bags.Kind.FIRST, bags.Kind.SECOND
    for concept in (first, second):
        assert 0.7 < auroc("train", lambda counts, concept=concept: counts[concept] > 0) < 0.8
        assert 0.7 < auroc("train", lambda counts, concept=concept: counts[concept]) < 0.85
    assert auroc("train", lambda counts: counts[first] + counts[second]) > 0.9
    assert auroc("test", lambda counts: counts[first] + counts[second]) == 0
    for part in ("train", "test"):
        assert auroc(part, lambda counts: min(counts[first], counts[second], 1)) == 1


# ---- verdicts


def test_the_reference_never_answers_lower_for_one_instance_more(script):
    torch.manual_seed(0)
    model = script.Presence(5, 2, script.PresenceParams(hidden=16)).eval()
    bag = script.ShiftedMean(dim=5).draw("train", 1, seed=0)[0].bag
    for extra in 30 * torch.randn(200, 1, 5):
        longer = bag._replace(
            features=torch.cat([bag.features, extra]), coords_um=torch.cat([bag.coords_um, bag.coords_um[:1]])
        )
        assert model(collate([longer])).logits[0, 1] >= model(collate([bag])).logits[0, 1]
    twice = bag._replace(features=bag.features.repeat(2, 1), coords_um=bag.coords_um.repeat(2, 1))
    torch.testing.assert_close(model(collate([twice])).logits, model(collate([bag])).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPPED)
def test_the_tests_of_raff_and_holt_can_be_passed(script, name):
    row = script.measure(name, script.REFERENCE, 0, script.SIZES[name])
    assert row.verdict == "passes"
    assert min(row.train, row.result, row.plain) > 0.95


@pytest.mark.parametrize("model", ["abmil", "das-mil"])
@pytest.mark.parametrize("name", TRAPPED[:2])
def test_a_model_that_may_use_absence_takes_poison_for_the_label(script, name, model):
    row = script.measure(name, model, 0, script.Sizes(60, 20, 100, 4))
    assert row.verdict == "**fails**"
    assert row.train > 0.99
    assert row.result < 0.1
    assert row.plain > row.result + 0.2  # it is the poison that misleads


def test_a_model_that_averages_counts_instead_of_looking_for_both(script):
    row = script.measure("false frequency", "abmil", 0, script.Sizes(100, 20, 100, 6))
    assert row.verdict == "**fails**"
    assert row.train > 0.7
    assert row.result < 0.3 < 0.5 < row.plain


@pytest.mark.parametrize(
    ("train", "result", "verdict"),
    [
        (0.95, 0.51, "passes"),
        (0.85, 0.99, "not learnt"),
        (0.95, 0.49, "**fails**"),
        (0.70, 0.10, "**fails**"),
        (0.55, 0.49, "not learnt"),
    ],
)
def test_it_takes_less_learning_to_fail_than_to_pass(script, train, result, verdict):
    row = script.Row("single concept", "abmil", 0, train, result, 0.5, None, None, 1.0, "full")
    assert row.verdict == verdict


# ---- ShiftedMean


def brute_force(shifted, values, starts_of):
    """Probability that a bag is positive, by Bayes' rule on densities; ``starts_of`` lists the runs that may be."""
    runs = [np.isin(np.arange(len(values)), run)[:, None] for run in starts_of(len(values))]
    positive = np.mean([norm.pdf(values, shifted.shift * run).prod() for run in runs]) * shifted.positive
    return positive / (positive + norm.pdf(values).prod() * (1 - shifted.positive))


@pytest.mark.parametrize("run", [1, 2, 3])
def test_the_closed_forms_of_shifted_mean_are_bayes_rule(bags, run):
    shifted = bags.ShiftedMean(run=run, shift=1.5, shifted=2, dim=3, least=3, most=6, positive=0.3)

    def in_a_row(size):
        return [range(start, start + run) for start in range(size - run + 1)]

    def anywhere(size):
        return list(itertools.combinations(range(size), run))

    for bag, _ in shifted.draw("test", 20, seed=0):
        features = bag.features.numpy()
        values = features[:, :2].astype(np.float64)
        for log_odds, runs in ((shifted.log_odds, in_a_row), (shifted.log_odds_without_order, anywhere)):
            assert 1 / (1 + math.exp(-log_odds(features))) == pytest.approx(brute_force(shifted, values, runs))


def test_without_order_means_the_mean_over_all_orders(bags):
    shifted = bags.ShiftedMean(run=2, least=4, most=4)
    features = shifted.draw("test", 1, seed=1)[0].bag.features.numpy()
    orders = [features[list(order)] for order in itertools.permutations(range(4))]
    mean = np.mean([math.exp(shifted.log_odds(order)) for order in orders])
    assert math.log(mean) == pytest.approx(shifted.log_odds_without_order(features))
    got = [shifted.log_odds_without_order(order) for order in orders]
    np.testing.assert_allclose(got, got[0])
    assert np.ptp([shifted.log_odds(order) for order in orders]) > 0.1


def test_bayes_probabilities_come_true_and_rank_best(bags):
    shifted = bags.ShiftedMean()
    drawn = shifted.draw("test", 3000, seed=0)
    targets, features = np.array(drawn.targets), [example.bag.features.numpy() for example in drawn]
    best, unordered = (
        np.array([odds(one) for one in features]) for odds in (shifted.log_odds, shifted.log_odds_without_order)
    )
    for odds in (best, unordered):
        for third in np.array_split(np.argsort(odds), 3):
            expected = 1 / (1 + np.exp(-odds[third]))
            spread = math.sqrt((expected * (1 - expected)).sum())
            assert abs(targets[third].sum() - expected.sum()) < 4 * spread
    areas = [roc_auc_score(targets, score) for score in (best, unordered, [one[:, 0].max() for one in features])]
    assert areas[0] > areas[1] + 0.02
    assert areas[1] > areas[2] + 0.02


def test_shifted_runs_are_where_they_may_be_and_nowhere_else(bags):
    shifted = bags.ShiftedMean(run=2, shift=100.0, shifted=2, dim=4, least=3, most=5)
    seen = Counter()
    for bag, target in shifted.draw("train", 600, seed=0):
        assert bag.features.shape[1] == 4
        moved = bag.features[:, :2] > 50
        assert not (bag.features[:, 2:] > 50).any()
        assert torch.equal(moved[:, 0], moved[:, 1])
        where = tuple(np.flatnonzero(moved[:, 0]))
        assert (len(where) == 2) == (target == 1)
        assert len(where) in (0, 2)
        seen[len(bag.features), where] += 1
        assert bag.coords_um.diff(dim=0).tolist() == [[256, 0]] * (len(bag.features) - 1)
    assert set(seen) == {(size, where) for size in (3, 4, 5) for where in [(), *((s, s + 1) for s in range(size - 1))]}
    assert 240 < sum(count for (_, where), count in seen.items() if where) < 360


@pytest.mark.parametrize("options", [{"run": 0}, {"run": 16}, {"least": 50}, {"positive": 1.0}])
def test_bags_that_cannot_be_drawn_are_refused_by_name(bags, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        bags.ShiftedMean(**options)


# ---- collages


@pytest.fixture(scope="module")
def collage_results():
    """Test accuracies of models that learnt from the same collages, and that of the rule of presence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        script = importlib.import_module("algorithmic_tests")
        sizes = script.Sizes(200, 50, 600, 13)
        rows = [script.measure("collage", model, 0, sizes) for model in ("das-mil", *UNPLACED)]
    return {row.model: row.result for row in rows} | {"presence": rows[0].unplaced}


def test_das_mil_solves_the_collage_and_models_without_positions_cannot(collage_results):
    presence = collage_results["presence"]
    assert 0.8 < presence < 0.93
    assert collage_results["das-mil"] > 0.97
    error = math.sqrt(presence * (1 - presence) / 600)
    for model in UNPLACED:
        assert 0.6 < collage_results[model] < presence + 2 * error


def test_no_layout_of_a_collage_is_in_two_parts(bags):
    drawn = [bags.draw_collages(part, 40, seed) for part in ("train", "val", "test") for seed in (0, 1)]
    places = [layout.xy_px.tobytes() for collages in drawn for layout in collages.layouts]
    assert len(set(places)) == len(places) == 240
    for layouts, examples in drawn:
        for layout, (bag, target) in zip(layouts, examples, strict=True):
            assert bag.features.argmax(dim=1).tolist() == layout.digits.tolist()
            assert target == layout.positive
            torch.testing.assert_close(bag.coords_um, torch.from_numpy(layout.xy_px) * 256 / 28)


# ---- learning from bags in memory


def test_lengths_come_from_the_training_bags_unless_given(load, bags):
    fitting, learn = load("fitting"), LearnParams(epochs=1)
    train, val = (bags.ShiftedMean(least=20, most=20).draw(part, 4, seed=1) for part in ("train", "val"))
    assert set(train.targets) == {0, 1}
    scales = fitting.fit(AGGREGATORS["das-mil"], train, val, learn, heads=2).params.length_scales_um
    farthest = np.quantile(torch.cat([torch.pdist(example.bag.coords_um) for example in train]).numpy(), 0.95)
    assert scales == pytest.approx((256, farthest), rel=1e-4)
    paper = AGGREGATORS["das-mil-paper"]
    assert fitting.fit(paper, train, val, learn).params.max_distance_um == 19 * 256
    assert fitting.fit(paper, train, val, learn, max_distance_um=9.0).params.max_distance_um == 9
    nowhere = fitting.InMemory(
        example._replace(bag=example.bag._replace(coords_um=torch.zeros_like(example.bag.coords_um)))
        for example in train
    )
    assert fitting.fit(paper, nowhere, val, learn).params == paper.Params()


def test_a_seed_decides_a_model_and_leaves_the_callers_generator_alone(load, bags):
    fitting = load("fitting")
    train, val = (bags.SINGLE_CONCEPT.draw(part, 6, seed=1) for part in ("train", "val"))
    before = torch.random.get_rng_state()
    made = [
        fitting.scores(fitting.fit(AGGREGATORS["abmil"], train, val, LearnParams(epochs=2, seed=seed)), val)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


# ---- the scripts


@pytest.fixture
def rows_of(load):
    return load("algorithmic_rows")


@pytest.fixture
def tiny(script, monkeypatch):
    """The script, whose full sets are as tiny as those of --quick."""
    small = {test: dataclasses.replace(sizes, name="full") for test, sizes in script.QUICK.items()}
    monkeypatch.setattr(script, "SIZES", small)
    return script


def test_the_script_writes_figures_and_the_table_of_a_page_and_keeps_what_it_has(
    tiny, rows_of, monkeypatch, tmp_path, capsys
):
    script, page = tiny, tmp_path / "page.md"
    page.write_text(f"before\n\n{rows_of.BEGIN}\nold\n{rows_of.END}\n\nafter\n")
    options = ("--seeds", 1, "--out", tmp_path / "rows.csv", "--page", page)
    run_main(script, monkeypatch, *options, "--models", "abmil")
    rows = read_csv(tmp_path / "rows.csv")
    assert [row["test"] for row in rows] == list(script.TESTS)
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert list(rows[0])[-1] == "sizes"
    assert {row["sizes"] for row in rows} == {"full"}
    printed, text = capsys.readouterr().out, page.read_text()
    assert text.startswith("before\n\n" + rows_of.BEGIN)
    assert text.endswith(rows_of.END + "\n\nafter\n")
    assert "old" not in text
    assert printed.strip() in text
    assert "| `abmil` | none |" in printed

    measure = script.measure

    def measure_none_again(test, name, *rest):
        assert name == "self-attention"
        return measure(test, name, *rest)

    monkeypatch.setattr(script, "measure", measure_none_again)
    run_main(script, monkeypatch, *options, "--keep", "--models", "abmil", "self-attention")
    assert read_csv(tmp_path / "rows.csv")[: len(rows)] == rows
    assert page.read_text().count("| `abmil` |") == page.read_text().count("| `self-attention` |") == 1


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_quick_say_so(script, monkeypatch, tmp_path):
    out = tmp_path / "rows.csv"
    run_main(script, monkeypatch, "--quick", "--seeds", 1, "--models", "max", "--tests", "collage", "--out", out)
    assert [row["sizes"] for row in read_csv(out)] == ["quick"]


def test_a_model_named_twice_is_trained_once(tiny, monkeypatch, tmp_path):
    out = tmp_path / "rows.csv"
    options = ("--models", "max", "max", "--tests", "collage", "collage", "--seeds", 1, "--out", out)
    run_main(tiny, monkeypatch, *options)
    assert len(read_csv(out)) == 1


def test_the_table_of_the_docs_is_that_of_the_figures_beside_it(script, rows_of):
    docs = EXAMPLES.parent / "docs"
    assert (docs / "mil-tests.csv").exists(), "the table of docs/mil-tests.md is made of docs/mil-tests.csv: add it"
    table = (docs / "mil-tests.md").read_text().partition(rows_of.BEGIN)[2].partition(rows_of.END)[0]
    rows = script.rows_kept(docs / "mil-tests.csv")
    assert {row.sizes for row in rows} == {"full"}
    assert table.strip().splitlines() == list(script.markdown(script.summarise(rows)))


def test_the_table_counts_verdicts_over_the_seeds_and_tells_gaps(script):
    def row(test, seed, train, result, plain=None, best=None, unplaced=None):
        return script.Row(test, "abmil", seed, train, result, plain, best, unplaced, 1.0, "full")

    rows = [row("single concept", seed, train, result, 0.9) for seed, train, result in ((0, 1, 0.2), (1, 1, 0.6))]
    rows += [row("ShiftedMean", seed, 1, 0.90, best=0.95, unplaced=0.91) for seed in (0, 1)]
    model, best, unplaced = script.summarise(rows)
    assert model["single concept"] == "**fails** 1/2, passes 1/2 0.40 (0.90)"
    assert model["ShiftedMean"] == "0.90 (-0.05)"
    assert (best["ShiftedMean"], unplaced["ShiftedMean"], best["single concept"]) == ("0.95", "0.91", None)


@pytest.fixture
def classical(load):
    return load("classical_mil")


def test_every_bag_of_a_classical_set_is_tested_once_and_never_learnt_from_then(classical, tmp_path):
    random = np.random.default_rng(0)
    bag = np.repeat(np.arange(30), random.integers(1, 4, 30))
    np.savez(
        tmp_path / "Fox.npz",
        X=random.normal(size=(len(bag), 4)),
        bag=bag,
        y=np.arange(30) % 2,
        fold=np.stack([np.arange(30) // 2 % 10, np.arange(30) // 3]),
    )
    classic = classical.read_set(tmp_path, "Fox")
    assert [len(example.bag.features) for example in classic.bags] == np.bincount(bag).tolist()
    assert classic.bags.targets == (np.arange(30) % 2).tolist()
    assert not torch.cat([example.bag.coords_um for example in classic.bags]).any()
    for repeat in (0, 1):
        tested = Counter()
        for fold in range(10):
            names = [{example.bag.slide_id for example in part} for part in classical.split(classic, repeat, fold)]
            assert len(set.union(*names)) == sum(map(len, names)) == 30
            tested.update(names[2])
        assert set(tested.values()) == {1}
        assert len(tested) == 30
    with pytest.raises(ArtifactMissing, match=r"Musk1\.npz is missing: --data"):
        classical.read_set(tmp_path, "Musk1")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut short"])
def test_a_classical_set_that_cannot_be_read_is_told_on_one_line(classical, monkeypatch, tmp_path, content):
    with pytest.raises(SystemExit, match=r"^error: .*Fox\.npz is missing: --data takes a folder"):
        run_main(classical, monkeypatch, "--data", tmp_path, "--sets", "Fox", "--models", "abmil")
    (tmp_path / "Fox.npz").write_bytes(content)
    with pytest.raises(
        SystemExit, match=r"^error: .*Fox\.npz cannot be read: it must be an npz file of the arrays X, bag"
    ):
        run_main(classical, monkeypatch, "--data", tmp_path, "--sets", "Fox", "--models", "abmil")
    (tmp_path / "Fox.npz").unlink()
    (tmp_path / "Fox.npz").mkdir()
    with pytest.raises(SystemExit, match=r"^error: .*Is a directory.*Fox\.npz"):
        run_main(classical, monkeypatch, "--data", tmp_path, "--sets", "Fox", "--models", "abmil")


def test_a_classical_set_whose_arrays_do_not_belong_together_is_refused(classical, tmp_path):
    good = {
        "X": np.zeros((4, 2)),
        "bag": np.array([0, 0, 1, 2]),
        "y": np.array([0, 1, 0]),
        "fold": np.zeros((1, 3), int),
    }
    wrong = {"X": np.zeros((5, 2)), "bag": np.array([0, 1, 0, 2]), "y": np.array([0, 1]), "fold": np.zeros(3, int)}
    np.savez(tmp_path / "Fox.npz", **good)
    assert len(classical.read_set(tmp_path, "Fox").bags) == 3
    for name, array in wrong.items():
        np.savez(tmp_path / "Fox.npz", **good | {name: array})
        with pytest.raises(ArtifactCorrupt, match=r"Fox\.npz: X \(.*do not belong together"):
            classical.read_set(tmp_path, "Fox")
    np.savez(tmp_path / "Fox.npz", X=good["X"])
    with pytest.raises(ArtifactCorrupt, match="must be an npz file of the arrays"):
        classical.read_set(tmp_path, "Fox")


def test_a_set_that_is_missing_is_told_before_others_are_learnt(classical, monkeypatch, tmp_path):
    first = {
        "X": np.zeros((4, 2)),
        "bag": np.array([0, 0, 1, 2]),
        "y": np.array([0, 1, 0]),
        "fold": np.zeros((1, 3), int),
    }
    np.savez(tmp_path / "Musk1.npz", **first)
    monkeypatch.setattr(classical, "cross_validate", lambda *_: pytest.fail("it trains"))
    with pytest.raises(SystemExit, match=r"Fox\.npz is missing"):
        run_main(classical, monkeypatch, "--data", tmp_path)


def test_only_models_that_see_neither_places_nor_order_run_where_there_are_none(classical):
    assert {"abmil", "max", "self-attention", "set-transformer"} <= set(classical.MODELS)
    assert not {"das-mil", "gcn", "self-attention-axial", "transmil", "transmil-paper"} & set(classical.MODELS)


def test_the_classical_sets_run_through_the_loop(classical, shared, monkeypatch, capsys):
    folder = shared / "data" / "mil_classic"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: it holds Musk1, Fox and Elephant")
    options = ("--data", folder, "--sets", "Musk1", "--models", "abmil", "--epochs", 3)
    run_main(classical, monkeypatch, *options)
    printed = capsys.readouterr().out
    assert "no positions" in printed
    accuracy = float(printed.splitlines()[-1].split("|")[3].split("±")[0])
    assert 0.6 < accuracy < 1
