"""Resizing as Pillow does it, bit for bit, in batches and on any device.

Encoders were trained on tiles that Pillow resized. It resizes along one axis after the other, with weights in fixed
point (22 bits after the point: `filters`) and 8-bit values after each axis. The same
whole-number weights in float64 give the same sums: an 8-bit value times a weight is below 2**31, so no sum rounds.
The result depends on neither device, batch nor threads.

Columns come first, as in every Pillow up to 12, which is what encoders were trained with. Pillow 13 takes rows first
for some shapes; never for square tiles, where all versions agree.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor

from wsi_mil.filters import POINT, pillow_weights

_BAND = 32  # outputs computed at once: few enough to leave out most of the zeros, enough for a matrix product
_VALUES = {"cpu": 1 << 18, "cuda": 1 << 24}  # of the tiles resized at once: what a cache holds, 128 MB on a GPU


class _Band(NamedTuple):
    """Some neighbouring outputs, and the inputs that they are made of."""

    made: slice
    needed: slice
    weights: Float64[Tensor, "made needed"]


def resize(
    tiles: UInt8[Tensor, "tiles height width 3"], size: tuple[int, int], interpolation: str
) -> Float32[Tensor, "tiles 3 {size[0]} {size[1]}"]:
    """Resize tiles, antialiased: what ``PIL.Image.resize`` returns for each of them (see the module).

    Args:
        tiles: RGB.
        size: (height, width) of the result, px; an axis that has its size already is left as it is.
        interpolation: "bilinear" or "bicubic".

    Returns:
        Whole values from 0 to 255, channels first.
    """
    chunk = max(1, _VALUES[tiles.device.type] // max(1, tiles[:1].numel()))
    return torch.cat([_resized(part, size, interpolation) for part in tiles.split(chunk)])


def _resized(
    tiles: UInt8[Tensor, "tiles height width 3"], size: tuple[int, int], interpolation: str
) -> Float32[Tensor, "tiles 3 {size[0]} {size[1]}"]:
    values = tiles.permute(0, 3, 1, 2)
    *_, height, width = values.shape
    if width != size[1]:
        values = values.to(torch.float64, memory_format=torch.contiguous_format)
        made = values.new_empty(*values.shape[:3], size[1])
        for band in _bands(width, size[1], interpolation, tiles.device):
            made[..., band.made] = values[..., band.needed] @ band.weights.T
        values = _whole(made)
    if height != size[0]:
        values = values.double()
        made = values.new_empty(*values.shape[:2], size[0], size[1])
        for band in _bands(height, size[0], interpolation, tiles.device):
            made[..., band.made, :] = band.weights @ values[..., band.needed, :]
        values = _whole(made)
    return values.to(torch.float32, memory_format=torch.contiguous_format)


def _whole(sums: Float64[Tensor, "*axes"]) -> Float64[Tensor, "*axes"]:
    """Round fixed-point sums to 8-bit values, in place: half a step added, then cut off, as a shift of bits does."""
    return sums.add_(1 << (POINT - 1)).mul_(2.0**-POINT).floor_().clamp_(0, 255)


@functools.lru_cache(maxsize=64)
def _bands(length: int, size: int, interpolation: str, device: torch.device) -> tuple[_Band, ...]:
    """The weights of one axis, cut into bands that hold few zeros."""
    weights = pillow_weights(length, size, interpolation)
    bands = []
    for start in range(0, size, _BAND):
        rows = weights[start : start + _BAND]
        used = np.flatnonzero(rows.any(axis=0))
        needed = slice(int(used[0]), int(used[-1]) + 1)
        values = torch.from_numpy(rows[:, needed].copy()).to(device)
        bands.append(_Band(slice(start, start + len(rows)), needed, values))
    return tuple(bands)
