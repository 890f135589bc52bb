"""The published forms of self-attention, with and without positions, against float64 oracles and published sizes."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

from wsi_mil.aggregators import build, params_of
from wsi_mil.bags import Batch
from wsi_mil.errors import OptionError

SHARED = Path(os.environ.get("WSIMIL_SHARED", Path(__file__).parents[2] / "shared"))
GOLDEN = SHARED / "golden" / "das"
FORWARD, GRADIENT = 1e-12, 1e-10
PUBLISHED = {"projection": False, "mix": False, "heads": 1, "head_dim": 10, "value_dim": 32, "scale_by_input": True}
FAMILY = ("das-mil", "self-attention", "self-attention-axial", "self-attention-fourier", "relative-discrete")
CNN = 15_552  # parameters in front of every published model of MNIST-COLLAGE
LAYERS = {"Wq": "query.weight", "Wk": "key.weight", "Wv": "value.weight"}
TABLES = {"Ek": "key_table", "Eq": "query_table", "Ev": "value_table"}


def batch_of(features, coords_um):
    return Batch(features.unsqueeze(0), coords_um.unsqueeze(0), torch.ones(1, len(features), dtype=torch.bool))


def random_batch(tiles=20, dim=8):
    g = torch.Generator().manual_seed(0)
    return batch_of(torch.randn(tiles, dim, generator=g), 5000 * torch.rand(tiles, 2, generator=g))


def oracle(name, case, **options):
    """A model with the oracle's weights, the names of those in model and oracle, and all arrays."""
    with np.load(GOLDEN / f"{case}.npz") as file:
        meta = json.loads(str(file["meta_json"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta_json"}
    heads, head_dim, dim = arrays["Wq"].shape
    sizes = {"heads": heads, "head_dim": head_dim, "value_dim": arrays["Wv"].shape[1]}
    if "max_distance_um" in options:
        options["max_distance_um"] = float(arrays["max_dist"])
    assert meta.get("graph", "noself") == "noself"
    model = build(name, dim, 2, **{**PUBLISHED, **sizes, **options}).double().eval()
    names = LAYERS if "Ek" not in arrays else {**LAYERS, **TABLES}
    with torch.no_grad():
        for theirs, ours in names.items():
            parameter = model.get_parameter(ours)
            parameter.copy_(arrays[theirs].reshape(parameter.shape))
    return model, names, arrays


def assert_is_the_oracle(model, names, arrays):
    """Output and gradients of the attention alone."""
    coords = arrays.get("coords", torch.zeros(len(arrays["x"]), 2, dtype=torch.float64))
    x = arrays["x"].clone().requires_grad_()
    z = model.attend(x.unsqueeze(0), batch_of(arrays["x"], coords)).squeeze(0)
    torch.testing.assert_close(z, arrays["z"], rtol=0, atol=FORWARD)
    (z * arrays["R"]).sum().backward()
    for theirs, gradient in {
        "x": x.grad,
        **{key: model.get_parameter(name).grad for key, name in names.items()},
    }.items():
        wanted = arrays[f"grad_{theirs}"].reshape(gradient.shape)
        assert (gradient - wanted).abs().max() <= GRADIENT * wanted.abs().max(), theirs


needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/das is not here")
SIZES = ("n37_L16_d8_o16_h1", "n37_L16_d4_o4_h4")


@needs_golden
@pytest.mark.parametrize("size", SIZES)
def test_self_attention_is_the_published_layer(size):
    assert_is_the_oracle(*oracle("self-attention", f"plain_sa_{size}"))


@needs_golden
@pytest.mark.parametrize("size", SIZES)
def test_relative_discrete_is_the_published_layer(size):
    assert_is_the_oracle(*oracle("relative-discrete", f"das_disc10_{size}", max_distance_um=1.0))


@needs_golden
@pytest.mark.parametrize("size", SIZES)
def test_das_mil_can_be_the_published_layer(size):
    model, names, arrays = oracle("das-mil", f"das_kqv_{size}", query_bias=True, self_bias=False)
    with torch.no_grad():
        model.log_theta_um.copy_((arrays["theta"] * arrays["max_dist"]).log())
        model.log_slope.copy_((arrays["beta"] * arrays["theta"]).log())
    assert_is_the_oracle(model, names, arrays)


# ---- sizes


@pytest.mark.parametrize(
    ("name", "dim", "options", "published"),
    [
        ("max", 32, {"hidden": 0}, "15.6K"),
        ("abmil", 32, {"hidden": 0, "attention": 15}, "16.1K"),
        ("self-attention", 32, PUBLISHED, "17.2K"),
        ("self-attention-axial", 32, {**PUBLISHED, "head_dim": 15}, "17.6K"),
        ("self-attention-fourier", 32, {**PUBLISHED, "head_dim": 15}, "18.4K"),
        ("relative-discrete", 32, PUBLISHED, "17.8K"),
        ("max", 768, {"hidden": 0}, "769"),
        ("abmil", 768, {"hidden": 0, "attention": 10}, "8.47K"),
        ("self-attention", 768, {**PUBLISHED, "value_dim": 16}, "27.7K"),
        ("self-attention-axial", 768, {**PUBLISHED, "value_dim": 16}, "27.7K"),
        ("self-attention-fourier", 768, {**PUBLISHED, "value_dim": 16}, "41K"),
        ("relative-discrete", 768, {**PUBLISHED, "value_dim": 16}, "28K"),
    ],
)
def test_has_as_many_parameters_as_published(name, dim, options, published):
    """Published models of two classes have one linear unit, ours two."""
    model = build(name, dim, 2, **options)
    own = sum(parameter.numel() for parameter in model.parameters()) - (model.classify.in_features + 1)
    total = own + CNN * (dim == 32)
    digits = len(published.partition(".")[2].rstrip("K"))
    assert published == (f"{total / 1000:.{digits}f}K" if "K" in published else str(total))


# ---- parts


@pytest.mark.parametrize("name", FAMILY)
def test_without_mixing_what_is_attended_to_is_pooled_and_classified(name):
    torch.manual_seed(0)
    model, batch = build(name, 8, 3, **PUBLISHED).eval(), random_batch()
    assert model.mix is None
    attended = model.attend(batch.features, batch)
    assert attended.shape == (1, 20, 32)
    torch.testing.assert_close(model(batch).logits, model.classify(attended.amax(dim=1)))


@pytest.mark.parametrize("name", FAMILY)
def test_values_are_as_wide_as_told_or_as_queries(name):
    assert build(name, 8, 2).value.out_features == 4 * 32
    model = build(name, 8, 2, value_dim=7)
    assert (model.query.out_features, model.value.out_features) == (4 * 32, 4 * 7)
    assert model.mix[0].in_features == 128 + 4 * 7
    assert model(random_batch()).logits.shape == (1, 2)


@pytest.mark.parametrize("name", FAMILY)
def test_scores_are_divided_by_the_root_of_what_they_are_told(name):
    """Queries enter scores linearly, so a factor of them makes up for another division."""
    torch.manual_seed(0)
    options = {"head_dim": 2, "projection": False, "heads": 1}
    by_head, by_input = (build(name, 8, 2, **options, scale_by_input=told).eval() for told in (False, True))
    by_input.load_state_dict(by_head.state_dict())
    batch = random_batch()
    assert not torch.allclose(by_input(batch).logits, by_head(batch).logits)
    with torch.no_grad():
        for part in ("query.weight", "key.weight", "key_table", "query_table"):
            if dict(by_input.named_parameters()).get(part) is not None:
                by_input.get_parameter(part).mul_(2**0.5)  # twice the root of 8 / 2 in every product
    torch.testing.assert_close(by_input(batch).logits, by_head(batch).logits, rtol=1e-4, atol=1e-5)


# ---- absolute positions


def test_axial_encoding_is_sines_and_cosines_of_each_axis():
    model = build("self-attention-axial", 8, 2, projection=False)
    encoding = model.encode(torch.tensor([[[3.0, 0.5], [0.0, 0.0]]]))
    x, y = (torch.tensor([at, at / 100]) for at in (3.0, 0.5))
    torch.testing.assert_close(encoding[0, 0], torch.cat([x.sin(), x.cos(), y.sin(), y.cos()]))
    assert encoding[0, 1].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_axial_frequencies_are_in_equal_ratios_and_only_real_positions_are_encoded():
    model = build("self-attention-axial", 8, 2, hidden=16)
    batch, seen = random_batch(), []
    model.encode = lambda position: seen.append(position) or torch.zeros(1, 20, 16)
    coords = batch.coords_um.index_fill(1, torch.tensor([19]), math.nan)
    model(batch._replace(coords_um=coords, mask=batch.mask.index_fill(1, torch.tensor([19]), False)))
    torch.testing.assert_close(seen[0][:, :19], batch.coords_um[:, :19] / 256)
    assert not seen[0][:, 19].any()
    turns = build("self-attention-axial", 8, 2, hidden=16).encode(torch.tensor([[[1e-3, 0.0]]]))[0, 0, :4]
    torch.testing.assert_close(turns, 1e-3 * torch.tensor([1, 0.1, 0.01, 0.001]), rtol=1e-4, atol=0)


def test_fourier_encoding_is_a_network_on_waves():
    torch.manual_seed(0)
    model = build("self-attention-fourier", 8, 2, projection=False)
    position = torch.tensor([[[3.0, 0.5]]])
    angles = [(position[0, 0] * frequency).sum() for frequency in model.frequencies]
    waves = torch.stack([angle.cos() for angle in angles] + [angle.sin() for angle in angles]) / 4
    first, _, second = model.encoding
    hidden = gelu(first.weight @ waves + first.bias)
    torch.testing.assert_close(model.encode(position)[0, 0], second.weight @ hidden + second.bias)


def test_fourier_positions_keep_their_digits_in_half_precision():
    model, waves = build("self-attention-fourier", 8, 2, projection=False), []
    model.encoding.register_forward_pre_hook(lambda _, inputs: waves.append(inputs[0]))
    position = torch.tensor([[[391.3, 392.3], [392.3, 391.3]]])
    model.encode(position)
    with torch.autocast("cpu", torch.bfloat16):
        model.encode(position)
    torch.testing.assert_close(*waves, rtol=0, atol=0)


POOLED_AS_THEY_ARE = {
    "das-mil-paper": {},
    "das-mil": PUBLISHED,
    "self-attention": {**PUBLISHED, "head_dim": 16, "value_dim": 16},  # of which torch's own attention would be made
    "relative-discrete": PUBLISHED,
}


@pytest.mark.parametrize(("name", "options"), POOLED_AS_THEY_ARE.items())
def test_what_is_attended_to_keeps_its_digits_on_the_way_to_a_maximum(name, options):
    torch.manual_seed(0)
    model, batch = build(name, 32, 2, **options).eval(), random_batch(tiles=400, dim=32)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = model.pooled(batch)
    assert pooled.embedding.dtype == torch.float32
    assert (pooled.shares > 0).sum(dim=1).eq(1).all()  # rounded, tiles tie by the dozen


@pytest.mark.parametrize("name", ["das-mil-paper", "das-mil"])
def test_gradients_through_a_maximum_in_half_precision(name):
    """Where tiles tie, gradients of queries and keys are of others than the one that has the maximum."""
    torch.manual_seed(0)
    model, batch = build(name, 32, 2, **POOLED_AS_THEY_ARE[name]).eval(), random_batch(tiles=400, dim=32)
    weights, gradients = [layer.weight for layer in (model.query, model.key)], []
    for rounds in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=rounds):
            logits = model(batch).logits
        gradients.append(torch.autograd.grad(logits.float().square().sum(), weights))
    for exact, rounded in zip(*gradients, strict=True):
        assert (rounded - exact).norm() < 0.01 * exact.norm()


def test_fourier_frequencies_start_at_a_hundredth_of_a_radian_per_unit():
    torch.manual_seed(0)
    drawn = torch.cat([build("self-attention-fourier", 8, 2).frequencies for _ in range(100)])
    assert drawn.std().item() == pytest.approx(0.01, rel=0.05)
    assert drawn.mean().item() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize("name", ["self-attention-axial", "self-attention-fourier"])
def test_a_larger_unit_is_a_smaller_slide(name):
    batch, models = random_batch(), []
    for unit in (100.0, 200.0):
        torch.manual_seed(0)
        models.append(build(name, 8, 2, unit_um=unit).eval())
    wanted = models[0](batch).logits
    got = models[1](batch._replace(coords_um=2 * batch.coords_um)).logits
    torch.testing.assert_close(got, wanted)
    assert not torch.equal(models[1](batch).logits, wanted)


@pytest.mark.parametrize("name", ["self-attention-axial", "self-attention-fourier"])
def test_where_the_tissue_lies_on_the_glass_matters_as_declared(name):
    torch.manual_seed(0)
    model, batch = build(name, 8, 2).eval(), random_batch()
    moved = batch._replace(coords_um=batch.coords_um + 5000)
    assert (model(moved).logits - model(batch).logits).abs().max() > 1e-4


# ---- refusals


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("self-attention-axial", {"hidden": 126}, "hidden 126: .*divisible by 4"),
        ("self-attention-axial", {"unit_um": 0}, r"unit_um 0\.0: give a positive number"),
        ("self-attention-fourier", {"unit_um": math.inf}, "unit_um inf"),
        ("relative-discrete", {"bins": 1}, "bins 1: give at least 2"),
        ("relative-discrete", {"max_distance_um": -1}, r"max_distance_um -1\.0"),
        ("relative-discrete", {"key_bias": False, "query_bias": False, "value_bias": False}, "use self-attention"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(name, options, named):
    with pytest.raises(OptionError, match=named):
        params_of(name, options)


def test_features_that_sines_and_cosines_cannot_share_are_refused():
    with pytest.raises(OptionError, match=r"projection false, features of dimension 10: .*divisible by 4"):
        build("self-attention-axial", 10, 2, projection=False)
    assert build("self-attention-axial", 10, 2).query.in_features == 128
