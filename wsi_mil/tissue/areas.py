"""Parts of masks, in physical units."""

import numpy as np
from jaxtyping import Bool
from scipy import ndimage


def grown(
    mask: Bool[np.ndarray, "height width"], radius_um: float, mpp_x: float, mpp_y: float
) -> Bool[np.ndarray, "height width"]:
    """The mask and what lies within a distance of it, along the axes."""
    size = (2 * round(radius_um / mpp_y) + 1, 2 * round(radius_um / mpp_x) + 1)
    return ndimage.maximum_filter(mask, size, mode="nearest")


def without_small(
    mask: Bool[np.ndarray, "height width"], mm2: float, mpp_x: float, mpp_y: float
) -> Bool[np.ndarray, "height width"]:
    """The mask without its connected parts of less than an area."""
    labels, _ = ndimage.label(mask)
    areas = np.bincount(labels.ravel()) * mpp_x * mpp_y * 1e-6
    keep = areas >= mm2
    keep[0] = False
    return keep[labels]


def reaching_border(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The connected parts of a mask that reach the border."""
    labels, count = ndimage.label(mask)
    outer = np.zeros(count + 1, bool)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outer[border] = True
    outer[0] = False
    return outer[labels]


def small_holes(
    mask: Bool[np.ndarray, "height width"], mm2: float, mpp_x: float, mpp_y: float
) -> Bool[np.ndarray, "height width"]:
    """What a mask surrounds, as far as it is less than an area; what reaches the border is no hole."""
    holes = ~mask & ~reaching_border(~mask)
    return holes & ~without_small(holes, mm2, mpp_x, mpp_y)
