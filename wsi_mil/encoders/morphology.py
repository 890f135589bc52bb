"""The built-in encoder: what a tile of H&E looks like, in 60 numbers with names, and no download.

Colour, texture and nuclei, measured with classical image analysis: stains by the colour deconvolution of Ruifrok and
Johnston (2001; matrix of scikit-image), texture as the variance of a stain over scales, nuclei as compact hematoxylin
peaks above their surroundings. It is no match for a pretrained network, but it runs anywhere, is deterministic,
and says what each of them is: `FEATURES` names them in order, scaled so that typical values are about 1.

Kernels and areas are defined for tiles of 256 um read as 224 px (1.143 um/px), the default geometry. Tiles of another
pixel size are resized to 224 px first; tiles of another physical size are measured as if they were 256 um wide.
"""

import functools
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.color import hed_from_rgb
from torch import Tensor

from wsi_mil.encoders.preprocess import as_batch
from wsi_mil.executors import available_cores

VERSION = 1
"""Raised whenever the same tile starts to give other numbers; the fingerprint of features depends on it."""
TILE_PX = 224
TILE_UM = 256.0

_CHANNELS = ("hematoxylin", "eosin", "dab", "saturation", "brightness")
_STATISTICS = ("mean", "std", "q10", "q50", "q90")
_BANDS_PX = (2, 4, 8, 16, 32)
FEATURES: tuple[str, ...] = (
    *(f"{channel}_{statistic}" for channel in _CHANNELS for statistic in _STATISTICS),
    "glass_fraction",  # of the tile: no stain at all
    *(f"{stain}_band_{px}px" for stain in _CHANNELS[:2] for px in _BANDS_PX),  # rms of the stain between two scales
    "edges_mean",  # gradient of hematoxylin
    "edges_std",
    "fibres",  # 0 = edges in all directions, 1 = all in one, over cells of 32 um
    "nuclei_fraction",  # of the tile's area
    "nuclei_density",  # 1000 per mm2
    "nuclei_peaks",  # local peaks of hematoxylin, 1000 per mm2: counts touching nuclei one by one
    "nuclei_area_per_peak",  # 100 um2
    "nuclei_area_mean",  # 100 um2
    "nuclei_area_std",
    "nuclei_eccentricity",  # 0 = round, 1 = a line
    "nuclei_hematoxylin",  # mean optical density inside
    "nuclei_hematoxylin_std",  # between nuclei
    "nuclei_contrast",  # inside minus outside
    "nuclei_texture",  # standard deviation inside, pixel by pixel
    "nuclei_spacing",  # to the nearest nucleus, 20 um, at most 5
    "nuclei_spacing_std",
    "nuclei_spacing_third",  # to the third nearest
    "nuclei_small_density",  # 1000 per mm2
    "nuclei_large_density",
    "nuclei_small_dark_density",  # lymphocyte-like
    "nuclei_large_pale_density",  # tumour-like
    "nuclei_small_hematoxylin",  # mean optical density of the small ones
    "nuclei_large_hematoxylin",
    "nuclei_dark_fraction",  # area of dark nuclei, of the tile's area
)
WEIGHTS_SHA256 = hashlib.sha256(f"morphology {VERSION}".encode()).hexdigest()

# Optical density of an 8-bit value. 0 counts as 1: the darkest that 8 bits can tell apart.
_OPTICAL_DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
_HED = np.ascontiguousarray(hed_from_rgb.T, dtype=np.float32)
_UM = TILE_UM / TILE_PX
_MM2 = (TILE_UM / 1000) ** 2
_GLASS_DENSITY = 0.06  # optical density, mean of the colours, below which there is no stain
_LEAST_DENSITY = 0.15  # of a nucleus: optical density of hematoxylin
_ABOVE_SURROUNDINGS = 1.12
_MIN_NUCLEUS_UM2 = 12.0
_SMALL_UM2, _SOFT_UM2 = 60.0, 12.0  # between a lymphocyte's nucleus (7 um across) and an epithelial one (10 um and up)
_DARK, _SOFT_DARK = 0.5, 0.06  # optical density of hematoxylin
_FAR_UM = 100.0
_TINY = 1e-6


