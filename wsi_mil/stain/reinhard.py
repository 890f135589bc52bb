"""Reinhard et al., "Color transfer between images", IEEE Computer Graphics and Applications 2001."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from wsi_mil.stain.normaliser import MAX_STRETCH, Normaliser, NoStain, mean_density, mixed, planes_of

_FULL_OD = 0.3  # from here on the change is whole; no change at 0, for a sharp edge between would be seen

# The reference: a region of TCGA-A2-A3XS-DX1 (Amgad et al. 2019), as HistomicsTK documents it.
_MEAN = np.array([8.74108109, -0.12440419, 0.0444982])
_STD = np.array([0.6135447, 0.10989545, 0.0286032])

_TO_CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_TO_LAB = np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])

RECIPE: dict[str, Any] = {"full_density": _FULL_OD, "target_mean": _MEAN.tolist(), "target_std": _STD.tolist()}
"""What decides, besides the sample and the densities, how given tiles are changed."""


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
        planes = planes_of(tile)
        logs = mixed(linear, _log_cones(planes)) + shift[:, None, None]
        # Beyond e^20 no pixel is told from another, and float32 would overflow.
        changed = np.moveaxis(np.clip(mixed(np.linalg.inv(_TO_CONES), np.exp(np.minimum(logs, 20))), 0, 255), 0, -1)
        weight = np.clip(mean_density(planes) / _FULL_OD, 0, 1)[..., None]
        return np.rint(tile + weight * (changed - tile)).astype(np.uint8)


def fit_reinhard(stained: UInt8[np.ndarray, "3 pixels"]) -> Reinhard:
    """Fit to stained pixels.

    Raises:
        NoStain: they hardly vary in brightness or colour, as where nothing is stained.
    """
    lab = np.einsum("ki,in->kn", _TO_LAB, _log_cones(stained).astype(np.float64))
    mean, std = lab.mean(axis=1), lab.std(axis=1)
    if (std * MAX_STRETCH < _STD).any():
        axis = ("l", "alpha", "beta")[int(np.argmin(std / _STD))]
        raise NoStain(f"{axis} hardly varies, and would be stretched more than {MAX_STRETCH:g} times")
    return Reinhard(mean, std)


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
