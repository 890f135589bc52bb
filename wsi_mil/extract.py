"""Stage 2, tiles -> features: every tile of a slide through a frozen encoder, or through several.

Tiles are read from the slide in threads, a few batches ahead of the encoder, and never kept: memory is the features
and those few batches, however large the slide. Several encoders get each batch one after the other.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from wsi_mil import store
from wsi_mil.bags import half
from wsi_mil.encoders import Encoder
from wsi_mil.errors import ArtifactError, ArtifactMissing, EncoderError, OptionError, SlideError
from wsi_mil.executors import map_ordered
from wsi_mil.progress import Progress
from wsi_mil.slides import Slide, open_slide, slide_fingerprint
from wsi_mil.stage import Item, Outcome, Output, Result, Stream, artifact_items, attempt
from wsi_mil.stain import fit_slide, stain_recipe

CARRIED = (
    "mpp_x", "mpp_y", "mpp_source", "tile_um", "tile_px", "l0_tile_width", "l0_tile_height", "level0_width",
    "level0_height", "l0_step_x", "l0_step_y", "resample", "slide_path", "reader", "tissue_mm2", "tissue_share",
    "ink_share", "sharpness", "excluded", "settings", "status", "reason",
)  # fmt: skip
"""Attributes of the tiles that their features keep, those that there are."""
CARRIED_ARRAYS = ("coords", "annotations")
"""Their datasets that are kept, where there are such."""


@dataclass(frozen=True)
class ExtractParams:
    """What decides the features of given tiles."""

    encoder: str
    """Name of the encoder."""
    weights_sha256: str
    """Which weights; where they lay is not part of it."""
    precision: str = "fp32"
    """Of the network."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """What becomes of a tile before the network sees it: `Encoder.preprocessing`."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """What computes the features with those weights: `Encoder.network`."""
    stain: Mapping[str, Any] = field(default_factory=stain_recipe)
    """How the stain of tiles is normalised before all that: `stain_recipe`."""

    @classmethod
    def of(cls, encoder: Encoder, stain: str = "none") -> "ExtractParams":
        """Return the parameters that a loaded encoder and a method of stain normalisation stand for."""
        prepared, network = dict(encoder.preprocessing), dict(encoder.network)
        return cls(encoder.name, encoder.weights_sha256, encoder.precision, prepared, network, stain_recipe(stain))


class ExtractStage:
    """Features of every slide whose tiles are known."""

    name = "extract"
    version = 2

    def __init__(
        self,
        params: ExtractParams,
        encoder: Encoder,
        threads: int = 1,
        batch: int = 16,
        moved: Mapping[str, Path] | None = None,
    ) -> None:
        """Take an encoder that is loaded already, and how to go about it, which changes no result.

        Args:
            params: `ExtractParams.of` the encoder, and how stain is normalised.
            encoder: of the params.
            threads: how many read tiles.
            batch: tiles that the encoder takes at once.
            moved: by slide_id, where slides are that do not lie at their recorded path any more.

        Raises:
            OptionError: an impossible batch size.
        """
        if batch < 1:
            raise OptionError(f"--batch {batch}: give a positive number of tiles")
        self.params, self.encoder = params, encoder
        self.threads, self.batch, self.moved = threads, batch, dict(moved or {})

    def upstream(self, item: Item) -> str:
        """Fingerprint of the tiles.

        Raises:
            ArtifactError: the file holds no tiles.
        """
        attrs = store.read_attrs(item.source)
        if attrs.get("stage") != "tile":
            found = attrs.get("stage", "an unknown stage")
            raise ArtifactError(f"{item.source} was made by {found}, not by tile: make tiles by `wsimil tile SLIDES`")
        return attrs["fingerprint"]

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Encode slide after slide; one that fails costs only itself."""
        for item in items:
            yield item, self.together(item, [self], track)[0]

    def together(self, item: Item, stages: Sequence["ExtractStage"], track: Progress) -> list[Result | Exception]:
        """Encode one slide with the encoders of several stages, reading each tile once, in the way of this stage.

        Returns:
            What became of it in each stage: an encoder that fails costs the others nothing, an unreadable slide all.
        """
        outcome = attempt(self._extract, item, stages, track)
        return [outcome] * len(stages) if isinstance(outcome, Exception) else outcome

    def _extract(self, item: Item, stages: Sequence["ExtractStage"], track: Progress) -> list[Result | Exception]:
        started = time.monotonic()
        tiles = store.read(item.source)
        columns = [_Column(stage.encoder, item.slide_id, tiles) for stage in stages]
        stain = self._fill(columns, item, tiles, track) if len(tiles.arrays["coords"]) else {}
        seconds = time.monotonic() - started
        return [c.error or Result(c.artifact(stain), len(c.features), seconds=seconds) for c in columns]

    def _fill(self, columns: list["_Column"], item: Item, tiles: store.Artifact, track: Progress) -> dict[str, Any]:
        """Encode all tiles of a slide; return what its stain was found to be, where it is normalised."""
        coords, method = tiles.arrays["coords"], self.params.stain["method"]
        edges = [*range(0, len(coords), self.batch), len(coords)]
        with self._open(item, tiles.attrs) as slide:
            read = partial(_read, slide, tiles.attrs)
            stain = fit_slide(method, read, coords, slide.path, self.threads, tiles.arrays)
            chunks = (coords[start:stop] for start, stop in pairwise(edges))
            # Closed before the slide is: what threads still read must not be pulled from under them.
            with closing(map_ordered(lambda chunk: stain.all(read(chunk)), chunks, self.threads)) as batches:
                for (start, stop), pixels in zip(pairwise(edges), batches, strict=True):
                    for column in columns:
                        column.fill(start, pixels)
                    if all(column.error for column in columns):
                        break
                    track.step(stop - start)
        return stain.fitted

    def _open(self, item: Item, attrs: dict[str, Any]) -> Slide:
        """Open the slide of some tiles, where it lay or where it lies now, if it still is that slide."""
        path = Path(attrs["slide_path"])
        if not path.exists():
            if item.slide_id not in self.moved:
                where = ", nor in the folder of --slides" if self.moved else ""
                raise SlideError(
                    f"{path} is not there any more{where}: name the folder that slides lie in by --slides DIR"
                )
            path = self.moved[item.slide_id]
        if slide_fingerprint(path) != attrs["upstream"].partition(" ")[0]:
            raise SlideError(f"{path} is not the slide that its tiles were made from: run `wsimil tile --overwrite`")
        # Reading at level-0 coordinates needs no resolution, but a file that tells none is not opened without.
        return open_slide(path, attrs["mpp_x"] if attrs["mpp_source"] == "option" else None)


