"""Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from wsi_mil.stain.normaliser import DENSITY, MAX_STRETCH, WHITE, Normaliser, NoStain, mixed, pixels_of, planes_of

_PERCENTILE = 1.0
_MIN_ANGLE = 12.0  # degrees between two stains; the noise of a single one spans 3 to 14, H&E 18 to 45

# The reference: haematoxylin and eosin in (red, green, blue), and the 99th percentiles of their amounts, as published
# with M. Veta's implementation (github.com/mitkovetta/staining-normalization), which most others copy.
_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
_MAXIMA = np.array([1.9705, 1.0308])

RECIPE: dict[str, Any] = {
    "percentile": _PERCENTILE,
    "target_stains": _STAINS.tolist(),
    "target_maxima": _MAXIMA.tolist(),
}
"""What decides, besides the sample and the densities, how given tiles are changed."""


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
        density = mixed(self.matrix, DENSITY.astype(np.float32)[planes_of(tile)])
        return pixels_of(WHITE * np.exp(-density))


def fit_macenko(stained: UInt8[np.ndarray, "3 pixels"]) -> Macenko:
    """Fit to stained pixels.

    Raises:
        NoStain: they show one stain only, or so little of two that noise would be seen.
    """
    density = DENSITY[stained]
    _, vectors = np.linalg.eigh(np.einsum("in,jn->ij", density, density))
    plane = vectors[:, :0:-1].T  # the two main directions; their signs are arbitrary
    plane = plane * np.where(plane.sum(axis=1) < 0, -1, 1)[:, None]
    x, y = np.einsum("ki,in->kn", plane, density)
    ends = np.radians(np.percentile(np.degrees(np.arctan2(y, x)), [_PERCENTILE, 100 - _PERCENTILE]))
    if (angle := np.degrees(np.ptp(ends))) < _MIN_ANGLE:
        raise NoStain(f"its colours span {angle:.1f} degrees, and two stains at least {_MIN_ANGLE:g}")
    stains = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane
    stains = stains[np.argsort(-stains[:, 0])]  # haematoxylin absorbs more red than eosin does
    amounts = np.einsum("ki,in->kn", np.linalg.pinv(stains.T), density)
    maxima = np.percentile(amounts, 100 - _PERCENTILE, axis=1)
    if not (maxima > 0).all():
        raise NoStain("nearly all pixels show one stain only")
    made = Macenko(stains, maxima)
    if (stretch := np.linalg.norm(made.matrix, 2)) > MAX_STRETCH:
        raise NoStain(f"its colours hardly vary, and would be stretched {stretch:.1f} times, more than {MAX_STRETCH:g}")
    return made
