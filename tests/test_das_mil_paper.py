"""The published configuration, against float64 oracles made by running the published code."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from wsi_mil.aggregators import build, params_of
from wsi_mil.bags import Batch
from wsi_mil.errors import OptionError

SHARED = Path(os.environ.get("WSIMIL_SHARED", Path(__file__).parents[2] / "shared"))
GOLDEN = SHARED / "golden" / "das"
CASES = (
    "e2e_kqv_max_n37_F24_L20_d10_o16_h1",
    "e2e_kqv_max_n37_F24_L20_d4_o4_h4",
    "e2e_kqv_mean_n37_F24_L20_d10_o16_h1",
)
FORWARD, GRADIENT = 1e-12, 1e-10


def one_bag(features, coords_um):
    return Batch(features.unsqueeze(0), coords_um.unsqueeze(0), torch.ones(1, len(features), dtype=torch.bool))


def random_bag(tiles=30, dim=8):
    g = torch.Generator().manual_seed(0)
    return one_bag(torch.randn(tiles, dim, generator=g), 5000 * torch.rand(tiles, 2, generator=g))


def oracle(name):
    """A model with the oracle's weights, its parameters by the oracle's names, and all arrays."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        meta = json.loads(str(file["meta_json"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta_json"}
    sizes = {"hidden": meta["in_dim"], "head_dim": meta["hidden_per_head"], "value_dim": meta["out_per_head"]}
    options = {"heads": meta["heads"], "pooling": meta["agg"], "max_distance_um": float(arrays["max_dist"])}
    model = build("das-mil-paper", meta["feat_in"], 2, **sizes, **options).double().eval()
    parameters = {
        "fc_W": model.project[0].weight,
        "fc_b": model.project[0].bias,
        "Wq": model.query.weight,
        "Wk": model.key.weight,
        "Wv": model.value.weight,
        "Ek": model.key_table,
        "Eq": model.query_table,
        "Ev": model.value_table,
        "theta": model.theta,
        "beta": model.beta,
        "cls_W": model.classify.weight,
        "cls_b": model.classify.bias,
    }
    assert {id(parameter) for parameter in parameters.values()} == {id(parameter) for parameter in model.parameters()}
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(arrays[key].reshape(parameter.shape))
    return model, parameters, arrays


def binary_cross_entropy(logit, arrays):
    y, weight = arrays["y"], arrays["pos_weight"]
    return weight * y * softplus(-logit) + (1 - y) * softplus(logit)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/das is not here")
@pytest.mark.parametrize("name", CASES)
def test_is_the_published_network_with_its_gradients(name):
    model, parameters, arrays = oracle(name)
    x = arrays["x"].clone().requires_grad_()
    logits = model(one_bag(x, arrays["coords"])).logits
    logit = logits[0, 1] - logits[0, 0]
    torch.testing.assert_close(logit, arrays["logit"], rtol=0, atol=FORWARD)
    torch.testing.assert_close(logits.softmax(dim=1)[0, 1], arrays["prob"], rtol=0, atol=FORWARD)
    loss = binary_cross_entropy(logit, arrays)
    torch.testing.assert_close(loss, arrays["loss"], rtol=0, atol=FORWARD)
    loss.backward()
    for key, tensor in {**parameters, "x": x}.items():
        wanted = arrays[f"grad_{key}"].reshape(tensor.shape)
        error = (tensor.grad - wanted).abs().max()
        assert error <= GRADIENT * wanted.abs().max(), f"gradient of {key}: {error}"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/das is not here")
def test_no_whole_network_is_left_out():
    assert sorted(path.stem for path in GOLDEN.glob("e2e_*.npz")) == list(CASES)


def test_has_as_many_parameters_as_published():
    assert sum(parameter.numel() for parameter in build("das-mil-paper", 768, 2).parameters()) == 412_251


def test_without_projection_it_has_as_many_parameters_as_published_for_mnist_collage():
    model = build("das-mil-paper", 32, 2, hidden=0, value_dim=32)
    classifier = sum(parameter.numel() for parameter in model.classify.parameters())
    assert (sum(parameter.numel() for parameter in model.parameters()) - classifier, classifier) == (1770, 33)


