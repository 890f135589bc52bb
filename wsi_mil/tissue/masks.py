"""Where the tissue is: a thumbnail becomes a mask. Classical, the same for every slide, and in physical units.

Every pixel is compared with the glass of its own slide, in optical density (`-log10(pixel / glass)`, per channel), so
that a tint of the lamp or the scanner says nothing. What counts is **colour**: stain absorbs one channel more than
another, while dust, shadows, coverslip edges and vignetting darken all three alike. Otsu's threshold on that colour is
kept within guards, because it always splits in two, even a slide that is all glass or all tissue.

The work is done at 16 um/px whatever the slide offers, filters are in um and areas in mm2, so that a mask depends
neither on how a slide was scanned nor on the machine.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from wsi_mil.slides.resample import resized
from wsi_mil.tissue.areas import grown, reaching_border, small_holes, without_small
from wsi_mil.tissue.density import Density, density_of
from wsi_mil.tissue.glass import GLASS_MIN, GLASS_SHARE, glass_of
from wsi_mil.tissue.ink import Ink, find_ink

WORKING_MPP = 16.0
HOLES_MM2 = 0.05
"""Holes of less are lumina and fat cells, and belong to the tissue."""
_SMOOTH_UM = 12.0  # standard deviation: takes sensor noise and JPEG speckle off the glass, keeps a thin biopsy
# Masks grow by whole pixels, and slides come out within a hair of 16 um/px: half a pixel would be rounded up on one
# slide and down on the next, so such lengths, here and of ink, are 16 um and multiples of it.
_CLOSE_UM = 32.0  # radius: gaps between the cells of loose tissue
_MIN_TISSUE_MM2 = 0.02  # islands below are specks: a third of a 256 um tile

_DARK = 40  # brightest channel of a fluorescence background
_UNSCANNED = 12  # darker in every channel
_COLOUR_OD = (0.02, 0.04)  # Otsu's threshold is kept in here: above noise, below the palest stain worth having


class Tissue(NamedTuple):
    """A tissue mask and what decided it."""

    mask: Bool[np.ndarray, "height width"]
    mpp_x: float
    """Micrometres per pixel of the mask."""
    mpp_y: float
    threshold: float
    """Colour, in optical density, from which on a pixel is tissue; 0 where none was sought."""
    ink: Bool[np.ndarray, "height width"]
    """Strokes of a pen, which are no tissue."""
    reason: str
    """Why the mask is empty; "" if it is not."""
    wide_ink: Bool[np.ndarray, "height width"]
    """Of the colour of ink, but thicker than a stroke: taken for tissue, and may be a very wide pen."""

    @property
    def area_mm2(self) -> float:
        """Tissue in square millimetres."""
        return float(self.mask.sum()) * self.mpp_x * self.mpp_y * 1e-6

    @property
    def wide_ink_mm2(self) -> float:
        """What may be a very wide pen, in square millimetres."""
        return float((self.wide_ink & self.mask).sum()) * self.mpp_x * self.mpp_y * 1e-6


def find_tissue(
    image: UInt8[np.ndarray, "height width 3"],
    mpp_x: float,
    mpp_y: float,
    holes_mm2: float = HOLES_MM2,
    pens: bool = True,
) -> Tissue:
    """Find the tissue of a slide.

    Args:
        image: the whole slide, RGB, at any scale; finer than 16 um/px it is first averaged down to that.
        mpp_x: micrometres per pixel of the image, along its width.
        mpp_y: and along its height.
        holes_mm2: holes up to this area belong to the tissue: 0: none, infinity: all.
        pens: look for strokes of pens, and take them for no tissue.

    Returns:
        A mask of the working scale: at most 16 um/px, over exactly the area of the image.

    Example:
        tissue = find_tissue(*slide.thumbnail(mpp=16.0))
    """
    pixels, mpp_x, mpp_y = _at_working_scale(image, mpp_x, mpp_y)
    if _is_fluorescence(pixels):
        why = "dark background: looks like fluorescence, which has no stained tissue to find"
        nothing = np.zeros(pixels.shape[1:], bool)
        return Tissue(nothing, mpp_x, mpp_y, 0.0, nothing, why, nothing)
    sigma = (0, _SMOOTH_UM / mpp_y, _SMOOTH_UM / mpp_x)
    smooth = ndimage.gaussian_filter(pixels, sigma, output=np.float32, mode="nearest")
    density = density_of(smooth, glass_of(pixels, smooth, mpp_x, mpp_y), _unscanned(pixels))
    ink, wide = find_ink(density, mpp_x, mpp_y) if pens else Ink(*np.zeros((2, *pixels.shape[1:]), bool))
    colour = np.where(ink, 0, _colour(density))
    threshold = _threshold(colour[~ink])
    mask = _tidied(colour > threshold, ink, mpp_x, mpp_y, holes_mm2)
    reason = "" if mask.any() else _why_empty(colour > threshold, ink)
    return Tissue(mask, mpp_x, mpp_y, threshold, ink, reason, wide)


def _at_working_scale(
    image: UInt8[np.ndarray, "height width 3"], mpp_x: float, mpp_y: float
) -> tuple[UInt8[np.ndarray, "3 working_height working_width"], float, float]:
    """The image at 16 um/px, or as it is where it is coarser; the same area, so mpp is what that makes it.

    Colours come first from here on: NumPy reduces over a first axis ten times as fast as over a last one of three.
    """
    height, width = image.shape[:2]
    size = _fewer(width, mpp_x), _fewer(height, mpp_y)
    if size == (width, height):
        return np.ascontiguousarray(np.moveaxis(image, -1, 0)), mpp_x, mpp_y
    small = np.asarray(resized(Image.fromarray(image), size, Image.Resampling.BOX))
    return np.ascontiguousarray(np.moveaxis(small, -1, 0)), mpp_x * width / size[0], mpp_y * height / size[1]


def _fewer(pixels: int, mpp: float) -> int:
    return min(pixels, max(1, round(pixels * mpp / WORKING_MPP)))


def _is_fluorescence(pixels: UInt8[np.ndarray, "3 height width"]) -> bool:
    """Mostly black and nowhere white. (A slide with black where nothing was scanned has white glass beside it.)"""
    dark = (pixels.max(0) < _DARK).mean()
    bright = (pixels.min(0) > GLASS_MIN).mean()
    return bool(dark > 0.5 and bright < GLASS_SHARE)


def _unscanned(pixels: UInt8[np.ndarray, "3 height width"]) -> Bool[np.ndarray, "height width"]:
    """Black that reaches the border: scanners leave out what they see nothing on."""
    black = pixels.max(0) < _UNSCANNED
    return reaching_border(black) if black.any() else black


def _colour(density: Density) -> Float32[np.ndarray, "height width"]:
    """How much more one channel is absorbed than another, less what any deep shadow shows of that by accident."""
    return density.span - 0.12 * density.mean


def _threshold(colour: Float32[np.ndarray, "pixels"]) -> float:
    low, high = _COLOUR_OD
    return float(np.clip(threshold_otsu(colour), low, high)) if colour.size and np.ptp(colour) > 0 else high


def _tidied(
    mask: Bool[np.ndarray, "height width"],
    ink: Bool[np.ndarray, "height width"],
    mpp_x: float,
    mpp_y: float,
    holes_mm2: float,
) -> Bool[np.ndarray, "height width"]:
    """Close narrow gaps, drop small islands, fill small holes; ink is no tissue, whatever surrounds it."""
    smallest = min(_MIN_TISSUE_MM2, mask.size * mpp_x * mpp_y * 1e-6 / 4)  # an image may be no larger than a speck
    closed = ~grown(~grown(mask, _CLOSE_UM, mpp_x, mpp_y), _CLOSE_UM, mpp_x, mpp_y) & ~ink
    kept = without_small(closed, smallest, mpp_x, mpp_y)
    return (kept | small_holes(kept, holes_mm2, mpp_x, mpp_y)) & ~ink


def _why_empty(coloured: Bool[np.ndarray, "height width"], ink: Bool[np.ndarray, "height width"]) -> str:
    if ink.any():
        return "no tissue: all that is coloured looks like pen (--no-pens takes it for tissue)"
    return "no tissue: only specks are coloured" if coloured.any() else "no tissue: nothing coloured on the glass"
