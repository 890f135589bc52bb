"""STAMP: ``feats`` and ``coords`` in micrometres, everything else on the root."""

from pathlib import Path

import numpy as np

from wsi_mil import store
from wsi_mil.errors import ArtifactError
from wsi_mil.interop.bag import PeerBag, number, require_rows, text
from wsi_mil.slides.resolution import Resolution

_TILE_PX = 224  # of every STAMP that did not record it
_HISTORIC_UM = 256.0


def read_stamp(path: Path, survey: store.Survey) -> PeerBag:
    """Read the features of one slide, of any version of STAMP that wrote coordinates.

    Raises:
        ArtifactError: it has no coordinates, or does not say their unit.
    """
    if "coords" not in survey.shapes:
        raise ArtifactError(f"{path} has no coordinates, as STAMP 1 wrote it: extract it again with STAMP 2")
    attrs = survey.attrs
    arrays = store.read_arrays(path, ("feats", "coords"))
    require_rows(arrays["feats"], arrays["coords"], path)
    coords = arrays["coords"][:, :2].astype(np.float64)
    unit, guessed = text(attrs.get("unit")), None
    side = (number(attrs.get("tile_size")) if unit == "um" else None) or number(attrs.get("tile_size_um"))
    if side is None and unit is None and _pitch(coords) == _TILE_PX:
        side, guessed = _HISTORIC_UM, "the unit of coordinates, by their step of 224"
        coords = coords / _TILE_PX * _HISTORIC_UM
    if side is None or unit not in ("um", None):
        raise ArtifactError(f"{path} does not say the size of its tiles in um: extract it again with STAMP 2")
    if not np.isfinite(coords).all():
        raise ArtifactError(f"{path} has coordinates that are no numbers: extract it again with STAMP")
    tile_px = round(number(attrs.get("tile_size_px")) or _TILE_PX)
    return PeerBag(
        "STAMP",
        arrays["feats"],
        tile_px,
        encoder=text(attrs.get("extractor")) or text(attrs.get("encoder")),
        coords_um=coords,
        tile_um=side,
        request={"tile_size_um": side, "tile_size_px": tile_px},
        recorded=_recorded(survey),
        guessed=text(attrs.get("guessed")) or guessed,
    )


def _recorded(survey: store.Survey) -> Resolution | None:
    """What `wsimil export` wrote of the slide's resolution; of ``tiles`` it would only be what follows anyway."""
    attrs = survey.attrs
    mpp_x, mpp_y, source = number(attrs.get("mpp_x")), number(attrs.get("mpp_y")), text(attrs.get("mpp_source"))
    return Resolution(mpp_x, mpp_y, source) if survey.is_artifact and mpp_x and mpp_y and source else None


def _pitch(coords: np.ndarray) -> float | None:
    """The smallest step between columns or rows; STAMP's tiles all lie on one grid."""
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    return float(np.rint(steps.min())) if steps.size else None
