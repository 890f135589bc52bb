"""Attention whose bias is looked up by distance: one vector per bin, as in discrete relative positions.

After the relative positions of Shaw et al. 2018 (arXiv 1803.02155) and Wu et al. 2021 (arXiv 2107.14222), in the form
of a baseline of arXiv 2305.10552. Per head, for query tile i and key tile j::

    bin_ij = min(round((bins - 1) * |c_i - c_j| / max_distance), bins - 1)
    e_ij   = (q_i . k_j + q_i . K[bin_ij] + Q[bin_ij] . k_j) * scale
    z_i    = sum_j softmax_j(e)_ij * (v_j + V[bin_ij])

A product with a table is one number per tile and bin, from which pairs gather theirs, and the sum over keys needs only
the weights that fall into each bin. Pairs are done a block at a time, and once more in the backward pass, so memory is
linear in the tiles: nothing of n x n is kept.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from wsi_mil.attention import dropout
from wsi_mil.attention.checks import real_coords, require_operands, wide_dtype
from wsi_mil.attention.reference import EVERY, biased_pairs, distances, softmax_over_real
from wsi_mil.errors import OptionError

# Of all bags and heads: 4 MiB in float32 for each of a dozen arrays.
PAIRS_AT_ONCE = 1 << 20
COLS = 512  # keys of a block: with more, those of a large slide would leave it few rows to be read for


class BinBias(NamedTuple):
    """How attention depends on the bin of a distance, per head; at least one table is given."""

    max_distance: float
    """Distance of the last bin's middle, in the unit of the coordinates; what lies beyond falls into it too."""
    key: Float[Tensor, "heads bins dim"] | None
    """What a query meets beside the key, by bin; None = no such bias."""
    query: Float[Tensor, "heads bins dim"] | None
    """What a key meets beside the query."""
    value: Float[Tensor, "heads bins dim_v"] | None
    """What is added to the value."""
    self_bias: bool = False
    """Whether a tile is biased towards itself, at distance 0."""


def discrete_distance_attention(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: BinBias,
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
    dropout_p: float = 0.0,
    wide: bool = False,
) -> Float[Tensor, "bags heads tiles dim_v"]:
    """Attend with scores and values that depend on the bin of each distance.

    Memory is linear in the tiles, forward and backward. Sums are made in float32 at least. On a GPU what falls into a
    bin is added up in no fixed order, so the last digits of two runs may differ.

    Args:
        q: queries.
        k: keys.
        v: values.
        coords: positions; distances have their unit. They get no gradient.
        bias: tables and the distance of the last bin.
        scale: factor of the scores; None = ``dim ** -0.5``.
        mask: True = real tile. Padding is neither attended to nor updated, whatever it holds: its output is 0.
        slide: tiles of different slides have no distance, so they attend to each other without bias.
        dropout_p: share of the attention weights dropped, as `distance_attention` drops them.
        wide: return float32 at least, as `distance_attention` does.

    Returns:
        The attended values; 0 where there was nothing to attend to.

    Raises:
        OptionError: ``dropout_p`` is no share.
        ValueError: shapes or kinds of operands do not belong together.
    """
    require_operands(q, k, v, coords, None, mask, slide)
    bins = require_tables(bias, q, v)
    if not 0 <= dropout_p < 1:
        raise OptionError(f"dropout_p {dropout_p}: give a share from 0 up to, but below, 1")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    real = torch.ones(coords.shape[:2], dtype=torch.bool, device=q.device) if mask is None else mask
    codes = dropout.codes(dropout.draw_seed(), *q.shape[:3], q.device) if dropout_p else None
    coords = real_coords(coords).masked_fill(~real[..., None], 0)
    values = bias.value is not None
    pairs = BinPairs(bins, bias.max_distance, bias.self_bias, values, coords, real, slide, dropout_p, codes)
    with torch.autocast(q.device.type, enabled=False):
        # Padding may hold anything, NaN included, which 0 times would not remove.
        clean = (tensor.to(wide_dtype(q)).masked_fill(~real[:, None, :, None], 0.0) for tensor in (q, k, v))
        attended = _attend(*clean, bias, scale, pairs)
    return attended if wide else attended.to(v.dtype)


