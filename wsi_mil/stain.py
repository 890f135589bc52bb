"""Stain normalisation: the tiles of a slide as if it had been stained and scanned like a published reference.

One transformation is fitted per slide, on a sample of its tiles, and applied to each of its tiles, so that a tile's
colours are compared with its own slide's and not with themselves. Two methods:

* **macenko** (Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009). In
  optical density, ``-ln(pixel / 240)``, the pixels of a section lie in the plane of its two stains, which the singular
  value decomposition finds; the stains are the two ends of the angles in that plane, by their 1st and 99th percentile.
  Each pixel's amounts of stain are scaled, so that their 99th percentiles are the reference's, and recombined with the
  reference's stains.
* **reinhard** (Reinhard et al., "Color transfer between images", 2001). In the paper's l-alpha-beta space, the
  logarithm of cone responses (Ruderman et al. 1998), each axis gets the reference's mean and standard deviation.

Only stained pixels, whose optical density is at least 0.15 on average over the channels, are fitted on. Glass stays
glass, so a tile without tissue is no error: macenko finds next to no stain to scale there, and reinhard changes a pixel
by a share that rises from nothing at no density to the whole at 0.3. A slide on which there is nothing to fit, or one
colour only, is refused by name.

Tiles are computed one by one, and sums over pixels without BLAS: threads and batches change no byte.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from wsi_mil.errors import OptionError, SlideError
from wsi_mil.executors import map_ordered

_WHITE = 240.0  # the light that glass lets through, as Veta's implementation of Macenko's method has it
_MIN_OD = 0.15  # less is glass
_FULL_OD = 0.3  # from here on reinhard's change is whole; no change at 0, for a sharp edge between would be seen
_PERCENTILE = 1.0
_SAMPLE_TILES, _SAMPLE_PX, _SEED = 128, 75, 0  # of each sampled tile, at most 75 x 75 pixels, evenly spaced
_CHUNK = 8  # sampled tiles that a thread reads at once
_MIN_PIXELS = 100  # with fewer, a percentile is one pixel
_MIN_ANGLE = 5.0  # degrees between two stains; the noise of a single one spans about this, H&E spans 15 to 45
_MAX_STRETCH = 10.0  # of colours; beyond, it is noise that would be seen. H&E is stretched once or twice

# The reference of macenko: haematoxylin and eosin in (red, green, blue), and the 99th percentiles of their amounts, as
# published with M. Veta's implementation (github.com/mitkovetta/staining-normalization), which most others copy.
_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
_MAXIMA = np.array([1.9705, 1.0308])
# The reference of reinhard: a region of TCGA-A2-A3XS-DX1 (Amgad et al. 2019), as HistomicsTK documents it.
_MEAN = np.array([8.74108109, -0.12440419, 0.0444982])
_STD = np.array([0.6135447, 0.10989545, 0.0286032])

_TO_CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_TO_LAB = np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
_DENSITY = -np.log(np.maximum(np.arange(256), 1) / _WHITE)  # of each value that a pixel may have

_SAMPLING: dict[str, float] = {"sample_tiles": _SAMPLE_TILES, "sample_px": _SAMPLE_PX, "seed": _SEED}
_SAMPLING |= {"white": _WHITE, "min_density": _MIN_OD}
_RECIPES: dict[str, dict[str, Any]] = {
    "none": {},
    "macenko": _SAMPLING
    | {"percentile": _PERCENTILE, "target_stains": _STAINS.tolist(), "target_maxima": _MAXIMA.tolist()},
    "reinhard": _SAMPLING | {"full_density": _FULL_OD, "target_mean": _MEAN.tolist(), "target_std": _STD.tolist()},
}
METHODS = tuple(_RECIPES)


def stain_recipe(method: str = "none") -> dict[str, Any]:
    """Everything that decides how a method changes given tiles, as JSON has it; ``method`` names it.

    Raises:
        OptionError: there is no such method.
    """
    if method not in METHODS:
        raise OptionError(f"--stain {method}: give one of {', '.join(METHODS)}")
    return {"method": str(method), **_RECIPES[method]}


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


@dataclass(frozen=True, eq=False)
class Macenko(Normaliser):
    """The amounts of a slide's two stains, turned into those of the reference."""

    stains: Float64[np.ndarray, "2 3"]
    """Haematoxylin and eosin: the optical density of each, per unit, in red, green and blue; unit vectors."""
    maxima: Float64[np.ndarray, "2"]
    """99th percentile of the amount of each."""

    @property
    def matrix(self) -> Float64[np.ndarray, "3 3"]:
        """What turns an optical density of the slide into one of the reference."""
        return _STAINS.T @ (np.linalg.pinv(self.stains.T) * (_MAXIMA / self.maxima)[:, None])

    @property
    def fitted(self) -> dict[str, Any]:
        """Stains and maxima."""
        return {"stains": self.stains.tolist(), "maxima": self.maxima.tolist()}

    def __call__(self, tile: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        density = _mixed(self.matrix, _DENSITY.astype(np.float32)[_planes(tile)])
        return _pixels(_WHITE * np.exp(-density))


@dataclass(frozen=True, eq=False)
class Reinhard(Normaliser):
    """A slide's colours, moved and stretched to the mean and the standard deviation of the reference."""

    mean: Float64[np.ndarray, "3"]
    """Of l, alpha and beta, over the stained pixels."""
    std: Float64[np.ndarray, "3"]
    """Standard deviations of the same."""

    @property
    def fitted(self) -> dict[str, Any]:
        """Mean and standard deviation."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def __call__(self, tile: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        to_cones, stretch = np.linalg.inv(_TO_LAB), _STD / self.std
        linear = to_cones * stretch @ _TO_LAB  # all of it happens among logarithms of cones, so it is one matrix
        shift = (to_cones @ (_MEAN - stretch * self.mean)).astype(np.float32)
        planes = _planes(tile)
        logs = _mixed(linear, _log_cones(planes)) + shift[:, None, None]
        # Beyond e^20 no pixel is told from another, and float32 would overflow.
        changed = np.moveaxis(np.clip(_mixed(np.linalg.inv(_TO_CONES), np.exp(np.minimum(logs, 20))), 0, 255), 0, -1)
        weight = np.clip(_density(planes) / _FULL_OD, 0, 1)[..., None]
        return np.rint(tile + weight * (changed - tile)).astype(np.uint8)


def fit_slide(
    method: str,
    read: Callable[[Int64[np.ndarray, "some 2"]], UInt8[np.ndarray, "some height width 3"]],
    coords: Int64[np.ndarray, "tiles 2"],
    path: Path,
    threads: int = 1,
) -> Normaliser:
    """Fit a method to a slide, on at most 128 of its tiles, drawn at random but always the same ones.

    Args:
        method: one of `METHODS`.
        read: gives the pixels of tiles, by their place.
        coords: where the slide's tiles are.
        path: the slide, to name it.
        threads: how many read.

    Raises:
        SlideError: the sample shows no stain, or one colour only.
        OptionError: there is no such method.
    """
    if stain_recipe(method)["method"] == "none":
        return Unchanged()
    chosen = coords[_sample(len(coords))]
    chunks = (chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK))
    with closing(map_ordered(lambda chunk: _thinned(read(chunk)), chunks, threads)) as parts:
        return fit(method, np.concatenate(list(parts)), path)


def fit(method: str, pixels: UInt8[np.ndarray, "pixels 3"], path: Path) -> Normaliser:
    """Fit a method to pixels of a slide, RGB, glass among them or not.

    Raises:
        SlideError: they show no stain, or one colour only.
        OptionError: there is no such method, or it is "none".
    """
    fits = {"macenko": _fit_macenko, "reinhard": _fit_reinhard}
    if method not in fits:
        raise OptionError(f"--stain {method}: nothing is to be fitted: give one of {', '.join(fits)}")
    stained = np.ascontiguousarray(pixels.T[:, _stained(pixels.T)])
    try:
        if stained.shape[1] < _MIN_PIXELS:
            raise _NoStain(f"{stained.shape[1]} of {len(pixels)} pixels in a sample of its tiles are stained")
        return fits[method](stained)
    except _NoStain as error:
        raise SlideError(
            f"{path} has no stain that --stain {method} could be fitted to: {error}: leave the slide out, or give all"
            " of them --stain none"
        ) from error


class _NoStain(Exception):
    """Why nothing can be fitted."""


def _fit_macenko(stained: UInt8[np.ndarray, "3 pixels"]) -> Macenko:
    density = _DENSITY[stained]
    _, vectors = np.linalg.eigh(np.einsum("in,jn->ij", density, density))
    plane = vectors[:, :0:-1].T  # the two main directions; their signs are arbitrary
    plane = plane * np.where(plane.sum(axis=1) < 0, -1, 1)[:, None]
    x, y = np.einsum("ki,in->kn", plane, density)
    ends = np.radians(np.percentile(np.degrees(np.arctan2(y, x)), [_PERCENTILE, 100 - _PERCENTILE]))
    if (angle := np.degrees(np.ptp(ends))) < _MIN_ANGLE:
        raise _NoStain(f"its colours span {angle:.1f} degrees, and two stains at least {_MIN_ANGLE:g}")
    stains = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane
    stains = stains[np.argsort(-stains[:, 0])]  # haematoxylin absorbs more red than eosin does
    amounts = np.einsum("ki,in->kn", np.linalg.pinv(stains.T), density)
    maxima = np.percentile(amounts, 100 - _PERCENTILE, axis=1)
    if not (maxima > 0).all():
        raise _NoStain("nearly all pixels show one stain only")
    made = Macenko(stains, maxima)
    if (stretch := np.linalg.norm(made.matrix, 2)) > _MAX_STRETCH:
        raise _NoStain(f"its colours hardly vary, and would be stretched {stretch:.0f} times")
    return made


def _fit_reinhard(stained: UInt8[np.ndarray, "3 pixels"]) -> Reinhard:
    lab = np.einsum("ki,in->kn", _TO_LAB, _log_cones(stained).astype(np.float64))
    mean, std = lab.mean(axis=1), lab.std(axis=1)
    if (std * _MAX_STRETCH < _STD).any():
        axis = ("l", "alpha", "beta")[int(np.argmin(std / _STD))]
        raise _NoStain(f"{axis} hardly varies, and would be stretched more than {_MAX_STRETCH:g} times")
    return Reinhard(mean, std)


def _sample(tiles: int) -> Int64[np.ndarray, " sampled"]:
    """Which of so many tiles are fitted on, in their order."""
    if tiles <= _SAMPLE_TILES:
        return np.arange(tiles)
    return np.sort(np.random.default_rng(_SEED).choice(tiles, _SAMPLE_TILES, replace=False))


def _thinned(tiles: UInt8[np.ndarray, "tiles height width 3"]) -> UInt8[np.ndarray, "pixels 3"]:
    steps = (-(-side // _SAMPLE_PX) for side in tiles.shape[1:3])
    return tiles[:, :: next(steps), :: next(steps)].reshape(-1, 3)


def _planes(tile: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "3 height width"]:
    """Colours first: each of the three is worked on as a whole, several times as fast as pixel by pixel."""
    return np.ascontiguousarray(np.moveaxis(tile, -1, 0))


def _stained(planes: UInt8[np.ndarray, "3 *place"]) -> Bool[np.ndarray, "*place"]:
    return _density(planes) >= _MIN_OD


def _density(planes: UInt8[np.ndarray, "3 *place"]) -> Float32[np.ndarray, "*place"]:
    """Optical density, averaged over the colours."""
    red, green, blue = _DENSITY.astype(np.float32)[planes]
    return (red + green + blue) / 3


@cache
def _cone_tables() -> Float32[np.ndarray, "3 3 256"]:
    """What each value of each colour adds to each cone."""
    return (_TO_CONES[..., None] * np.arange(256)).astype(np.float32)


def _log_cones(planes: UInt8[np.ndarray, "3 *place"]) -> Float32[np.ndarray, "3 *place"]:
    """Natural logarithms of the responses of the three cones; black counts as 1 of 255, as its logarithm must be."""
    tables = _cone_tables()
    cones = np.empty(planes.shape, np.float32)
    for cone, (red, green, blue) in zip(cones, tables, strict=True):
        cone[:] = red[planes[0]] + green[planes[1]] + blue[planes[2]]
    return np.log(np.maximum(cones, 1))


def _mixed(
    matrix: Float64[np.ndarray, "3 3"], planes: Float32[np.ndarray, "3 height width"]
) -> Float32[np.ndarray, "3 height width"]:
    """The product of a matrix with each pixel. (BLAS may add in another order when it has other threads.)"""
    mixed = np.empty_like(planes)
    for plane, (first, second, third) in zip(mixed, matrix.astype(np.float32), strict=True):
        plane[:] = first * planes[0] + second * planes[1] + third * planes[2]
    return mixed


def _pixels(planes: Float32[np.ndarray, "3 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    return np.ascontiguousarray(np.moveaxis(np.rint(np.clip(planes, 0, 255)).astype(np.uint8), 0, -1))
