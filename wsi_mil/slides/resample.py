"""Pixels to another size by Pillow's antialiased bilinear filter, bit for bit, several times as fast where numba is.

Pillow's weights are whole numbers, so whoever adds them up gets the same pixels (see `wsi_mil.filters`).
"""

import importlib.util
from functools import cache
from types import ModuleType

import numpy as np
from jaxtyping import UInt8
from PIL import Image

RESAMPLE = "pillow-bilinear-antialiased"


def resample(
    pixels: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "{size[1]} {size[0]} 3"]:
    """Resize an image to ``size`` (width, height): what ``PIL.Image.resize`` makes of it by its bilinear filter."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    if kernels := kernels_for((width, height), size):
        return kernels.resample(pixels, size)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def kernels_for(size: tuple[int, int], wanted: tuple[int, int]) -> ModuleType | None:
    """The compiled filter (`resample_kernels`), if numba is installed (`pip install 'wsi-mil[fast]'`) and it applies.

    It takes columns first, then rows, and both or none. Pillow 13 takes rows first where they shrink more than columns
    do, older ones never, so such sizes are left to Pillow.
    """
    same = size[0] * wanted[1] == size[1] * wanted[0]
    return _kernels() if same and size != wanted else None


@cache
def _kernels() -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    return importlib.import_module("wsi_mil.slides.resample_kernels")
