"""How many micrometres a pixel of a slide spans, and who says so.

The first source that says anything is believed: the user, OpenSlide (which knows each vendor's tags, and those of a
plain tiled TIFF), the resolution tags of a TIFF that only Pillow reads, the objective's power. A value outside 0.05 to
10 um/px is nonsense (72 dpi is 353 um/px) whoever says it, and is refused, not passed over for the next source.
"""

import logging
import math
from pathlib import Path
from typing import NamedTuple

from wsi_mil.errors import OptionError, ResolutionError

log = logging.getLogger(__name__)

MPP_RANGE = (0.05, 10.0)
_UM_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}
_REMEDY = "give --slide-mpp, for all slides of the call (`wsimil tile` takes a table slide,mpp, too: --slides-csv)"
"""Every command that asks slides for their resolution has the first; the table is of one of them."""
_CONTRADICTION = 1.05
_NOMINAL_POWERS = (80, 60, 40, 20, 10, 5, 2, 1)


class Resolution(NamedTuple):
    """Micrometres per level-0 pixel, and their source: "option", "openslide", "tiff-resolution", "objective-power"."""

    mpp_x: float
    mpp_y: float
    source: str


class Hints(NamedTuple):
    """What a file says about its resolution, as it says it; None where it says nothing."""

    mpp: tuple[str | None, str | None] = (None, None)
    """OpenSlide's properties, x and y."""
    pixels_per_unit: tuple[str | None, str | None] = (None, None)
    """TIFF resolution tags, x and y."""
    unit: str = ""
    """Unit of those: "inch", "centimeter", or another, which says nothing."""
    power: str | None = None
    """Magnification of the objective."""


def resolve(path: Path, option: float | None, hints: Hints) -> Resolution:
    """Return the resolution of a slide from the first source that gives one.

    Raises:
        ResolutionError: no source does, or it gives nonsense.
    """
    if option is not None:
        _warn_of_contradiction(path, option, hints)
        return checked(path, Resolution(option, option, "option"))
    if pair := _pair(path, hints.mpp):
        return checked(path, Resolution(*pair, "openslide"))
    if hints.unit in _UM_PER_UNIT and (pair := _pair(path, hints.pixels_per_unit)):
        x, y = (_UM_PER_UNIT[hints.unit] / value if value else 0.0 for value in pair)
        return checked(path, Resolution(x, y, "tiff-resolution"))
    if pair := _pair(path, (hints.power, hints.power)):
        mpp = 10 / pair[0] if pair[0] else 0.0
        resolution = checked(path, Resolution(mpp, mpp, "objective-power"))
        log.warning("%s: about %.3g um/px, guessed from its %s x objective; %s", path, mpp, hints.power, _REMEDY)
        return resolution
    raise ResolutionError(f"{path} does not say its micrometres per pixel: {_REMEDY}")


def _warn_of_contradiction(path: Path, option: float, hints: Hints) -> None:
    """Say so when the user overrules a file that states a sensible resolution: it may be meant for other slides."""
    try:
        own = resolve(path, None, hints._replace(power=None))
    except ResolutionError:
        return
    if not 1 / _CONTRADICTION < option / own.mpp_x < _CONTRADICTION:
        log.warning("%s says %.4g um/px, but is taken for %.4g as told", path, own.mpp_x, option)


def _pair(path: Path, texts: tuple[str | None, str | None]) -> tuple[float, float] | None:
    """Both axes as numbers; one axis stands for both where the other is missing."""
    x, y = texts
    if x is None and y is None:
        return None
    return _number(path, x if x is not None else y), _number(path, y if y is not None else x)


def _number(path: Path, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise ResolutionError(f"{path} gives a resolution of {text!r}, which is no number: {_REMEDY}") from error


def checked(where: object, resolution: Resolution, remedy: str = _REMEDY) -> Resolution:
    """Return a resolution that makes sense.

    Raises:
        ResolutionError: it does not; names where it is from, and what to do.
    """
    low, high = MPP_RANGE
    for mpp in (resolution.mpp_x, resolution.mpp_y):
        if not low <= mpp <= high:
            error = ResolutionError(
                f"{where}: {mpp:.6g} um/px (from {resolution.source}) is outside {low} to {high:g}: {remedy}"
            )
            error.told = tuple(resolution)
            raise error
    return resolution


def require_mpp(option: str, mpp: float | None) -> None:
    """Refuse what a user cannot mean as the resolution of slides, once and before any of them is opened.

    Raises:
        OptionError: it is outside the range that makes sense.
    """
    low, high = MPP_RANGE
    if mpp is not None and not low <= mpp <= high:
        raise OptionError(f"{option} {mpp:g}: give um per level-0 px, between {low} and {high:g}")


def nominal_power(mpp: float) -> int:
    """The usual magnification nearest to a resolution (10x is about 1 um/px)."""
    return min(_NOMINAL_POWERS, key=lambda power: abs(math.log(power * mpp / 10)))
