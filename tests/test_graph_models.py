"""GCN, GAT and MIL-GNN against their formulas with dense matrices, and against what was published of them."""

import math

import pytest
import torch
from graphs import CASES, dense, matrix

from wsi_mil.aggregators import build, params_of
from wsi_mil.aggregators.gat import GatLayer
from wsi_mil.aggregators.gcn import GcnLayer
from wsi_mil.aggregators.neighbours import neighbour_graph
from wsi_mil.errors import OptionError

CNN = 15_552  # parameters of the network in front of the published baselines, which gives 32 features
DIM = 5


def filled(batch, dim=DIM):
    """The batch with features, NaN in padding."""
    features = torch.randn(*batch.mask.shape, dim, generator=torch.Generator().manual_seed(1)).double()
    return batch._replace(features=features.masked_fill(~batch.mask.unsqueeze(-1), torch.nan))


def model_for(name, **options):
    torch.manual_seed(0)
    return build(name, DIM, 3, **options).double().eval()


def with_random_bias(layer):
    torch.nn.init.normal_(layer.bias)
    return layer.double()


@pytest.fixture(params=["padded", "slides"])
def batch(request):
    return filled(CASES[request.param])


# ---- layers


@pytest.mark.parametrize("unit_um", [None, 700.0])
def test_a_graph_convolution_is_the_normalised_adjacency_times_the_tiles(batch, unit_um):
    torch.manual_seed(0)
    layer, graph = with_random_bias(GcnLayer(DIM, 4, unit_um)), neighbour_graph(batch, 3, self_loops=True)
    joined = dense(batch, 3).double()
    if unit_um is not None:
        joined = joined * matrix(graph, graph.um) / unit_um
    joined = joined + torch.diag(batch.mask.flatten().double())
    scale = torch.diag(joined.sum(dim=1).clamp_min(1e-9) ** -0.5)
    tiles = torch.randn(batch.mask.numel(), DIM).double()
    wanted = scale @ joined @ scale @ tiles @ layer.linear.weight.T + layer.bias
    torch.testing.assert_close(layer(tiles, graph), wanted)


@torch.no_grad()
def test_graph_attention_is_what_its_formula_says_pair_by_pair(batch):
    torch.manual_seed(0)
    layer, joined = with_random_bias(GatLayer(DIM, 6, heads=2)), dense(batch, 3, self_loops=True)
    tiles = torch.randn(batch.mask.numel(), DIM).double()
    values = tiles @ layer.linear.weight.T
    wanted = layer.bias.repeat(len(tiles), 1)
    for head in range(2):
        own = slice(3 * head, 3 * head + 3)
        for i in range(len(tiles)):
            others = [j for j in range(len(tiles)) if joined[i, j]]
            score = [float(layer.target[head] @ values[i, own] + layer.source[head] @ values[j, own]) for j in others]
            shares = [math.exp(one if one > 0 else 0.2 * one) for one in score]
            for j, share in zip(others, shares, strict=True):
                wanted[i, own] += share / sum(shares) * values[j, own]
    torch.testing.assert_close(layer(tiles, neighbour_graph(batch, 3, self_loops=True)), wanted)


# ---- networks


@pytest.mark.parametrize("name", ["gcn", "gat"])
@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_layers_are_stacked_with_relu_then_pooled_and_classified(batch, name, pooling):
    model = model_for(name, hidden=6, layers=3, neighbours=3, pooling=pooling)
    graph = neighbour_graph(batch, 3, self_loops=True)
    tiles = batch.features.nan_to_num().flatten(0, 1)
    assert len(model.layers) == 3
    for layer in model.layers:
        tiles = layer(tiles, graph).clamp_min(0)
    for bag, real in enumerate(batch.mask):
        own = tiles.view(*batch.mask.shape, 6)[bag, real]
        wanted = model.classify(own.amax(dim=0) if pooling == "max" else own.mean(dim=0))
        torch.testing.assert_close(model(batch).logits[bag], wanted)