class BinPairs(NamedTuple):
    """What pairs of tiles depend on and nothing is learnt of."""

    bins: int
    max_distance: float
    self_bias: bool
    values: bool
    """Whether the weights of each bin are wanted, for the bias of values."""
    coords: Num[Tensor, "bags tiles 2"]
    real: Bool[Tensor, "bags tiles"]
    slide: Int[Tensor, "bags tiles"] | None
    dropout_p: float
    codes: dropout.Codes | None

    def bins_of(self, rows: Int[Tensor, " rows"], cols: slice = EVERY) -> Int[Tensor, "bags 1 rows cols"]:
        """The bin of each pair; one past the last where a pair carries no bias."""
        share = distances(self.coords, rows, cols) / self.max_distance
        found = ((self.bins - 1) * share).round().clamp(max=self.bins - 1).long().unsqueeze(1)
        return found.masked_fill(~biased_pairs(self.coords, rows, self.self_bias, self.slide, cols=cols), self.bins)

    def keep(self, rows: slice, cols: slice, weights: Float[Tensor, "bags heads rows cols"]) -> Tensor:
        """Drop some weights."""
        if self.codes is None:
            return weights
        row, col = self.codes.row[:, :, rows, None], self.codes.col[:, :, None, cols]
        return weights * dropout.keep(row, col, self.dropout_p) / (1 - self.dropout_p)


class Learnt(NamedTuple):
    """What gets a gradient; what belongs to rows comes first (see `of_rows`)."""

    q: Float[Tensor, "bags heads rows dim"]
    by_key: Float[Tensor, "bags heads rows bins1"] | None
    """Query times key table; the last bin, of pairs without bias, is 0."""
    k: Float[Tensor, "bags heads cols dim"]
    v: Float[Tensor, "bags heads cols dim_v"]
    by_query: Float[Tensor, "bags heads bins1 cols"] | None
    """Key times query table."""


def of_rows(each: Sequence[Any], chunk: slice | Int[Tensor, " rows"]) -> list[Any]:
    """As `Learnt` has it (tensors or None), with some rows only of what belongs to rows; a slice gives views."""
    q, by_key, *others = each
    return [*(None if one is None else one[:, :, chunk] for one in (q, by_key)), *others]


def _of_block(each: Sequence[Any], rows: slice, cols: slice) -> list[Any]:
    """The same with some columns only too, as views."""
    *of_row, k, v, by_query = of_rows(each, rows)
    k, v = (None if one is None else one[:, :, cols] for one in (k, v))
    return [*of_row, k, v, None if by_query is None else by_query[..., cols]]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: BinBias, scale: float, pairs: BinPairs) -> Tensor:
    """By products of tiles with tables, and from the weights of each bin."""
    out = _InBlocks.apply(pairs, *products(q, k, v, bias, scale))
    if bias.value is None:
        return out
    value = bias.value.to(q)
    return out[..., : v.shape[-1]] + torch.einsum("bhnc,hcd->bhnd", out[..., v.shape[-1] :], value)


def products(q: Tensor, k: Tensor, v: Tensor, bias: BinBias, scale: float) -> Learnt:
    """Products of tiles with the tables of scores."""
    q = q * scale
    key, query = (None if table is None else table.to(q) for table in (bias.key, bias.query))
    pad = torch.nn.functional.pad
    by_key = None if key is None else pad(torch.einsum("bhnd,hcd->bhnc", q, key), (0, 1))
    by_query = None if query is None else pad(torch.einsum("bhnd,hcd->bhcn", k * scale, query), (0, 0, 0, 1))
    return Learnt(q, by_key, k, v, by_query)


def row_weights(pairs: BinPairs, asking: Learnt, rows: Int[Tensor, " rows"]) -> Float[Tensor, "bags heads rows tiles"]:
    """Attention that some rows pay to all tiles, before dropout."""
    return softmax_over_real(_scores(pairs, asking, rows, EVERY)[0], pairs.real, rows)


def _scores(
    pairs: BinPairs, block: Learnt, rows: Int[Tensor, " rows"], cols: slice
) -> tuple[Float[Tensor, "bags heads rows cols"], Int[Tensor, "bags heads rows cols"]]:
    """Of a block of pairs, and the bin of each."""
    bins = pairs.bins_of(rows, cols).expand(-1, block.q.shape[1], -1, -1)
    scores = block.q @ block.k.mT
    if block.by_key is not None:
        scores = scores + block.by_key.gather(3, bins)
    if block.by_query is not None:
        scores = scores + block.by_query.gather(2, bins)
    return scores.masked_fill(~pairs.real[:, None, None, cols], -math.inf), bins


def _sums(pairs: BinPairs, block: Learnt, rows: slice, cols: slice, weights: Tensor, bins: Tensor) -> Tensor:
    """Attended values of a block of pairs, and beside them the weights of each bin if those are wanted."""
    weights = pairs.keep(rows, cols, weights)
    values = weights @ block.v
    if not pairs.values:
        return values
    by_bin = weights.new_zeros(*weights.shape[:3], pairs.bins + 1).scatter_add(3, bins, weights)
    return torch.cat([values, by_bin[..., :-1]], dim=-1)


