"""What attention with a bias looked up by bins looks at, without an array of all pairs: `readout` for `discrete`."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from wsi_mil.attention.checks import real_coords, require_operands, wide_dtype
from wsi_mil.attention.discrete import BinBias, BinPairs, Learnt, of_rows, products, require_tables, row_weights
from wsi_mil.attention.readout import attention_received, attention_rows, require_rows, require_shares

_PAIRS_AT_ONCE = 1 << 21  # of all bags and heads: 8 MiB in float32 for each of a dozen arrays


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
    """`attention_rows` of `discrete_distance_attention`: takes and raises what that does."""
    if bias.key is None and bias.query is None:  # what is added to values decides no weights
        return attention_rows(q, k, coords, None, rows, scale=scale, mask=mask, slide=slide)
    require_rows(rows, q.shape[2])
    weights = [weights for _, weights in _in_chunks(q, k, coords, bias, rows, scale, mask, slide)]
    return torch.cat(weights, dim=2) if weights else q.new_zeros(*q.shape[:2], 0, q.shape[2], dtype=wide_dtype(q))


@torch.no_grad()
def discrete_received(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: BinBias,
    *,
    row_share: Float[Tensor, "bags tiles"],
    scale: float | None = None,
    mask: Bool[Tensor, "bags tiles"] | None = None,
    slide: Int[Tensor, "bags tiles"] | None = None,
) -> Float[Tensor, "bags heads tiles"]:
    """`attention_received` of `discrete_distance_attention`: takes and raises what that does."""
    require_shares(row_share, coords)
    if bias.key is None and bias.query is None:
        setting = {"scale": scale, "mask": mask, "slide": slide}
        return attention_received(q, k, coords, None, row_share=row_share, **setting)
    # A row of padding pays nothing, but its share may be anything.
    share = (row_share if mask is None else row_share.masked_fill(~mask, 0.0)).to(wide_dtype(q))
    received = q.new_zeros(q.shape[:3], dtype=wide_dtype(q))
    every = torch.arange(q.shape[2], device=q.device)
    for rows, weights in _in_chunks(q, k, coords, bias, every, scale, mask, slide):
        received += torch.einsum("br,bhrt->bht", share[:, rows], weights)
    return received


def _in_chunks(
    q: Float[Tensor, "bags heads tiles dim"],
    k: Float[Tensor, "bags heads tiles dim"],
    coords: Num[Tensor, "bags tiles 2"],
    bias: BinBias,
    rows: Int[Tensor, " rows"],
    scale: float | None,
    mask: Bool[Tensor, "bags tiles"] | None,
    slide: Int[Tensor, "bags tiles"] | None,
) -> Iterator[tuple[Int[Tensor, " chunk"], Float[Tensor, "bags heads chunk tiles"]]]:
    """Some rows at a time, so that no array grows with their number."""
    require_operands(q, k, None, coords, None, mask, slide)
    bins = require_tables(bias._replace(value=None), q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    real = torch.ones(coords.shape[:2], dtype=torch.bool, device=q.device) if mask is None else mask
    coords = real_coords(coords).masked_fill(~real[..., None], 0)
    pairs = BinPairs(bins, bias.max_distance, bias.self_bias, False, coords, real, slide, 0.0, None)
    size = max(_PAIRS_AT_ONCE // max(q.shape[0] * q.shape[1] * q.shape[2], 1), 1)
    with torch.autocast(q.device.type, enabled=False):
        q, k = (tensor.to(wide_dtype(q)).masked_fill(~real[:, None, :, None], 0.0) for tensor in (q, k))
        whole = products(q, k, k, bias, scale)
    for chunk in rows.split(size) if len(rows) else ():
        with torch.autocast(q.device.type, enabled=False):
            weights = row_weights(pairs, Learnt(*of_rows(whole, chunk)), chunk)
        yield chunk, weights
