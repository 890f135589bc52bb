"""Attention against the published layer's float64 oracles, and against a brute-force form written here."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_mil.attention import DistanceBias, attention_rows, dense_distance_attention, distance_attention, public, tiled

SHARED = Path(os.environ.get("WSIMIL_SHARED", Path(__file__).parents[2] / "shared"))
GOLDEN = SHARED / "golden" / "das"
FORWARD, GRADIENT = 1e-12, 1e-10
# float32 backends on the same oracles: worst output, and worst gradient relative to the largest of its kind.
FORWARD_32, GRADIENT_32, LARGE_32 = 1e-5, 1e-4, 5e-4
EXACT = ("reference", "tiled")

# Of the 66 oracles, those that other tests run, or that are another model.
WHOLE_NETWORKS, DISCRETE = "e2e_", "das_disc10"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small cases meet several blocks, and a last one that is not full."""
    monkeypatch.setitem(tiled.BLOCK, "cpu", 16)


def golden_cases():
    names = sorted(path.name for path in GOLDEN.glob("*.npz"))
    return [name for name in names if not name.startswith((WHOLE_NETWORKS, DISCRETE))]


def backends_of(name):
    """A neighbour graph is no distance: only the definition takes it."""
    return ("reference",) if "knn" in name else (*EXACT, "numba", "triton")


def golden_cases_of(backend):
    return [name for name in golden_cases() if backend in backends_of(name)]


needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/das is not here")


def phis_of(bias):
    """Slope and level of key, query and value."""
    return [(beta, theta) for beta, theta in zip(bias.beta.expand(3, -1), bias.theta.expand(3, -1), strict=True)]


def brute(q, k, v, coords, bias, *, scale=None, mask=None, slide=None):
    """The equations, one pair of tiles at a time, as n x n x dim arrays."""
    bags, heads, tiles, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    out = torch.zeros(bags, heads, tiles, v.shape[-1], dtype=q.dtype)
    for b in range(bags):
        real = torch.arange(tiles) if mask is None else mask[b].nonzero().flatten()
        for h in range(heads):
            c, qh, kh, vh = coords[b, real], q[b, h, real], k[b, h, real], v[b, h, real]
            n = len(real)
            terms = {"key": torch.zeros(n, n, dim), "query": torch.zeros(n, n, dim), "value": torch.zeros(n, n, 1)}
            terms = {name: term.to(q) for name, term in terms.items()}
            if bias is not None:
                distance = (c[:, None] - c[None]).norm(dim=-1)
                phis = [torch.sigmoid(beta[h] * (distance - theta[h]))[..., None] for beta, theta in phis_of(bias)]
                edge = torch.ones(n, n, dtype=torch.bool) if bias.self_bias else ~torch.eye(n, dtype=torch.bool)
                if slide is not None:
                    edge = edge & (slide[b, real][:, None] == slide[b, real][None])
                for name, phi in zip(terms, phis, strict=True):
                    if (table := getattr(bias, name)) is not None:
                        terms[name] = edge[..., None] * (phi * table[h, 0] + (1 - phi) * table[h, 1])
            scores = (qh[:, None] * (kh[None] + terms["key"])).sum(-1) + (terms["query"] * kh[None]).sum(-1)
            weights = torch.softmax(scores * scale, dim=1)
            out[b, h, real] = (weights[..., None] * (vh[None] + terms["value"])).sum(1)
    return out


def random_case(
    seed=0, bags=2, heads=3, tiles=7, dim=4, dim_v=5, dtype=torch.float64, tables="kqv", self_bias=True, phis=1
):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    q, k = normal(bags, heads, tiles, dim), normal(bags, heads, tiles, dim)
    v, coords = normal(bags, heads, tiles, dim_v), 3 * normal(bags, tiles, 2)
    key, query, value = (
        normal(heads, 2, width) if letter in tables else None
        for letter, width in zip("kqv", (dim, dim, dim_v), strict=True)
    )
    shape = (heads,) if phis == 1 else (phis, heads)
    bias = DistanceBias(normal(*shape).exp(), normal(*shape).exp(), key, query, value, self_bias)
    return q, k, v, coords, bias


def assert_close(got, wanted, tolerance=FORWARD):
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def some_mask(bags, tiles, seed=0):
    return torch.rand(bags, tiles, generator=torch.Generator().manual_seed(seed)) > 0.4


# ---- the published layer


def load(name):
    with np.load(GOLDEN / name) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta_json"}
        return arrays, json.loads(str(file["meta_json"]))