class MorphologyEncoder:
    """The encoder around `describe`: see the module."""

    name = "morphology"
    dim = len(FEATURES)
    tile_px = TILE_PX
    mpp: float | None = TILE_UM / TILE_PX
    precision = "fp32"
    preprocessing: Mapping[str, Any] = {
        "resize_px": TILE_PX,
        "crop_px": TILE_PX,
        "interpolation": "bilinear",
        "antialias": True,
    }
    network: Mapping[str, Any] = {}
    weights = "built-in"
    weights_sha256 = WEIGHTS_SHA256

    def encode(self, tiles: np.ndarray | Tensor) -> Float32[Tensor, "tiles dim"]:
        """Describe tiles, uint8 (tiles, height, width, 3), in as many threads as there are cores."""
        batch = as_batch(tiles).numpy(force=True)
        if not len(batch):
            return torch.zeros(0, self.dim)
        with ThreadPoolExecutor(available_cores()) as pool:  # SciPy and NumPy release the interpreter lock
            return torch.from_numpy(np.stack(list(pool.map(describe, batch))))


def describe(tile: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "dim"]:
    """Measure one tile: the numbers that `FEATURES` names, finite for any input."""
    if tile.shape[:2] != (TILE_PX, TILE_PX):
        tile = np.asarray(Image.fromarray(tile).resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR))
    planes = np.ascontiguousarray(tile.transpose(2, 0, 1))
    density = _OPTICAL_DENSITY[planes]
    stains = np.maximum(_HED @ density.reshape(3, -1), 0).reshape(density.shape)
    hematoxylin = stains[0]
    smooth = ndimage.gaussian_filter(hematoxylin, 1.0, truncate=3)
    return np.concatenate(
        [
            _colour(planes, stains),
            [float((density.mean(axis=0) < _GLASS_DENSITY).mean())],
            _bands(hematoxylin),
            _bands(stains[1]),
            _edges(smooth),
            _nuclei(smooth),
        ]
    ).astype(np.float32)


def _colour(
    planes: UInt8[np.ndarray, "3 height width"], stains: Float[np.ndarray, "3 height width"]
) -> Float[np.ndarray, "dim"]:
    """Mean, standard deviation and quantiles of stains, saturation and brightness; of every second pixel."""
    red, green, blue = planes[:, ::2, ::2].astype(np.float32) / 255
    top = np.maximum(np.maximum(red, green), blue)
    saturation = 1 - np.minimum(np.minimum(red, green), blue) / np.maximum(top, 1 / 255)
    saturation[top == 0] = 0  # black has no colour
    channels = np.stack([*stains[:, ::2, ::2], saturation, (red + green + blue) / 3]).reshape(len(_CHANNELS), -1)
    ordered = np.sort(channels, axis=1)
    last = channels.shape[1] - 1
    quantiles = ordered[:, [round(0.1 * last), round(0.5 * last), round(0.9 * last)]]
    return np.column_stack([channels.mean(axis=1), channels.std(axis=1), quantiles]).ravel()


