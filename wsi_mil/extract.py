"""Stage 2, tiles -> features: every tile of a slide through a frozen encoder.

Tiles are read from the slide in threads, a few batches ahead of the encoder, and never kept: memory is the features
and those few batches, however large the slide.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8

from wsi_mil import store
from wsi_mil.encoders import Encoder
from wsi_mil.errors import ArtifactError, EncoderError, OptionError, SlideError
from wsi_mil.executors import map_ordered
from wsi_mil.progress import Progress
from wsi_mil.slides import Slide, open_slide, slide_fingerprint
from wsi_mil.stage import Item, Result, attempt

CARRIED = (
    "mpp_x", "mpp_y", "mpp_source", "tile_um", "tile_px", "l0_tile_width", "l0_tile_height", "level0_width",
    "level0_height", "resample", "slide_path", "reader", "tissue_mm2", "status", "reason",
)  # fmt: skip
"""Attributes of the tiles that their features keep."""


@dataclass(frozen=True)
class ExtractParams:
    """What decides the features of given tiles."""

    encoder: str
    """Name of the encoder."""
    weights_sha256: str
    """Which weights; where they lay is not part of it."""
    precision: str = "fp32"
    """Of the network."""

    @classmethod
    def of(cls, encoder: Encoder) -> "ExtractParams":
        """Return the parameters that a loaded encoder stands for."""
        return cls(encoder.name, encoder.weights_sha256, encoder.precision)


class ExtractStage:
    """Features of every slide whose tiles are known."""

    name = "extract"
    version = 1

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
            params: `ExtractParams.of` the encoder.
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
            yield item, attempt(self._extract, item, track)

    def _extract(self, item: Item, track: Progress) -> Result:
        started = time.monotonic()
        tiles = store.read(item.source)
        features = self._features(item, tiles, track)
        attrs = {key: tiles.attrs[key] for key in CARRIED if key in tiles.attrs}
        attrs["tile_params"] = tiles.attrs["params"]  # so that a checkpoint can tile new slides alike
        attrs["encoder"] = self.encoder.name
        attrs["encoder_weights"] = self.encoder.weights
        attrs["encoder_weights_sha256"] = self.encoder.weights_sha256
        if self.encoder.mpp:
            attrs["encoder_mpp"] = self.encoder.mpp
        coords_attrs = tiles.array_attrs["coords"]
        artifact = store.Artifact(
            {"features": features, "coords": tiles.arrays["coords"]},
            attrs,
            {"coords": coords_attrs, "features": {"encoder": self.encoder.name, "name": item.slide_id}},
        )
        return Result(artifact, len(features), seconds=time.monotonic() - started)

    def _features(self, item: Item, tiles: store.Artifact, track: Progress) -> Float16[np.ndarray, "tiles dim"]:
        coords = tiles.arrays["coords"]
        features = np.empty((len(coords), self.encoder.dim), np.float16)
        if not len(coords):
            return features
        edges = [*range(0, len(coords), self.batch), len(coords)]
        with self._open(item, tiles.attrs) as slide:
            read = partial(_read, slide, tiles.attrs)
            chunks = (coords[start:stop] for start, stop in pairwise(edges))
            # Closed before the slide is: what threads still read must not be pulled from under them.
            with closing(map_ordered(read, chunks, self.threads)) as batches:
                for (start, stop), pixels in zip(pairwise(edges), batches, strict=True):
                    found = self.encoder.encode(pixels).numpy()
                    features[start:stop] = _half(found, item.slide_id, coords[start:stop])
                    track.step(stop - start)
        return features

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


def _read(
    slide: Slide, attrs: dict[str, Any], coords: Int64[np.ndarray, "tiles 2"]
) -> UInt8[np.ndarray, "tiles height width 3"]:
    """The pixels of some tiles, as the encoder gets them."""
    l0_size = (attrs["l0_tile_width"], attrs["l0_tile_height"])
    size_px = (attrs["tile_px"], attrs["tile_px"])
    return np.stack([slide.read(int(l0_x), int(l0_y), l0_size, size_px) for l0_x, l0_y in coords])


def _half(
    features: Float32[np.ndarray, "tiles dim"], slide_id: str, coords: Int64[np.ndarray, "tiles 2"]
) -> Float16[np.ndarray, "tiles dim"]:
    """Features as they are stored, refusing what float16 cannot hold.

    Raises:
        EncoderError: a feature is not finite, or too large.
    """
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(half).all(axis=1))
    if bad.size:
        l0_x, l0_y = coords[bad[0]]
        worst = np.abs(features[bad[0]]).max()
        raise EncoderError(
            f"{slide_id}: the tile at ({l0_x}, {l0_y}) got a feature of {worst:g}, which float16 cannot hold: "
            "try --precision fp32, other weights or another encoder"
        )
    return half
