"""Stage 1: slide -> tiles. Where the tissue is, and which squares of it the encoder will see.

Tiles lie on one lattice over the whole slide, from its top left corner, none over its border. A tile is kept when
enough of it is tissue and it keeps to the limits of quality.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from wsi_mil import qc
from wsi_mil.errors import OptionError, ResolutionError
from wsi_mil.executors import available_cores
from wsi_mil.geometry import outline, rings, to_geojson
from wsi_mil.grid import Geometry, Lattice, l0_tile_size, lattice, spread, tiles_on_tissue, tissue_held, trident_attrs
from wsi_mil.preview import draw_preview, preview_mpp
from wsi_mil.progress import Progress
from wsi_mil.regions import Drawings, RegionParams, label_tiles
from wsi_mil.remote import Ahead
from wsi_mil.slides import Slide, Thumbnail, folder_of, open_slide, recorded, require_reader, slide_fingerprint
from wsi_mil.stage import Item, Result, per_slide
from wsi_mil.store import Artifact
from wsi_mil.tissue import HOLES_MM2, WORKING_MPP, Tissue, find_tissue

log = logging.getLogger(__name__)

_MAX_ENLARGEMENT = 2.05  # beyond it a tile is more invention than slide


@dataclass(frozen=True)
class TileParams(qc.Limits):
    """What a tile is, and which are kept."""

    tile_px: int = 224
    """Side of a tile as the encoder sees it, pixels."""
    tile_um: float = 256.0
    """Side of a tile on the slide, micrometres; with 224 px, 1.143 um/px: the paper's geometry, and CTransPath's."""
    min_coverage: float = 0.5
    """Least share of a tile that is tissue. At a half no tile is mostly glass, and every piece of tissue that is two
    tiles wide has a tile, wherever it lies on the lattice."""
    overlap_px: int = 0
    """Of neighbouring tiles, in pixels as the encoder sees them."""
    holes_mm2: float = HOLES_MM2
    """Holes in the tissue up to this area belong to it; 0: none; 1e6: all."""
    pens: bool = True
    """Look for strokes of pens, and take them for no tissue."""
    max_tiles: int = 0
    """At most so many of a slide, drawn at random but evenly over its tissue; 0: all."""
    seed: int = 0
    """Decides which."""
    include: Sequence[str] = ()
    """Classes of the regions that are tiled; none named: all that are not excluded."""
    exclude: Sequence[str] = ()
    """Classes of the regions that are cut out."""
    reader: str = "auto"
    """Who reads pixels: auto, direct or openslide; see `open_slide`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tile_px >= 1:
            raise OptionError(f"--tile-px {self.tile_px}: give a positive number of pixels, such as 224")
        if not 0 < self.tile_um < float("inf"):
            raise OptionError(f"--tile-um {self.tile_um}: give a positive number of micrometres, such as 256")
        if not 0 < self.min_coverage <= 1:
            raise OptionError(f"--min-coverage {self.min_coverage}: give a share above 0 and up to 1, such as 0.5")
        if not 0 <= self.overlap_px < self.tile_px:
            raise OptionError(f"--overlap {self.overlap_px}: give pixels from 0 to below --tile-px {self.tile_px}")
        if not 0 <= self.holes_mm2 < float("inf"):
            raise OptionError(f"--holes {self.holes_mm2}: give an area in mm2, 0 to fill none, 1e6 to fill all")
        if self.max_tiles < 0:
            raise OptionError(f"--max-tiles {self.max_tiles}: give a positive number of tiles, or 0 for all")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: give 0 or a positive number")
        RegionParams(self.include, self.exclude)  # refuses what contradicts itself
        require_reader(self.reader)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of a tile as the encoder sees it."""
        return self.tile_um / self.tile_px

    def changed(self, settings: Mapping[str, float]) -> "TileParams":
        """These parameters with what a slide has of its own.

        Raises:
            OptionError: there is no such parameter, or it makes no sense.
        """
        types = {field.name: type(field.default) for field in fields(self) if field.name in SETTINGS}
        if unknown := sorted(settings.keys() - types.keys()):
            raise OptionError(f"no setting of a slide is called {', '.join(unknown)}: give {', '.join(sorted(types))}")
        for name, value in settings.items():
            if types[name] is not float and not float(value).is_integer():
                raise OptionError(f"{name} {value:g}: give a whole number")
            if types[name] is bool and value not in (0, 1):
                raise OptionError(f"{name} {value:g}: give 1 (yes) or 0 (no)")
        return replace(self, **{name: types[name](value) for name, value in settings.items()})


SETTINGS = (
    "min_coverage", "holes_mm2", "pens", "max_tiles", "seed", "min_sharpness", "max_pen", "max_white", "max_black",
    "min_saturation",
)  # fmt: skip
"""What a slide may have of its own. Not the geometry, which a model wants to be the same for all."""


class Kept(NamedTuple):
    """The tiles of a slide, row by row, and what became of the others."""

    coords: Int64[np.ndarray, "tiles 2"]
    """Top left corners (x, y), level-0 pixels."""
    columns: dict[str, Float32[np.ndarray, "tiles"]]
    """Coverage, and the measures of `qc.Quality`."""
    excluded: dict[str, int]
    """How many with enough tissue were left out, by the reason that comes first."""


class TileStage:
    """The stage behind ``wsimil tile``. Its items are slides."""

    name = "tile"
    version = 4
    beside = (".jpg", ".geojson")

    def __init__(
        self,
        params: TileParams,
        workers: int = 0,
        mpp: Mapping[str, float] | None = None,
        settings: Mapping[str, Mapping[str, float]] | None = None,
        drawings: Drawings | None = None,
    ) -> None:
        """Make the stage.

        Args:
            params: what a tile is.
            workers: threads; 0 = the cores this process may use.
            mpp: micrometres per level-0 pixel by slide_id, where the user knows better than the file.
            settings: by slide_id, parameters that a slide has of its own.
            drawings: where regions and annotations of the slides lie.
        """
        self.params, self.workers, self.mpp = params, workers or available_cores(), dict(mpp or {})
        self.settings = {slide_id: dict(own) for slide_id, own in (settings or {}).items() if own}
        self.drawings = drawings or Drawings()

    def upstream(self, item: Item) -> str:
        """The slide's fingerprint, what the user told of it (resolution, own parameters), and what was drawn on it."""
        told: dict[str, float] = {} if (mpp := self.mpp.get(item.slide_id)) is None else {"mpp": mpp}
        told |= dict(sorted(self.settings.get(item.slide_id, {}).items()))
        words = [slide_fingerprint(item.source), *(f"{name}={value!r}" for name, value in told.items())]
        return " ".join(words) + self.drawings.upstream(item.slide_id)

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Tile slides, several at a time; those that lie far away are fetched ahead of their turn."""
        with Ahead(items, lambda item: item.slide_id, lambda item: item.source) as ahead:

            def tile(item: Item) -> Result:
                with ahead.use(item):
                    return self.tile(item)

            with closing(per_slide(tile, ahead.items(), self.workers, track)) as outcomes:
                yield from outcomes

    def tile(self, item: Item) -> Result:
        """Tile one slide.

        Raises:
            SlideUnreadable: its pixels cannot be read.
            ResolutionError: its micrometres per pixel are unknown, nonsense, or too coarse for the tiles.
            OptionError: it has parameters of its own that make no sense.
            PolygonError: what was drawn on it cannot be read, or lies elsewhere.
        """
        params = self.params.changed(self.settings.get(item.slide_id, {}))
        with open_slide(item.source, self.mpp.get(item.slide_id), self.params.reader) as slide:
            enlargement = _enlargement(slide, params)
            thumbnail = slide.thumbnail(min(WORKING_MPP, preview_mpp(slide)))
            tissue = self._tissue(item, slide, thumbnail, params)
            annotated = self.drawings.annotated(item.slide_id, slide.l0_size)
            l0_tile = l0_tile_size(params.tile_um, slide.mpp_x, slide.mpp_y)
            grid = lattice(slide.l0_size, l0_tile, params.overlap_px / params.tile_px)
            kept = _kept(slide, tissue, grid, params)
        polygons = outline(tissue.mask, *_l0_scales(slide, tissue.mask))
        attrs = _geometry(slide, params, grid) | {"enlargement": enlargement} | _found(tissue, grid, kept)
        if own := self.settings.get(item.slide_id):
            attrs["settings"] = json.dumps(own, sort_keys=True)
        if not len(kept.coords):
            attrs |= {"status": "empty", "reason": _why_empty(slide, tissue, l0_tile, kept, params)}
        classes = {name: rings(area) for name, area in (annotated or {}).items()}
        files = {
            ".jpg": draw_preview(thumbnail, slide.l0_size, rings(polygons), kept.coords, l0_tile, classes),
            ".geojson": to_geojson(polygons, "Tissue"),
        }
        shape = Geometry(params.tile_px, params.mpp, params.overlap_px, l0_tile[0], slide.mpp_x, slide.l0_size)
        arrays: dict[str, np.ndarray] = {"coords": kept.coords, **kept.columns}
        array_attrs = {"coords": trident_attrs(item.slide_id, folder_of(item.source), shape)}
        if annotated is not None:
            labels = label_tiles(annotated, kept.coords, l0_tile)
            arrays["annotations"], array_attrs["annotations"] = labels.shares, {"classes": json.dumps(labels.classes)}
        return Result(Artifact(arrays, attrs, array_attrs), len(kept.coords), files)

    def _tissue(self, item: Item, slide: Slide, thumbnail: Thumbnail, params: TileParams) -> Tissue:
        """The tissue that was found, as far as regions say that it counts."""
        found = find_tissue(*thumbnail, params.holes_mm2, params.pens)
        choice = RegionParams(params.include, params.exclude)
        mask, reason = self.drawings.tissue(item.slide_id, found.mask, found.reason, slide.l0_size, choice)
        ink, wide = found.ink & ~mask, found.wide_ink & ~mask  # what is drawn as tissue is no ink
        return found._replace(mask=mask, reason=reason, ink=ink, wide_ink=wide)


def _kept(slide: Slide, tissue: Tissue, grid: Lattice, params: TileParams) -> Kept:
    """The tiles with enough tissue that keep to the limits, at most so many."""
    tiles = tiles_on_tissue(tissue.mask, grid, params.min_coverage)
    quality = qc.measure(slide, grid, tiles.coords, tissue.ink)
    good, excluded = np.ones(len(tiles.coords), bool), {}
    for fault, broken in params.broken(quality).items():
        excluded[fault] = int((good & broken).sum())
        good &= ~broken
    chosen = np.flatnonzero(good)
    if params.max_tiles:
        chosen = chosen[spread(tiles.coords[chosen], params.max_tiles, params.seed)]
        excluded["max_tiles"] = int(good.sum()) - len(chosen)
    columns = {"coverage": tiles.coverage, **quality._asdict()}
    counted = {fault: count for fault, count in excluded.items() if count}
    return Kept(tiles.coords[chosen], {name: values[chosen] for name, values in columns.items()}, counted)


def _found(tissue: Tissue, grid: Lattice, kept: Kept) -> dict[str, Any]:
    """What a slide has of tissue, ink and tiles left out."""
    held = tissue_held(tissue.mask, grid, kept.coords)
    return {
        "tissue_mm2": tissue.area_mm2,
        "tissue_share": float(tissue.mask.mean()),
        "tissue_beyond_share": held.beyond,
        "tissue_tiled_share": held.tiled,
        "ink_share": float(tissue.ink.mean()),
        "wide_ink_mm2": tissue.wide_ink_mm2,
        "sharpness": float(np.median(kept.columns["sharpness"])) if len(kept.coords) else 0.0,
        "excluded": json.dumps(kept.excluded, sort_keys=True),
    }


def _enlargement(slide: Slide, params: TileParams) -> float:
    """How many times the slide must be enlarged to the tiles' resolution; 1 where it is fine enough.

    Raises:
        ResolutionError: more than makes sense.
    """
    factor = max(slide.mpp_x, slide.mpp_y) / params.mpp
    if factor > _MAX_ENLARGEMENT:
        raise ResolutionError(
            f"{slide.place} has {_mpp(slide)} um/px, too coarse for tiles of {params.mpp:.4g} um/px: "
            f"make coarser ones by `wsimil tile --mpp`, at least {max(slide.mpp_x, slide.mpp_y) / 2:.3g}; a model of"
            " finer tiles has no answer for this slide"
        )
    if factor > 1.01:
        log.warning(
            "%s: %s um/px is enlarged %.2f times to the tiles' %.4g", slide.place, _mpp(slide), factor, params.mpp
        )
    return max(1.0, factor)


def _mpp(slide: Slide) -> str:
    return f"{slide.mpp_x:.4g}" if slide.mpp_x == slide.mpp_y else f"{slide.mpp_x:.4g} x {slide.mpp_y:.4g}"


def _l0_scales(slide: Slide, image: np.ndarray) -> tuple[float, float]:
    return slide.l0_size[0] / image.shape[1], slide.l0_size[1] / image.shape[0]


def _why_empty(slide: Slide, tissue: Tissue, l0_tile: tuple[int, int], kept: Kept, params: TileParams) -> str:
    if slide.l0_size[0] < l0_tile[0] or slide.l0_size[1] < l0_tile[1]:
        return "the slide is smaller than one tile ({} x {} px against {} x {})".format(*slide.l0_size, *l0_tile)
    if tissue.reason:
        return tissue.reason
    if kept.excluded:
        told = ", ".join(f"{count} for {fault}" for fault, count in kept.excluded.items())
        return f"{tissue.area_mm2:.3g} mm2 of tissue, but every tile was left out: {told}"
    return f"{tissue.area_mm2:.3g} mm2 of tissue, but no tile with {params.min_coverage:.0%} of it"


def _geometry(slide: Slide, params: TileParams, grid: Lattice) -> dict[str, Any]:
    return {
        "mpp_x": slide.mpp_x,
        "mpp_y": slide.mpp_y,
        "mpp_source": slide.mpp_source,
        "tile_um": params.tile_um,
        "tile_px": params.tile_px,
        "l0_tile_width": grid.l0_tile[0],
        "l0_tile_height": grid.l0_tile[1],
        "l0_step_x": grid.l0_step[0],
        "l0_step_y": grid.l0_step[1],
        "level0_width": slide.l0_size[0],
        "level0_height": slide.l0_size[1],
        "resample": slide.resampling,
        "slide_path": recorded(slide.place),
        "reader": slide.reader,
        "reader_reason": slide.why,
    }
