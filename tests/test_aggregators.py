"""One contract, held over the whole registry; positions matter as each model declares."""

import math
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_mil import store
from wsi_mil.aggregators import AGGREGATORS, Aggregator, build
from wsi_mil.aggregators.graph_network import GraphNetwork
from wsi_mil.aggregators.mil_gnn import MilGnn
from wsi_mil.aggregators.pooling import log_sum_exp_pool, max_pool, mean_pool
from wsi_mil.attention import public
from wsi_mil.bags import Bag, Batch, collate, join_bags, read_bag
from wsi_mil.errors import OptionError

DIM, CLASSES = 12, 3
POOLINGS = ("max", "attention", "log-sum-exp")
PUBLISHED = {"projection": False, "mix": False, "heads": 1, "head_dim": 10, "value_dim": 32, "scale_by_input": True}
VARIANTS = {
    **{name: (name, {}) for name in AGGREGATORS},
    # On so small a grid its first frequencies, per tile, hardly tell tiles apart.
    "self-attention-fourier": ("self-attention-fourier", {"unit_um": 25.6}),
    **{f"das-mil, {pooling}": ("das-mil", {"pooling": pooling}) for pooling in POOLINGS[1:]},
    "das-mil, one head, values only": ("das-mil", {"heads": 1, "key_bias": False, "query_bias": False}),
    "das-mil, one head, no bias to itself": ("das-mil", {"heads": 1, "self_bias": False}),
    "das-mil, separate phi": ("das-mil", {"separate_phi": True, "query_bias": True}),
    "das-mil, no projection": ("das-mil", {"projection": False}),
    "das-mil-paper, mean, two heads": ("das-mil-paper", {"pooling": "mean", "heads": 2, "max_distance_um": 4000.0}),
    "self-attention, attention": ("self-attention", {"pooling": "attention"}),
    "das-mil, nothing mixed": ("das-mil", {**PUBLISHED, "query_bias": True, "pooling": "attention"}),
    "das-mil-paper, no projection": ("das-mil-paper", {"hidden": 0}),
    "relative-discrete, keys only, five bins": (
        "relative-discrete",
        {"bins": 5, "max_distance_um": 5000.0, "query_bias": False, "value_bias": False, "self_bias": True},
    ),
    **{f"{name}, no projection": (name, {"hidden": 0}) for name in ("abmil", "abmil-gated", "max", "mean")},
    **{f"{name}, as published": (name, PUBLISHED) for name in AGGREGATORS if name.startswith(("self-", "relative-"))},
    "set-transformer, published": ("set-transformer", {"hidden": 10, "heads": 1}),
    "iset-transformer, published": ("iset-transformer", {"hidden": 15, "heads": 1}),
    "gcn, published": ("gcn", {"neighbours": 0, "hidden": 15, "distance_weights": True}),
    "gcn, all neighbours": ("gcn", {"neighbours": 0}),
    "gcn, three layers, mean": ("gcn", {"neighbours": 3, "layers": 3, "pooling": "mean"}),
    "gat, published": ("gat", {"neighbours": 0, "hidden": 20}),
    "gat, heads": ("gat", {"neighbours": 5, "heads": 4}),
    "mil-gnn, published": ("mil-gnn", {"neighbours": 0, "hidden": 20, "clusters": 1, "cluster_mean": False}),
    "mil-gnn, sums": ("mil-gnn", {"cluster_mean": False}),
    "transmil": ("transmil", {"hidden": 32, "heads": 4}),
    "transmil, more tiles than landmarks, pitch given": (
        "transmil",
        {"hidden": 32, "heads": 2, "landmarks": 6, "tile_um": 256.0},
    ),
    "transmil-paper": ("transmil-paper", {"hidden": 32, "heads": 4, "landmarks": 6}),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request) -> Aggregator:
    """An untrained model in eval mode whose features have been fitted."""
    torch.manual_seed(0)
    name, options = request.param
    made = build(name, DIM, CLASSES, **options)
    made.fit_features(torch.randn(DIM), torch.rand(DIM) + 0.5)
    return made.eval()


