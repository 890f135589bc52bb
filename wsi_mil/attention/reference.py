"""Distance-aware attention, dense: the definition that faster forms are held to.

Because a bias mixes two fixed vectors, its product with a query or key is two numbers per tile mixed by phi, and its
sum over keys needs only the attended phi. So the arrays here are n x n per head, never n x n x dim as published.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wsi_mil.attention.bias import DistanceBias

# n x n quantities of each head; "queries" and "keys" are both the tiles.
Pairs = Float[Tensor, "bags #heads queries keys"]


class Attended(NamedTuple):
    """What attention gives."""

    values: Float[Tensor, "bags heads tiles dim_v"]
    weights: Float[Tensor, "bags heads tiles tiles"]
    """Attention that a tile (row) pays to each tile (column): rows of real tiles sum to 1."""


def dense_distance_attention(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    coords: Float[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
    _edge_mask: Bool[Tensor, "bags tiles tiles"] | None = None,
) -> Attended:
    """`distance_attention` with its weights, at the price of n x n numbers per head (memory and time).

    ``_edge_mask`` says which pairs carry a bias (True); it exists for the golden cases with neighbour graphs.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = mask if mask is not None else torch.ones(coords.shape[:2], dtype=torch.bool, device=q.device)
    # Padding may hold anything, NaN included, which 0 times would not remove.
    q, k, v = (tensor.masked_fill(~mask[:, None, :, None], 0.0) for tensor in (q, k, v))
    coords = coords.detach().masked_fill(~mask.unsqueeze(-1), 0.0)
    scores = q @ k.mT
    if bias is None:
        weights = _softmax(scores * scale, mask)
        return Attended(weights @ v, weights)
    biased = _biased_pairs(coords, bias.self_bias, slide, _edge_mask)
    far = _far(coords, bias) * biased
    if bias.key is not None:
        scores = scores + _mix(far, biased, q, bias.key)
    if bias.query is not None:
        scores = scores + _mix(far.mT, biased.mT, k, bias.query).mT
    weights = _softmax(scores * scale, mask)
    values = weights @ v
    if bias.value is not None:
        attended_far, attended_biased = ((weights * pairs).sum(-1, keepdim=True) for pairs in (far, biased))
        away, near = (bias.value[:, 0] - bias.value[:, 1]).unsqueeze(1), bias.value[:, 1].unsqueeze(1)
        values = values + attended_far * away + attended_biased * near
    return Attended(values, weights)


def _far(coords: Float[Tensor, "bags tiles 2"], bias: DistanceBias) -> Pairs:
    """phi of every pair and head. Differences are taken before squaring: nothing cancels far from the origin."""
    x, y = coords.unbind(-1)
    distance = torch.hypot(x.unsqueeze(2) - x.unsqueeze(1), y.unsqueeze(2) - y.unsqueeze(1)).unsqueeze(1)
    return torch.sigmoid(bias.beta[:, None, None] * (distance - bias.theta[:, None, None]))


def _biased_pairs(
    coords: Float[Tensor, "bags tiles 2"],
    self_bias: bool,
    slide: Int[Tensor, "bags tiles"] | None,
    edge_mask: Bool[Tensor, "bags tiles tiles"] | None,
) -> Pairs:
    """1 where a pair of tiles carries a bias, 0 elsewhere."""
    bags, tiles = coords.shape[:2]
    biased = torch.ones(bags, tiles, tiles, dtype=torch.bool, device=coords.device)
    if not self_bias:
        biased &= ~torch.eye(tiles, dtype=torch.bool, device=coords.device)
    if slide is not None:
        biased &= slide.unsqueeze(2) == slide.unsqueeze(1)
    if edge_mask is not None:
        biased &= edge_mask
    return biased.unsqueeze(1).to(coords.dtype)


def _mix(
    far: Pairs, biased: Pairs, rows: Float[Tensor, "bags heads tiles dim"], table: Float[Tensor, "heads 2 dim"]
) -> Pairs:
    """``rows_i . (far_ij * table[0] + (biased_ij - far_ij) * table[1])``, from two numbers per row."""
    away, near = torch.einsum("bhnd,hcd->cbhn", rows, torch.stack((table[:, 0] - table[:, 1], table[:, 1]), dim=1))
    return far * away.unsqueeze(-1) + biased * near.unsqueeze(-1)


def _softmax(scores: Pairs, mask: Bool[Tensor, "bags tiles"]) -> Pairs:
    """Softmax over real keys; rows of padding, and rows without any real key, are 0."""
    keys, queries = mask[:, None, None, :], mask[:, None, :, None]
    weights = torch.softmax(scores.masked_fill(~keys, torch.finfo(scores.dtype).min), dim=-1)
    return weights.masked_fill(~(keys & queries), 0.0)
