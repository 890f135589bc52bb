"""What the readers of all peers return, and what becomes of it: an artifact of ours.

A peer is another program that makes features of tiles: TRIDENT, CLAM, STAMP or AtlasPatch. Their files differ in what
they are silent about, so a `PeerBag` says "unknown" (None) where a file does, and the frame its coordinates are in.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from wsi_mil import store
from wsi_mil.bags import UNKNOWN, half
from wsi_mil.errors import ArtifactError, ResolutionError
from wsi_mil.grid import Geometry, trident_attrs
from wsi_mil.slides.resolution import Resolution, checked

APPROXIMATE = "approximate-magnification"
"""The ``mpp_source`` of 10 / nominal magnification: the true value is 0.6 to 1.2 of it."""
OF_TILES = "tiles"
"""The ``mpp_source`` where coordinates are physical and the slide's pixels unknown: the pixels are those of tiles."""
UNNAMED = "unnamed"
"""The encoder of files that name none."""
_FARTHEST_PX = 1 << 31
_MOST_PX = 1 << 20  # of a tile's side: more than a whole slide has
_AGREEMENT = 1.75
"""The factor by which um/px may miss 10 / magnification: TRIDENT and AtlasPatch call 0.30 to 0.60 um/px 20 x."""
REMEDY = "give --mpp for all slides, a table slide,mpp by --slides-csv, or the folder of the slides by --slides"


@dataclass(frozen=True)
class PeerBag:
    """The tiles of one slide as another program wrote them."""

    peer: str
    """TRIDENT, CLAM, STAMP or AtlasPatch."""
    features: Num[np.ndarray, "tiles dim"]
    tile_px: int
    """Side of a tile as the encoder saw it, px, before the encoder's own transform."""
    encoder: str | None = None
    """What the file calls the encoder."""
    l0_coords: Int[np.ndarray, "tiles 2"] | None = None
    """Top left corners x, y in level-0 pixels ..."""
    l0_tile: tuple[int, int] | None = None
    """... and the width and height of a tile there."""
    coords_um: Float[np.ndarray, "tiles 2"] | None = None
    """Or top left corners in um ..."""
    tile_um: float | None = None
    """... and the side of a tile, um."""
    mpp: float | None = None
    """Level-0 um/px, where the file tells it."""
    recorded: Resolution | None = None
    """The same with its source, where wsimil itself wrote the file."""
    magnification: float | None = None
    """Nominal magnification of level 0, where the file tells it."""
    nominal_um: float | None = None
    """Side of a tile by nominal magnification, um."""
    l0_size: tuple[int, int] | None = None
    """Width and height of the slide, level-0 px."""
    slide_path: str | None = None
    """Where the slide was."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """What the other program was told: the same for all slides that belong together."""
    guessed: str | None = None
    """What the reader had to guess, in a few words."""


def own_artifact(
    bag: PeerBag, path: Path, slide_id: str, told: Resolution | None, encoder: str | None
) -> store.Artifact:
    """Convert a bag to an artifact of ours.

    Args:
        bag: as it was read.
        path: its file.
        slide_id: what the slide is called.
        told: the resolution of the slide, from a user or from the slide itself; None = as the file says.
        encoder: what the user calls the encoder; None = as the file does.

    Raises:
        ResolutionError: nothing tells the slide's um per px.
        ArtifactError: a feature is no number, or beyond float16.
    """
    if bag.features.dtype.kind not in "fiu":
        raise ArtifactError(f"{path} has features of type {bag.features.dtype}, not numbers: extract it again")
    resolution = _resolution(bag, path, told)
    coords, l0_tile = _in_level0(bag, resolution)
    if min(bag.tile_px, *l0_tile) < 1 or max(bag.tile_px, *l0_tile) > _MOST_PX:
        sizes = f"{l0_tile[0]:g} x {l0_tile[1]:g} level-0 px, read as {bag.tile_px:g}"
        raise ArtifactError(f"{path} has tiles of {sizes}, which cannot be meant: make it again with {bag.peer}")
    features, fault = half(bag.features)
    if fault:
        l0_x, l0_y = coords[fault.tile]
        raise ArtifactError(f"{path}: the tile at ({l0_x}, {l0_y}) has {fault.what}: extract it again")
    name = encoder or bag.encoder or UNNAMED
    request = {"peer": bag.peer, **bag.request, "encoder": bag.encoder, "dim": features.shape[1]}
    attrs = {
        "mpp_x": resolution.mpp_x,
        "mpp_y": resolution.mpp_y,
        "mpp_source": resolution.source,
        "tile_um": bag.tile_um or l0_tile[0] * resolution.mpp_x,
        "tile_px": bag.tile_px,
        "l0_tile_width": l0_tile[0],
        "l0_tile_height": l0_tile[1],
        "encoder": name,
        "encoder_weights": UNKNOWN,
        "encoder_weights_sha256": UNKNOWN,
        "tile_params": json.dumps(request, sort_keys=True),
        "peer": bag.peer,
        "peer_path": str(path.absolute()),
    }
    attrs |= _said(bag)
    of_coords = _of_coords(bag, slide_id, path, resolution, l0_tile)
    arrays = {"features": features, "coords": coords}
    return store.Artifact(arrays, attrs, {"coords": of_coords, "features": {"encoder": name, "name": slide_id}})


def _said(bag: PeerBag) -> dict[str, Any]:
    """Attributes of what only some files tell, or only some slides have."""
    said: dict[str, Any] = {"guessed": bag.guessed, "slide_path": bag.slide_path, **_l0_size(bag)}
    if not len(bag.features):
        said |= {"status": "empty", "reason": f"{bag.peer} found no tiles"}
    return {key: value for key, value in said.items() if value is not None}


def _l0_size(bag: PeerBag) -> dict[str, int]:
    return dict(zip(("level0_width", "level0_height"), bag.l0_size, strict=True)) if bag.l0_size else {}


def require_rows(features: np.ndarray, coords: np.ndarray, path: Path) -> None:
    """Refuse what is not one row of features and one of coordinates per tile.

    Raises:
        ArtifactError: says what there is.
    """
    if features.ndim != 2 or coords.ndim != 2 or coords.shape[1] < 2:
        raise ArtifactError(
            f"{path} has features of shape {features.shape} and coordinates of shape {coords.shape}, not a row of each"
            " per tile: make it again with the program that wrote it"
        )
    if len(features) != len(coords):
        raise ArtifactError(
            f"{path} has features of {len(features)} tiles and coordinates of {len(coords)}: put the files of one run"
            " together, or make them again"
        )


def number(value: Any) -> float | None:
    """An attribute as a positive number; None where it is absent, "None", or no such number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if 0 < found < math.inf else None


