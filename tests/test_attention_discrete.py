"""Attention by bins of distance against the published layer's float64 oracles and a brute-force form written here."""

import pytest
import torch
from test_attention import DISCRETE, FORWARD, GOLDEN, GRADIENT, assert_close, load, needs_golden, random_case, some_mask

from wsi_mil.attention import BinBias, discrete, discrete_distance_attention, distance_attention
from wsi_mil.errors import OptionError

BINS = 4
BLOCKS = {"one block": (1 << 20, 512), "rows one by one": (1, 512), "small blocks": (40, 3)}


def in_blocks(monkeypatch, pairs, cols):
    monkeypatch.setattr(discrete, "PAIRS_AT_ONCE", pairs)
    monkeypatch.setattr(discrete, "COLS", cols)


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS.keys())
def blocks(request, monkeypatch):
    in_blocks(monkeypatch, *request.param)


def bin_case(seed=0, bags=2, heads=3, tiles=7, tables="kqv", self_bias=False, dtype=torch.float64):
    """Distances up to about twice that of the last bin."""
    q, k, v, coords, _ = random_case(seed, bags, heads, tiles, dtype=dtype)
    g = torch.Generator().manual_seed(seed)
    made = (
        torch.randn(heads, BINS, width, generator=g, dtype=dtype) if letter in tables else None
        for letter, width in zip("kqv", (4, 4, 5), strict=True)
    )
    return q, k, v, coords, BinBias(6.0, *made, self_bias)


