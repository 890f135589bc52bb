"""Pixels to another size by Pillow's antialiased bilinear filter, bit for bit, several times as fast where numba is.

Pillow's weights are whole numbers, so whoever adds them up gets the same pixels (see `wsi_mil.filters`), if the axes
come in the same order, since values are rounded after each: here columns, then rows. So does Pillow up to 12; 13 takes
rows first for some shapes, such as tall images, and therefore is asked for one axis at a time.
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
    """Resize an image to ``size`` (width, height): what ``PIL.Image.resize`` makes of its rows, then of its columns."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    if kernels := kernels_for((width, height), size):
        return kernels.resample(pixels, size)
    return np.array(resized(Image.fromarray(pixels), size, Image.Resampling.BILINEAR))


def resized(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """``image.resize(size, how)`` in the same order of axes with every Pillow."""
    return image.resize((size[0], image.height), how).resize(size, how)


def kernels_for(size: tuple[int, int], wanted: tuple[int, int]) -> ModuleType | None:
    """The compiled filter (`resample_kernels`), if one is needed and numba is there (`pip install 'wsi-mil[fast]'`)."""
    return _kernels() if size != wanted else None


@cache
def _kernels() -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    return importlib.import_module("wsi_mil.slides.resample_kernels")
