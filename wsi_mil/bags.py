"""Bags: all tiles under one label, with where they lie in micrometres.

Level-0 pixels become micrometres in `read_bag` and nowhere else, so everything above this module is physical.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int, Num
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wsi_mil import store
from wsi_mil.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, IncompatibleError
from wsi_mil.guards.kinds import require_features
from wsi_mil.stage import Item, artifact_items, attempt

FEATURE_STAGES = ("extract", "import")
"""The stages whose artifacts hold features: our own, and what other programs made, converted."""
UNKNOWN = "unknown"
"""Stands for the weights, and their hash, of an encoder that another program ran: no such program records them."""


_OF_FEATURES = (
    "stage",
    "params",
    "encoder",
    "encoder_weights",
    "encoder_weights_sha256",
    "tile_um",
    "tile_px",
    "tile_params",
)
"""Attributes that say how features were made, and nothing of the slide."""
_SAID = ("l0_tile_width", "l0_tile_height", "mpp_x", "mpp_y", "slide_id")
"""What all of them say."""
_EXACT = ("encoder", "encoder_weights_sha256", "tile_px")
"""Of these, what the slides of one bag have to agree on to the letter."""


class Bag(NamedTuple):
    """All tiles under one label: those of a slide, or of several slides of a patient (`join_bags`)."""

    slide_id: str
    """The slide; of joined slides what the bag is called, such as the patient."""
    features: Float32[Tensor, "tiles dim"]
    coords_um: Float32[Tensor, "tiles 2"]
    """Tile centres x, y in micrometres from the level-0 corner of their own slide."""
    attrs: dict[str, Any]
    """What the artifact says of itself: encoder, tile geometry, fingerprint, ... Of joined slides see `join_bags`."""
    slide: Int[Tensor, " tiles"] | None = None
    """Which slide of the patient each tile is of, counted from 0 (there is no distance between slides); None = the bag
    is one slide."""


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
        As `read_features`.
    """
    artifact = read_features(path)
    features, slide_id = artifact.arrays["features"], artifact.attrs["slide_id"]
    coords_um = torch.from_numpy(_centres_um(artifact))
    return Bag(slide_id, torch.from_numpy(features.astype(np.float32)), coords_um, artifact.attrs)


def read_features(path: Path) -> store.Artifact:
    """Read an artifact of features as it is on disk, which says all that one has to.

    Raises:
        ArtifactMissing: there is no such file.
        ArtifactCorrupt: the file is damaged, or says what cannot be meant.
        ArtifactError: it holds no features; the message names the command that makes them.
    """
    artifact = store.read(path)
    if artifact.attrs.get("stage") not in FEATURE_STAGES:
        made_by = artifact.attrs.get("stage", "an unknown stage")
        raise ArtifactError(f"{path} was made by {made_by} and holds no features: make them with `wsimil extract`")
    mend = "make it again with `wsimil extract --overwrite`"
    if lacking := [name for name in _SAID if name not in artifact.attrs]:
        raise ArtifactCorrupt(f"{path} lacks '{lacking[0]}': {mend}")
    try:
        require_features(artifact.arrays, artifact.attrs)
    except KeyError as error:
        raise ArtifactCorrupt(f"{path} lacks {error}: {mend}") from error
    except ValueError as error:
        raise ArtifactCorrupt(f"{path} cannot be meant ({error}): {mend}") from error
    return artifact


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


def join_bags(bags: Sequence[Bag], bag_id: str) -> Bag:
    """Put the tiles of several slides under one label, such as those of a patient.

    Tiles keep their order and the coordinates of their own slide, so those of different slides must never be compared:
    ``slide`` tells them apart. One slide alone, or the only one that has tiles, stays a bag of one slide.

    Args:
        bags: a bag per slide. Slides without tiles are left out.
        bag_id: what the bag is called.

    Returns:
        A bag whose ``attrs`` say how the features of the first slide were made, hold of the rest what all slides agree
        on (so no path, size or resolution of any one slide), and besides ``slide_ids``, a tuple of which ``slide`` is
        an index, and ``empty_slide_ids``, those that were left out.

    Raises:
        ArtifactError: no slide has tiles, or a slide is there twice or is itself joined.
        IncompatibleError: features differ in dimension, encoder or size of tiles. Whether they were made alike in
            every respect is for the caller to see, slide by slide (`wsi_mil.checkpoint.Recipe`).

    Example:
        >>> slides = [Bag(name, torch.zeros(2, 768), torch.zeros(2, 2), {}) for name in ("a", "b")]
        >>> patient = join_bags(slides, "patient-1")
        >>> patient.slide.tolist(), patient.attrs["slide_ids"]
        ([0, 0, 1, 1], ('a', 'b'))
    """
    filled = [bag for bag in bags if len(bag.features)]
    empty = tuple(bag.slide_id for bag in bags if not len(bag.features))
    if not filled:
        raise ArtifactError(
            f"{bag_id}: none of its slides ({', '.join(empty) or 'it has none'}) has tiles, leave it out"
        )
    _require_joinable(filled, bag_id)
    ids = tuple(bag.slide_id for bag in filled)
    attrs = _common_attrs(filled) | {"slide_ids": ids, "empty_slide_ids": empty}
    if len(filled) == 1:
        return filled[0]._replace(slide_id=bag_id, attrs=attrs)
    return Bag(
        bag_id,
        torch.cat([bag.features for bag in filled]),
        torch.cat([bag.coords_um for bag in filled]),
        attrs,
        torch.arange(len(filled)).repeat_interleave(torch.tensor([len(bag.features) for bag in filled])),
    )