def test_scores_are_divided_by_the_width_that_enters_the_layer():
    torch.manual_seed(0)
    bare = build("das-mil-paper", 8, 2, hidden=0).eval()
    whole = build("das-mil-paper", 8, 2, hidden=8).eval()
    whole.load_state_dict(bare.state_dict(), strict=False)
    with torch.no_grad():
        whole.project[0].weight.copy_(torch.eye(8))
        whole.project[0].bias.zero_()
    batch = random_bag()
    batch = batch._replace(features=batch.features.abs())
    torch.testing.assert_close(bare(batch).logits, whole(batch).logits)


def test_starts_as_published():
    torch.manual_seed(0)
    model = build("das-mil-paper", 768, 2, heads=300)  # many heads, to see distributions
    assert model.theta.unique().tolist() == [0.5]
    assert model.beta.unique().tolist() == [10]
    for linear in (model.query, model.key, model.value):
        assert linear.weight.abs().max().item() == pytest.approx(512**-0.5, rel=1e-3)
        assert linear.weight.std().item() == pytest.approx((3 * 512) ** -0.5, rel=1e-2)
    for table in (model.key_table, model.query_table, model.value_table):
        assert table.mean().item() == pytest.approx(0, abs=0.05)
        assert table.std().item() == pytest.approx(1, abs=0.05)


def test_distances_are_measured_against_the_largest_slide_of_the_paper():
    model = build("das-mil-paper", 8, 2)
    assert model.params.max_distance_um == pytest.approx(75_666, abs=1)
    bias = model.distance_bias()
    assert bias.theta.item() == pytest.approx(0.5 * 75_666, abs=1)
    assert (bias.beta * bias.theta).item() == pytest.approx(5)
    assert not bias.self_bias


def test_a_larger_unit_of_distance_is_a_smaller_slide():
    batch, models = random_bag(), []
    for unit in (40_000.0, 80_000.0):
        torch.manual_seed(0)
        models.append(build("das-mil-paper", 8, 2, max_distance_um=unit).eval())
    wanted = models[0](batch).logits
    got = models[1](batch._replace(coords_um=2 * batch.coords_um)).logits
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(models[1](batch).logits, wanted, rtol=1e-5, atol=1e-6)


def test_two_classes_share_one_logit_and_more_have_one_each():
    logits = build("das-mil-paper", 8, 2).eval()(random_bag()).logits
    assert logits[0, 0] == 0
    torch.testing.assert_close(logits.softmax(dim=1)[0, 1], torch.sigmoid(logits[0, 1]))
    assert build("das-mil-paper", 8, 3).classify.out_features == 3


def test_features_are_taken_as_they_are():
    model, batch = build("das-mil-paper", 8, 2).eval(), random_bag()
    wanted = model(batch).logits
    model.fit_features(torch.full((8,), 3.0), torch.full((8,), 2.0))
    assert torch.equal(model(batch).logits, wanted)


def test_attention_weights_are_dropped_in_training_only():
    torch.manual_seed(0)
    batch = random_bag()
    dropping, keeping = (build("das-mil-paper", 8, 2, attention_dropout=share) for share in (0.1, 0.0))
    assert not torch.equal(dropping(batch).logits, dropping(batch).logits)
    assert torch.equal(keeping(batch).logits, keeping(batch).logits)
    keeping.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping.eval()(batch).logits, keeping(batch).logits)


def test_mean_pooling_looks_at_all_tiles_alike():
    attention = build("das-mil-paper", 8, 2, pooling="mean").eval()(random_bag(tiles=5)).attention
    torch.testing.assert_close(attention, torch.full((1, 5), 0.2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"value_dim": 0}, "value_dim 0"),
        ({"hidden": -1}, "hidden -1: give a whole number of at least 0"),
        ({"pooling": "attention"}, "pooling attention: choose one of max, mean"),
        ({"max_distance_um": 0}, r"max_distance_um 0\.0: give a positive number"),
        ({"max_distance_um": math.inf}, "max_distance_um inf"),
        ({"max_distance_um": math.nan}, "max_distance_um nan"),
        ({"attention_dropout": 1}, r"attention_dropout 1\.0"),
        ({"length_scales_um": [1.0]}, "das-mil-paper has no such option; it has hidden, heads, head_dim, value_dim"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, named):
    with pytest.raises(OptionError, match=named):
        params_of("das-mil-paper", options)