def shared_stream(stages: Mapping[Path, ExtractStage]) -> Stream:
    """The stream of several stages, each with its folder: a slide is read once for all that have still to see it.

    Raises:
        OptionError: the stages do not normalise stain alike, so they cannot share tiles.
    """
    methods = sorted({stage.params.stain["method"] for stage in stages.values()})
    if len(methods) > 1:
        raise OptionError(f"--stain {methods[0]}, --stain {methods[1]}: encoders of one pass share their tiles")

    def stream(tasks: Iterator[tuple[Item, list[Output]]], track: Progress) -> Iterator[Outcome]:
        for item, outputs in tasks:
            wanted = [stages[output.folder] for output in outputs]
            yield from zip(repeat(item), outputs, wanted[0].together(item, wanted, track), strict=False)

    return stream


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


def _read(
    slide: Slide, attrs: dict[str, Any], coords: Int64[np.ndarray, "tiles 2"]
) -> UInt8[np.ndarray, "tiles height width 3"]:
    """The pixels of some tiles, as the encoder gets them."""
    l0_size = (attrs["l0_tile_width"], attrs["l0_tile_height"])
    size_px = (attrs["tile_px"], attrs["tile_px"])
    return np.stack([slide.read(int(l0_x), int(l0_y), l0_size, size_px) for l0_x, l0_y in coords])


class _Column:
    """The features of one slide by one encoder, as they come; after an error no more do."""

    def __init__(self, encoder: Encoder, slide_id: str, tiles: store.Artifact) -> None:
        self.encoder, self.slide_id, self.tiles = encoder, slide_id, tiles
        self.features = np.empty((len(tiles.arrays["coords"]), encoder.dim), np.float16)
        self.error: Exception | None = None

    def fill(self, start: int, pixels: UInt8[np.ndarray, "tiles height width 3"]) -> None:
        """Encode the tiles from ``start`` on."""
        self.error = self.error or attempt(self._fill, start, pixels)

    def _fill(self, start: int, pixels: UInt8[np.ndarray, "tiles height width 3"]) -> None:
        found = self.encoder.encode(pixels).numpy()
        made, fault = half(found)
        if fault:
            l0_x, l0_y = self.tiles.arrays["coords"][start + fault.tile]
            remedy = "other weights" if self.encoder.precision == "fp32" else "--precision fp32, other weights"
            raise EncoderError(
                f"the tile at ({l0_x}, {l0_y}) got {fault.what}, from {self.encoder.name}: try {remedy} or another"
                " encoder"
            )
        self.features[start : start + len(made)] = made

    def artifact(self, stain: dict[str, Any]) -> store.Artifact:
        """The features with everything that is known about them, the slide's own stain included."""
        tiles, encoder = self.tiles, self.encoder
        attrs = {key: tiles.attrs[key] for key in CARRIED if key in tiles.attrs}
        attrs["tile_params"] = tiles.attrs["params"]  # so that a checkpoint can tile new slides alike
        attrs["encoder"] = encoder.name
        attrs["encoder_weights"] = encoder.weights
        attrs["encoder_weights_sha256"] = encoder.weights_sha256
        if stain:
            attrs["stain"] = json.dumps(stain)
        if encoder.mpp:
            attrs["encoder_mpp"] = encoder.mpp
        carried = [name for name in CARRIED_ARRAYS if name in tiles.arrays]
        arrays = {name: tiles.arrays[name] for name in carried}
        array_attrs = {name: tiles.array_attrs[name] for name in carried}
        array_attrs["features"] = {"encoder": encoder.name, "name": self.slide_id}
        return store.Artifact({"features": self.features, **arrays}, attrs, array_attrs)