def brute(q, k, v, coords, bias, *, scale=None, mask=None, slide=None):
    """The equations with a vector for each pair of tiles, bag by bag."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = torch.zeros_like(v)
    for b in range(len(q)):
        real = torch.arange(q.shape[2]) if mask is None else mask[b].nonzero().flatten()
        distance = (coords[b, real][:, None] - coords[b, real]).norm(dim=-1)
        found = torch.round((BINS - 1) * distance / bias.max_distance).clamp(0, BINS - 1).long()
        edge = torch.ones_like(found, dtype=torch.bool) if bias.self_bias else ~torch.eye(len(real), dtype=torch.bool)
        if slide is not None:
            edge &= slide[b, real][:, None] == slide[b, real]
        key, query, value = (0.0 if table is None else table[:, found] * edge[..., None] for table in bias[1:4])
        qb, kb, vb = q[b][:, real, None], k[b][:, None, real], v[b][:, None, real]
        scores = (qb * (kb + key) + kb * query).sum(-1) * scale
        out[b, :, real] = (torch.softmax(scores, dim=-1)[..., None] * (vb + value)).sum(2)
    return out


def weight_of(out):
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def outcome(attend, case, **options):
    """Output and gradients of q, k, v and the tables, under a fixed loss."""
    q, k, v, coords, bias = case
    leaves = [None if one is None else one.detach().clone().requires_grad_() for one in (q, k, v, *bias[1:4])]
    out = attend(*leaves[:3], coords, BinBias(bias.max_distance, *leaves[3:], bias.self_bias), **options)
    (out * weight_of(out)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def assert_same_outcome(got, wanted, tolerance=GRADIENT):
    for mine, theirs in zip(got, wanted, strict=True):
        assert_close(mine, theirs, tolerance)


# ---- the published layer


@needs_golden
@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob(f"{DISCRETE}*.npz")))
def test_published_layer(name, blocks):
    arrays, meta = load(name)
    leaf = {key: arrays[key].clone().requires_grad_() for key in ("x", "Wq", "Wk", "Wv", "Ek", "Eq", "Ev")}
    q, k, v = (torch.einsum("nl,hdl->hnd", leaf["x"], leaf[w]).unsqueeze(0) for w in ("Wq", "Wk", "Wv"))
    key = leaf["Ek"]
    if "_t3" in meta["variant"]:  # the published "term 3" counts q.k twice
        q, key = 2 * q, key / 2
    bias = BinBias(float(arrays["max_dist"]), key, leaf["Eq"], leaf["Ev"], self_bias=meta["graph"] == "self")
    coords = arrays["coords"].unsqueeze(0)
    z = discrete_distance_attention(q, k, v, coords, bias, scale=arrays["x"].shape[1] ** -0.5)
    z = z.squeeze(0).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z, arrays["z"], rtol=0, atol=FORWARD)
    (z * arrays["R"]).sum().backward()
    for name, tensor in leaf.items():
        wanted = arrays[f"grad_{name}"]
        error = (tensor.grad - wanted).abs().max()
        assert error <= GRADIENT * wanted.abs().max(), f"gradient of {name}: {error}"


@needs_golden
def test_no_oracle_of_bins_is_left_out():
    assert len(list(GOLDEN.glob(f"{DISCRETE}*.npz"))) == 6


# ---- the definition


@pytest.mark.parametrize("tables", ["kqv", "k", "q", "v", "kq"])
@pytest.mark.parametrize("self_bias", [True, False])
def test_is_what_the_equations_say(blocks, tables, self_bias):
    case = bin_case(tables=tables, self_bias=self_bias)
    assert_same_outcome(outcome(discrete_distance_attention, case), outcome(brute, case))


def test_padding_and_slides(blocks):
    case, mask = bin_case(tiles=9), some_mask(2, 9)
    slide = torch.randint(0, 2, (2, 9), generator=torch.Generator().manual_seed(1))
    options = {"mask": mask, "slide": slide, "scale": 0.3}
    assert_same_outcome(outcome(discrete_distance_attention, case, **options), outcome(brute, case, **options))


@pytest.mark.parametrize("content", [torch.inf, torch.nan])
def test_whatever_padding_holds_neither_output_nor_gradient_sees_it(blocks, content):
    q, k, v, coords, bias = bin_case(tiles=9)
    mask = some_mask(2, 9)
    wanted = outcome(discrete_distance_attention, (q, k, v, coords, bias), mask=mask)
    spoilt = (one.masked_fill(~mask[:, None, :, None], content) for one in (q, k, v))
    case = (*spoilt, coords.masked_fill(~mask[..., None], content), bias)
    assert_same_outcome(outcome(discrete_distance_attention, case, mask=mask), wanted)


def test_a_bag_of_padding_and_no_tiles_give_zeros_and_nothing():
    case, mask = bin_case(), some_mask(2, 7)
    mask[1] = False
    out = discrete_distance_attention(*case, mask=mask)
    assert not out[1].any()
    assert out.isfinite().all()
    assert discrete_distance_attention(*bin_case(tiles=0)).shape == (2, 3, 0, 5)


def test_bins_are_the_nearest_multiple_of_their_width_ties_to_even_and_the_last_takes_the_rest():
    """Attention to one tile only, whose value bias tells the bin."""
    at = torch.tensor([0.0, 0.99, 1.0, 1.01, 2.99, 3.0, 3.01, 4.99, 5.0, 5.01, 6.0, 1e6])
    wanted = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3]  # of width 2
    coords = torch.stack([torch.stack([at, torch.zeros(12)], dim=1), torch.zeros(12, 2)], dim=1)
    table = torch.arange(4.0).view(1, 4, 1)
    q, k = torch.ones(12, 1, 2, 1), torch.tensor([-1e4, 1e4]).view(1, 1, 2, 1).expand(12, 1, 2, 1)
    out = discrete_distance_attention(q, k, torch.zeros(12, 1, 2, 1), coords, BinBias(6.0, None, None, table))
    assert out[:, 0, 0, 0].tolist() == wanted


def test_without_differences_between_bins_it_is_plain_attention():
    q, k, v, coords, bias = bin_case()
    alike = BinBias(6.0, bias.key[:, :1].expand_as(bias.key), None, None, self_bias=True)
    assert_close(discrete_distance_attention(q, k, v, coords, alike), distance_attention(q, k, v, coords, None))


def test_low_precision_is_summed_in_float32():
    case = bin_case(tiles=40)
    q, k, v, coords, bias = case
    low = [one.bfloat16() for one in (q, k, v)]
    tables = (table.bfloat16() for table in bias[1:4])
    got = discrete_distance_attention(*low, coords, BinBias(6.0, *tables))
    assert got.dtype == torch.bfloat16
    assert_close(got.double(), brute(*case), 5e-2)


def test_gradients_are_made_only_of_what_is_learnt(blocks):
    case = bin_case()
    wanted = outcome(brute, case)
    v = case[2].clone().requires_grad_()
    out = discrete_distance_attention(*case[:2], v, *case[3:])
    (out * weight_of(out)).sum().backward()
    assert_close(v.grad, wanted[3], GRADIENT)


# ---- dropout


def test_dropout_is_that_of_attention_by_distance_whatever_the_blocks(monkeypatch):
    q, k, v, coords, bias = bin_case(tiles=20)
    alike = BinBias(6.0, bias.key[:, :1].expand_as(bias.key), None, None, self_bias=True)
    torch.manual_seed(3)
    wanted = distance_attention(q, k, v, coords, None, dropout_p=0.4)
    torch.manual_seed(3)
    assert_close(discrete_distance_attention(q, k, v, coords, alike, dropout_p=0.4), wanted)
    outcomes = []
    for sizes in BLOCKS.values():
        in_blocks(monkeypatch, *sizes)
        torch.manual_seed(3)
        outcomes.append(outcome(discrete_distance_attention, (q, k, v, coords, bias), dropout_p=0.4))
    for other in outcomes[1:]:
        assert_same_outcome(other, outcomes[0])


def test_the_backward_pass_drops_what_the_forward_pass_dropped():
    """Values enter linearly, so their gradient tells the weights."""
    q, k, v, coords, bias = bin_case(tables="kq")
    v = v.requires_grad_()
    out = discrete_distance_attention(q, k, v, coords, bias, dropout_p=0.4)
    out.sum().backward()
    assert_close((v.grad * v).sum(), out.sum())


# ---- memory and refusals


def test_what_is_kept_for_the_backward_pass_grows_with_the_tiles_and_not_with_their_pairs():
    kept = []
    for tiles in (200, 400):
        case, sizes = bin_case(tiles=tiles, bags=1, dtype=torch.float32), []
        for leaf in case[:3]:
            leaf.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda one, into=sizes: into.append(one.numel()), lambda _: None):
            discrete_distance_attention(*case)
        kept.append(sum(sizes))
    assert 0 < kept[1] < 2.1 * kept[0]


def test_no_array_of_all_pairs_is_made(monkeypatch):
    in_blocks(monkeypatch, 2000, 20)
    sizes, scores_of = [], discrete._scores

    def counted(*arguments):
        scores, bins = scores_of(*arguments)
        sizes.append(scores.numel())
        return scores, bins

    monkeypatch.setattr(discrete, "_scores", counted)
    outcome(discrete_distance_attention, bin_case(tiles=100, bags=2))
    assert max(sizes) == 2 * 3 * 16 * 20
    assert sum(sizes) == 2 * (2 * 3 * 100 * 100)  # forward and backward


def test_rows_of_a_block_do_not_become_few_where_tiles_are_many():
    """For each block of rows all keys and values are read, and their gradients written."""
    sizes = {len(range(*rows.indices(100_000))) for rows in discrete._row_slices(torch.empty(1, 4, 100_000, 0))[:-1]}
    assert sizes == {512}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key": None, "query": None, "value": None}, "no table"),
        ({"query": torch.zeros(3, BINS + 1, 4)}, r"query is \(3, 5, 4\).*\(3, 4, 4\)"),
        ({"value": torch.zeros(3, BINS, 4)}, r"value is \(3, 4, 4\).*\(3, 4, 5\)"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, named):
    q, k, v, coords, bias = bin_case()
    with pytest.raises(ValueError, match=named):
        discrete_distance_attention(q, k, v, coords, bias._replace(**change))


def test_a_share_that_is_none_is_refused():
    with pytest.raises(OptionError, match="dropout_p 1"):
        discrete_distance_attention(*bin_case(), dropout_p=1.0)


def test_second_derivatives_are_refused():
    q, k, v, coords, bias = bin_case()
    q.requires_grad_()
    out = discrete_distance_attention(q, k, v, coords, bias).sum()
    with pytest.raises(OptionError, match="no second derivatives"):
        torch.autograd.grad(out, q, create_graph=True)
