"""Distance-aware attention from a few numbers per tile, so that nothing of size n x n is ever kept.

With c = scale, away = far - near, and phi 0 where a pair carries no bias::

    scale * score_ij = c (q_i + near_query) . k_j + phi_key_ij c q_i . away_key + phi_query_ij c k_j . away_query
                       + c q_i . near_key          for pairs with a bias; c q_i . k_j for the others
    z_i = sum_j weight_ij v_j + far_i away_value + kept_i near_value

`wsi_mil.attention.operator` brings this to numbers per tile. The pairs of one slide, the pairs of different slides and,
when a tile has no bias towards itself, the diagonal are parts of one softmax. Each is computed alone, where all its
pairs are of one kind and what is constant in a row cancels, and joined by the logarithms of their sums. Everything here
is O(tiles) and differentiated by autograd.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wsi_mil.attention import dropout
from wsi_mil.attention.bias import DistanceBias
from wsi_mil.attention.checks import wide
from wsi_mil.attention.operands import LOG2E
from wsi_mil.attention.operator import attend


class Setting(NamedTuple):
    """What does not change between the parts of one attention."""

    scale: float
    mask: Bool[Tensor, "bags tiles"] | None
    slide: Int[Tensor, "bags tiles"] | None
    dropout_p: float
    codes: dropout.Codes | None
    backend: str


class _Share(NamedTuple):
    """What one part gives, and the binary logarithm of the sum of its exponentials."""

    value: Float[Tensor, "bags heads tiles dim_v"]
    lse: Float[Tensor, "bags heads tiles"]


def factored_distance_attention(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    coords: Float[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    setting: Setting,
) -> Float[Tensor, "bags heads tiles dim_v"]:
    """`wsi_mil.attention.distance_attention` by one of the linear backends."""
    if bias is None:
        return _unbiased(q, k, v, setting._replace(slide=None)).value
    if setting.slide is None and bias.self_bias:
        return _within(q, k, v, coords, bias, setting).value
    if setting.mask is not None:
        # The operator never reads padding, but what follows does, and 0 times NaN would stay.
        padding = ~setting.mask[:, None, :, None]
        q, k, v = (tensor.masked_fill(padding, 0.0) for tensor in (q, k, v))
    shares = [_within(q, k, v, coords, bias, setting)]
    if bias.key is not None:  # constant in a row of these pairs, but not there in those of the other parts
        constant = _dot(q, setting.scale * LOG2E * bias.key[:, 1])
        shares = [_Share(shares[0].value, shares[0].lse + constant)]
    if setting.slide is not None:
        shares.append(_unbiased(q, k, v, setting, across=True))
    if not bias.self_bias:
        shares.append(_diagonal(q, k, v, setting))
    weights = torch.softmax(torch.stack([share.lse for share in shares]) * math.log(2), dim=0)
    return sum(weight.unsqueeze(-1) * share.value for weight, share in zip(weights, shares, strict=True))


def _within(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    coords: Float[Tensor, "bags tiles 2"],
    bias: DistanceBias,
    setting: Setting,
) -> _Share:
    """Pairs of the same slide, which carry a bias; of ``lse``, what is constant in a row is left out."""
    phi = (wide(torch.atleast_2d(parameter)) for parameter in (bias.beta, bias.theta))
    tensors = (q, k, v, *phi, bias.key, bias.query, bias.value, coords.detach())
    return _attend(tensors, setting, diagonal=bias.self_bias)


def _unbiased(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    setting: Setting,
    across: bool = False,
) -> _Share:
    """Plain attention: to all tiles, or ``across`` to those of the bag's other slides."""
    return _attend((q, k, v, *(None,) * 6), setting, across=across)


def _attend(
    tensors: tuple[Tensor | None, ...], setting: Setting, *, across: bool = False, diagonal: bool = True
) -> _Share:
    codes = (None, None) if setting.codes is None else setting.codes
    options = (setting.scale * LOG2E, across, diagonal, setting.dropout_p, setting.backend)
    value, _, _, lse = attend(*tensors, *codes, setting.mask, setting.slide, *options)
    return _Share(value, lse)


def _diagonal(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    v: Float[Tensor, "bags heads tiles dim_v"],
    setting: Setting,
) -> _Share:
    """Every tile to itself, without bias."""
    if setting.codes is not None:
        stay = dropout.keep(setting.codes.row, setting.codes.col, setting.dropout_p)
        v = v * (stay.to(v.dtype) / (1 - setting.dropout_p)).unsqueeze(-1)
    return _Share(v, (wide(q) * wide(k)).sum(-1) * (setting.scale * LOG2E))


def _dot(
    vectors: Float[Tensor, "bags heads tiles dim"], direction: Float[Tensor, "heads dim"]
) -> Float[Tensor, "bags heads tiles"]:
    return torch.matmul(wide(vectors), wide(direction).unsqueeze(-1)).squeeze(-1)
