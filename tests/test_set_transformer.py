"""The set transformers against their formulas, number by number, and against what was published of them."""

import math

import pytest
import torch

from wsi_mil.aggregators import build, params_of
from wsi_mil.aggregators.set_transformer import AttentionBlock, InducedSetLayer, SetLayer
from wsi_mil.bags import Batch
from wsi_mil.errors import OptionError

DIM, HIDDEN, HEADS = 5, 6, 2


def batch_of(*tiles):
    """Bags of random tiles, padded with NaN; double precision."""
    mask = torch.arange(max(tiles)).unsqueeze(0) < torch.tensor(tiles).unsqueeze(1)
    features = torch.randn(*mask.shape, DIM, generator=torch.Generator().manual_seed(1)).double()
    features = features.masked_fill(~mask.unsqueeze(-1), torch.nan)
    return Batch(features, torch.zeros(*mask.shape, 2).double(), mask)


@torch.no_grad()
def one_by_one(block: AttentionBlock, queries, keys):
    """The block on one bag without padding: each sum written out. Also the weights (heads, queries, keys)."""
    q, k, v = (
        torch.stack([linear.weight @ one + linear.bias for one in rows])
        for linear, rows in ((block.query, queries), (block.key, keys), (block.value, keys))
    )
    width, mixed, weights = q.shape[1] // block.heads, q.clone(), q.new_zeros(block.heads, len(q), len(k))
    for head in range(block.heads):
        own = slice(head * width, (head + 1) * width)
        for i in range(len(q)):
            shares = [math.exp(float(q[i, own] @ one[own]) / math.sqrt(q.shape[1])) for one in k]
            for j, share in enumerate(shares):
                weights[head, i, j] = share / sum(shares)
                mixed[i, own] += weights[head, i, j] * v[j, own]
    rows = [one + (block.output.weight @ one + block.output.bias).clamp_min(0) for one in mixed]
    return torch.stack(rows), weights


def test_a_block_is_what_its_formula_says_and_attends_to_real_keys_only():
    torch.manual_seed(0)
    block, keys = AttentionBlock(3, DIM, HIDDEN, HEADS).double(), batch_of(4, 7)
    queries = torch.randn(2, 3, 3).double()
    updated, weights = block(queries, keys.features.nan_to_num(9.0), keys.mask)
    for bag, real in enumerate(keys.mask):
        wanted, shares = one_by_one(block, queries[bag], keys.features[bag, real])
        torch.testing.assert_close(updated[bag], wanted)
        torch.testing.assert_close(weights[bag][..., real], shares)
        assert not weights[bag][..., ~real].any()


@pytest.mark.parametrize("layer", [SetLayer(DIM, HIDDEN, HEADS), InducedSetLayer(DIM, HIDDEN, HEADS, inducing=3)])
def test_layers_are_the_blocks_of_the_paper(layer):
    layer, batch = layer.double(), batch_of(4, 7)
    updated = layer(batch.features.nan_to_num(9.0), batch)
    for bag, real in enumerate(batch.mask):
        tiles = batch.features[bag, real]
        if isinstance(layer, SetLayer):
            wanted, _ = one_by_one(layer.block, tiles, tiles)
        else:
            wanted, _ = one_by_one(layer.spread, tiles, one_by_one(layer.gather, layer.points, tiles)[0])
        torch.testing.assert_close(updated[bag, real], wanted)


def test_many_tiles_attend_as_few_do():
    layer, batch = SetLayer(DIM, HIDDEN, HEADS).double(), batch_of(250, 210)
    tiles = batch.features.nan_to_num(9.0)
    wanted, _ = layer.block(tiles, tiles, batch.mask)
    torch.testing.assert_close(layer(tiles, batch)[batch.mask], wanted[batch.mask])


@pytest.mark.parametrize("name", ["set-transformer", "iset-transformer"])
def test_tiles_are_pooled_by_one_learned_query_and_attention_is_its_weights(name):
    model, batch = build(name, DIM, 3, hidden=HIDDEN, heads=HEADS).double().eval(), batch_of(4, 7)
    output, tiles = model(batch), batch.features.nan_to_num()
    for layer in model.layers:
        tiles = layer(tiles, batch)
    assert len(model.layers) == 2
    for bag, real in enumerate(batch.mask):
        pooled, weights = one_by_one(model.pool, model.seed, tiles[bag, real])
        torch.testing.assert_close(output.logits[bag], model.classify(pooled.squeeze(0)))
        torch.testing.assert_close(output.attention[bag, real], weights.squeeze(1).mean(dim=0))


@pytest.mark.parametrize(
    ("name", "hidden", "published"), [("set-transformer", 10, 17.6), ("iset-transformer", 15, 22.1)]
)
def test_has_as_many_parameters_as_published(name, hidden, published):
    model = build(name, 32, 2, hidden=hidden, heads=1)
    model.classify = torch.nn.Linear(hidden, 1)
    count = 15_552 + sum(parameter.numel() for parameter in model.parameters())  # with the network in front
    assert round(count / 1000, 1) == published


@pytest.mark.parametrize("name", ["set-transformer", "iset-transformer"])
def test_half_is_dropped_in_training_as_published(name):
    batch = batch_of(9)
    batch = batch._replace(features=batch.features.float(), coords_um=batch.coords_um.float())
    dropping, keeping = build(name, DIM, 3), build(name, DIM, 3, dropout=0.0)
    assert dropping.dropout.p == 0.5
    keeping.load_state_dict(dropping.state_dict())
    assert not torch.equal(dropping(batch).logits, dropping(batch).logits)
    assert torch.equal(dropping.eval()(batch).logits, keeping(batch).logits)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("set-transformer", {"hidden": 0}, "hidden 0"),
        ("set-transformer", {"hidden": 10}, "hidden 10, heads 4: give a width that is a multiple of the heads"),
        ("set-transformer", {"dropout": 1.0}, "dropout 1"),
        ("iset-transformer", {"inducing": 0}, "inducing 0"),
        ("iset-transformer", {"heads": 0}, "heads 0"),
        ("set-transformer", {"inducing": 3}, "no such option; it has hidden, heads, dropout"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(name, options, named):
    with pytest.raises(OptionError, match=named):
        params_of(name, options)


def test_learned_points_start_as_published():
    """Xavier's rule on a tensor (1, points, width), whose widths it takes for the size of a kernel."""
    torch.manual_seed(0)
    induced = InducedSetLayer(DIM, 64, 4, 32)
    limit = math.sqrt(6 / (32 * 64 + 64))
    assert 0.9 * limit < induced.points.abs().max() <= limit
    seed = build("set-transformer", DIM, 2, hidden=64).seed
    limit = math.sqrt(6 / (64 + 64))
    assert 0.9 * limit < seed.abs().max() <= limit
