"""What a slide absorbs, against its own glass."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

_ROWS = 32  # taken together: few enough that what is made of them on the way stays in the processor's cache


class Density(NamedTuple):
    """Optical density, and what of it every step asks for."""

    channels: Float32[np.ndarray, "3 height width"]
    """Of red, green and blue."""
    span: Float32[np.ndarray, "height width"]
    """How much more one channel is absorbed than another: colour."""
    mean: Float32[np.ndarray, "height width"]
    """Of the three channels: darkness."""

    def by_rows(self) -> Iterator[tuple[slice, "Density"]]:
        """Itself, a few rows at a time: work in several steps on each pixel takes half the time so."""
        for first in range(0, len(self.mean), _ROWS):
            rows = slice(first, first + _ROWS)
            yield rows, Density(self.channels[:, rows], self.span[rows], self.mean[rows])


def density_of(
    smooth: Float32[np.ndarray, "3 height width"],
    glass: Float32[np.ndarray, "3 #height #width"],
    unscanned: Bool[np.ndarray, "height width"],
) -> Density:
    """Compare pixels with glass, of one colour or one for each; what is brighter, or unscanned, absorbs nothing."""
    light = smooth + 1  # the one array all else is done in: allocating costs as much as computing
    np.divide(glass + 1, light, out=light)
    np.maximum(np.log10(light, out=light), 0, out=light)
    if unscanned.any():
        light[:, unscanned] = 0
    return Density(light, np.ptp(light, axis=0), light.mean(0))
