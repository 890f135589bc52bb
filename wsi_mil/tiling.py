"""Stage 1: slide -> tiles. Where the tissue is, and which squares of it the encoder will see.

Tiles lie on one grid over the whole slide, edge to edge from its top left corner, none over its border. A tile is kept
when enough of it is tissue.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from PIL import Image, ImageDraw

from wsi_mil.errors import OptionError, ResolutionError
from wsi_mil.executors import available_cores
from wsi_mil.geometry import outline, rings, to_geojson
from wsi_mil.progress import Progress
from wsi_mil.regions import Drawings, RegionParams
from wsi_mil.slides import Slide, Thumbnail, open_slide, slide_fingerprint
from wsi_mil.slides.base import RESAMPLE
from wsi_mil.stage import Item, Result, per_slide
from wsi_mil.store import Artifact
from wsi_mil.tissue import WORKING_MPP, Tissue, find_tissue

log = logging.getLogger(__name__)

_MAX_ENLARGEMENT = 2.05  # beyond it a tile is more invention than slide
_PREVIEW_PX = 1500
_OUTLINE, _GRID = (0, 130, 60), (30, 60, 160)
_NOMINAL_POWERS = (80, 60, 40, 20, 10, 5, 2, 1)


@dataclass(frozen=True)
class TileParams:
    """What a tile is."""

    tile_px: int = 224
    """Side of a tile as the encoder sees it, pixels."""
    tile_um: float = 256.0
    """Side of a tile on the slide, micrometres; with 224 px, 1.143 um/px: the paper's geometry, and CTransPath's."""
    min_coverage: float = 0.5
    """Least share of a tile that is tissue. At a half no tile is mostly glass, and every piece of tissue that is two
    tiles wide has a tile, wherever it lies on the grid."""
    include: Sequence[str] = ()
    """Classes of the regions that are tiled; none named: all that are not excluded."""
    exclude: Sequence[str] = ()
    """Classes of the regions that are cut out."""

    def __post_init__(self) -> None:
        if not self.tile_px >= 1:
            raise OptionError(f"--tile-px {self.tile_px}: give a positive number of pixels, such as 224")
        if not 0 < self.tile_um < float("inf"):
            raise OptionError(f"--tile-um {self.tile_um}: give a positive number of micrometres, such as 256")
        if not 0 < self.min_coverage <= 1:
            raise OptionError(f"--min-coverage {self.min_coverage}: give a share above 0 and up to 1, such as 0.5")
        RegionParams(self.include, self.exclude)  # refuses what contradicts itself

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of a tile as the encoder sees it."""
        return self.tile_um / self.tile_px


class Tiles(NamedTuple):
    """The tiles kept of a slide, row by row."""

    coords: Int64[np.ndarray, "tiles 2"]
    """Top left corners (x, y), level-0 pixels."""
    coverage: Float32[np.ndarray, "tiles"]


