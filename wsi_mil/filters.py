"""The weights of Pillow's antialiased filters (Pillow, ``src/libImaging/Resample.c``), as whole numbers.

Whoever multiplies 8-bit values by them, adds up and rounds gets Pillow's pixels, bit for bit.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

POINT = 22
"""Bits after the point of the weights: 32, less 8 of a value and 2 against overflow."""


def pillow_weights(length: int, size: int, interpolation: str) -> Float64[np.ndarray, "size length"]:
    """What each input counts for in each output along one axis, in units of 2**-22: Pillow's whole numbers."""
    weights = np.zeros((size, length))
    for line, (first, counts) in zip(weights, pillow_taps(length, size, interpolation), strict=True):
        line[first : first + len(counts)] = counts
    return weights


def pillow_taps(length: int, size: int, interpolation: str) -> Iterator[tuple[int, Float64[np.ndarray, "taps"]]]:
    """`pillow_weights` without the zeros around them: for each output the first input that counts, and the weights.

    Every operation is Pillow's, in its order, since another one would round otherwise.
    """
    kernel, reach = KERNELS[interpolation]
    scale = length / size
    stretch = max(scale, 1.0)  # antialiased: the filter covers what an output pixel covers
    for row in range(size):
        centre = (row + 0.5) * scale
        first = max(0, int(centre - reach * stretch + 0.5))
        last = min(length, int(centre + reach * stretch + 0.5))
        shares = kernel((np.arange(first, last) - centre + 0.5) * (1.0 / stretch))
        shares /= np.cumsum(shares)[-1]  # one after the other; `sum` adds in pairs
        counts = np.trunc(shares * (1 << POINT) + np.copysign(0.5, shares))
        used = np.flatnonzero(counts)
        yield first + int(used[0]), counts[used[0] : used[-1] + 1]


def _bilinear(x: Float[np.ndarray, "inputs"]) -> Float[np.ndarray, "inputs"]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: Float[np.ndarray, "inputs"]) -> Float[np.ndarray, "inputs"]:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


KERNELS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}
"""Filters by name, each with how far it reaches, px."""
