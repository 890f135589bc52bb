"""Stage 2, tiles -> features: every tile of a slide through a frozen encoder, or through several.

The whole cohort is one stream (`wsi_mil.streaming`): tiles are read in threads, a few batches ahead of the encoders,
and never kept, so memory is the features and those few batches, however large a slide.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from wsi_mil import store
from wsi_mil.bags import half
from wsi_mil.encoders import Encoder
from wsi_mil.errors import ArtifactError, EncoderError, OptionError, SlideError
from wsi_mil.progress import Progress
from wsi_mil.remote import Ahead, CacheParams, is_url
from wsi_mil.slides import Place, Slide, find_again, open_slide, require_reader, slide_fingerprint
from wsi_mil.stage import Item, Outcome, Output, Result, Stream
from wsi_mil.stain import fit_slide, stain_recipe
from wsi_mil.streaming import Pace, Tiles, Told, Work, stream

log = logging.getLogger(__name__)

CARRIED = (
    "mpp_x", "mpp_y", "mpp_source", "tile_um", "tile_px", "l0_tile_width", "l0_tile_height", "level0_width",
    "level0_height", "l0_step_x", "l0_step_y", "resample", "slide_path", "reader", "reader_reason", "tissue_mm2",
    "tissue_share", "tissue_beyond_share", "tissue_tiled_share", "ink_share", "wide_ink_mm2", "sharpness", "excluded",
    "settings", "status", "reason",
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
    fast_decode: bool = False
    """Whether JPEGs are decoded at a fraction of their size where that is fine enough; see `open_slide`."""
    reader: str = "auto"
    """Who reads pixels: auto, direct or openslide; see `open_slide`."""

    def __post_init__(self) -> None:
        require_reader(self.reader, self.fast_decode)

    @classmethod
    def of(cls, encoder: Encoder, stain: str = "none", **reading: Any) -> "ExtractParams":
        """Return what a loaded encoder, a method of stain normalisation and a way of ``reading`` stand for."""
        prepared, network = dict(encoder.preprocessing), dict(encoder.network)
        own = (encoder.name, encoder.weights_sha256, encoder.precision, prepared, network)
        return cls(*own, stain_recipe(stain), **reading)


class ExtractStage:
    """Features of every slide whose tiles are known."""

    name = "extract"
    version = 4
    beside = ()

    def __init__(
        self,
        params: ExtractParams,
        encoder: Encoder,
        threads: int = 1,
        batch: int = 16,
        moved: Mapping[str, Place] | None = None,
        cache: CacheParams | None = None,
    ) -> None:
        """Take an encoder that is loaded already, and how to go about it.

        Args:
            params: `ExtractParams.of` the encoder, and how stain is normalised.
            encoder: of the params.
            threads: how many read tiles; this changes no result.
            batch: tiles that the encoder takes at once; another number may round float32 otherwise.
            moved: by slide_id, where slides are that do not lie at their recorded path any more.
            cache: where slides that were recorded far away are staged.

        Raises:
            OptionError: an impossible batch size.
        """
        if batch < 1:
            raise OptionError(f"--batch {batch}: give a positive number of tiles")
        self.params, self.encoder = params, encoder
        self.threads, self.batch, self.moved = threads, batch, dict(moved or {})
        self.cache = cache or CacheParams()

    def upstream(self, item: Item) -> str:
        """Fingerprint of the tiles.

        Raises:
            ArtifactError: the file holds no tiles.
        """
        return tiles_fingerprint(item)

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Encode the tiles of all slides; one that fails costs only itself."""
        output = Output(self, Path())
        tasks = ((item, [output]) for item in items)
        with closing(shared_stream({output.folder: self})(tasks, track)) as outcomes:
            for item, _, outcome in outcomes:
                yield item, outcome


def tiles_fingerprint(item: Item) -> str:
    """Fingerprint of the tiles that an item names.

    Raises:
        ArtifactError: the file holds no tiles.
    """
    attrs = store.read_attrs(item.source)
    if attrs.get("stage") != "tile":
        found = attrs.get("stage", "an unknown stage")
        raise ArtifactError(f"{item.source} was made by {found}, not by tile: make tiles by `wsimil tile SLIDES`")
    return attrs["fingerprint"]