def text(value: Any) -> str | None:
    """An attribute as a word; None where it is absent, empty or "None"."""
    return value if isinstance(value, str) and value not in ("", "None") else None


def whole_coords(coords: Num[np.ndarray, "tiles _"], path: Path) -> Int[np.ndarray, "tiles 2"]:
    """The first two columns as whole level-0 pixels.

    Raises:
        ArtifactError: they are no numbers.
    """
    if not (np.abs(coords[:, :2].astype(float)) < _FARTHEST_PX).all():  # nor is what is no number
        raise ArtifactError(f"{path} has coordinates that are no numbers: make it again with the program that wrote it")
    return np.rint(coords[:, :2]).astype(np.int64)


def _resolution(bag: PeerBag, path: Path, told: Resolution | None) -> Resolution:
    if told:
        return told
    if bag.recorded:
        return checked(path, bag.recorded, REMEDY)
    of_power = 10 / bag.magnification if bag.magnification else None
    if bag.mpp:
        if of_power and not 1 / _AGREEMENT < bag.mpp / of_power < _AGREEMENT:
            raise ResolutionError(
                f"{path} says {bag.mpp:g} um/px and a magnification of {bag.magnification:g}, which do not go together:"
                f" {REMEDY}"
            )
        return checked(path, Resolution(bag.mpp, bag.mpp, bag.peer.lower()), REMEDY)
    if bag.tile_um:
        mpp = bag.tile_um / bag.tile_px
        return Resolution(mpp, mpp, OF_TILES)
    if of_power:
        return checked(path, Resolution(of_power, of_power, APPROXIMATE), REMEDY)
    raise ResolutionError(f"{path} does not say the micrometres per pixel of its slide: {REMEDY}")


def _in_level0(bag: PeerBag, resolution: Resolution) -> tuple[Int[np.ndarray, "tiles 2"], tuple[int, int]]:
    """Corners in level-0 pixels, and the width and height of a tile there."""
    if bag.l0_coords is not None and bag.l0_tile is not None:
        return bag.l0_coords, bag.l0_tile
    if bag.coords_um is None or bag.tile_um is None:
        raise ValueError(f"a bag of {bag.peer} without coordinates")  # a reader's bug
    mpp = np.array(resolution[:2])
    width, height = np.ceil(bag.tile_um / mpp - 1e-6).astype(int).tolist()  # as many pixels as STAMP reads
    return np.rint(bag.coords_um / mpp).astype(np.int64), (width, height)


def _of_coords(
    bag: PeerBag, slide_id: str, path: Path, resolution: Resolution, l0_tile: tuple[int, int]
) -> dict[str, Any]:
    """The attributes of ``coords``; magnifications are those that the other program was told, if it says them."""
    tile_mpp = (bag.tile_um or l0_tile[0] * resolution.mpp_x) / bag.tile_px
    pixels = (None, None) if resolution.source == OF_TILES else (l0_tile[0], resolution.mpp_x)
    tiles = Geometry(bag.tile_px, tile_mpp, int(bag.request.get("overlap") or 0), *pixels, bag.l0_size)
    said = {
        "level0_magnification": round(bag.magnification) if bag.magnification else None,
        "target_magnification": bag.request.get("target_magnification"),
    }
    attrs = trident_attrs(slide_id, path.parent, tiles)
    return attrs | {name: value for name, value in said.items() if value and name in attrs}