def bag(tiles, seed=0, dim=DIM):
    """Tiles of 256 um at random cells of a 20 x 20 grid."""
    g = torch.Generator().manual_seed(seed)
    cells = torch.randperm(400, generator=g)[:tiles]
    coords = 256.0 * torch.stack((cells % 20, cells // 20), dim=1) + 128
    return Bag(f"bag-{seed}", 2 * torch.randn(tiles, dim, generator=g), coords, {})


def assert_same(got, wanted, tolerance=1e-5):
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def patient(*tiles, seed=0, move=None):
    """A bag of several slides, the second of them moved as a whole if told."""
    slides = [bag(count, seed + index) for index, count in enumerate(tiles)]
    if move:
        slides[1] = slides[1]._replace(coords_um=move(slides[1].coords_um))
    return join_bags(slides, "patient")


def padded(batch: Batch, extra: int, content: float, slide: int = 0) -> Batch:
    """The batch with ``extra`` columns of padding, all padding filled with ``content`` and of the given slide."""
    pad = torch.nn.functional.pad
    mask = pad(batch.mask, (0, extra), value=False)
    features, coords = (pad(tensor, (0, 0, 0, extra)) for tensor in (batch.features, batch.coords_um))
    slides = None if batch.slide is None else pad(batch.slide, (0, extra)).masked_fill(~mask, slide)
    return Batch(*(t.masked_fill(~mask.unsqueeze(-1), content) for t in (features, coords)), mask, slides)


# ---- bags and batches


@pytest.mark.parametrize("content", [0.0, 1e6, math.inf, math.nan])
def test_padding_is_invisible_whatever_it_holds(model, content):
    batch = collate([bag(9, 1), bag(14, 2)])
    wanted, got = model(batch), model(padded(batch, 5, content))
    assert_same(got.logits, wanted.logits)
    assert_same(got.attention[:, :14], wanted.attention)
    assert not got.attention[:, 14:].any()


def test_padding_does_not_reach_the_gradients(model):
    batch = padded(collate([bag(9, 1), bag(14, 2)]), 3, math.nan)
    model(batch).logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_a_batch_gives_what_its_bags_give_alone(model):
    bags = [bag(tiles, seed) for seed, tiles in enumerate((1, 2, 30, 7))]
    together = model(collate(bags))
    for row, one in enumerate(bags):
        alone = model(collate([one]))
        assert_same(together.logits[row], alone.logits[0])
        assert_same(together.attention[row, : len(one.features)], alone.attention[0])


def test_the_order_of_tiles_is_irrelevant(model):
    if model.ordered:
        pytest.skip("declares that the order of the array counts, as it was published")
    one = bag(23)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(5))
    wanted, got = (
        model(collate([b])) for b in (one, one._replace(features=one.features[order], coords_um=one.coords_um[order]))
    )
    assert_same(got.logits, wanted.logits)
    assert_same(got.attention[0], wanted.attention[0, order])


@pytest.mark.parametrize("tiles", [1, 2])
def test_tiny_bags(model, tiles):
    output = model(collate([bag(tiles)]))
    assert output.logits.shape == (1, CLASSES)
    assert output.logits.isfinite().all()
    assert_same(output.attention.sum(1), torch.ones(1))


def test_attention_is_a_share_of_the_real_tiles(model):
    batch = collate([bag(9, 1), bag(14, 2), bag(1, 3)])
    attention = model(batch).attention
    assert attention.shape == batch.mask.shape
    assert (attention >= 0).all()
    assert not attention[~batch.mask].any()
    assert_same(attention.sum(dim=1), torch.ones(3))


# ---- positions

MOVES = {
    "shifted": lambda xy: xy + torch.tensor([50_000.0, -7_000.0]),
    "turned": lambda xy: xy @ torch.tensor([[math.cos(1.0), math.sin(1.0)], [-math.sin(1.0), math.cos(1.0)]]),
    "mirrored": lambda xy: xy * torch.tensor([-1.0, 1.0]),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_where_the_tissue_lies_on_the_glass_is_irrelevant(model, move):
    if model.uses_position == "absolute":
        pytest.skip("declares that it uses absolute positions")
    if model.uses_position == "oriented" and move is not MOVES["shifted"]:
        pytest.skip("declares that it tells directions apart")
    one = bag(23)
    wanted, got = (model(collate([b])) for b in (one, one._replace(coords_um=move(one.coords_um))))
    assert_same(got.logits, wanted.logits, 2e-4)


def test_swapping_positions_matters_if_the_model_says_so(model):
    one = bag(23)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(5))
    wanted, got = (model(collate([b])).logits for b in (one, one._replace(coords_um=one.coords_um[order])))
    if model.uses_position == "none":
        assert torch.equal(got, wanted)
    else:
        assert (got - wanted).abs().max() > 1e-4


def test_pixels_do_not_matter_only_micrometres_do(model, tmp_path):
    g = np.random.default_rng(0)
    features, cells = g.normal(size=(12, DIM)).astype(np.float16), g.permutation(64)[:12]
    grid = np.stack([cells % 8, cells // 8], axis=1)
    bags = []
    for mpp, side in ((0.25, 1024), (0.5, 512)):
        attrs = {"stage": "extract", "slide_id": "s", "mpp_x": mpp, "mpp_y": mpp}
        attrs |= {"l0_tile_width": side, "l0_tile_height": side}
        store.write(tmp_path / f"{side}.h5", store.Artifact({"features": features, "coords": side * grid}, attrs))
        bags.append(read_bag(tmp_path / f"{side}.h5"))
    assert torch.equal(*(model(collate([one])).logits for one in bags))


# ---- several slides of a patient

TILES = (9, 14, 1)


def knows_slides(model):
    """Whether it matters which tiles are of one slide: where distances or neighbours do. Absolute positions are those
    in each slide's own frame, and lie over each other whoever's they are."""
    return model.uses_position in ("relative", "oriented") or isinstance(model, GraphNetwork | MilGnn)


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_how_slides_lie_to_each_other_is_irrelevant(model, move):
    """Also that no distance is ever one between slides: these change with each move, and those within do not."""
    if model.uses_position == "oriented" and move is not MOVES["shifted"]:
        pytest.skip("declares that it tells directions apart")
    wanted, got = (model(collate([patient(*TILES, move=to)])) for to in (None, move))
    if model.uses_position == "absolute":  # where a slide's tissue lies on its own glass matters
        assert (got.logits - wanted.logits).abs().max() > 1e-4
    else:
        assert_same(got.logits, wanted.logits, 2e-4)
        assert_same(got.attention, wanted.attention, 2e-4)


def test_tiles_of_one_bag_that_are_of_different_slides_are_not_taken_for_tiles_of_one(model):
    batch = collate([patient(*TILES)])
    slides, one = model(batch).logits, model(batch._replace(slide=None)).logits
    if knows_slides(model):
        assert (slides - one).abs().max() > 1e-4
    else:
        assert torch.equal(slides, one)


def test_only_who_shares_a_slide_matters_and_not_how_slides_are_numbered(model):
    batch = collate([patient(*TILES), bag(17, 8)])
    wanted, got = model(batch), model(batch._replace(slide=torch.tensor([7, -3, 1_000_000])[batch.slide]))
    assert_same(got.logits, wanted.logits)
    assert_same(got.attention, wanted.attention)


@pytest.mark.parametrize("tiles", [TILES, (9, 9, 9)])
def test_the_order_of_the_slides_is_irrelevant(model, tiles):
    if model.ordered:
        pytest.skip("declares that the order of the array counts, as it was published")
    slides = [bag(count, seed) for seed, count in enumerate(tiles)]
    first, second, third = slides
    wanted = model(collate([join_bags(slides, "patient")]))
    got = model(collate([join_bags([third, first, second], "patient")]))
    assert_same(got.logits, wanted.logits)
    assert_same(got.attention[0], wanted.attention[0].roll(len(third.features)))


def test_the_order_of_tiles_is_irrelevant_even_where_slides_alternate(model):
    if model.ordered:
        pytest.skip("declares that the order of the array counts, as it was published")
    one, order = patient(*TILES), torch.randperm(sum(TILES), generator=torch.Generator().manual_seed(5))
    mixed = one._replace(features=one.features[order], coords_um=one.coords_um[order], slide=one.slide[order])
    wanted, got = (model(collate([b])) for b in (one, mixed))
    assert_same(got.logits, wanted.logits)
    assert_same(got.attention[0], wanted.attention[0, order])


def test_padding_is_invisible_whatever_slide_it_is_of(model):
    batch = collate([patient(*TILES), bag(31, 5), patient(3, 2, seed=7)])
    wanted = model(batch)
    for slide in (1, 99):  # of a real one, and of one that is not there
        got = model(padded(batch, 4, math.nan, slide))
        assert_same(got.logits, wanted.logits)
        assert_same(got.attention[:, :31], wanted.attention)
        assert not got.attention[:, 31:].any()


def test_a_batch_gives_what_its_bags_of_one_slide_and_of_several_give_alone(model):
    bags = [patient(*TILES), bag(31, 5), patient(1, 1, seed=7)]
    together = model(collate(bags))
    for row, one in enumerate(bags):
        alone = model(collate([one]))
        assert_same(together.logits[row], alone.logits[0])
        assert_same(together.attention[row, : len(one.features)], alone.attention[0])


def test_a_slide_joined_with_none_is_the_slide_alone(model):
    alone = collate([bag(23)])
    wanted = model(alone).logits
    assert torch.equal(model(collate([join_bags([bag(23)], "patient")])).logits, wanted)
    assert_same(model(alone._replace(slide=torch.full((1, 23), 3))).logits, wanted)


def test_gradients_reach_every_parameter_through_bags_of_several_slides(model):
    batch = collate([patient(11, 12, 13, seed=10 * seed) for seed in range(4)])
    (model(batch).logits * torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))).sum().backward()
    starved = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not starved
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


ATTEND = ["das-mil", "das-mil-paper", "relative-discrete", "self-attention", "set-transformer"]


@pytest.mark.parametrize("name", ATTEND)
def test_large_bags_of_several_slides_are_treated_as_small_ones(name, monkeypatch):
    model = build(name, DIM, CLASSES).eval()
    batch = collate([patient(*TILES), bag(17, 8), patient(5, 20, seed=4)])
    wanted = model(batch)
    monkeypatch.setattr(public, "DENSE_TILES", 0)  # no arrays of all pairs
    got = model(batch)
    assert_same(got.logits, wanted.logits)
    assert_same(got.attention, wanted.attention, 1e-4)


# ---- a network like any other


def test_evaluation_is_repeatable(model):
    batch = collate([bag(14, 2)])
    for first, second in zip(model(batch), model(batch), strict=True):
        assert torch.equal(first, second)


def test_gradients_reach_every_parameter(model):
    batch = collate([bag(30, seed) for seed in range(4)])
    (model(batch).logits * torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))).sum().backward()
    starved = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not starved


