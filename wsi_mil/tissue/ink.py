"""Strokes of a pen, by colours that neither haematoxylin, eosin nor DAB can show, and by being strokes.

Stains absorb green most (H&E), or blue (DAB), or red a little before green (haematoxylin alone). Green ink absorbs
green least, blue ink red far before green, black ink all three alike, red ink green and blue but hardly red. But so do
other stains (Alcian blue, Masson's trichrome), blood and pigment: ink is what is no thicker than a stroke and runs over
bare glass too. A dark core that is one says that there is ink; then

* its faded rims are told by the same colour, as far as they hang together with a core;
* over tissue, densities add up: ink is what hangs together with a core and absorbs as much as the core in every
  channel, and half as much again as most tissue does that lies apart;
* red ink absorbs much as eosin does, only blue more: by three quarters of green in most inks, and by a tenth to seven
  tenths in eosins, which differ from one laboratory to the next. So once there is a red core, whatever is redder than
  the slide's own tissue is ink, also apart, as strokes of a dry pen are all streaks. It costs the reddest 3 % of it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt

from wsi_mil.tissue.areas import areas_mm2, box_around, grown, highest, parts, reaching
from wsi_mil.tissue.density import Density

_GROW_UM = 48.0  # what smoothing and JPEG make of the rim of a stroke
_DEEP_UM = 992.0  # strokes are thinner than twice as much
_BESIDE_UM = 80.0  # beside a stroke, beyond its faded rim,
_BARE = 0.1  # a tenth is glass, at least
_RIM_UM = 192.0  # how far faded ink may reach from a core
_MIN_MM2 = 0.02  # smaller spots of ink colour are pigment or blood, not strokes
_COLOURED_OD = 0.04
_RED_ALONE = 0.24  # red by green in a core of red ink: of eosin alone it is 0.07 to 0.27, but nowhere is eosin alone
_RED_HUE = (0.6, 1.25)  # blue by green in red ink
_OVER_TISSUE = 0.7  # of the density of a core
_APART_UM = 192.0  # tissue farther than this from cores tells what is usual on a slide

Mask = Bool[np.ndarray, "height width"]


class Ink(NamedTuple):
    """What has the colour of ink."""

    strokes: Mask
    """Ink, for no section is so thin and lies so."""
    wide: Mask
    """Thicker than a stroke: a section of such a stain, or a very wide pen, which colour cannot tell apart."""


def find_ink(density: Density, mpp_x: float, mpp_y: float) -> Ink:
    """Find the strokes on a slide.

    Args:
        density: what it absorbs, against the glass.
        mpp_x: micrometres per pixel along the width.
        mpp_y: and along the height.
    """
    ink, wide = np.zeros((2, *density.mean.shape), bool)
    for core, rim in _colours(density):
        if not core.any():
            continue
        near = rim & grown(core, _RIM_UM, mpp_x, mpp_y)
        strokes, thick = _strokes(core | near, core, density, mpp_x, mpp_y)
        wide |= thick & core
        core &= strokes
        if core.any():
            coloured = (density.span > _COLOURED_OD) & ~strokes
            far = coloured & ~grown(strokes, _APART_UM, mpp_x, mpp_y)
            apart = far if far.sum() > 0.1 * coloured.sum() else coloured
            typical = np.median(density.channels.reshape(3, -1)[:, np.flatnonzero(core)], axis=1)
            ink |= strokes | _over_tissue(density, core, typical, apart)
            ink |= _streaks(density, apart) if typical[0] < _RED_ALONE * typical[1] else False
    strokes, _ = _strokes(ink, ink, density, mpp_x, mpp_y)
    return Ink(grown(strokes, _GROW_UM, mpp_x, mpp_y), wide)


def _strokes(ink: Mask, core: Mask, density: Density, mpp_x: float, mpp_y: float) -> tuple[Mask, Mask]:
    """The parts with a core that are large enough, with bare glass beside them: as thin as a pen draws, and thicker."""
    thin, thick = np.zeros((2, *ink.shape), bool)
    if not ink.any():
        return thin, thick
    reach = [round(_BESIDE_UM / mpp) + 1 for mpp in (mpp_y, mpp_x)]
    around = [max(beside, round(_GROW_UM / mpp)) + 1 for beside, mpp in zip(reach, (mpp_y, mpp_x), strict=True)]
    box = box_around(ink, *around)  # beyond it all is as at its edges: no ink, nor beside any
    labels, count = _large_parts(ink[box], core[box], mpp_x, mpp_y)
    if not count:
        return thin, thick
    glass = (density.span[box] < _COLOURED_OD) & (density.mean[box] < 0.1)
    beside = _beside_glass(labels, count, glass, reach)
    beside[0] = False
    body = grown(labels > 0, _GROW_UM, mpp_x, mpp_y)  # of a stained section no pixel need be of the colour of ink
    deep = np.zeros_like(beside)
    deep[labels[~grown(~body, _DEEP_UM, mpp_x, mpp_y)]] = True
    thin[box], thick[box] = (beside & ~deep)[labels], (beside & deep)[labels]
    return thin, thick


def _large_parts(ink: Mask, core: Mask, mpp_x: float, mpp_y: float) -> tuple[UInt[np.ndarray, "height width"], int]:
    """The parts with a core that are large enough, numbered anew from 1: the few that they are fit into a byte."""
    labels, count = parts(ink)
    kept = areas_mm2(labels, mpp_x, mpp_y) >= _MIN_MM2
    kept &= np.bincount(labels[core], minlength=count + 1) > 0
    kept[0] = False
    number = np.cumsum(kept) * kept
    return number.astype(np.min_scalar_type(number.max()))[labels], int(number.max())


def _beside_glass(
    labels: UInt[np.ndarray, "height width"], count: int, glass: Mask, reach: list[int]
) -> Bool[np.ndarray, "parts"]:
    """Which parts have glass for a tenth of what surrounds them."""
    border = np.where(labels > 0, 0, highest(labels, *reach))
    around = np.bincount(border.ravel(), minlength=count + 1)
    bare = np.bincount(border[glass], minlength=count + 1)
    return bare > _BARE * around


def _colours(density: Density) -> Bool[np.ndarray, "4 2 height width"]:
    """Cores and rims of green, blue, black and red ink."""
    found = np.empty((4, 2, *density.mean.shape), bool)
    for rows, part in density.by_rows():
        found[:, :, rows] = _colours_of(part)
    return found


def _colours_of(density: Density) -> list[tuple[Mask, Mask]]:
    red, green, blue = density.channels
    mean = density.mean
    coloured = mean > _COLOURED_OD
    greenish = (green < 0.5 * red) & (blue > green)
    bluish = (red - green > 0.15) & (blue < 0.35 * red) & (green > 0.5 * red)
    blackish = density.span < 0.2 * mean
    reddish = (red < 0.35 * green) & (blue > 0.7 * green) & (blue < _RED_HUE[1] * green)
    red_core = (green > 0.6) & (red < _RED_ALONE * green) & (blue > 0.65 * green) & (blue < _RED_HUE[1] * green)
    return [
        (greenish & (red > 0.2), greenish & coloured),
        (bluish & (red > 0.35), bluish & coloured),
        (blackish & (mean > 0.6), blackish & coloured),
        (red_core, reddish & coloured),
    ]


def _over_tissue(density: Density, core: Mask, typical: Float32[np.ndarray, "3"], apart: Mask) -> Mask:
    """What hangs together with a core and absorbs as it does in every channel, and tissue apart from it does not."""
    ink = np.maximum(typical, 1e-3)[:, None, None]
    share = np.empty_like(density.mean)
    for rows, part in density.by_rows():
        np.min(part.channels / ink, axis=0, out=share[rows])
    enough = max(_OVER_TISSUE, 1.5 * _usual(share, apart, 75))  # a stroke may cross much of a small section
    return reaching(core | (share > enough), core)


def _streaks(density: Density, apart: Mask) -> Mask:
    """Whatever is redder than the tissue."""
    red, green, blue = density.channels
    low, high = _RED_HUE
    hue = blue / np.maximum(green, 1e-3)
    limit = max(low, _usual(hue, apart & (red > 0.3 * green), 97))
    return (red < 0.5 * green) & (green > _COLOURED_OD) & (hue > limit) & (hue < high)


def _usual(values: Float[np.ndarray, "height width"], tissue: Mask, percent: int) -> float:
    return float(np.percentile(values[tissue], percent)) if tissue.any() else 0.0
