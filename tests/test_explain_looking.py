"""What a model looked at adds up to what it said, for every model of the registry, and is what dense attention says."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_aggregators import CLASSES, DIM, VARIANTS, Largest, bag, patient
from test_attention_discrete import BINS, brute

from wsi_mil.aggregators import Ensemble, build, infer
from wsi_mil.aggregators.explanation import evidence_of
from wsi_mil.aggregators.pooling_aggregator import PoolingAggregator
from wsi_mil.attention import (
    BinBias,
    DistanceBias,
    dense_distance_attention,
    discrete,
    discrete_readout,
    public,
    readout,
)
from wsi_mil.bags import Bag, collate
from wsi_mil.errors import ArtifactError, OptionError
from wsi_mil.explain import LookOptions, look

TILES = 23
BRIEF = LookOptions(top=3, partners=4, occlusions=2)
TELL = {"max", "mean", "abmil", "abmil-gated", "das-mil", "das-mil-paper", "gcn", "gat", "relative-discrete"}
TELL |= {"self-attention", "self-attention-axial", "self-attention-fourier"}
PAIRS = {name for name in TELL if name.startswith(("das-", "self-", "relative-"))}
TEMPERATURES, PRIORS = (0.5, 1.0, 3.0), ((0.2, 0.3, 0.5), (0.6, 0.3, 0.1), (1.0, 1.0, 1.0))


def made(name, options, seed=0):
    """An untrained model in eval mode whose features have been fitted, and whose biases are not all 0."""
    torch.manual_seed(seed)
    model = build(name, DIM, CLASSES, **options)
    model.fit_features(torch.randn(DIM), torch.rand(DIM) + 0.5)
    return model.eval()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def case(request):
    """Registry name and model."""
    name, options = request.param
    return name, made(name, options)


def ensemble(*names):
    return Ensemble([made(name, {}, seed) for seed, name in enumerate(names)], TEMPERATURES, PRIORS).eval()


def log_odds(logits):
    """Each less the mean of the others."""
    return np.array([own - np.mean(np.delete(logits, index)) for index, own in enumerate(logits)])


def of_a_single(model, one):
    return log_odds(model(collate([one])).logits[0].detach().double().numpy())


def shuffled(one, order):
    slide = None if one.slide is None else one.slide[order]
    return one._replace(features=one.features[order], coords_um=one.coords_um[order], slide=slide)


def require_sums(told):
    """The parts make the whole, and everything has one row per tile."""
    tiles = len(told.attention)
    assert told.contribution.shape == told.occlusion.shape == (tiles, CLASSES)
    assert told.contribution.dtype == told.evidence.dtype == np.float64
    np.testing.assert_allclose(told.contribution.sum(axis=0) + told.base, told.evidence, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(told.contribution.sum(axis=1), 0, atol=1e-9)  # evidence for one class is against others


# ---- the whole registry


def test_what_tiles_gave_sums_to_the_evidence_for_what_predict_says(case):
    name, model = case
    one = bag(TILES)
    told, said = look(model, one, replace(BRIEF, occlusions=0)), infer(model, one)
    assert np.array_equal(told.probabilities, said.probabilities)
    assert np.array_equal(told.attention, said.attention)
    np.testing.assert_allclose(told.evidence, of_a_single(model, one), rtol=1e-6, atol=1e-9)
    assert (told.contribution is None, told.base is None) == (name not in TELL,) * 2
    assert isinstance(model, PoolingAggregator) == (name in TELL)
    if name in TELL:
        require_sums(told)


def test_pairs_are_told_where_tiles_attend_to_each_other_in_one_layer(case):
    name, model = case
    told = look(model, bag(TILES), replace(BRIEF, occlusions=0))
    assert (told.attended is None, told.pairs is None) == (name not in PAIRS,) * 2
    if name not in PAIRS:
        return
    assert told.attended.sum() == pytest.approx(1, abs=1e-5)
    tiles, partners, weights, distance_um = told.pairs
    assert tiles.tolist() == np.argsort(-np.abs(told.contribution).max(axis=1), kind="stable")[:3].tolist()
    assert partners.shape == weights.shape == distance_um.shape == (3, 4)
    assert all(len({own, *others}) == 5 for own, others in zip(tiles, partners, strict=True))
    assert (np.diff(weights, axis=1) <= 0).all()
    coords = bag(TILES).coords_um.double().numpy()
    np.testing.assert_allclose(distance_um, np.linalg.norm(coords[tiles][:, None] - coords[partners], axis=-1))


def test_evidence_lost_without_a_tile_is_what_the_bag_without_it_lacks(case):
    _, model = case
    one = bag(TILES)
    told = look(model, one, BRIEF)
    tried = np.flatnonzero(~np.isnan(told.occlusion).any(axis=1))
    strength = told.attention if told.contribution is None else np.abs(told.contribution).max(axis=1)
    assert set(tried) == set(np.argsort(-strength, kind="stable")[:2])
    for tile in tried:
        rest = shuffled(one, torch.tensor([row for row in range(TILES) if row != tile]))
        wanted = told.evidence - of_a_single(model, rest)
        np.testing.assert_allclose(told.occlusion[tile], wanted, rtol=1e-4, atol=1e-5)


def test_the_order_of_tiles_only_orders_what_is_told(case):
    _, model = case
    if model.ordered:
        pytest.skip("declares that the order of the array counts, as it was published")
    every = LookOptions(
        top=TILES, partners=2, occlusions=0
    )  # so that it does not matter which of equal tiles are first
    one, order = patient(9, 14), torch.randperm(TILES, generator=torch.Generator().manual_seed(5))
    wanted, got = look(model, one, every), look(model, shuffled(one, order), every)
    for field in ("attention", "contribution", "attended"):
        if getattr(wanted, field) is not None:
            theirs = getattr(wanted, field)[order.numpy()]
            np.testing.assert_allclose(getattr(got, field), theirs, rtol=1e-4, atol=1e-5, err_msg=field)
    if wanted.pairs is not None:
        theirs, ours = (pairs.tiles.argsort() for pairs in (wanted.pairs, got.pairs))
        theirs = theirs[order.numpy()]
        np.testing.assert_array_equal(order.numpy()[got.pairs.partners[ours]], wanted.pairs.partners[theirs])
        np.testing.assert_allclose(got.pairs.distance_um[ours], wanted.pairs.distance_um[theirs], rtol=1e-6)


# ---- pairs


def queries_and_keys(model, batch):
    """As equations have them: linear layers of the tiles that enter attention."""
    tiles = model.project(model.standardise(batch))
    if hasattr(model, "encode"):
        tiles = tiles + model.encode(batch.coords_um / model.params.unit_um)
    linears = model.query, model.key
    return [linear(tiles).unflatten(-1, (model.params.heads, -1)).transpose(1, 2).double() for linear in linears]


def dense(model, one):
    """All pairs, of the mean head."""
    batch = collate([one])
    q, k = queries_and_keys(model, batch)
    paper = not hasattr(model.params, "scale_by_input") or model.params.scale_by_input
    scale = model.query.in_features**-0.5 if paper else None
    setting = {"scale": scale, "slide": batch.slide}
    coords = batch.coords_um.double()
    if hasattr(model, "bin_bias"):
        units = torch.eye(len(one.features)).double().expand(1, q.shape[1], -1, -1)
        table = model.bin_bias()
        bias = BinBias(table.max_distance, table.key.double(), table.query.double(), None, table.self_bias)
        return brute(q, k, units, coords, bias, **setting)[0].mean(dim=0).detach().numpy()
    bias = model.distance_bias()
    if bias is not None:
        bias = DistanceBias(*(None if one is None else one.double() for one in bias[:4]), None, bias.self_bias)
    values = torch.zeros(*q.shape[:3], 1).double()
    return dense_distance_attention(q, k, values, coords, bias, **setting).weights[0].mean(dim=0).detach().numpy()


def require_pairs(told, weights):
    """What is told of pairs is what an array of all of them says."""
    np.testing.assert_allclose(told.attended, told.attention @ weights, rtol=1e-4, atol=1e-6)
    for tile, partners, paid in zip(told.pairs.tiles, told.pairs.partners, told.pairs.weights, strict=True):
        others = weights[tile].copy()
        others[tile] = -1
        assert partners.tolist() == np.argsort(-others)[: len(partners)].tolist()
        np.testing.assert_allclose(paid, others[partners], rtol=1e-4)


@pytest.mark.parametrize("linear", [False, True], ids=["dense", "streamed"])
@pytest.mark.parametrize("name", sorted(PAIRS))
def test_pairs_are_those_of_dense_attention(name, linear, monkeypatch):
    if linear:
        monkeypatch.setattr(public, "DENSE_TILES", 0)
        monkeypatch.setattr(readout, "_PAIRS_AT_ONCE", 3 * TILES)
        monkeypatch.setattr(discrete_readout, "_PAIRS_AT_ONCE", 3 * TILES)
    model = made(name, {"bins": BINS, "max_distance_um": 3000.0} if name == "relative-discrete" else {})
    one = patient(9, 14)
    require_pairs(look(model, one, LookOptions(top=20, occlusions=0)), dense(model, one))


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_no_array_of_all_pairs_of_tiles_is_made(name, monkeypatch):
    monkeypatch.setattr(readout, "_PAIRS_AT_ONCE", 8000)
    monkeypatch.setattr(discrete_readout, "_PAIRS_AT_ONCE", 8000)
    monkeypatch.setattr(discrete, "PAIRS_AT_ONCE", 8000)
    tiles, sizes = 400, []
    for copies in (1, 2):
        one = bag(tiles)
        coords = torch.cat([one.coords_um + 8000.0 * copy for copy in range(copies)])
        many = one._replace(features=one.features.repeat(copies, 1), coords_um=coords)
        options = {"heads": 1, "head_dim": 4, "hidden": 8}
        with Largest() as largest:
            look(build(name, DIM, CLASSES, **options), many, replace(BRIEF, occlusions=1))
        sizes.append(largest.size)
    assert sizes[1] <= 2 * sizes[0] < tiles**2


def test_tiles_of_different_slides_have_no_distance():
    one = patient(9, 14)
    told = look(made("das-mil", {}), one, LookOptions(top=TILES, partners=TILES - 1, occlusions=0))
    slide = one.slide.numpy()
    apart = slide[told.pairs.tiles][:, None] != slide[told.pairs.partners]
    assert apart.any()
    np.testing.assert_array_equal(np.isnan(told.pairs.distance_um), apart)


def test_a_bag_of_fewer_tiles_than_partners_says_so():
    told = look(made("das-mil", {}), bag(3), LookOptions(top=12, partners=5))
    assert told.pairs.tiles.shape == (3,)
    assert (told.pairs.partners[:, 2:] == -1).all()
    assert (told.pairs.partners[:, :2] >= 0).all()
    assert not told.pairs.weights[:, 2:].any()
    assert np.isnan(told.pairs.distance_um[:, 2:]).all()
    assert not np.isnan(told.occlusion).any()


def test_a_bag_of_one_tile_has_no_partners_and_cannot_do_without_it():
    told = look(made("das-mil", {}), bag(1), LookOptions())
    require_sums(told)
    assert (told.pairs.partners == -1).all()
    assert np.isnan(told.occlusion).all()
    assert told.attended == pytest.approx([1])


# ---- ensembles


def test_an_ensemble_tells_the_calibrated_mean_of_its_members():
    model, one = ensemble("das-mil", "das-mil", "self-attention"), patient(9, 14)
    told, said = look(model, one, BRIEF), infer(model, one)
    assert np.array_equal(told.probabilities, said.probabilities)
    assert np.array_equal(told.attention, said.attention)
    each = [look(member, one, BRIEF) for member in model.members]
    evidence = [
        (own.evidence + log_odds(np.log(prior))) / heat
        for own, heat, prior in zip(each, TEMPERATURES, PRIORS, strict=True)
    ]
    np.testing.assert_allclose(told.evidence, np.mean(evidence, axis=0), rtol=1e-6, atol=1e-7)
    gave = [own.contribution / heat for own, heat in zip(each, TEMPERATURES, strict=True)]
    np.testing.assert_allclose(told.contribution, np.mean(gave, axis=0))
    require_sums(told)
    require_pairs(told, np.mean([dense(member, one) for member in model.members], axis=0))
    (tile, *_) = np.flatnonzero(~np.isnan(told.occlusion[:, 0]))
    rest = shuffled(one, torch.tensor([row for row in range(TILES) if row != tile]))
    wanted = told.evidence - look(model, rest, BRIEF).evidence
    np.testing.assert_allclose(told.occlusion[tile], wanted, rtol=1e-4, atol=1e-5)


def test_the_evidence_of_a_single_output_is_that_output():
    assert evidence_of(torch.tensor([[2.0], [-1.0]])).tolist() == [[2.0], [-1.0]]


def test_one_calibrated_model_has_the_evidence_of_its_probabilities():
    model = Ensemble([made("abmil", {})], (2.0,), ((0.2, 0.3, 0.5),)).eval()
    told = look(model, bag(TILES), BRIEF)
    np.testing.assert_allclose(told.evidence, log_odds(np.log(told.probabilities)))
    require_sums(told)


def test_an_ensemble_tells_only_what_all_its_members_do():
    told = look(ensemble("das-mil", "abmil", "self-attention"), bag(TILES), BRIEF)
    assert told.pairs is told.attended is None
    require_sums(told)
    told = look(ensemble("das-mil", "set-transformer", "self-attention"), bag(TILES), BRIEF)
    assert told.contribution is told.base is told.pairs is None
    assert np.isfinite(told.occlusion).all(axis=1).sum() == 2


# ---- by hand


def by_hand(features, weight, bias):
    """Maximum of the features as they are, and a classifier."""
    model = build("max", 2, 2, hidden=0)
    model.load_state_dict(
        model.state_dict() | {"classify.weight": torch.tensor(weight), "classify.bias": torch.tensor(bias)}
    )
    return model, Bag("by hand", torch.tensor(features), 256 * torch.arange(2.0 * len(features)).view(-1, 2), {})


def test_a_maximum_computed_by_hand():
    model, one = by_hand([[3.0, 0.0], [1.0, 2.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 2.0]], [0.5, 0.0])
    told = look(model, one, LookOptions())  # embedding (3, 2), the 2 won by two tiles; logits 3.5 and 4
    np.testing.assert_allclose(told.evidence, [-0.5, 0.5])
    np.testing.assert_allclose(told.contribution, [[3, -3], [-2, 2], [-2, 2]])
    np.testing.assert_allclose(told.base, [0.5, -0.5])
    np.testing.assert_allclose(told.occlusion, [[2, -2], [0, 0], [0, 0]])  # without the first 1.5 and 4
    np.testing.assert_allclose(told.probabilities[1], 1 / (1 + math.exp(-0.5)))


def test_without_the_only_tile_that_tells_nothing_is_left_of_the_evidence():
    model, one = by_hand([[0.0, 0.0], [0.0, 5.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    told = look(model, one, LookOptions(occlusions=1))
    np.testing.assert_allclose(told.occlusion[1], told.evidence)
    np.testing.assert_allclose(told.contribution[1], told.evidence)
    assert np.isnan(told.occlusion[[0, 2]]).all()


def test_a_logit_of_its_own_for_one_of_two_classes():
    torch.manual_seed(0)
    model = build("das-mil-paper", DIM, 2).eval()
    told = look(model, bag(TILES), BRIEF)
    np.testing.assert_allclose(told.contribution.sum(axis=0) + told.base, told.evidence, rtol=1e-5)
    np.testing.assert_allclose(told.base, [-model.classify.bias.item(), model.classify.bias.item()])


# ---- conduct


def test_more_tiles_than_are_summed_at_once_lose_none(monkeypatch):
    model = made("max", {})
    wanted = look(model, bag(TILES), BRIEF).contribution
    monkeypatch.setattr("wsi_mil.aggregators.pooling._TILES_AT_ONCE", 5)
    np.testing.assert_allclose(look(model, bag(TILES), BRIEF).contribution, wanted)


def test_a_model_in_training_is_looked_at_as_in_evaluation_and_goes_on_training():
    model = made("das-mil", {"attention_dropout": 0.5})
    wanted = look(model, bag(TILES), BRIEF)
    told = look(model.train(), bag(TILES), BRIEF)
    assert model.training
    assert np.array_equal(told.contribution, wanted.contribution)
    assert np.array_equal(told.pairs.weights, wanted.pairs.weights)


def test_a_model_that_fails_goes_on_training_too():
    model = made("das-mil", {}).train()
    with pytest.raises(ArtifactError, match="a slide without tiles makes no bag"):
        look(model, bag(0), BRIEF)
    assert model.training


def test_nothing_is_left_out_and_no_pairs_are_given_unless_asked():
    told = look(made("das-mil", {}), bag(TILES), replace(BRIEF, top=0, occlusions=0))
    assert np.isnan(told.occlusion).all()
    assert told.pairs.partners.shape == (0, 4)


@pytest.mark.parametrize(("name", "value", "least"), [("top", -1, 0), ("partners", 0, 1), ("occlusions", -1, 0)])
def test_options_that_make_no_sense_are_refused_by_name(name, value, least):
    with pytest.raises(OptionError, match=f"{name} {value}: give a whole number of at least {least}"):
        LookOptions(**{name: value})