class Largest(TorchDispatchMode):
    """Notes the size of the largest array that torch makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.size = max(self.size, one.numel())
        return made


@pytest.mark.parametrize("name", ["set-transformer", "iset-transformer", "gcn", "gat", "mil-gnn"])
def test_no_array_of_all_pairs_of_tiles_is_made(name):
    tiles, sizes = 400, []
    for copies in (1, 2):
        one = bag(tiles)
        coords = torch.cat([one.coords_um + 8000.0 * copy for copy in range(copies)])
        many = one._replace(features=one.features.repeat(copies, 1), coords_um=coords)
        with Largest() as largest:
            build(name, DIM, CLASSES, hidden=8)(collate([many])).logits.sum().backward()
        sizes.append(largest.size)
    assert sizes[1] <= 2 * sizes[0] < tiles**2


class Made(TorchDispatchMode):
    """Adds up the sizes of all arrays that torch makes."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        leaves = made if isinstance(made, tuple | list) else (made,)
        self.total += sum(one.numel() for one in leaves if isinstance(one, torch.Tensor))
        return made


def test_time_grows_with_the_pairs_of_tiles_if_the_model_says_so(model):
    """Small bags are attended with arrays of all pairs: work then shows in the size of what is made."""
    counts, totals = (36, 72, 144), []
    for tiles in counts:
        with Made() as made, torch.no_grad():
            model(collate([bag(tiles)]))
        totals.append(made.total)
    small, middle, large = counts
    first, second = (totals[1] - totals[0]) / (middle - small), (totals[2] - totals[1]) / (large - middle)
    bent = (second - first) / (large - small) * large**2  # of the size at the largest, what grows with its square
    assert (bent > 0.1 * totals[-1]) == model.all_pairs
    assert model.cost(large) / model.cost(middle) == (4 if model.all_pairs else 2)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    options = {field.name: getattr(model.params, field.name) for field in fields(model.params)}
    name = next(name for name, kind in AGGREGATORS.items() if type(model) is kind)
    torch.manual_seed(1)
    again = build(name, DIM, CLASSES, **options).eval()
    batch = collate([bag(14, 2)])
    assert not torch.equal(again(batch).logits, model(batch).logits)
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(again(batch).logits, model(batch).logits)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_column_of_logits_per_class(name, classes):
    assert build(name, DIM, classes)(collate([bag(4), bag(5)])).logits.shape == (2, classes)