def shared_stream(stages: Mapping[Path, ExtractStage]) -> Stream:
    """The stream of several stages, each with its folder: a slide is read once for all that have still to see it.

    How it is read (threads, batch, moved slides) the first of them says.

    Raises:
        OptionError: the stages do not normalise stain alike, so they cannot share tiles.
    """
    methods = sorted({stage.params.stain["method"] for stage in stages.values()})
    if len(methods) > 1:
        raise OptionError(f"--stain {methods[0]}, --stain {methods[1]}: encoders of one pass share their tiles")
    first = next(iter(stages.values()))
    pace, encoders = Pace(first.batch, first.threads), [stage.encoder for stage in stages.values()]

    def outcomes(tasks: Iterator[tuple[Item, list[Output]]], track: Progress) -> Generator[Outcome]:
        given = (
            _Source(first, item, {output: stages[output.folder].encoder for output in outputs})
            for item, outputs in tasks
        )
        told = Told(pace.threads)
        ahead = Ahead(given, lambda source: source.item.slide_id, _Source.place)
        with ahead, closing(stream(_opened_by(ahead), encoders, pace, track, told)) as works:
            for work in works:
                for output, outcome in work.source.outcomes(work).items():
                    yield work.source.item, output, outcome
        if told.tiles:
            log.info("extract: %s", told)

    return outcomes


def _opened_by(ahead: "Ahead[_Source]") -> Generator["_Source"]:
    """The slides, each told who fetches it, if it lies far away."""
    with closing(ahead.items()) as sources:
        for source in sources:
            source.fetched = partial(ahead.use, source)
            yield source


class _Source:
    """A slide before it is opened."""

    def __init__(self, stage: ExtractStage, item: Item, wanted: Mapping[Output, Encoder]) -> None:
        self.stage, self.item, self.wanted = stage, item, wanted
        self.columns: dict[Output, _Column] = {}
        self.seen: dict[str, Any] = {}  # how the pixels were made, as attributes
        self.found: Place | None = None  # where it lies, once it was looked for
        self.fetched: Callable[[], AbstractContextManager[None]] = nullcontext  # lasts as long as the slide is at hand

    def place(self) -> Place | None:
        """Where the slide lies, if it has tiles to read: there where it was named, else as recorded.

        Raises:
            SlideError: it is not there any more.
            RemoteError: it lies far away, and the server does not say.
        """
        if self.found is None and (attrs := store.read_attrs(self.item.source)).get("tiles") != 0:
            self.found = self._find(attrs["slide_path"])
        return self.found

    def open(self) -> Tiles:
        """Open the slide of the tiles, and fit its stain, where that is to be normalised."""
        with self.fetched():
            return self._open_at_hand()

    def _open_at_hand(self) -> Tiles:
        tiles = store.read(self.item.source)
        coords = tiles.arrays["coords"]
        self.columns = {output: _Column(one, self.item.slide_id, tiles) for output, one in self.wanted.items()}
        columns = list(self.columns.values())
        if not len(coords):
            return Tiles(columns=columns)
        slide = self._open(tiles.attrs)
        self.seen = {"resample": slide.resampling, "reader": slide.reader, "reader_reason": slide.why}
        try:
            pixels = _Pixels(slide, tiles.attrs)
            method, threads = self.stage.params.stain["method"], self.stage.threads
            stain = fit_slide(method, pixels.at, coords, slide.place, threads, tiles.arrays)
            slide.expect(coords, pixels.l0_size, pixels.size_px)  # each of them once, from here on
        except BaseException:
            slide.close()
            raise
        self.seen |= {"stain": json.dumps(stain.fitted)} if stain.fitted else {}
        return Tiles(
            columns=columns,
            count=len(coords),
            side_px=pixels.size_px[0],
            read=lambda start, stop: stain.all(pixels.at(coords[start:stop])),
            close=slide.close,
        )

    def outcomes(self, work: Work) -> dict[Output, Result | Exception]:
        """What became of the slide, for each output."""
        if work.error:
            return dict.fromkeys(self.wanted, work.error)
        return {
            output: column.error or Result(column.artifact(self.seen), len(column.features), timing=work.timing)
            for output, column in self.columns.items()
        }

    def _find(self, recorded: str) -> Place:
        """Where a slide lies. An address that is named may hold a new signature, so it goes before a recorded one."""
        moved = self.stage.moved.get(self.item.slide_id)
        named = moved if is_url(recorded) else None
        if found := named or find_again(recorded, self.stage.cache) or moved:
            return found
        where = ", nor in the folder of --slides" if self.stage.moved else ""
        raise SlideError(f"{recorded} is not there any more{where}: name the folder that slides lie in by --slides DIR")

    def _open(self, attrs: dict[str, Any]) -> Slide:
        """Open the slide of some tiles, if it still is that slide."""
        wanted, moved = attrs["upstream"].partition(" ")[0], self.stage.moved.get(self.item.slide_id)
        places = dict.fromkeys(place for place in (self.place(), moved) if place is not None)
        path = next((place for place in places if slide_fingerprint(place) == wanted), None)
        if path is None:
            told = next(reversed(places), None)
            raise SlideError(f"{told} is not the slide that its tiles were made from: run `wsimil tile --overwrite`")
        self.found = path  # where another slide lies now, this is the one that was named
        # Reading at level-0 coordinates needs no resolution, but a file that tells none is not opened without.
        mpp, params = attrs["mpp_x"] if attrs["mpp_source"] == "option" else None, self.stage.params
        return open_slide(path, mpp, params.reader, params.fast_decode)