def as_one(slides: Sequence[Bag], bag_id: str) -> Bag:
    """The bag of a slide, or of a patient's several slides (`join_bags`)."""
    return join_bags(slides, bag_id) if len(slides) > 1 else slides[0]


def collate(bags: Sequence[Bag]) -> Batch:
    """Pad bags with zeros to the longest of them, bags of one slide and of several alike.

    A single bag shares its memory with the batch.

    Raises:
        ArtifactError: a bag has no tiles, so that there is nothing to learn from or to predict.
        IncompatibleError: the bags' features differ in dimension.
    """
    if empty := [bag.slide_id for bag in bags if not len(bag.features)]:
        raise ArtifactError(f"{', '.join(empty)}: a slide without tiles makes no bag, leave it out")
    _require_one_dimension(bags, "in one batch")
    if len(bags) == 1:  # nothing to pad: not copied, as 100,000 tiles are 300 MB
        (bag,) = bags
        mask = torch.ones(1, len(bag.features), dtype=torch.bool)
        slide = None if bag.slide is None else bag.slide.unsqueeze(0)
        return Batch(bag.features.unsqueeze(0), bag.coords_um.unsqueeze(0), mask, slide)
    return Batch(
        features=pad_sequence([bag.features for bag in bags], batch_first=True),
        coords_um=pad_sequence([bag.coords_um for bag in bags], batch_first=True),
        mask=pad_sequence([torch.ones(len(bag.features), dtype=torch.bool) for bag in bags], batch_first=True),
        slide=_padded_slides(bags),
    )


def _padded_slides(bags: Sequence[Bag]) -> Int[Tensor, "bags tiles"] | None:
    """Padding is of slide 0, as if it were real: a number that any array of slides has room for."""
    if all(bag.slide is None for bag in bags):
        return None
    alone = (torch.zeros(len(bag.features), dtype=torch.long) if bag.slide is None else bag.slide for bag in bags)
    return pad_sequence(list(alone), batch_first=True)


def _require_one_dimension(bags: Sequence[Bag], where: str) -> None:
    dims = {bag.features.shape[1]: bag.slide_id for bag in bags}
    if len(dims) > 1:
        named = ", ".join(f"{dim} in {slide_id}" for dim, slide_id in sorted(dims.items()))
        raise IncompatibleError(f"features of different dimension {where}: {named}; extract all with one encoder")


def _require_joinable(bags: Sequence[Bag], bag_id: str) -> None:
    """Refuse slides that cannot be one bag, by name."""
    seen: set[str] = set()
    for bag in bags:
        if bag.slide is not None:
            raise ArtifactError(f"{bag_id}: {bag.slide_id} is several slides already, give the bag of each slide")
        if bag.slide_id in seen:
            raise ArtifactError(f"{bag_id}: {bag.slide_id} is there twice, name each slide of a patient once")
        seen.add(bag.slide_id)
    _require_one_dimension(bags, f"in {bag_id}")
    first = bags[0]
    for bag in bags:
        for key in _EXACT:
            ours, theirs = first.attrs.get(key), bag.attrs.get(key)
            if None not in (ours, theirs) and ours != theirs:
                raise IncompatibleError(
                    f"{bag_id}: {key} is {theirs} in {bag.slide_id} and {ours} in {first.slide_id}; extract all slides"
                    " alike, with `wsimil extract --overwrite`"
                )


def _common_attrs(bags: Sequence[Bag]) -> dict[str, Any]:
    first, *others = (bag.attrs for bag in bags)
    absent = object()
    return {
        key: value
        for key, value in first.items()
        if key in _OF_FEATURES or all(attrs.get(key, absent) == value for attrs in others)
    }


def _centres_um(artifact: store.Artifact) -> Float32[np.ndarray, "tiles 2"]:
    attrs = artifact.attrs
    half_l0 = np.array([attrs["l0_tile_width"], attrs["l0_tile_height"]]) / 2
    mpp = np.array([attrs["mpp_x"], attrs["mpp_y"]])
    return ((artifact.arrays["coords"] + half_l0) * mpp).astype(np.float32)


def feature_folder(encoder: str) -> str:
    """Name of the folder for the features of one encoder among several: what file systems dislike becomes "-"."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", encoder)


def feature_roots(folder: Path) -> set[Path]:
    """The folders at or below this one that hold features, each slide_id being a path from there.

    It is ``folder`` itself where one encoder wrote there, and one folder per encoder where several did.
    """
    roots: dict[Path, Path] = {}  # by the folder of an artifact: one that can be read tells
    for item in artifact_items(folder):
        if item.source.parent not in roots:
            attrs = attempt(store.read_attrs, item.source)
            if isinstance(attrs, dict) and "slide_id" in attrs:  # what is damaged or foreign tells nothing
                inner = item.slide_id.removesuffix(f"/{attrs['slide_id']}")
                roots[item.source.parent] = folder if inner == item.slide_id else folder / inner
    return set(roots.values())


def bag_items(folder: Path) -> list[Item]:
    """The features in a folder, by slide_id.

    Raises:
        ArtifactMissing: there are none.
        ArtifactError: there are those of several encoders.
    """
    items = artifact_items(folder) if folder.is_dir() else []
    if not items:
        raise ArtifactMissing(f"{folder} holds no artifacts: make them with `wsimil extract --model morphology`")
    if inner := feature_roots(folder) - {folder}:
        raise ArtifactError(
            f"{folder} holds features in a folder per encoder: name one of them, such as --bags {min(inner)}"
        )
    return items