def test_units_of_features_are_irrelevant_once_fitted(model):
    if not model.standardises:
        pytest.skip("declares that it takes features as they are")
    one = bag(23)
    scale, shift = torch.rand(DIM) * 100 + 0.1, torch.randn(DIM)
    wanted = model(collate([one])).logits
    model.fit_features(model.feature_mean * scale + shift, model.feature_std * scale)
    assert_same(model(collate([one._replace(features=one.features * scale + shift)])).logits, wanted, 1e-3)


def test_a_feature_that_never_varied_in_training_cannot_blow_up(model):
    mean = torch.full((DIM,), 1000.0)
    model.fit_features(mean, torch.zeros(DIM))
    assert_same(model.feature_std, torch.ones(DIM))


# ---- the registry


def test_unknown_names_and_options_are_refused_with_the_known_ones():
    with pytest.raises(OptionError, match=r"das_mil.*das-mil, das-mil-paper, abmil"):
        build("das_mil", DIM, 2)
    with pytest.raises(OptionError, match=r"--option heads: abmil has no such option; it has hidden, att"):
        build("abmil", DIM, 2, heads=3)
    with pytest.raises(OptionError, match="at least 2"):
        build("abmil", DIM, 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"heads": 0}, "heads 0"),
        ({"dropout": 1.0}, "dropout 1"),
        ({"attention_dropout": -0.1}, "attention_dropout -0.1"),
        ({"pooling": "mean"}, "pooling mean.*max, attention, log-sum-exp"),
        ({"length_scales_um": (100.0, 200.0)}, "length_scales_um.*4 positive"),
        ({"length_scales_um": (100.0, 200.0, 0.0, 1.0)}, "length_scales_um.*4 positive"),
        ({"key_bias": False, "query_bias": False, "value_bias": False}, "self-attention"),
        ({"value_dim": -1}, "value_dim -1: give a whole number of at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, named):
    with pytest.raises(OptionError, match=named):
        build("das-mil", DIM, 2, **options)


@pytest.mark.parametrize("name", ["abmil", "abmil-gated", "max", "mean"])
def test_a_width_below_none_is_refused(name):
    with pytest.raises(OptionError, match="--option hidden -1: give a whole number of at least 0"):
        build(name, DIM, 2, hidden=-1)


def test_params_are_frozen_and_say_the_length_scales_of_every_head():
    params = build("das-mil", DIM, 2, heads=3).params
    assert params.length_scales_um == pytest.approx((256, 2048, 16_384))
    with pytest.raises(FrozenInstanceError):
        params.heads = 5
    assert build("das-mil", DIM, 2, heads=1, length_scales_um=[500.0]).params.length_scales_um == (500.0,)


def test_each_head_starts_to_tell_near_from_far_at_its_length_scale():
    bias = build("das-mil", DIM, 2, heads=2, length_scales_um=(500.0, 4000.0)).distance_bias()
    assert bias.theta.tolist() == pytest.approx([500, 4000], rel=1e-5)
    assert (bias.beta * bias.theta).tolist() == pytest.approx([4, 4], rel=1e-5)


def test_a_phi_each_for_key_query_and_value_starts_as_the_shared_one_and_goes_its_own_way():
    options = {"query_bias": True, "heads": 2}
    shared, separate = (build("das-mil", DIM, CLASSES, **options, separate_phi=apart).eval() for apart in (False, True))
    state = shared.state_dict() | {name: torch.randn(2, 2, 32) for name in ("key_table", "query_table")}
    shared.load_state_dict(state)
    apart = {name: state[name].expand(3, 2) for name in ("log_theta_um", "log_slope")}
    torch.testing.assert_close({name: separate.state_dict()[name] for name in apart}, apart)
    separate.load_state_dict(state | apart)
    batch = collate([bag(23)])
    wanted = shared(batch).logits
    assert_same(separate(batch).logits, wanted)
    for index in range(3):
        moved = apart["log_theta_um"].clone()
        moved[index] += 2
        separate.load_state_dict(state | apart | {"log_theta_um": moved})
        assert (separate(batch).logits - wanted).abs().max() > 1e-4


# ---- optional parts


@pytest.mark.parametrize("name", ["das-mil", "self-attention"])
def test_without_projection_attention_is_on_the_features_themselves(name):
    model = build(name, DIM, CLASSES, projection=False, hidden=20)
    assert not list(model.project.parameters())
    assert model.query.in_features == model.key.in_features == model.value.in_features == DIM
    assert (model.mix[0].in_features, model.mix[0].out_features) == (DIM + 128, 20)


@pytest.mark.parametrize("name", ["abmil", "abmil-gated", "das-mil-paper", "max", "mean"])
def test_without_projection_features_pass_as_they_are(name):
    model = build(name, DIM, CLASSES, hidden=0)
    batch = collate([bag(9)])
    assert torch.equal(model.project(model.standardise(batch)), batch.features)


@pytest.mark.parametrize("name", ["das-mil", "relative-discrete", "self-attention"])
def test_attention_weights_are_dropped_in_training_if_asked(name):
    batch = collate([bag(23)])
    dropping, keeping = (build(name, DIM, CLASSES, dropout=0.0, attention_dropout=share) for share in (0.5, 0.0))
    keeping.load_state_dict(dropping.state_dict())
    assert not torch.equal(dropping(batch).logits, dropping(batch).logits)
    assert torch.equal(dropping.eval()(batch).logits, keeping(batch).logits)


@pytest.mark.parametrize("name", ["max", "mean"])
def test_published_pooling_is_a_linear_unit_per_class_on_the_pooled_features(name):
    model, batch = build(name, DIM, CLASSES, hidden=0), collate([bag(9)])
    assert sum(parameter.numel() for parameter in model.parameters()) == CLASSES * (DIM + 1)
    pooled = batch.features.amax(1) if name == "max" else batch.features.mean(1)
    assert_same(model(batch).logits, pooled @ model.classify.weight.T + model.classify.bias)


# ---- poolings


def test_max_pooling_gives_a_tile_the_share_of_features_that_it_won():
    tiles = torch.tensor([[[3.0, 0.0, 5.0, 1.0], [1.0, 2.0, 5.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    pooled = max_pool(tiles, torch.tensor([[True, True, False]]))
    assert pooled.embedding.tolist() == [[3, 2, 5, 1]]
    assert pooled.attention.tolist() == [[0.625, 0.375, 0]]


def test_max_pooling_can_call_a_tie_what_differs_by_rounding():
    tiles, mask = torch.tensor([[[100.0, 1.0], [99.9995, 0.5]]]), torch.ones(1, 2, dtype=torch.bool)
    assert max_pool(tiles, mask).attention.tolist() == [[1, 0]]
    pooled = max_pool(tiles, mask, rounding=1e-5)
    assert pooled.attention.tolist() == [[0.75, 0.25]]
    assert pooled.embedding.tolist() == [[100, 1]]


def test_mean_pooling_looks_at_all_real_tiles_alike():
    tiles = torch.tensor([[[3.0, 0.0], [1.0, 2.0], [math.nan, math.inf]], [[1.0, 1.0], [2.0, 2.0], [6.0, 9.0]]])
    pooled = mean_pool(tiles, torch.tensor([[True, True, False], [True, True, True]]))
    assert_same(pooled.embedding, torch.tensor([[2.0, 1.0], [3.0, 4.0]]))
    assert_same(pooled.attention, torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]))


@pytest.mark.parametrize("pool", [mean_pool, log_sum_exp_pool])
def test_pooling_counts_beyond_the_numbers_of_half_precision(pool):
    tiles = torch.full((2, 65_536, 1), 0.5, dtype=torch.float16)
    torch.testing.assert_close(pool(tiles, torch.ones(2, 65_536, dtype=torch.bool)).embedding, torch.full((2, 1), 0.5))


@pytest.mark.parametrize(("dtype", "tiles"), [(torch.float16, 70_000), (torch.bfloat16, 3_001)], ids=str)
def test_max_pooling_shares_out_more_ties_than_half_precision_can_count(dtype, tiles):
    pooled = max_pool(torch.zeros(1, tiles, 2, dtype=dtype), torch.ones(1, tiles, dtype=torch.bool))
    torch.testing.assert_close(pooled.attention, torch.full((1, tiles), 1 / tiles))
    assert pooled.embedding.dtype == dtype


def test_log_sum_exp_lies_between_mean_and_maximum_and_does_not_grow_with_the_bag():
    tiles, mask = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 9, dtype=torch.bool)
    once = log_sum_exp_pool(tiles, mask).embedding
    assert (once <= tiles.amax(1)).all()
    assert (once >= tiles.mean(1)).all()
    assert_same(log_sum_exp_pool(tiles.repeat(1, 5, 1), mask.repeat(1, 5)).embedding, once)
