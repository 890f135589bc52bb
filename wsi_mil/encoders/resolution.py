"""Whether tiles have the resolution that an encoder was trained on."""

import logging
from collections.abc import Mapping
from pathlib import Path

from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import IncompatibleError, OptionError

log = logging.getLogger(__name__)

_SILENT = 0.2 + 1e-9  # 256 px read as 224 is 14 %, and scanners' "20x" is anything from 0.45 to 0.55 um/px
_TOLERATED = 2.05  # one step of magnification, such as 20x for 10x


def tile_geometry(spec: EncoderSpec) -> tuple[int, float]:
    """Side of the tiles that an encoder was trained on, in px and um.

    Raises:
        OptionError: its recipe has no resolution.
    """
    side_px = spec.resize_px or spec.tile_px
    if spec.tile_um is None:
        raise OptionError(
            f"--for {spec.name}: its recipe has no resolution: give --tile-px {side_px} and --tile-um or --mpp instead"
        )
    return side_px, spec.tile_um


def require_resolution(
    spec: EncoderSpec, tile_um: Mapping[Path, float], remedy: str, allow: bool = False, warn: bool = True
) -> None:
    """Compare tiles, as an encoder will see them, with the um/px of its authors; one without a resolution takes any.

    Nothing is said within 20 %; up to a ratio of 2.05 a warning names both; beyond it only ``allow`` lets them pass.

    Args:
        spec: the encoder's record.
        tile_um: side of the tiles on the slide, um, by where they lie.
        remedy: what to type for tiles that fit.
        allow: pass any resolution, with a warning.
        warn: False: refuse only.

    Raises:
        IncompatibleError: some tiles are too far off.
    """
    if spec.mpp is None or not tile_um:
        return
    seen = {path: um / (spec.resize_px or spec.tile_px) for path, um in tile_um.items()}
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
