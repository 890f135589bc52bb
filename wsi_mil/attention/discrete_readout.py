"""What attention by bins of distance looks at, without an array of all pairs."""

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from wsi_mil.attention.checks import real_coords, require_operands, wide_dtype
from wsi_mil.attention.discrete import BinBias
from wsi_mil.attention.reference import biased_pairs, distances, softmax_over_real


@torch.no_grad()
def discrete_rows(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: BinBias,
    rows: Int[Tensor, " rows"],
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
) -> Float[Tensor, "bags heads rows tiles"]:
    """Attention that chosen tiles pay to all, as `discrete_distance_attention` has it: each row sums to 1.

    Args:
        q: queries.
        k: keys.
        coords: positions, in the unit of ``bias``.
        bias: tables and the distance of the last bin.
        rows: indices of the chosen tiles, the same in every bag.
        scale: factor of the scores; None = ``dim ** -0.5``.
        mask: True = real tile. Rows of padding are 0.
        slide: which slide each tile is of.

    Raises:
        ValueError: shapes or kinds of operands do not belong together.
    """
    require_operands(q, k, None, coords, None, mask, slide)
    real = torch.ones(coords.shape[:2], dtype=torch.bool, device=q.device) if mask is None else mask
    coords = real_coords(coords).masked_fill(~real[..., None], 0)
    with torch.autocast(q.device.type, enabled=False):
        q, k = (tensor.to(wide_dtype(q)).masked_fill(~real[:, None, :, None], 0.0) for tensor in (q, k))
        asking, bins = q[:, :, rows], _bins(coords, bias, rows, slide).expand(-1, q.shape[1], -1, -1)
        scores = asking @ k.mT
        for table, vectors, axis in ((bias.key, asking, 3), (bias.query, k, 2)):
            if table is not None:  # one past the last bin: a pair without bias
                met = torch.nn.functional.pad(torch.einsum("bhnd,hcd->bhnc", vectors, table.to(q)), (0, 1))
                scores = scores + (met if axis == 3 else met.mT).gather(axis, bins)
        return softmax_over_real(scores * (q.shape[-1] ** -0.5 if scale is None else scale), real, rows)


def _bins(
    coords: Num[Tensor, "bags tiles 2"], bias: BinBias, rows: Int[Tensor, " rows"], slide: Tensor | None
) -> Int[Tensor, "bags 1 rows tiles"]:
    """The bin of each pair; one past the last where a pair carries no bias."""
    tables = (bias.key, bias.query, bias.value)
    bins = next(table.shape[1] for table in tables if table is not None)
    share = distances(coords, rows) / bias.max_distance
    found = ((bins - 1) * share).round().clamp(max=bins - 1).long().unsqueeze(1)
    return found.masked_fill(~biased_pairs(coords, rows, bias.self_bias, slide), bins)