def published_layer(arrays, meta, backend, dtype=torch.float64):
    """The published layer on our function; returns its output, its weights and the leaves that have gradients."""
    names = ("x", "Wq", "Wk", "Wv", "Ek", "Eq", "Ev", "theta", "beta")
    leaf = {name: arrays[name].to(dtype).clone().requires_grad_() for name in names if name in arrays}
    q, k, v = (torch.einsum("nl,hdl->hnd", leaf["x"], leaf[w]).unsqueeze(0) for w in ("Wq", "Wk", "Wv"))
    scale, bias = arrays["x"].shape[1] ** -0.5, None
    coords = torch.zeros(1, len(arrays["x"]), 2, dtype=dtype)
    if "theta" in leaf:
        key, query, value = (leaf.get(name) for name in ("Ek", "Eq", "Ev"))
        if "_t3" in meta.get("variant", ""):  # the published "term 3" counts q.k twice
            q, key = 2 * q, key / 2
        bias = DistanceBias(leaf["beta"], leaf["theta"], key, query, value, self_bias=meta["graph"] == "self")
        coords = (arrays["coords"] / arrays["max_dist"]).unsqueeze(0).to(dtype)
    if meta.get("graph", "").startswith("knn"):
        edges = arrays["edge_mask"].unsqueeze(0)
        z, alpha = dense_distance_attention(q, k, v, coords, bias, scale=scale, _edge_mask=edges)
    else:
        z = distance_attention(q, k, v, coords, bias, scale=scale, backend=backend)
        alpha = attention_rows(q, k, coords, bias, torch.arange(q.shape[2]), scale=scale)
    return z.squeeze(0).transpose(0, 1).flatten(1), alpha.squeeze(0), leaf


def golden_errors(name, backend, dtype=torch.float64):
    """Worst error of output and weights, and of the gradients relative to the largest of each kind.

    A kind that is zero in theory is held to the size that rounding has.
    """
    arrays, meta = load(name)
    z, alpha, leaf = published_layer(arrays, meta, backend, dtype)
    forward = max((z - arrays["z"]).abs().max(), (alpha - arrays["alpha"]).abs().max())
    (z * arrays["R"]).sum().backward()
    gradients = {key: arrays[f"grad_{key}"] for key in leaf if f"grad_{key}" in arrays}
    assert len(gradients) >= 4
    floor = 1e-3 if dtype == torch.float64 else 0.1
    backward = max(
        (leaf[key].grad - wanted).abs().max() / wanted.abs().max().clamp_min(floor) for key, wanted in gradients.items()
    )
    return forward.item(), backward.item()


@needs_golden
@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for backend in EXACT for name in golden_cases_of(backend)]
)
def test_published_layer(name, backend):
    forward, backward = golden_errors(name, backend)
    assert forward <= FORWARD
    assert backward <= GRADIENT


@needs_golden
@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for backend in (*EXACT, "numba") for name in golden_cases_of("numba")]
)
def test_published_layer_in_float32(name, backend):
    if backend == "numba":
        pytest.importorskip("numba", reason="numba, the extra wsi-mil[fast], is not installed")
    forward, backward = golden_errors(name, backend, torch.float32)
    # Large inputs have scores that float32 knows less well.
    assert forward <= (LARGE_32 if "bigx" in name else FORWARD_32)
    assert backward <= (LARGE_32 if "bigx" in name else GRADIENT_32)


@needs_golden
def test_which_of_the_66_cases_run(capsys):
    every = [path.name for path in GOLDEN.glob("*.npz")]
    here = golden_cases()
    by_backend = {backend: len(golden_cases_of(backend)) for backend in (*EXACT, "numba", "triton")}
    whole, discrete = ([name for name in every if name.startswith(kind)] for kind in (WHOLE_NETWORKS, DISCRETE))
    assert (len(every), len(here), len(whole), len(discrete)) == (66, 57, 3, 6)
    assert by_backend == {"reference": 57, "tiled": 56, "numba": 56, "triton": 56}
    assert sum("_t3_" in name for name in here) == 14
    assert sum(name.startswith("plain_sa") for name in here) == 2
    absent = [backend for backend in ("numba", "triton") if not find_spec(backend)]
    with capsys.disabled():
        print(f"\n{len(here)} of {len(every)} oracles run on attention, by backend {by_backend};")
        print(f"skipped, because not installed: {', '.join(absent) or 'none'};")
        print(f"{len(whole)} whole networks (e2e*) in test_das_mil_paper.py;")
        print(f"{len(discrete)} of discrete distances (disc10*) in test_attention_discrete.py")


# ---- the definition


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("tables", ["kqv", "k", "q", "v", "kv"])
@pytest.mark.parametrize("self_bias", [True, False])
@pytest.mark.parametrize("phis", [1, 3])
def test_is_what_the_equations_say(backend, tables, self_bias, phis):
    case = random_case(tables=tables, self_bias=self_bias, phis=phis)
    assert_close(distance_attention(*case, backend=backend), brute(*case))


@pytest.mark.parametrize("mask", [None, some_mask(2, 30)])
def test_attention_without_bias_is_the_same_with_dimensions_made_even(mask, monkeypatch):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 30, 10, generator=g, dtype=torch.float64) for _ in range(3))
    plain = public._plain(q, k, v, 0.3, mask)
    monkeypatch.setattr(public, "_ALIGNED", {"cpu": 8})
    torch.testing.assert_close(public._plain(q, k, v, 0.3, mask), plain)


def test_padded_bags_without_bias_go_torchs_linear_way(monkeypatch):
    seen = []

    def watched(q, k, v, **options):
        seen.append(q.shape)
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    x = torch.randn(2, 3, 30, 8)
    public._plain(x, x, x, 0.3, some_mask(2, 30))
    assert all(len(shape) == 4 for shape in seen)
