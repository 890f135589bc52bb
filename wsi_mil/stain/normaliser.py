"""What all methods of stain normalisation share: what a fit is, and arithmetic on the colours of pixels."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

WHITE = 240.0
"""The light that glass lets through, as Veta's implementation of Macenko's method has it."""
MIN_DENSITY = 0.15
"""Optical density, a natural logarithm averaged over the colours: less is glass."""
MAX_STRETCH = 5.0
"""Of colours. H&E is stretched up to 3.4 times, where it is pale; beyond 5, it is noise that would be seen."""
DENSITY = -np.log(np.maximum(np.arange(256), 1) / WHITE)
"""Of each value that a pixel may have."""


class NoStain(Exception):
    """Why nothing can be fitted."""


class Normaliser(ABC):
    """What was fitted to a slide: a function of its tiles."""

    @property
    @abstractmethod
    def fitted(self) -> dict[str, Any]:
        """What the slide's own stain was found to be, as JSON has it."""

    @abstractmethod
    def __call__(self, tile: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """Normalise one tile, RGB."""

    def all(self, tiles: UInt8[np.ndarray, "tiles height width 3"]) -> UInt8[np.ndarray, "tiles height width 3"]:
        """Normalise some tiles, one by one."""
        return np.stack([self(tile) for tile in tiles])


class Unchanged(Normaliser):
    """Tiles as they are."""

    @property
    def fitted(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __call__(self, tile: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        return tile

    def all(self, tiles: UInt8[np.ndarray, "tiles height width 3"]) -> UInt8[np.ndarray, "tiles height width 3"]:
        return tiles


def planes_of(tile: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "3 height width"]:
    """Colours first: each of the three is worked on as a whole, several times as fast as pixel by pixel."""
    return np.ascontiguousarray(np.moveaxis(tile, -1, 0))


def is_stained(planes: UInt8[np.ndarray, "3 *place"]) -> Bool[np.ndarray, "*place"]:
    """Which pixels are not glass."""
    return mean_density(planes) >= MIN_DENSITY


def mean_density(planes: UInt8[np.ndarray, "3 *place"]) -> Float32[np.ndarray, "*place"]:
    """Optical density, averaged over the colours."""
    red, green, blue = DENSITY.astype(np.float32)[planes]
    return (red + green + blue) / 3


def mixed(
    matrix: Float64[np.ndarray, "3 3"], planes: Float32[np.ndarray, "3 height width"]
) -> Float32[np.ndarray, "3 height width"]:
    """The product of a matrix with each pixel. (BLAS may add in another order when it has other threads.)"""
    made = np.empty_like(planes)
    for plane, (first, second, third) in zip(made, matrix.astype(np.float32), strict=True):
        plane[:] = first * planes[0] + second * planes[1] + third * planes[2]
    return made


def pixels_of(planes: Float32[np.ndarray, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """Colours last, rounded to 8 bits."""
    return np.ascontiguousarray(np.moveaxis(np.rint(np.clip(planes, 0, 255)).astype(np.uint8), 0, -1))
