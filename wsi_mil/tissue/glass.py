"""The colour of the bare glass, which all else on a slide is compared with."""

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from wsi_mil.tissue.areas import highest, without_small

GLASS_MIN, _GLASS_CHROMA = 190, 36  # glass is bright in every channel, and nearly grey,
_GLASS_PINK = 18  # least of all short of green, which pale H&E is
_GLASS_FLAT_OD = 0.006  # and even: tissue, however pale, varies more over 40 um
_GLASS_TYPICAL_OD = 0.0035  # half of it varies by noise alone, 0.002 at most; flat spots of tissue by 0.0045
_GLASS_PIXELS = 100_000
GLASS_SHARE = 0.005  # fewer pixels of it are no glass but flat spots of a slide that is all tissue
_TINTED_MIN, _TINTED_SHARE, _TINTED_EVEN = 150, 0.3, 6.0  # yellowed or filtered glass: bright, much of it, one colour
_WHITE = 245.0  # glass of a slide that shows none
_BLOCK_UM = 64.0  # glass of another tint is sought in blocks of this
_OTHER_MM2 = 0.5  # less of it is no tint of glass but a pale biopsy, a lake, a lumen
_OTHER_OD = 0.01  # less of colour is the glass itself, and leaves it as it is
_BLUISH_OD = 0.005  # what absorbs red more than another channel by more is faint haematoxylin


def glass_of(
    pixels: UInt8[np.ndarray, "3 height width"],
    smooth: Float32[np.ndarray, "3 height width"],
    mpp_x: float,
    mpp_y: float,
) -> Float32[np.ndarray, "3 #height #width"]:
    """The colour of the bare glass: one for the whole slide, or for each pixel where the slide has several.

    Args:
        pixels: the slide.
        smooth: the same without noise.
        mpp_x: micrometres per pixel along the width.
        mpp_y: and along the height.
    """
    grey = np.log10(smooth.mean(0) + 1)
    mean = ndimage.uniform_filter(grey, 5)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, 5) - mean**2, 0))
    main = _main_glass(pixels, smooth, spread)[:, None, None]
    size = max(1, round(_BLOCK_UM / mpp_y)), max(1, round(_BLOCK_UM / mpp_x))
    tints = _tints(_in_blocks(smooth, size), _in_blocks(spread[None], size)[0], main, mpp_x * size[1], mpp_y * size[0])
    if tints is None:
        return main
    return tints.repeat(size[0], axis=1).repeat(size[1], axis=2)[:, : smooth.shape[1], : smooth.shape[2]]


def _in_blocks(
    values: Float32[np.ndarray, "channels height width"], size: tuple[int, int]
) -> Float32[np.ndarray, "channels rows columns"]:
    """The means of blocks of so many rows and columns; at the lower and right edge what is there is repeated."""
    margins = [(0, -length % block) for length, block in zip(values.shape[1:], size, strict=True)]
    whole = np.pad(values, [(0, 0), *margins], mode="edge")
    channels, height, width = whole.shape
    return whole.reshape(channels, height // size[0], size[0], width // size[1], size[1]).mean((2, 4))


def _tints(
    colours: Float32[np.ndarray, "3 rows columns"],
    spread: Float32[np.ndarray, "rows columns"],
    main: Float32[np.ndarray, "3 1 1"],
    mpp_x: float,
    mpp_y: float,
) -> Float32[np.ndarray, "3 rows columns"] | None:
    """The colour of the glass at each block, or under it, if there is glass of another tint than the main one.

    Mountant, the end of a label, and light that falls off in colour tint large areas, as evenly as bare glass. What
    lies on them is compared with the nearest glass, and between two tints with the darker one.
    """
    absorbed = np.maximum(np.log10((main + 1) / (colours + 1)), 0)
    span = np.ptp(absorbed, axis=0)
    even = _is_pale(colours) & (ndimage.uniform_filter(spread, 3) < _GLASS_TYPICAL_OD)
    unstained = absorbed[0] - absorbed[1:].min(0) < _BLUISH_OD
    tinted = without_small(even & unstained & (span > _OTHER_OD), _OTHER_MM2, mpp_x, mpp_y)
    if not tinted.any():
        return None
    known = tinted | (even & (span <= _OTHER_OD))
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    local = np.where(tinted, colours, main)[:, nearest[0], nearest[1]]
    return np.stack([255 - highest(255 - channel, 1, 1) for channel in local])


def _is_pale(colours: Float32[np.ndarray, "3 height width"]) -> Bool[np.ndarray, "height width"]:
    """Bright and nearly grey, as glass is."""
    red, green, blue = colours
    pale = (np.ptp(colours, axis=0) < _GLASS_CHROMA) & ((red + blue) / 2 - green < _GLASS_PINK)
    return pale & (colours.min(0) > GLASS_MIN)


def _main_glass(
    pixels: UInt8[np.ndarray, "3 height width"],
    smooth: Float32[np.ndarray, "3 height width"],
    spread: Float32[np.ndarray, "height width"],
) -> Float32[np.ndarray, "3"]:
    """The colour of the bare glass: the brightest of the common colours that are bright, nearly grey and even."""
    glass = _is_pale(smooth) & (spread < _GLASS_FLAT_OD)
    if glass.mean() < GLASS_SHARE:
        even = (smooth.min(0) > _TINTED_MIN) & (spread < _GLASS_FLAT_OD)
        if even.mean() > _TINTED_SHARE and smooth[:, even].std(axis=1).max() < _TINTED_EVEN:
            return np.median(smooth[:, even], axis=1)  # whatever its colour: no tissue is that even over that much
        return np.full(3, _WHITE, np.float32)
    unscanned = glass & (pixels.min(0) == 255)  # pure white: padding, unless there is no other glass
    if unscanned.sum() < 0.95 * glass.sum():
        glass &= ~unscanned
    index = np.flatnonzero(glass)
    index = index[:: max(1, len(index) // _GLASS_PIXELS)]  # a median wants no more
    colours = smooth.reshape(3, -1)[:, index]
    level = colours.mean(0)
    counts = ndimage.gaussian_filter1d(np.bincount(level.round().astype(int), minlength=257).astype(float), 1.5)
    common = np.flatnonzero(counts >= 0.2 * counts.max())[-1]
    chosen = np.abs(level - common) <= 4
    if np.median(spread.ravel()[index[chosen]]) > _GLASS_TYPICAL_OD:  # flat spots of a slide that is all pale tissue
        return np.full(3, _WHITE, np.float32)
    return np.median(colours[:, chosen], axis=1)
