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
    kernels = _kernels()
    # Pillow 13 takes rows first where they shrink more than columns do, older ones always columns.
    if kernels is not None and width * size[1] == height * size[0]:
        return kernels.resample(np.ascontiguousarray(pixels), size)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


@cache
def _kernels() -> ModuleType | None:
    """The compiled filter, if numba is installed (`pip install 'wsi-mil[fast]'`)."""
    if importlib.util.find_spec("numba") is None:
        return None
    return importlib.import_module("wsi_mil.slides.resample_kernels")
