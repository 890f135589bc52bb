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

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

from wsi_mil.tissue.areas import grown, without_small

_GROW_UM = 48.0  # what smoothing and JPEG make of the rim of a stroke
_THICK_UM = 2000.0  # strokes are thinner
_BESIDE_UM = 80.0  # beside a stroke, beyond its faded rim,
_BARE = 0.1  # a tenth is glass, at least
_RIM_UM = 200.0  # how far faded ink may reach from a core
_MIN_MM2 = 0.02  # smaller spots of ink colour are pigment or blood, not strokes
_COLOURED_OD = 0.04
_RED_ALONE = 0.24  # red by green in a core of red ink: of eosin alone it is 0.07 to 0.27, but nowhere is eosin alone
_RED_HUE = (0.6, 1.25)  # blue by green in red ink
_OVER_TISSUE = 0.7  # of the density of a core
_APART_UM = 200.0  # tissue farther than this from cores tells what is usual on a slide

Mask = Bool[np.ndarray, "height width"]
Density = Float32[np.ndarray, "3 height width"]


def find_ink(density: Density, mpp_x: float, mpp_y: float) -> Mask:
    """Find the strokes on a slide.

    Args:
        density: optical density of red, green and blue against the glass.
        mpp_x: micrometres per pixel along the width.
        mpp_y: and along the height.
    """
    ink = np.zeros(density.shape[1:], bool)
    for core, rim in _colours(density):
        if not core.any():
            continue
        near = rim & grown(core, _RIM_UM, mpp_x, mpp_y)
        strokes = without_small(ndimage.binary_propagation(core, mask=core | near), _MIN_MM2, mpp_x, mpp_y)
        strokes = _strokes(strokes, density, mpp_x, mpp_y)
        if (core & strokes).any():
            coloured = (np.ptp(density, axis=0) > _COLOURED_OD) & ~strokes
            far = coloured & ~grown(strokes, _APART_UM, mpp_x, mpp_y)
            apart = far if far.sum() > 0.1 * coloured.sum() else coloured
            ink |= strokes | _over_tissue(density, core & strokes, apart)
            ink |= _streaks(density, apart) if _is_red(density, core & strokes) else False
    ink = _strokes(without_small(ink, _MIN_MM2, mpp_x, mpp_y), density, mpp_x, mpp_y) if ink.any() else ink
    return grown(ink, _GROW_UM, mpp_x, mpp_y)


def _strokes(ink: Mask, density: Density, mpp_x: float, mpp_y: float) -> Mask:
    """The parts that are no thicker than a pen draws, and beside which there is bare glass."""
    labels, count = ndimage.label(ink)
    size = (2 * round(_BESIDE_UM / mpp_y) + 3, 2 * round(_BESIDE_UM / mpp_x) + 3)
    border = np.where(ink, 0, ndimage.maximum_filter(labels, size, mode="nearest"))
    glass = (np.ptp(density, axis=0) < _COLOURED_OD) & (density.mean(0) < 0.1)
    around = np.bincount(border.ravel(), minlength=count + 1)
    bare = np.bincount(border[glass], minlength=count + 1)
    kept = bare > _BARE * around
    body = grown(ink, _GROW_UM, mpp_x, mpp_y)  # of a stained section no pixel need be of the colour of ink
    kept[labels[~grown(~body, _THICK_UM / 2, mpp_x, mpp_y)]] = False
    kept[0] = False
    return kept[labels]


def _colours(density: Density) -> list[tuple[Mask, Mask]]:
    """Cores and rims of green, blue, black and red ink."""
    red, green, blue = density
    mean = density.mean(0)
    coloured = mean > _COLOURED_OD
    greenish = (green < 0.5 * red) & (blue > green)
    bluish = (red - green > 0.15) & (blue < 0.35 * red) & (green > 0.5 * red)
    blackish = np.ptp(density, axis=0) < 0.2 * mean
    reddish = (red < 0.35 * green) & (blue > 0.7 * green) & (blue < _RED_HUE[1] * green)
    red_core = (green > 0.6) & (red < _RED_ALONE * green) & (blue > 0.65 * green) & (blue < _RED_HUE[1] * green)
    return [
        (greenish & (red > 0.2), greenish & coloured),
        (bluish & (red > 0.35), bluish & coloured),
        (blackish & (mean > 0.6), blackish & coloured),
        (red_core, reddish & coloured),
    ]


def _over_tissue(density: Density, core: Mask, apart: Mask) -> Mask:
    """What hangs together with a core and absorbs as it does in every channel, and tissue apart from it does not."""
    ink = np.median(density[:, core], axis=1)
    share = (density / np.maximum(ink, 1e-3)[:, None, None]).min(0)
    enough = max(_OVER_TISSUE, 1.5 * _usual(share, apart, 75))  # a stroke may cross much of a small section
    return ndimage.binary_propagation(core, mask=core | (share > enough))


def _is_red(density: Density, core: Mask) -> bool:
    red, green, _ = np.median(density[:, core], axis=1)
    return bool(red < _RED_ALONE * green)


def _streaks(density: Density, apart: Mask) -> Mask:
    """Whatever is redder than the tissue."""
    red, green, blue = density
    low, high = _RED_HUE
    hue = blue / np.maximum(green, 1e-3)
    limit = max(low, _usual(hue, apart & (red > 0.3 * green), 97))
    return (red < 0.5 * green) & (green > _COLOURED_OD) & (hue > limit) & (hue < high)


def _usual(values: Float[np.ndarray, "height width"], tissue: Mask, percent: int) -> float:
    return float(np.percentile(values[tissue], percent)) if tissue.any() else 0.0
