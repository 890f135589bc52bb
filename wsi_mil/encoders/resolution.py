"""Whether tiles have the resolution that an encoder was trained on."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import IncompatibleError, OptionError

log = logging.getLogger(__name__)

_SILENT = 0.2 + 1e-9  # 256 px read as 224 is 14 %, and scanners' "20x" is anything from 0.45 to 0.55 um/px
_ENLARGED = 1.2
_TOLERATED = 2.05  # one step of magnification, such as 20x for 10x


class TileSize(NamedTuple):
    """Side of some tiles."""

    um: float
    """On the slide."""
    px: int
    """As they are read, before an encoder resizes them."""


def tile_geometry(spec: EncoderSpec) -> tuple[int, float]:
    """Side of the tiles that an encoder was trained on, in px and um.

    Raises:
        OptionError: its recipe has no resolution.
    """
    side_px = _read_px(spec)
    if spec.tile_um is None:
        raise OptionError(
            f"--for {spec.name}: its recipe has no resolution: give --tile-px {side_px} and --tile-um or --mpp instead"
        )
    return side_px, spec.tile_um


def require_resolution(
    spec: EncoderSpec, tiles: Mapping[Path, TileSize], remedy: str, allow: bool = False, warn: bool = True
) -> None:
    """Compare tiles, as an encoder will see them, with the um/px of its authors; one without a resolution takes any.

    Nothing is said within 20 % of the authors' um/px; up to a ratio of 2.05 a warning names both; beyond it only
    ``allow`` lets them pass. Tiles of so few pixels that the encoder enlarges them by more than 20 % are warned of.

    Args:
        spec: the encoder's record.
        tiles: size of the tiles, by where they lie.
        remedy: what to type for tiles that fit.
        allow: pass any resolution, with a warning.
        warn: False: refuse only.

    Raises:
        IncompatibleError: some tiles are too far off.
    """
    if spec.mpp is None or not tiles:
        return
    side_px = spec.resize_px or spec.tile_px
    if warn:
        _warn_of_enlarged(spec.name, _read_px(spec), tiles, remedy)
    seen = {path: um / side_px for path, (um, _) in tiles.items()}
    off = {path: max(mpp / spec.mpp, spec.mpp / mpp) for path, mpp in seen.items() if abs(mpp / spec.mpp - 1) > _SILENT}
    if not off:
        return
    worst = max(off, key=lambda path: off[path])
    more = f" (and those of {len(off) - 1} more)" if len(off) > 1 else ""
    message = (
        f"{spec.name} would see the tiles of {worst}{more} at {seen[worst]:.3g} um/px, and its authors used"
        f" {spec.mpp:.3g}: a ratio of {off[worst]:.3g}"
    )
    if off[worst] > _TOLERATED and not allow:
        raise IncompatibleError(f"{message}; make tiles that fit by `{remedy}`, or add --allow-mpp-mismatch")
    if warn:
        log.warning("%s; `%s` makes tiles that fit", message, remedy)


def _read_px(spec: EncoderSpec) -> int:
    """Side of its tiles as they are read from the slide."""
    return spec.read_px or spec.resize_px or spec.tile_px


def _warn_of_enlarged(name: str, side_px: int, tiles: Mapping[Path, TileSize], remedy: str) -> None:
    enlarged = {path: px for path, (_, px) in tiles.items() if px * _ENLARGED < side_px}
    if enlarged:
        worst = min(enlarged, key=lambda path: enlarged[path])
        more = f" (and those of {len(enlarged) - 1} more)" if len(enlarged) > 1 else ""
        log.warning(
            "%s enlarges the tiles of %s%s from %d to %d px, so it sees them blurred; `%s` makes tiles that fit",
            name, worst, more, enlarged[worst], side_px, remedy,
        )  # fmt: skip
