"""What attention looks at, without an array of all pairs.

These take what `distance_attention` takes, but no values: attention is decided by queries, keys and distances. They are
for looking, not for learning: nothing here has a gradient.
"""

from collections.abc import Iterator
from typing import overload

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from wsi_mil.attention.bias import DistanceBias
from wsi_mil.attention.checks import real_coords, require_operands, wide_bias, wide_dtype
from wsi_mil.attention.public import distance_attention
from wsi_mil.attention.reference import row_weights
from wsi_mil.errors import OptionError

_PAIRS_AT_ONCE = 1 << 21  # of all bags and heads: 8 MiB in float32 for each of a dozen arrays


@torch.no_grad()
def attention_received(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
    row_share: Float[Tensor, "bags tiles"] | None = None,
) -> Float[Tensor, "bags heads tiles"]:
    """How much each tile is attended to: the mean over rows of each column of the attention weights.

    Args:
        q: queries.
        k: keys.
        coords: positions, in the unit of ``bias``.
        bias: the distance dependence; None = plain attention.
        scale: factor of the scores; None = ``dim ** -0.5``.
        mask: True = real tile.
        slide: which slide each tile is of.
        row_share: weight of each row in the mean, such as the attention of a pooling; real rows should sum to 1. None =
            all real rows alike.

    Returns:
        Shares that sum to 1 over the tiles of each bag and head (to the sum of ``row_share``), in float32 at least; 0
        on padding.

    Raises:
        ValueError: shapes or kinds of operands do not belong together.
    """
    require_operands(q, k, None, coords, bias, mask, slide)
    real = torch.ones(coords.shape[:2], dtype=torch.bool, device=q.device) if mask is None else mask
    if row_share is not None:
        require_shares(row_share, coords)
    share = real if row_share is None else row_share.masked_fill(~real, 0.0)
    share = share.to(wide_dtype(q))
    if row_share is None:
        share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
    # Tensors of inference mode cannot be differentiated, copies made outside it can.
    with torch.inference_mode(False), torch.enable_grad():
        q, k = (tensor.detach().to(wide_dtype(q), copy=True) for tensor in (q, k))
        coords, mask, slide, share = _copy(coords), _copy(mask), _copy(slide), _copy(share)
        if bias is not None:  # of the scores: weights do not depend on what is added to values
            scores = (_copy(bias.beta), _copy(bias.theta), _copy(bias.key), _copy(bias.query))
            bias = DistanceBias(*scores, value=None, self_bias=bias.self_bias)
        # Sums of columns are the gradient of values of 1, and that code is linear and fast.
        ones = q.new_ones((*q.shape[:3], 1), requires_grad=True)
        attended = distance_attention(q, k, ones, coords, bias, scale=scale, mask=mask, slide=slide)
        (received,) = torch.autograd.grad(attended, ones, share[:, None, :, None].expand_as(attended))
    return received.squeeze(-1)


@overload
def _copy(tensor: Tensor) -> Tensor: ...
@overload
def _copy(tensor: None) -> None: ...
def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


@torch.no_grad()
def attention_rows(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    rows: Int[Tensor, " rows"],
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
) -> Float[Tensor, "bags heads rows tiles"]:
    """Attention that chosen tiles pay to all, in float32 at least: each row sums to 1, rows of padding are 0.

    Args:
        q: queries.
        k: keys.
        coords: positions, in the unit of ``bias``.
        bias: the distance dependence; None = plain attention.
        rows: indices of the chosen tiles, the same in every bag.
        scale: factor of the scores; None = ``dim ** -0.5``.
        mask: True = real tile.
        slide: which slide each tile is of.

    Raises:
        OptionError: there is no such row.
        ValueError: shapes or kinds of operands do not belong together.
    """
    require_rows(rows, q.shape[2])
    weights = list(_in_chunks(q, k, coords, bias, rows, scale, mask, slide))
    return torch.cat(weights, dim=2) if weights else q.new_zeros(*q.shape[:2], 0, q.shape[2], dtype=wide_dtype(q))


def _in_chunks(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: DistanceBias | None,
    rows: Int[Tensor, " rows"],
    scale: float | None,
    mask: Bool[Tensor, "bags tiles"] | None,
    slide: Int[Tensor, "bags tiles"] | None,
) -> Iterator[Float[Tensor, "bags heads chunk tiles"]]:
    """Some rows at a time, so that no array grows with their number."""
    require_operands(q, k, None, coords, bias, mask, slide)
    if mask is None:
        mask = torch.ones(coords.shape[:2], dtype=torch.bool, device=q.device)
    bias, coords = wide_bias(bias, q), real_coords(coords)
    q, k = (tensor.to(wide_dtype(q)).masked_fill(~mask[:, None, :, None], 0.0) for tensor in (q, k))
    bags, heads, tiles, _ = q.shape
    size = max(_PAIRS_AT_ONCE // max(bags * heads * tiles, 1), 1)
    for chunk in rows.split(size) if len(rows) else ():
        with torch.autocast(q.device.type, enabled=False):
            weights = row_weights(q, k, coords, bias, chunk, scale=scale, mask=mask, slide=slide).weights
        yield weights


def require_shares(row_share: Tensor, coords: Tensor) -> None:
    """Refuse shares that are not one per tile."""
    if row_share.shape != coords.shape[:2]:
        wanted = tuple(coords.shape[:2])
        raise ValueError(f"row_share has shape {tuple(row_share.shape)}, with this q it has to be {wanted}")


def require_rows(rows: Tensor, tiles: int) -> None:
    """Refuse what are no indices of tiles."""
    if rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise OptionError(
            f"rows of shape {tuple(rows.shape)} and {rows.dtype}: give the indices of tiles, one after another"
        )
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= tiles):
        raise OptionError(f"rows {int(rows.min())} to {int(rows.max())}: tiles are numbered from 0 to {tiles - 1}")
