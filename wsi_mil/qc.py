"""Quality of tiles, measured at one resolution whatever the tiles' own: in focus, written on, empty, black, coloured.

Pixels are read at 2 um/px in blocks of neighbouring tiles, each part of a slide once, so the figures depend neither on
the tiles' size in pixels nor on how the work is shared out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy import ndimage

from wsi_mil.errors import OptionError
from wsi_mil.grid import Lattice, coverage
from wsi_mil.slides import Slide

QC_MPP = 2.0
"""um/px at which tiles are judged; of a slide that is coarser, its own."""
_BLOCK_PX = 1024  # side of the blocks that are read at once, beside one tile
_WHITE, _BLACK = 220, 35  # brighter in every channel, darker in every channel
_COLOURED = 0.07  # saturation of HSV from which on a pixel has colour
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


class Quality(NamedTuple):
    """Measures of tiles, a column each."""

    sharpness: Float32[np.ndarray, "tiles"]
    """Variance of the Laplacian of the grey image (0 to 255) at 2 um/px: low where nothing is in focus."""
    pen: Float32[np.ndarray, "tiles"]
    """Share of the tile that is ink."""
    white: Float32[np.ndarray, "tiles"]
    """Share of pixels above 220 in every channel."""
    black: Float32[np.ndarray, "tiles"]
    """Share of pixels below 35 in every channel."""
    saturation: Float32[np.ndarray, "tiles"]
    """Share of pixels with colour: a saturation (HSV) of at least 0.07."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a tile must keep to; the defaults take only what no one can want."""

    min_sharpness: float = 0.0
    """Least `Quality.sharpness`; what is in focus differs from stain to stain: look before you choose."""
    max_pen: float = 0.25
    """Largest share of ink."""
    max_white: float = 1.0
    """Largest share of white."""
    max_black: float = 0.5
    """Largest share of black."""
    min_saturation: float = 0.0
    """Least share of pixels with colour."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_sharpness < float("inf"):
            raise OptionError(f"--min-sharpness {self.min_sharpness}: give a number from 0 on, such as 20")
        for name in ("max_pen", "max_white", "max_black", "min_saturation"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag} {getattr(self, name)}: give a share from 0 to 1, such as 0.5")

    def broken(self, quality: Quality) -> dict[str, Bool[np.ndarray, "tiles"]]:
        """Which tiles break each limit, by the name of the fault."""
        return {
            "blur": quality.sharpness < self.min_sharpness,
            "pen": quality.pen > self.max_pen,
            "white": quality.white > self.max_white,
            "black": quality.black > self.max_black,
            "grey": quality.saturation < self.min_saturation,
        }


def measure(
    slide: Slide, grid: Lattice, coords: Int64[np.ndarray, "tiles 2"], ink: Bool[np.ndarray, "height width"]
) -> Quality:
    """Measure tiles.

    Args:
        slide: an open slide.
        grid: the lattice that they lie on.
        coords: their top left corners, level-0 pixels.
        ink: where there is ink, over the whole slide at any scale.

    Raises:
        SlideUnreadable: pixels cannot be read.
    """
    quality = np.zeros((len(coords), len(Quality._fields)), np.float32)
    cells = (coords // grid.l0_step).T
    quality[:, 1] = coverage(ink, grid)[cells[1], cells[0]]
    scale_x, scale_y = (max(QC_MPP / mpp, 1.0) for mpp in (slide.mpp_x, slide.mpp_y))
    size = tuple(max(1, round(side / scale)) for side, scale in zip(grid.l0_tile, (scale_x, scale_y), strict=True))
    for members in _blocks(cells, (round(grid.l0_step[0] / scale_x), round(grid.l0_step[1] / scale_y))):
        low, high = coords[members].min(0), coords[members].max(0) + grid.l0_tile
        l0_size = (int(high[0] - low[0]), int(high[1] - low[1]))
        size_px = (max(size[0], round(l0_size[0] / scale_x)), max(size[1], round(l0_size[1] / scale_y)))
        block = slide.read(int(low[0]), int(low[1]), l0_size, size_px)
        planes = _planes(block)
        corners = np.round((coords[members] - low) / (scale_x, scale_y)).astype(int)
        for index, (x, y) in zip(members, np.minimum(corners, np.subtract(size_px, size)), strict=True):
            part = planes[:, y : y + size[1], x : x + size[0]]
            sums = part.reshape(len(part), -1).mean(1, dtype=np.float64)
            quality[index, [0, 2, 3, 4]] = sums[1] - sums[0] ** 2, *sums[2:]
    return Quality(*quality.T)


def _blocks(cells: Int64[np.ndarray, "2 tiles"], step_px: tuple[int, int]) -> Iterator[Int64[np.ndarray, "members"]]:
    """Indices of the tiles in each block of the lattice."""
    across, down = (max(1, _BLOCK_PX // max(1, step)) for step in step_px)
    block = (cells[1] // down) * (cells[0].max(initial=0) // across + 1) + cells[0] // across
    order = np.argsort(block, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(block[order])) + 1) if len(order) else []


def _planes(block: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "planes height width"]:
    """What is averaged over a tile: Laplacian, its square, white, black, coloured."""
    red, green, blue = np.moveaxis(block, 2, 0)  # ten times faster than reducing along an axis of three
    low = np.minimum(np.minimum(red, green), blue).astype(np.float32)
    high = np.maximum(np.maximum(red, green), blue).astype(np.float32)
    planes = np.empty((5, *low.shape), np.float32)
    planes[0] = ndimage.laplace(block @ _GREY, mode="nearest")
    np.square(planes[0], out=planes[1])
    planes[2:4] = low > _WHITE, high < _BLACK
    planes[4] = (high - low) >= _COLOURED * np.maximum(high, 1)
    return planes