def _bands(image: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "bands"]:
    """Root mean square of what averaging 2 x 2 takes away, time after time: detail of 2, 4, ... 32 px."""
    rms = []
    for _ in _BANDS_PX:
        coarse = (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4
        rms.append(np.sqrt(max(float(np.mean(image**2) - np.mean(coarse**2)), 0.0)))
        image = coarse
    return 10 * np.array(rms)


def _edges(smooth: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "3"]:
    """Strength of edges, and how much they share a direction (coherence of the structure tensor)."""
    down, across = smooth[2:, 1:-1] - smooth[:-2, 1:-1], smooth[1:-1, 2:] - smooth[1:-1, :-2]
    down2, across2 = down**2, across**2
    total = down2 + across2
    strength = np.sqrt(total)
    cells = [_cells(part) for part in (across2 - down2, 2 * across * down, total)]
    fibres = np.hypot(cells[0], cells[1]).sum() / (cells[2].sum() + _TINY)
    return np.array([10 * strength.mean(), 10 * strength.std(), fibres])


def _cells(image: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "rows columns"]:
    """Sums over cells of about 32 um."""
    step = round(32 / _UM)
    starts = np.arange(0, len(image) - step // 2, step)
    return np.add.reduceat(np.add.reduceat(image, starts, axis=0), starts, axis=1)


class _Objects(NamedTuple):
    """Nuclei of one tile: one entry each, in um and optical density."""

    area: Float[np.ndarray, "nuclei"]
    centre: Float[np.ndarray, "nuclei 2"]
    eccentricity: Float[np.ndarray, "nuclei"]
    hematoxylin: Float[np.ndarray, "nuclei"]


def _nuclei(smooth: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "dim"]:
    """Everything about nuclei: compact peaks of hematoxylin above what surrounds them."""
    mask = _nuclear_mask(smooth)
    labels, count = ndimage.label(mask)
    found = _measure(smooth, labels, count)
    _, peaks = ndimage.label((smooth == ndimage.maximum_filter(smooth, 5)) & mask, np.ones((3, 3)))
    inside = smooth[mask]
    outside = smooth[~mask]
    area, hematoxylin = found.area, found.hematoxylin
    small, dark = _below(area, _SMALL_UM2, _SOFT_UM2), 1 - _below(hematoxylin, _DARK, _SOFT_DARK)
    kinds = (small, 1 - small, small * dark, (1 - small) * (1 - dark))
    return np.array(
        [
            mask.mean(),
            len(area) / _MM2 / 1000,
            peaks / _MM2 / 1000,
            inside.size * _UM**2 / max(peaks, 1) / 100,
            _mean(area) / 100,
            _std(area) / 100,
            _mean(found.eccentricity),
            _mean(hematoxylin),
            _std(hematoxylin),
            _mean(inside) - _mean(outside) if inside.size else 0.0,
            _std(inside),
            *_spacing(found.centre),
            *(kind.sum() / _MM2 / 1000 for kind in kinds),
            float((small * hematoxylin).sum() / (small.sum() + _TINY)),
            float(((1 - small) * hematoxylin).sum() / ((1 - small).sum() + _TINY)),
            float((area * dark).sum() / TILE_UM**2),
        ]
    )


def _nuclear_mask(smooth: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Where nuclei are: above what surrounds them, and dark beside the darkest of the tile or at all.

    A threshold taken from the tile follows its staining; the floor keeps noise out where there are no nuclei; and the
    comparison with the surroundings cuts touching nuclei apart and leaves evenly dark cytoplasm out.
    """
    surround = ndimage.uniform_filter(ndimage.uniform_filter(smooth, 11), 11)  # nearly Gaussian, and much faster
    darkest = float(np.quantile(smooth[::2, ::2], 0.98))
    return (smooth > max(_LEAST_DENSITY, 0.6 * darkest - 0.1)) & (smooth > _ABOVE_SURROUNDINGS * surround)


def _measure(
    smooth: Float[np.ndarray, "height width"], labels: Int[np.ndarray, "height width"], count: int
) -> _Objects:
    """Area, centre, eccentricity (from second moments) and mean hematoxylin of labelled objects, without a loop."""
    y, x = np.nonzero(labels)
    index = labels[y, x]
    sums = functools.partial(np.bincount, index, minlength=count + 1)
    pixels = sums()
    keep = pixels >= _MIN_NUCLEUS_UM2 / _UM**2
    keep[0] = False  # the background
    n = np.maximum(pixels, 1)
    mean_y, mean_x = sums(weights=y) / n, sums(weights=x) / n
    var_y = sums(weights=y * y) / n - mean_y**2 + 1 / 12  # a pixel is a square, not a point
    var_x = sums(weights=x * x) / n - mean_x**2 + 1 / 12
    cov = sums(weights=x * y) / n - mean_x * mean_y
    mean, spread = (var_y + var_x) / 2, np.hypot((var_y - var_x) / 2, cov)
    eccentricity = np.sqrt(np.clip(1 - (mean - spread) / np.maximum(mean + spread, _TINY), 0, 1))
    hematoxylin = sums(weights=smooth[y, x]) / n
    centre = np.column_stack([mean_x, mean_y]) * _UM
    return _Objects(pixels[keep] * _UM**2, centre[keep], eccentricity[keep], hematoxylin[keep])


def _spacing(centre: Float[np.ndarray, "nuclei 2"]) -> tuple[float, float, float]:
    """Distance to the nearest and to the third nearest nucleus, in 20 um, as if none were beyond 100 um."""
    if not len(centre):
        return _FAR_UM / 20, 0.0, _FAR_UM / 20
    distances, _ = KDTree(centre).query(centre, k=[2, 4], distance_upper_bound=_FAR_UM)
    nearest, third = np.minimum(distances, _FAR_UM).T / 20  # those that do not exist are infinitely far
    return float(nearest.mean()), float(nearest.std()), float(third.mean())


def _below(value: Float[np.ndarray, "nuclei"], limit: float, soft: float) -> Float[np.ndarray, "nuclei"]:
    """1 far below the limit, 0 far above it, and gradual between, so that a pixel more or less changes little."""
    return 1 / (1 + np.exp(np.clip((value - limit) / soft, -30, 30)))


def _mean(values: Float[np.ndarray, "nuclei"]) -> float:
    return float(values.mean()) if values.size else 0.0


def _std(values: Float[np.ndarray, "nuclei"]) -> float:
    return float(values.std()) if values.size else 0.0
