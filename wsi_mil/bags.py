"""Bags: all tiles under one label, with where they lie in micrometres.

Level-0 pixels become micrometres in `read_bag` and nowhere else, so everything above this module is physical.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int, Num
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wsi_mil import store
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, IncompatibleError

FEATURE_STAGES = ("extract", "import")
"""The stages whose artifacts hold features: our own, and what other programs made, converted."""
UNKNOWN = "unknown"
"""Stands for the weights, and their hash, of an encoder that another program ran: no such program records them."""


class Bag(NamedTuple):
    """The tiles of one slide."""

    slide_id: str
    features: Float32[Tensor, "tiles dim"]
    coords_um: Float32[Tensor, "tiles 2"]
    """Tile centres x, y in micrometres from the slide's level-0 corner."""
    attrs: dict[str, Any]
    """What the artifact says of itself: encoder, tile geometry, fingerprint, ..."""


class Batch(NamedTuple):
    """Bags padded to one length."""

    features: Float[Tensor, "bags tiles dim"]
    coords_um: Float[Tensor, "bags tiles 2"]
    mask: Bool[Tensor, "bags tiles"]
    """True = real tile, False = padding."""
    slide: Int[Tensor, "bags tiles"] | None = None
    """Which slide of the patient a tile is of (there is no distance between slides); None = one slide per bag."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        slide = None if self.slide is None else self.slide.to(device)
        return Batch(self.features.to(device), self.coords_um.to(device), self.mask.to(device), slide)


class Fault(NamedTuple):
    """A tile whose features cannot be stored."""

    tile: int
    """Its row."""
    what: str
    """It has..."""


def read_bag(path: Path) -> Bag:
    """Read the features of one slide (``feats/<slide_id>.h5``), float16 on disk, float32 here.

    Raises:
        ArtifactMissing: there is no such file.
        ArtifactCorrupt: the file is damaged.
        ArtifactError: it holds no features; the message names the command that makes them.
    """
    artifact = store.read(path)
    if artifact.attrs.get("stage") not in FEATURE_STAGES:
        made_by = artifact.attrs.get("stage", "an unknown stage")
        raise ArtifactError(f"{path} was made by {made_by} and holds no features: make them with `wsimil extract`")
    try:
        coords_um = _centres_um(artifact)
        features, slide_id = artifact.arrays["features"], artifact.attrs["slide_id"]
    except KeyError as error:
        raise ArtifactCorrupt(f"{path} lacks {error}: make it again with `wsimil extract --overwrite`") from error
    return Bag(slide_id, torch.from_numpy(features.astype(np.float32)), torch.from_numpy(coords_um), artifact.attrs)


def half(
    features: Num[np.ndarray, "tiles dim"],
) -> tuple[Float16[np.ndarray, "tiles dim"], Fault | None]:
    """Features as they are stored, and the first tile, if any, whose features float16 cannot hold."""
    with np.errstate(over="ignore"):
        small = features.astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(small).all(axis=1))
    if not bad.size:
        return small, None
    worst = np.abs(features[bad[0]]).max()
    why = f"beyond float16 ({np.finfo(np.float16).max:g})" if np.isfinite(worst) else "no number to learn from"
    return small, Fault(int(bad[0]), f"a feature of {worst:g}, which is {why}")


def collate(bags: Sequence[Bag]) -> Batch:
    """Pad bags with zeros to the longest of them.

    Raises:
        ArtifactError: a bag has no tiles, so that there is nothing to learn from or to predict.
        IncompatibleError: the bags' features differ in dimension.
    """
    if empty := [bag.slide_id for bag in bags if not len(bag.features)]:
        raise ArtifactError(f"{', '.join(empty)}: a slide without tiles makes no bag, leave it out")
    dims = {bag.features.shape[1]: bag.slide_id for bag in bags}
    if len(dims) > 1:
        named = ", ".join(f"{dim} in {slide_id}" for dim, slide_id in sorted(dims.items()))
        raise IncompatibleError(f"features of different dimension in one batch: {named}; extract all with one encoder")
    return Batch(
        features=pad_sequence([bag.features for bag in bags], batch_first=True),
        coords_um=pad_sequence([bag.coords_um for bag in bags], batch_first=True),
        mask=pad_sequence([torch.ones(len(bag.features), dtype=torch.bool) for bag in bags], batch_first=True),
    )


def _centres_um(artifact: store.Artifact) -> Float32[np.ndarray, "tiles 2"]:
    attrs = artifact.attrs
    half_l0 = np.array([attrs["l0_tile_width"], attrs["l0_tile_height"]]) / 2
    mpp = np.array([attrs["mpp_x"], attrs["mpp_y"]])
    return ((artifact.arrays["coords"] + half_l0) * mpp).astype(np.float32)