def _attend_rows(
    pairs: BinPairs, learnt: Sequence[Any], rows: slice, out: Float[Tensor, "bags heads rows out"]
) -> Float[Tensor, "bags heads rows"]:
    """Add the sums of some rows to ``out``, block by block (online softmax); the logarithms of their exponentials."""
    total = out.new_zeros(out.shape[:3])
    top = torch.full_like(total, torch.finfo(out.dtype).min)
    places = torch.arange(rows.start, rows.stop, device=out.device)
    for cols in _slices(pairs.real.shape[1], COLS):
        block = Learnt(*_of_block(learnt, rows, cols))
        scores, bins = _scores(pairs, block, places, cols)
        higher = torch.maximum(top, scores.amax(dim=-1))
        shrink, weights = (top - higher).exp(), (scores - higher.unsqueeze(-1)).exp()
        total.mul_(shrink).add_(weights.sum(dim=-1))
        out.mul_(shrink.unsqueeze(-1)).add_(_sums(pairs, block, rows, cols, weights, bins))
        top = higher
    attended = (total > 0) & pairs.real[:, None, rows]
    out.mul_(torch.where(attended, 1 / total, 0).unsqueeze(-1))
    return torch.where(attended, top + total.log(), math.inf)  # of inf weights are 0


class _InBlocks(torch.autograd.Function):
    """Sums of all rows over all columns, a block of pairs at a time; the backward pass computes each block again."""

    @staticmethod
    def forward(ctx: Any, pairs: BinPairs, *tensors: Any) -> Tensor:
        """See `_sums`."""
        learnt = Learnt(*tensors)
        width = learnt.v.shape[-1] + pairs.bins * pairs.values
        out, level = learnt.q.new_zeros(*learnt.q.shape[:3], width), learnt.q.new_empty(learnt.q.shape[:3])
        for rows in _row_slices(learnt.q):
            level[:, :, rows] = _attend_rows(pairs, tensors, rows, out[:, :, rows])
        ctx.pairs = pairs
        ctx.save_for_backward(*tensors, out, level)
        return out

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what is learnt."""
        if torch.is_grad_enabled():
            raise OptionError("attention by bins of distance has no second derivatives: leave out create_graph")
        *tensors, out, level = ctx.saved_tensors
        (of_out,), wanted = of_outputs, ctx.needs_input_grad[1:]
        # Weights of a row sum to 1: their gradient loses its mean.
        steady = (of_out * out).sum(dim=-1)
        made = [torch.zeros_like(one) if wants else None for one, wants in zip(tensors, wanted, strict=True)]
        for rows, cols in product(_row_slices(tensors[0]), _slices(tensors[0].shape[2], COLS)):
            leaves: list[Any] = [None if one is None else one.detach() for one in _of_block(tensors, rows, cols)]
            asked = [leaf.requires_grad_() for leaf, wants in zip(leaves, wanted, strict=True) if wants]
            with torch.enable_grad():
                loss = _loss(ctx.pairs, Learnt(*leaves), rows, cols, level, of_out, steady)
            sums = [total for total in _of_block(made, rows, cols) if total is not None]
            for total, part in zip(sums, torch.autograd.grad(loss, asked), strict=True):
                total += part
        return None, *made


def _loss(
    pairs: BinPairs, block: Learnt, rows: slice, cols: slice, level: Tensor, of_out: Tensor, steady: Tensor
) -> Tensor:
    """What has the gradients of a block of pairs, given the logarithms of the sums of whole rows."""
    places = torch.arange(rows.start, rows.stop, device=level.device)
    scores, bins = _scores(pairs, block, places, cols)
    weights = (scores - level[:, :, rows, None]).exp()
    sums = _sums(pairs, block, rows, cols, weights, bins)
    return (sums * of_out[:, :, rows]).sum() - (weights.sum(dim=-1) * steady[:, :, rows]).sum()


def _row_slices(q: Float[Tensor, "bags heads tiles dim"]) -> list[slice]:
    bags, heads, tiles, _ = q.shape
    return _slices(tiles, max(PAIRS_AT_ONCE // max(bags * heads * min(tiles, COLS), 1), 1))


def _slices(tiles: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, tiles)) for start in range(0, tiles, size)]


def require_tables(bias: BinBias, q: Tensor, v: Tensor) -> int:
    """The number of bins; refuse tables that do not fit."""
    widths = {"key": q.shape[-1], "query": q.shape[-1], "value": v.shape[-1]}
    tables = {name: getattr(bias, name) for name in widths if getattr(bias, name) is not None}
    if not tables:
        raise ValueError("bias has no table: use distance_attention without bias")
    bins = next(iter(tables.values())).shape[1]
    for name, table in tables.items():
        shape = (q.shape[1], bins, widths[name])
        if tuple(table.shape) != shape or table.device != q.device:
            raise ValueError(f"{name} is {tuple(table.shape)} on {table.device}: give {shape} on {q.device}")
    return bins
