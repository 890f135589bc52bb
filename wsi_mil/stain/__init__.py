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
stain only, so that its noise would be stretched to look like another, is refused by name.

Tiles are computed one by one, and sums over pixels without BLAS: threads and batches change no byte.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from wsi_mil.errors import OptionError, SlideError
from wsi_mil.executors import map_ordered
from wsi_mil.slides import Place
from wsi_mil.stain import macenko, reinhard, sampling
from wsi_mil.stain.macenko import Macenko
from wsi_mil.stain.normaliser import MIN_DENSITY, WHITE, Normaliser, NoStain, Unchanged, is_stained
from wsi_mil.stain.reinhard import Reinhard

__all__ = ["METHODS", "Macenko", "Normaliser", "Reinhard", "Unchanged", "fit", "fit_slide", "stain_recipe"]

_CHUNK = 8  # sampled tiles that a thread reads at once
_MIN_PIXELS = 100  # with fewer, a percentile is one pixel
_UNKNOWN: Mapping[str, np.ndarray] = MappingProxyType({})

_SHARED: dict[str, Any] = sampling.RECIPE | {"white": WHITE, "min_density": MIN_DENSITY}
_RECIPES: dict[str, dict[str, Any]] = {
    "none": {},
    "macenko": _SHARED | macenko.RECIPE,
    "reinhard": _SHARED | reinhard.RECIPE,
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


def fit_slide(
    method: str,
    read: Callable[[Int64[np.ndarray, "some 2"]], UInt8[np.ndarray, "some height width 3"]],
    coords: Int64[np.ndarray, "tiles 2"],
    path: Place,
    threads: int = 1,
    measured: Mapping[str, Shaped[np.ndarray, "tiles *more"]] = _UNKNOWN,
) -> Normaliser:
    """Fit a method to a slide, on at most 128 of its tiles, drawn at random but always the same ones.

    Args:
        method: one of `METHODS`.
        read: gives the pixels of tiles, by their place.
        coords: where the slide's tiles are.
        path: the slide, to name it.
        threads: how many read.
        measured: columns of the tiles; those with ``pen`` or ``black`` are not fitted on, if there are others.

    Raises:
        SlideError: the sample shows no stain, or one only.
        OptionError: there is no such method.
    """
    if stain_recipe(method)["method"] == "none":
        return Unchanged()
    chosen = sampling.sample(coords, measured)
    chunks = (chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK))
    with closing(map_ordered(lambda chunk: sampling.thinned(read(chunk)), chunks, threads)) as parts:
        return fit(method, np.concatenate(list(parts)), path)


def fit(method: str, pixels: UInt8[np.ndarray, "pixels 3"], path: Place) -> Normaliser:
    """Fit a method to pixels of a slide, RGB, glass among them or not.

    Raises:
        SlideError: they show no stain, or one only.
        OptionError: there is no such method, or it is "none".
    """
    fits = {"macenko": macenko.fit_macenko, "reinhard": reinhard.fit_reinhard}
    if method not in fits:
        raise OptionError(f"--stain {method}: nothing is to be fitted: give one of {', '.join(fits)}")
    stained = np.ascontiguousarray(pixels.T[:, is_stained(pixels.T)])
    try:
        if stained.shape[1] < _MIN_PIXELS:
            raise NoStain(f"{stained.shape[1]} of {len(pixels)} pixels in a sample of its tiles are stained")
        return fits[method](stained)
    except NoStain as error:
        raise SlideError(
            f"--stain {method} cannot be fitted to {path}: {error}: leave the slide out, or give all of them"
            " --stain none"
        ) from error