class _Pixels:
    """The pixels of a slide's tiles, as the encoder gets them but for their stain."""

    def __init__(self, slide: Slide, attrs: dict[str, Any]) -> None:
        self.slide = slide
        self.l0_size = (int(attrs["l0_tile_width"]), int(attrs["l0_tile_height"]))
        self.size_px = (int(attrs["tile_px"]), int(attrs["tile_px"]))

    def at(self, coords: Int64[np.ndarray, "tiles 2"]) -> UInt8[np.ndarray, "tiles height width 3"]:
        """Read tiles by their place."""
        return self.slide.read_tiles(coords, self.l0_size, self.size_px)


class _Column:
    """The features of one slide by one encoder, as they come; after an error no more do."""

    def __init__(self, encoder: Encoder, slide_id: str, tiles: store.Artifact) -> None:
        self.encoder, self.slide_id, self.tiles = encoder, slide_id, tiles
        self.features = np.empty((len(tiles.arrays["coords"]), encoder.dim), np.float16)
        self.error: Exception | None = None

    def fill(self, start: int, features: Float32[Tensor, "tiles dim"]) -> None:
        """Take the features of the tiles from ``start`` on, if float16 can hold them."""
        made, fault = half(features.numpy())
        if fault:
            l0_x, l0_y = self.tiles.arrays["coords"][start + fault.tile]
            finer = "" if self.encoder.precision == "fp32" else "`wsimil extract --precision fp32`, "
            self.error = EncoderError(
                f"the tile at ({l0_x}, {l0_y}) got {fault.what}, from {self.encoder.name}: try {finer}other weights or"
                " another encoder"
            )
        else:
            self.features[start : start + len(made)] = made

    def artifact(self, seen: dict[str, Any]) -> store.Artifact:
        """The features with everything that is known about them; ``seen`` says how the pixels were made."""
        tiles, encoder = self.tiles, self.encoder
        attrs = {key: tiles.attrs[key] for key in CARRIED if key in tiles.attrs} | seen
        attrs["tile_params"] = tiles.attrs["params"]  # so that a checkpoint can tile new slides alike
        attrs |= {"encoder": encoder.name, "encoder_weights": encoder.weights}
        attrs["encoder_weights_sha256"] = encoder.weights_sha256
        if encoder.mpp:
            attrs["encoder_mpp"] = encoder.mpp
        carried = [name for name in CARRIED_ARRAYS if name in tiles.arrays]
        arrays = {name: tiles.arrays[name] for name in carried}
        array_attrs = {name: tiles.array_attrs[name] for name in carried}
        array_attrs["features"] = {"encoder": encoder.name, "name": self.slide_id}
        return store.Artifact({"features": self.features, **arrays}, attrs, array_attrs)
