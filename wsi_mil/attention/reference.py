"""Distance-aware attention, dense: the definition that faster forms are held to.

Because a bias mixes two fixed vectors, its product with a query or key is two numbers per tile mixed by phi, and its
sum over keys needs only the attended phi. So the arrays here are n x n per head, never n x n x dim as published.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from wsi_mil.attention import dropout
from wsi_mil.attention.bias import DistanceBias
from wsi_mil.attention.checks import real_coords, require_operands, wide_bias, wide_dtype

EVERY = slice(None)
# Quantities of each head for some rows (queries) and all columns (keys).
Pairs = Float[Tensor, "bags #heads rows tiles"]


class Attended(NamedTuple):
    """What attention gives."""

    values: Float[Tensor, "bags heads tiles dim_v"]
    weights: Float[Tensor, "bags heads tiles tiles"]
    """Attention that a tile (row) pays to each tile (column), before dropout: rows of real tiles sum to 1."""


class RowWeights(NamedTuple):
    """Attention that some tiles pay to all."""

    weights: Float[Tensor, "bags heads rows tiles"]
    far: Pairs
    """phi of the value bias where a pair carries a bias, 0 elsewhere."""
    biased: Pairs
    """1 where a pair carries a bias, 0 elsewhere."""


def dense_distance_attention(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
    dropout_p: float = 0.0,
    seed: Int[Tensor, ""] | None = None,
    _edge_mask: Bool[Tensor, "bags tiles tiles"] | None = None,
) -> Attended:
    """`wsi_mil.attention.distance_attention` with its weights, at the price of n x n numbers per head.

    Args:
        q: queries.
        k: keys.
        v: values.
        coords: positions, in the unit of ``bias``.
        bias: the distance dependence; None = plain attention.
        scale: factor of the scores; None = ``dim ** -0.5``.
        mask: True = real tile.
        slide: which slide each tile is of; no bias between different ones.
        dropout_p: share of the attention weights dropped.
        seed: decides what is dropped; None = drawn from torch's global CPU generator.
        _edge_mask: which pairs carry a bias (True), for the golden cases with neighbour graphs.

    Returns:
        Values and weights, in float32 at least.

    Raises:
        ValueError: shapes or kinds of operands do not belong together.
    """
    require_operands(q, k, v, coords, bias, mask, slide)
    rows = torch.arange(q.shape[2], device=q.device)
    mask = mask if mask is not None else torch.ones(coords.shape[:2], dtype=torch.bool, device=q.device)
    bias, coords = wide_bias(bias, q), real_coords(coords)
    # Padding may hold anything, NaN included, which 0 times would not remove.
    q, k, v = (tensor.to(wide_dtype(q)).masked_fill(~mask[:, None, :, None], 0.0) for tensor in (q, k, v))
    # Attention has its own rule for precision, whatever an autocast around it says.
    with torch.autocast(q.device.type, enabled=False):
        looked = row_weights(q, k, coords, bias, rows, scale=scale, mask=mask, slide=slide, _edge_mask=_edge_mask)
        kept = looked.weights
        if dropout_p:
            codes = dropout.codes(dropout.draw_seed() if seed is None else seed, *q.shape[:3], q.device)
            stay = dropout.keep(codes.row.unsqueeze(-1), codes.col.unsqueeze(-2), dropout_p)
            kept = kept * stay / (1 - dropout_p)
        values = kept @ v
        if bias is not None and bias.value is not None:
            values = values + _attended_bias(kept, looked, bias.value)
    return Attended(values, looked.weights)


def _attended_bias(kept: Pairs, looked: RowWeights, table: Float[Tensor, "heads 2 dim_v"]) -> Tensor:
    """What the value bias adds: the attended phi times far minus near, and the attended share of biased pairs."""
    away, near = table[:, None, 0] - table[:, None, 1], table[:, None, 1]
    return (kept * looked.far).sum(-1, keepdim=True) * away + (kept * looked.biased).sum(-1, keepdim=True) * near


def row_weights(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    rows: Int[Tensor, " rows"],
    *,
    scale: float | None,
    mask: Bool[Tensor, "bags tiles"],
    slide: Int[Tensor, "bags tiles"] | None,
    _edge_mask: Bool[Tensor, "bags tiles tiles"] | None = None,
) -> RowWeights:
    """Attention of chosen rows: heads x rows x tiles numbers, of wide operands whose padding is finite."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries = q[:, :, rows]
    scores = queries @ k.mT
    if bias is None:
        nothing = torch.zeros_like(scores[:, :1])
        return RowWeights(softmax_over_real(scores * scale, mask, rows), nothing, nothing)
    biased = biased_pairs(coords, rows, bias.self_bias, slide, _edge_mask).to(q.dtype)
    far_key, far_query, far_value = (phi * biased for phi in _phis(coords.masked_fill(~mask[..., None], 0), rows, bias))
    if bias.key is not None:
        away, near = _products(queries, bias.key)
        scores = scores + far_key * away.unsqueeze(-1) + biased * near.unsqueeze(-1)
    if bias.query is not None:
        away, near = _products(k, bias.query)
        scores = scores + far_query * away.unsqueeze(-2) + biased * near.unsqueeze(-2)
    return RowWeights(softmax_over_real(scores * scale, mask, rows), far_value, biased)


