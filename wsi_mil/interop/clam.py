"""CLAM: ``h5_files/<slide>.h5`` and ``pt_files/<slide>.pt`` without a word about their tiles.

What a tile is stands in ``patches/<slide>.h5``, if that is still at hand: beside the folder of features or one folder
up. Level-0 pixels.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Num

from wsi_mil import store
from wsi_mil.errors import ArtifactError
from wsi_mil.interop.bag import PeerBag, number, require_rows, whole_coords
from wsi_mil.weights import read_tensor

_USUAL_PX = 256  # CLAM's own default


class _Tiles(NamedTuple):
    """Where tiles lie, by a file of ``patches/``."""

    l0_coords: Int[np.ndarray, "tiles 2"]
    l0_tile: tuple[int, int]
    tile_px: int
    l0_size: tuple[int, int] | None
    request: dict[str, Any]


def read_clam(path: Path) -> PeerBag:
    """Read the features of one slide, ``.h5`` or ``.pt``.

    Raises:
        ArtifactError: it has no coordinates, nor lies a file beside it that has; or nothing tells the size of a tile.
        WeightsError: a ``.pt`` file is damaged, or holds something else than features.
    """
    features, coords = _features_of(path)
    listed = _patches_of(path)
    tiles = _tiles(listed) if listed else None
    if tiles and coords is not None and not np.array_equal(tiles.l0_coords, coords):
        raise ArtifactError(f"{path} has other tiles than {listed}: put the features and patches of one run together")
    if coords is None:
        if tiles is None and len(features):
            raise ArtifactError(
                f"{path} has no coordinates: put CLAM's h5_files/ or patches/ beside {path.parent.name}/, with"
                f" {path.stem}.h5 in it"
            )
        coords = tiles.l0_coords if tiles else np.empty((0, 2), np.int64)
    require_rows(features, coords, path)
    if tiles:
        return PeerBag("CLAM", features, tiles.tile_px, None, coords, tiles.l0_tile, l0_size=tiles.l0_size,
                       request=tiles.request)  # fmt: skip
    side = _pitch(coords) if len(coords) else _USUAL_PX
    if side is None:
        raise ArtifactError(f"{path} does not tell the size of its tiles: put CLAM's patches/ beside {path.parent}")
    guessed = "the size of tiles, by the usual step between neighbours"
    guessed = guessed if len(coords) else f"the size of tiles where a slide has none, {_USUAL_PX} px"
    return PeerBag("CLAM", features, side, None, coords, (side, side), request={"patch_size": side}, guessed=guessed)


def companions(path: Path) -> list[Path]:
    """The other files that decide what `read_clam` returns."""
    beside = [_patches_of(path)]
    if path.suffix == ".pt":
        beside.append(_existing(path.parent.parent / "h5_files" / f"{path.stem}.h5"))
    return [file for file in beside if file and file != path]


def _features_of(path: Path) -> tuple[Num[np.ndarray, "tiles dim"], Int[np.ndarray, "tiles 2"] | None]:
    """Features, and the coordinates that come with them."""
    if path.suffix != ".pt":
        arrays = store.read_arrays(path, ("features", "coords"))
        return arrays["features"], whole_coords(arrays["coords"], path)
    features = read_tensor(path)
    if features.ndim != 2 or not features.is_floating_point():
        raise ArtifactError(f"{path} holds a tensor of {tuple(features.shape)}, not a row of features per tile")
    twin = _existing(path.parent.parent / "h5_files" / f"{path.stem}.h5")
    coords = whole_coords(store.read_arrays(twin, ("coords",))["coords"], twin) if twin else None
    return features.float().numpy(), coords


def _patches_of(path: Path) -> Path | None:
    """The file of coordinates that CLAM's features of a slide were made from; some forks copy what it says."""
    beside = [folder / "patches" / f"{path.stem}.h5" for folder in (path.parent.parent, path.parent.parent.parent)]
    for file in [path, *beside] if path.suffix == ".h5" else beside:
        if file.is_file() and "patch_level" in store.survey(file).array_attrs.get("coords", {}):
            return file
    return None


def _tiles(path: Path) -> _Tiles:
    survey = store.survey(path)
    attrs = survey.array_attrs["coords"]
    patch = number(attrs.get("patch_size"))
    if patch is None:
        raise ArtifactError(f"{path} does not say its patch_size: make it again with CLAM")
    custom = round(number(attrs.get("custom_downsample")) or 1)
    downsample = np.broadcast_to(attrs.get("downsample", 1.0), 2).astype(float)
    width, height = (round(patch * custom * along) for along in downsample)
    coords = whole_coords(store.read_arrays(path, ("coords",))["coords"], path)
    # The level says nothing of the size on the slide, which `tile_um` does: slides of one run may differ in it.
    request = {"patch_size": patch, "custom_downsample": custom}
    return _Tiles(coords, (width, height), round(patch), l0_size(attrs), request)


def l0_size(attrs: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of the slide, level-0 px, where the attributes of coordinates tell them."""
    if int(attrs["patch_level"]) != 0:
        return None
    width, height = (number(side) for side in np.broadcast_to(attrs.get("level_dim", 0), 2).tolist())
    return (round(width), round(height)) if width and height else None


def _pitch(coords: Int[np.ndarray, "tiles 2"]) -> int | None:
    """The usual step from one tile to the next, level-0 px.

    Each contour has a grid of its own, so the smallest difference of all coordinates means nothing; but within a
    contour tiles are listed row by row or column by column.
    """
    steps = np.diff(coords, axis=0)
    along = steps[(steps == 0).any(axis=1)].max(axis=1, initial=0)
    counts = Counter(along[along > 0].tolist())
    return min(counts, key=lambda step: (-counts[step], step)) if counts else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