@pytest.mark.parametrize(("clusters", "cluster_mean"), [(1, False), (1, True), (3, False), (3, True)])
def test_mil_gnn_is_what_its_formulas_say_with_dense_matrices(batch, clusters, cluster_mean):
    model = model_for("mil-gnn", hidden=4, clusters=clusters, cluster_mean=cluster_mean, neighbours=3)
    output, joined = model(batch), dense(batch, 3).double()

    def leaky(values):
        return torch.where(values > 0, values, 0.01 * values)

    def sage(layer, values, adjacency):
        mean = adjacency @ values / adjacency.sum(dim=1, keepdim=True).clamp_min(1)
        return leaky(values @ layer.root.weight.T + layer.root.bias + mean @ layer.neighbour.weight.T)

    for bag, real in enumerate(batch.mask):
        index = bag * len(real) + real.nonzero().squeeze(1)
        adjacency = joined[index][:, index]
        tiles = sage(model.embed, batch.features[bag, real], adjacency)
        shares = torch.ones(len(tiles), 1).double()
        if clusters > 1:
            scores = sage(model.assign, tiles, adjacency) @ model.sharpen.weight.T + model.sharpen.bias
            shares = leaky(scores).softmax(dim=1)
        pooled = shares.T @ tiles
        if cluster_mean:
            pooled = pooled / shares.sum(dim=0).unsqueeze(1)
        wanted = model.classify(sage(model.embed_clusters, pooled, shares.T @ adjacency @ shares).flatten())
        torch.testing.assert_close(output.logits[bag], wanted)
        torch.testing.assert_close(output.attention[bag, real], (shares / shares.sum(dim=0)).mean(dim=1))


def test_a_cluster_does_not_grow_with_the_bag_unless_it_is_a_sum_as_published():
    one = filled(CASES["grid"])
    twice = one._replace(**{name: torch.cat([getattr(one, name)] * 2, dim=1) for name in ("features", "coords_um")})
    twice = twice._replace(mask=twice.features[..., 0].isfinite(), slide=torch.arange(80).unsqueeze(0) // 40)
    mean, total = (model_for("mil-gnn", cluster_mean=option) for option in (True, False))
    torch.testing.assert_close(mean(twice).logits, mean(one).logits)
    assert (total(twice).logits - total(one).logits).abs().min() > 0.5


def test_one_cluster_needs_no_layers_that_assign_tiles_to_it():
    model = build("mil-gnn", 32, 2, hidden=20, clusters=1)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"embed", "embed_clusters", "classify"}
    batch = filled(CASES["grid"], 32)._replace(features=torch.randn(1, 40, 32))
    torch.testing.assert_close(model(batch).attention, torch.full((1, 40), 1 / 40))


@pytest.mark.parametrize(("name", "hidden", "published"), [("gcn", 15, 16.3), ("gat", 20, 16.7)])
def test_has_as_many_parameters_as_published(name, hidden, published):
    model = build(name, 32, 2, hidden=hidden)
    model.classify = torch.nn.Linear(hidden, 1)
    count = CNN + sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1000, 1) == published


@pytest.mark.parametrize("name", ["gcn", "gat", "mil-gnn"])
def test_where_all_tiles_are_neighbours_positions_do_not_matter_unless_weighted(name):
    assert build(name, DIM, 2).uses_position == "relative"
    assert build(name, DIM, 2, neighbours=0).uses_position == "none"
    assert build("gcn", DIM, 2, neighbours=0, distance_weights=True).uses_position == "relative"


@pytest.mark.parametrize("name", ["gcn", "gat", "mil-gnn"])
def test_features_are_dropped_in_training_if_asked(name):
    batch = filled(CASES["grid"])
    batch = batch._replace(features=batch.features.float())
    dropping, keeping = (build(name, DIM, 3, dropout=share) for share in (0.5, 0.0))
    keeping.load_state_dict(dropping.state_dict())
    assert not torch.equal(dropping(batch).logits, dropping(batch).logits)
    assert torch.equal(dropping.eval()(batch).logits, keeping(batch).logits)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("gcn", {"layers": 0}, "layers 0"),
        ("gcn", {"neighbours": -1}, "neighbours -1: give a whole number, or 0 for all"),
        ("gcn", {"pooling": "attention"}, "pooling attention: choose one of max, mean"),
        ("gcn", {"dropout": 1.0}, "dropout 1"),
        ("gcn", {"max_distance_um": 0.0}, "max_distance_um 0"),
        ("gat", {"heads": 0}, "heads 0"),
        ("gat", {"heads": 3}, "hidden 128, heads 3: give a width that is a multiple"),
        ("mil-gnn", {"clusters": 0}, "clusters 0"),
        ("mil-gnn", {"neighbours": -1}, "neighbours -1"),
        ("mil-gnn", {"dropout": -0.1}, "dropout -0.1"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(name, options, named):
    with pytest.raises(OptionError, match=named):
        params_of(name, options)
