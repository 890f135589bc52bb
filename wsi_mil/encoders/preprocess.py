"""From uint8 tiles to what a network takes, in batches, on its device."""

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import EncoderError


def as_batch(tiles: np.ndarray | Tensor) -> UInt8[Tensor, "tiles height width 3"]:
    """Take tiles as a tensor, refusing what is not 8-bit RGB: numbers between 0 and 1 would give features, but wrong.

    Raises:
        EncoderError: not uint8 (tiles, height, width, 3).
    """
    batch = torch.as_tensor(tiles)
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
        raise EncoderError(
            f"tiles are {batch.dtype} {tuple(batch.shape)}: give uint8 (tiles, height, width, 3), RGB from 0 to 255"
        )
    return batch


def normalise(
    tiles: UInt8[Tensor, "tiles height width 3"], spec: EncoderSpec
) -> Float32[Tensor, "tiles 3 {spec.tile_px} {spec.tile_px}"]:
    """Resize, scale and normalise tiles as an encoder's authors did.

    The whole tile is resized, none of it cropped away: antialiased, along one axis after the other with whole values
    between 0 and 255 after each, as Pillow does it. Both agree to one step of 255, and to two in fewer than one value
    of 1,000 of noise, where Pillow's fixed-point weights round a tie the other way.
    """
    pixels = tiles.permute(0, 3, 1, 2).float()
    for size in ((pixels.shape[2], spec.tile_px), (spec.tile_px, spec.tile_px)):
        if tuple(pixels.shape[2:]) != size:
            pixels = (
                functional.interpolate(pixels, size, mode=spec.interpolation, antialias=True).round_().clamp_(0, 255)
            )
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels / 255 - mean) / std