class TileStage:
    """The stage behind ``wsimil tile``. Its items are slides."""

    name = "tile"
    version = 1

    def __init__(
        self,
        params: TileParams,
        workers: int = 0,
        mpp: Mapping[str, float] | None = None,
        drawings: Drawings | None = None,
    ) -> None:
        """Make the stage.

        Args:
            params: what a tile is.
            workers: threads; 0 = the cores this process may use.
            mpp: micrometres per level-0 pixel by slide_id, where the user knows better than the file.
            drawings: where regions and annotations of the slides lie.
        """
        self.params, self.workers, self.mpp = params, workers or available_cores(), dict(mpp or {})
        self.drawings = drawings or Drawings()

    def upstream(self, item: Item) -> str:
        """The slide's fingerprint, the resolution that the user gave it, and what was drawn on it."""
        mpp = self.mpp.get(item.slide_id)
        told = "" if mpp is None else f" mpp={mpp!r}"
        return slide_fingerprint(item.source) + told + self.drawings.upstream(item.slide_id)

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Tile slides, several at a time."""
        return per_slide(self.tile, items, self.workers, track)

    def tile(self, item: Item) -> Result:
        """Tile one slide.

        Raises:
            SlideUnreadable: its pixels cannot be read.
            ResolutionError: its micrometres per pixel are unknown, nonsense, or too coarse for the tiles.
            PolygonError: what was drawn on it cannot be read, or lies elsewhere.
        """
        with open_slide(item.source, self.mpp.get(item.slide_id)) as slide:
            enlargement = _enlargement(slide, self.params)
            thumbnail = slide.thumbnail(min(WORKING_MPP, _preview_mpp(slide)))
        l0_tile = l0_tile_size(self.params.tile_um, slide.mpp_x, slide.mpp_y)
        found, choice = find_tissue(*thumbnail), RegionParams(self.params.include, self.params.exclude)
        mask, reason = self.drawings.tissue(item.slide_id, found.mask, found.reason, slide.l0_size, choice)
        tissue = found._replace(mask=mask, reason=reason)
        tiles = tiles_on_tissue(tissue.mask, slide.l0_size, l0_tile, self.params.min_coverage)
        polygons = outline(tissue.mask, *_l0_scales(slide, tissue.mask))
        attrs = _geometry(slide, self.params, l0_tile) | {"tissue_mm2": tissue.area_mm2, "enlargement": enlargement}
        if not len(tiles.coords):
            attrs |= {"status": "empty", "reason": _why_empty(slide, tissue, l0_tile, self.params)}
        files = {
            ".jpg": _preview(thumbnail, slide.l0_size, rings(polygons), tiles.coords, l0_tile),
            ".geojson": to_geojson(polygons, "Tissue"),
        }
        arrays = {"coords": tiles.coords, "coverage": tiles.coverage}
        array_attrs = {"coords": _trident_attrs(item, slide, self.params, l0_tile)}
        if labels := self.drawings.labels(item.slide_id, tiles.coords, l0_tile, slide.l0_size):
            arrays["annotations"], array_attrs["annotations"] = labels.shares, {"classes": json.dumps(labels.classes)}
        return Result(Artifact(arrays, attrs, array_attrs), len(tiles.coords), files)


def l0_tile_size(tile_um: float, mpp_x: float, mpp_y: float) -> tuple[int, int]:
    """Width and height of a tile in level-0 pixels: rounded once, here."""
    return max(1, round(tile_um / mpp_x)), max(1, round(tile_um / mpp_y))


def tiles_on_tissue(
    mask: Bool[np.ndarray, "height width"], l0_size: tuple[int, int], l0_tile: tuple[int, int], min_coverage: float
) -> Tiles:
    """Choose the tiles of a slide.

    Args:
        mask: tissue, over the whole slide at any scale.
        l0_size: (width, height) of the slide, level-0 pixels.
        l0_tile: (width, height) of a tile, level-0 pixels.
        min_coverage: least share of a tile that is tissue.

    Returns:
        The tiles wholly inside the slide that are covered so far, row by row.
    """
    columns, rows = l0_size[0] // l0_tile[0], l0_size[1] // l0_tile[1]
    share = coverage(
        mask, np.arange(columns + 1) * l0_tile[0] / l0_size[0], np.arange(rows + 1) * l0_tile[1] / l0_size[1]
    )
    row, column = np.nonzero(share >= min_coverage - 1e-9)  # what rounding may take from a whole tile
    coords = np.stack([column * l0_tile[0], row * l0_tile[1]], axis=1).astype(np.int64)
    return Tiles(coords, share[row, column].astype(np.float32))


def coverage(
    mask: Bool[np.ndarray, "height width"], x: Float[np.ndarray, "x_lines"], y: Float[np.ndarray, "y_lines"]
) -> Float[np.ndarray, "rows columns"]:
    """Share of each cell of a grid that is tissue, exactly: pixels of the mask count by the part inside the cell.

    The integral of a mask of square pixels is bilinear between their corners, so interpolating its integral image at
    the corners of a cell gives the area inside without loss.

    Args:
        mask: tissue.
        x: the grid's vertical lines, as shares of the mask's width (0 to 1).
        y: its horizontal lines, as shares of the height.
    """
    height, width = mask.shape
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = mask.cumsum(0, dtype=np.int64).cumsum(1)
    corners = _interpolated(_interpolated(integral, y * height).T, x * width).T
    areas = np.diff(np.diff(corners, axis=0), axis=1)
    sides = np.diff(y * height)[:, None] * np.diff(x * width)
    return np.clip(areas / sides, 0, 1)


def _interpolated(
    table: Float[np.ndarray, "points others"], at: Float[np.ndarray, "lines"]
) -> Float[np.ndarray, "lines others"]:
    """Rows of a table at fractional positions."""
    below = np.minimum(at.astype(int), len(table) - 2)
    part = (at - below)[:, None]
    return table[below] * (1 - part) + table[below + 1] * part


def _enlargement(slide: Slide, params: TileParams) -> float:
    """How many times the slide must be enlarged to the tiles' resolution; 1 where it is fine enough.

    Raises:
        ResolutionError: more than makes sense.
    """
    factor = max(slide.mpp_x, slide.mpp_y) / params.mpp
    if factor > _MAX_ENLARGEMENT:
        raise ResolutionError(
            f"{slide.path} has {_mpp(slide)} um/px, too coarse for tiles of {params.mpp:.4g} um/px: "
            f"choose a coarser --mpp, at least {max(slide.mpp_x, slide.mpp_y) / 2:.3g}"
        )
    if factor > 1.01:
        log.warning(
            "%s: %s um/px is enlarged %.2f times to the tiles' %.4g", slide.path, _mpp(slide), factor, params.mpp
        )
    return max(1.0, factor)


def _mpp(slide: Slide) -> str:
    return f"{slide.mpp_x:.4g}" if slide.mpp_x == slide.mpp_y else f"{slide.mpp_x:.4g} x {slide.mpp_y:.4g}"


def _preview_mpp(slide: Slide) -> float:
    return max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y) / _PREVIEW_PX


def _l0_scales(slide: Slide, image: np.ndarray) -> tuple[float, float]:
    return slide.l0_size[0] / image.shape[1], slide.l0_size[1] / image.shape[0]


def _why_empty(slide: Slide, tissue: Tissue, l0_tile: tuple[int, int], params: TileParams) -> str:
    if slide.l0_size[0] < l0_tile[0] or slide.l0_size[1] < l0_tile[1]:
        return "the slide is smaller than one tile ({} x {} px against {} x {})".format(*slide.l0_size, *l0_tile)
    if tissue.reason:
        return tissue.reason
    return f"{tissue.area_mm2:.3g} mm2 of tissue, but no tile with {params.min_coverage:.0%} of it"


def _geometry(slide: Slide, params: TileParams, l0_tile: tuple[int, int]) -> dict[str, Any]:
    return {
        "mpp_x": slide.mpp_x,
        "mpp_y": slide.mpp_y,
        "mpp_source": slide.mpp_source,
        "tile_um": params.tile_um,
        "tile_px": params.tile_px,
        "l0_tile_width": l0_tile[0],
        "l0_tile_height": l0_tile[1],
        "level0_width": slide.l0_size[0],
        "level0_height": slide.l0_size[1],
        "resample": RESAMPLE,
        "slide_path": str(slide.path.absolute()),
        "reader": slide.reader,
    }


def _trident_attrs(item: Item, slide: Slide, params: TileParams, l0_tile: tuple[int, int]) -> dict[str, Any]:
    """What TRIDENT's readers want to find on ``coords``; magnifications are nominal there."""
    return {
        "patch_size": params.tile_px,
        "patch_size_level0": l0_tile[0],
        "level0_magnification": _nominal_power(slide.mpp_x),
        "target_magnification": _nominal_power(params.mpp),
        "overlap": 0,
        "name": Path(item.slide_id).name,
        "savetodir": str(item.source.parent.absolute()),
        "level0_width": slide.l0_size[0],
        "level0_height": slide.l0_size[1],
    }


def _nominal_power(mpp: float) -> int:
    """The usual magnification nearest to a resolution (10x is about 1 um/px)."""
    return min(_NOMINAL_POWERS, key=lambda power: abs(np.log(power * mpp / 10)))


def _preview(
    thumbnail: Thumbnail,
    l0_size: tuple[int, int],
    lines: list[list[tuple[float, float]]],
    coords: Int64[np.ndarray, "tiles 2"],
    l0_tile: tuple[int, int],
) -> bytes:
    """The slide small, its tissue outlined and its tiles drawn, as a JPEG."""
    image = Image.fromarray(thumbnail.image)
    image.thumbnail((_PREVIEW_PX, _PREVIEW_PX))
    draw = ImageDraw.Draw(image)
    scale = np.array(image.size) / l0_size
    corners = coords * scale
    for left_top, right_bottom in zip(corners, corners + np.array(l0_tile) * scale, strict=True):
        draw.rectangle([*left_top, *right_bottom], outline=_GRID)
    for line in lines:
        draw.line([tuple(point) for point in np.array(line) * scale], fill=_OUTLINE, width=3)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
