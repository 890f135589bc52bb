"""From uint8 tiles to what a network takes, in batches, on its device: as its authors did with torchvision and Pillow.

A recipe with ``resize_px`` is torchvision's ``Resize(resize_px)`` (the shorter side) and ``CenterCrop(tile_px)``;
without, ``Resize((tile_px, tile_px))``. Then ``ToTensor()`` and ``Normalize(mean, std)``.
"""

import functools
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from wsi_mil.encoders.resize import resize
from wsi_mil.encoders.spec import EncoderSpec, Rgb
from wsi_mil.errors import EncoderError
from wsi_mil.filters import KERNELS


def as_batch(tiles: np.ndarray | Tensor) -> UInt8[Tensor, "tiles height width 3"]:
    """Take tiles as a tensor, refusing what is not 8-bit RGB: numbers between 0 and 1 would give features, but wrong.

    Raises:
        EncoderError: not uint8 (tiles, height, width, 3), or tiles without pixels.
    """
    if not isinstance(tiles, np.ndarray | Tensor):
        raise EncoderError(f"tiles are a {type(tiles).__name__}: give an array, uint8 (tiles, height, width, 3)")
    if str(tiles.dtype) not in ("uint8", "torch.uint8") or tiles.ndim != 4 or tiles.shape[-1] != 3:
        raise EncoderError(
            f"tiles are {tiles.dtype} {tuple(tiles.shape)}: give uint8 (tiles, height, width, 3), RGB from 0 to 255"
        )
    if 0 in tiles.shape[1:]:
        raise EncoderError(f"tiles are {tuple(tiles.shape)}: give tiles of one pixel at least")
    if isinstance(tiles, Tensor):
        return tiles
    # torch takes neither reversed nor read-only arrays, such as those of Pillow's images: these are copied
    return torch.from_numpy(np.require(tiles, requirements=["C", "W"]))


def normalise(
    tiles: UInt8[Tensor, "tiles height width 3"], spec: EncoderSpec
) -> Float32[Tensor, "tiles 3 {spec.tile_px} {spec.tile_px}"]:
    """Resize, crop, scale and normalise tiles of any size: Pillow's values exactly, then float32.

    Without ``resize_px`` a tile that is not square is squeezed into one, as torchvision's ``Resize((px, px))`` does it.

    Raises:
        EncoderError: the recipe cuts more from a tile than it resizes it to.
    """
    height, width = resized_to(tiles.shape[1], tiles.shape[2], spec)
    top, left = (round((side - spec.tile_px) / 2) for side in (height, width))
    if min(top, left) < 0:
        raise EncoderError(f"{spec.name} cuts {spec.tile_px} px from {spec.resize_px}: mend its record")
    pixels = resize(tiles, (height, width), spec.interpolation)
    pixels = pixels[..., top : top + spec.tile_px, left : left + spec.tile_px]
    mean, std = (_channels(values, pixels.device) for values in (spec.mean, spec.std))
    return pixels.div(255).sub_(mean).div_(std)


@functools.lru_cache(maxsize=64)
def _channels(values: Rgb, device: torch.device) -> Float32[Tensor, "3 1 1"]:
    """One number per channel, on a device: copied there once, since the host would wait for the device each time."""
    return torch.tensor(values, device=device).view(3, 1, 1)


def resized_to(height: int, width: int, spec: EncoderSpec) -> tuple[int, int]:
    """(height, width) that a tile is resized to before ``tile_px`` are cut from its middle, px."""
    if spec.resize_px is None:
        return spec.tile_px, spec.tile_px
    shorter = min(height, width)
    return int(spec.resize_px * height / shorter), int(spec.resize_px * width / shorter)


def recipe(spec: EncoderSpec) -> dict[str, Any]:
    """What `normalise` does, as recorded with features.

    Raises:
        EncoderError: the recipe names a filter that is not known here.
    """
    if spec.interpolation not in KERNELS:
        known = " or ".join(KERNELS)
        raise EncoderError(f"{spec.name} resizes its tiles by {spec.interpolation}, and wsimil only by {known}")
    return {
        "resize_px": spec.resize_px or spec.tile_px,
        "crop_px": spec.tile_px,
        "interpolation": spec.interpolation,
        "antialias": True,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
