"""TRIDENT: ``features_<encoder>/<slide>.h5``, everything else on the attributes of ``coords``; level-0 pixels.

Also AtlasPatch, which says the same words on the root, and keeps the features of several encoders in one file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_mil import store
from wsi_mil.errors import ArtifactError
from wsi_mil.interop.bag import PeerBag, number, require_rows, text, whole_coords

_FEATURES = "features/"
_OURS = {"ctranspath": "chief-ctranspath", "resnet50": "resnet50-layer3"}
"""Names by which TRIDENT means another network than everyone else: CHIEF's weights, and the mean over layer3."""


def read_trident(path: Path, survey: store.Survey) -> PeerBag:
    """Read the features of one slide.

    Raises:
        ArtifactError: the file lacks what tells the size of a tile.
    """
    attrs = survey.array_attrs["coords"]
    arrays = store.read_arrays(path, ("features", "coords"))
    encoder = text(survey.array_attrs["features"].get("encoder")) or of_folder(path) or ""
    ours = _OURS.get(encoder, encoder) or None
    return _bag("TRIDENT", path, attrs, arrays["coords"], arrays["features"], ours)


def encoders_of(survey: store.Survey) -> list[str]:
    """The encoders whose features a file of AtlasPatch holds; those still being written are left out."""
    names = (name.removeprefix(_FEATURES) for name in survey.shapes if name.startswith(_FEATURES))
    return sorted(name for name in names if not name.startswith("__tmp_"))


def read_atlaspatch(path: Path, survey: store.Survey, encoder: str | None) -> PeerBag:
    """Read the features of one slide by one encoder, which must be named where there are several.

    Raises:
        ArtifactError: it is not said which encoder, or the file lacks what tells the size of a tile.
    """
    names = encoders_of(survey)
    if not names:
        raise ArtifactError(f"{path} holds coordinates of AtlasPatch and no features: make them by its `process`")
    if encoder not in names and (encoder or len(names) > 1):
        lacking = f", not of {encoder}" if encoder else ""
        raise ArtifactError(f"{path} holds the features of {', '.join(names)}{lacking}: name one of them by --encoder")
    name = encoder or names[0]
    arrays = store.read_arrays(path, (_FEATURES + name, "coords"))
    coords = arrays["coords"]
    attrs = dict(survey.attrs)
    if not number(attrs.get("patch_size_level0")) and coords.shape[1] == 5 and len(coords) and not coords[:, 4].any():
        attrs["patch_size_level0"] = int(coords[0, 2])  # read_w, of level 0
    return _bag("AtlasPatch", path, attrs, coords, arrays[_FEATURES + name], name)


def _bag(
    peer: str, path: Path, attrs: Mapping[str, Any], coords: np.ndarray, features: np.ndarray, encoder: str | None
) -> PeerBag:
    patch, target = number(attrs.get("patch_size")), number(attrs.get("target_magnification"))
    power, side = number(attrs.get("level0_magnification")), number(attrs.get("patch_size_level0"))
    if side is None and patch and power and target:
        side = patch * power // target  # as both compute it
    if side is None or patch is None:
        raise ArtifactError(f"{path} does not say the size of its tiles (patch_size, patch_size_level0): make it again")
    if features.shape == (0,):  # as TRIDENT may write a slide without tiles
        features = features.reshape(0, 0)
    require_rows(features, coords, path)
    return PeerBag(
        peer,
        features,
        tile_px=round(patch),
        encoder=encoder,
        l0_coords=whole_coords(coords, path),
        l0_tile=(round(side), round(side)),
        mpp=number(attrs.get("mpp")),
        magnification=power,
        nominal_um=10 * patch / target if target else None,
        l0_size=l0_size(attrs),
        slide_path=text(attrs.get("wsi_path")),
        request={"patch_size": patch, "target_magnification": target, "overlap": number(attrs.get("overlap")) or 0.0},
    )


def l0_size(attrs: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of the slide, level-0 px, where the attributes of coordinates tell them."""
    width, height = (number(attrs.get(key)) for key in ("level0_width", "level0_height"))
    return (round(width), round(height)) if width and height else None


def of_folder(path: Path) -> str | None:
    """The encoder by which TRIDENT calls a folder of features."""
    return path.parent.name.removeprefix("features_") if path.parent.name.startswith("features_") else None