def _phis(coords: Num[Tensor, "bags tiles 2"], rows: Int[Tensor, " rows"], bias: DistanceBias) -> list[Pairs]:
    """phi of key, query and value."""
    distance = distances(coords, rows).unsqueeze(1).to(bias.beta)
    slopes, levels = (torch.atleast_2d(parameter)[..., None, None] for parameter in (bias.beta, bias.theta))
    phis = [torch.sigmoid(slope * (distance - level)) for slope, level in zip(slopes, levels, strict=True)]
    return phis if len(phis) == 3 else phis * 3


def distances(
    coords: Num[Tensor, "bags tiles 2"], rows: Int[Tensor, " rows"], cols: slice = EVERY
) -> Num[Tensor, "bags rows cols"]:
    """Of chosen tiles to others. Differences are taken before squaring: nothing cancels far from the origin."""
    x, y = coords.detach().unbind(-1)
    return torch.hypot(x[:, rows, None] - x[:, None, cols], y[:, rows, None] - y[:, None, cols])


def biased_pairs(
    coords: Num[Tensor, "bags tiles 2"],
    rows: Int[Tensor, " rows"],
    self_bias: bool,
    slide: Int[Tensor, "bags tiles"] | None,
    edge_mask: Bool[Tensor, "bags tiles tiles"] | None = None,
    cols: slice = EVERY,
) -> Bool[Tensor, "bags 1 rows cols"]:
    """Which pairs of tiles carry a bias."""
    others = torch.arange(coords.shape[1], device=rows.device)[cols]
    biased = torch.ones(len(coords), len(rows), len(others), dtype=torch.bool, device=coords.device)
    if not self_bias:
        biased &= rows.unsqueeze(1) != others
    if slide is not None:
        biased &= slide[:, rows].unsqueeze(2) == slide[:, None, cols]
    if edge_mask is not None:
        biased &= edge_mask[:, rows, cols]
    return biased.unsqueeze(1)


def _products(
    vectors: Float[Tensor, "bags heads some dim"], table: Float[Tensor, "heads 2 dim"]
) -> tuple[Float[Tensor, "bags heads some"], Float[Tensor, "bags heads some"]]:
    """Products with far minus near, and with near."""
    away, near = torch.einsum("bhnd,hcd->cbhn", vectors, torch.stack((table[:, 0] - table[:, 1], table[:, 1]), dim=1))
    return away, near


def softmax_over_real(scores: Pairs, mask: Bool[Tensor, "bags tiles"], rows: Int[Tensor, " rows"]) -> Pairs:
    """Softmax over real keys; rows of padding, and rows without any real key, are 0."""
    keys, queries = mask[:, None, None, :], mask[:, None, rows, None]
    weights = torch.softmax(scores.masked_fill(~keys, torch.finfo(scores.dtype).min), dim=-1)
    return weights.masked_fill(~(keys & queries), 0.0)
