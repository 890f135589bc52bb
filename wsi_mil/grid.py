"""Which squares of a slide are tiles: one lattice from the slide's origin, whatever pieces of tissue lie on it.

Also what files say of them on ``coords``, in the words that TRIDENT's readers look for.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from wsi_mil.slides.resolution import nominal_power


class Lattice(NamedTuple):
    """Where tiles may lie: all that are wholly inside the slide, from its top left corner on."""

    l0_size: tuple[int, int]
    """(width, height) of the slide, level-0 pixels."""
    l0_tile: tuple[int, int]
    """(width, height) of a tile."""
    l0_step: tuple[int, int]
    """From one tile to the next; less than a tile where they overlap."""

    @property
    def l0_x(self) -> Int64[np.ndarray, "columns"]:
        """Left edges of the columns, level-0 pixels."""
        return np.arange(0, self.l0_size[0] - self.l0_tile[0] + 1, self.l0_step[0], dtype=np.int64)

    @property
    def l0_y(self) -> Int64[np.ndarray, "rows"]:
        """Upper edges of the rows, level-0 pixels."""
        return np.arange(0, self.l0_size[1] - self.l0_tile[1] + 1, self.l0_step[1], dtype=np.int64)


class Tiles(NamedTuple):
    """The tiles kept of a slide, row by row."""

    coords: Int64[np.ndarray, "tiles 2"]
    """Top left corners (x, y), level-0 pixels."""
    coverage: Float32[np.ndarray, "tiles"]


class Geometry(NamedTuple):
    """What the tiles of a slide are."""

    tile_px: int
    """Side of a tile as the encoder sees it, pixels."""
    tile_mpp: float
    """Micrometres per pixel there."""
    overlap_px: int
    """Of neighbours, pixels as the encoder sees them."""
    l0_tile_width: int | None
    """Level-0 pixels; None where nobody knows the slide's pixels ..."""
    l0_mpp: float | None
    """... and the micrometres per level-0 pixel."""
    l0_size: tuple[int, int] | None
    """(width, height) of the slide, level-0 pixels; None where nobody knows them."""


def trident_attrs(slide_id: str, folder: Path | str, tiles: Geometry) -> dict[str, Any]:
    """What TRIDENT's readers want to find on ``coords``; magnifications are nominal there.

    Args:
        slide_id: of the slide.
        folder: of the file that the tiles are of; a text as it stands.
        tiles: what they are; what nobody knows is left out.
    """
    attrs = {
        "patch_size": tiles.tile_px,
        "patch_size_level0": tiles.l0_tile_width,
        "level0_magnification": tiles.l0_mpp and nominal_power(tiles.l0_mpp),
        "target_magnification": nominal_power(tiles.tile_mpp),
        "overlap": tiles.overlap_px,
        "name": Path(slide_id).name,
        "savetodir": str(folder.absolute() if isinstance(folder, Path) else folder),
    }
    if tiles.l0_size:
        attrs |= {"level0_width": tiles.l0_size[0], "level0_height": tiles.l0_size[1]}
    return {name: value for name, value in attrs.items() if value is not None}


def l0_tile_size(tile_um: float, mpp_x: float, mpp_y: float) -> tuple[int, int]:
    """Width and height of a tile in level-0 pixels: rounded once, here."""
    return max(1, round(tile_um / mpp_x)), max(1, round(tile_um / mpp_y))


def lattice(l0_size: tuple[int, int], l0_tile: tuple[int, int], overlap: float = 0.0) -> Lattice:
    """The lattice of a slide.

    Args:
        l0_size: (width, height) of the slide, level-0 pixels.
        l0_tile: (width, height) of a tile, level-0 pixels.
        overlap: of neighbours, as a share of a tile's side, below 1.
    """
    width, height = (max(1, round(side * (1 - overlap))) for side in l0_tile)
    return Lattice(l0_size, l0_tile, (width, height))


def tiles_on_tissue(mask: Bool[np.ndarray, "height width"], grid: Lattice, min_coverage: float) -> Tiles:
    """Choose the tiles of a slide that are covered so far, row by row.

    Args:
        mask: tissue, over the whole slide at any scale.
        grid: where they may lie.
        min_coverage: least share of a tile that is tissue.
    """
    share = coverage(mask, grid)
    row, column = np.nonzero(share >= min_coverage - 1e-9)  # what rounding may take from a whole tile
    coords = np.stack([grid.l0_x[column], grid.l0_y[row]], axis=1)
    return Tiles(coords, share[row, column].astype(np.float32))


def coverage(mask: Bool[np.ndarray, "height width"], grid: Lattice) -> Float[np.ndarray, "rows columns"]:
    """Share of each place of a lattice that is tissue, exactly: pixels of the mask count by the part inside."""
    x, y = (grid.l0_x, grid.l0_x + grid.l0_tile[0]), (grid.l0_y, grid.l0_y + grid.l0_tile[1])
    scale_x, scale_y = mask.shape[1] / grid.l0_size[0], mask.shape[0] / grid.l0_size[1]
    whole = grid.l0_tile[0] * scale_x * grid.l0_tile[1] * scale_y
    return np.clip(_areas(mask, grid.l0_size, x, y) / whole, 0, 1)


class Held(NamedTuple):
    """Where the tissue of a slide is."""

    beyond: float
    """Share of it right of the last column of the lattice or below the last row, where no tile can be."""
    tiled: float
    """Share of it in tiles, where tiles overlap counted once."""


def tissue_held(mask: Bool[np.ndarray, "height width"], grid: Lattice, coords: Int64[np.ndarray, "tiles 2"]) -> Held:
    """How much of the tissue the lattice leaves out, and how much lies in tiles, exactly; nothing where there is none.

    Args:
        mask: tissue, over the whole slide at any scale.
        grid: where tiles may lie.
        coords: top left corners of those that there are.
    """
    total, (width, height) = mask.sum(), grid.l0_tile
    x, y = (_edges(left, side) for left, side in zip((grid.l0_x, grid.l0_y), grid.l0_tile, strict=True))
    if not total or len(x) < 2 or len(y) < 2:
        return Held(float(total > 0), 0.0)
    times = np.zeros((len(y), len(x)), np.int64)  # how many tiles begin less those that end
    for right, down in np.ndindex(2, 2):
        row, column = np.searchsorted(y, coords[:, 1] + down * height), np.searchsorted(x, coords[:, 0] + right * width)
        np.add.at(times, (row, column), 1 if right == down else -1)
    areas = _areas(mask, grid.l0_size, (x[:-1], x[1:]), (y[:-1], y[1:])) / total
    tiled = areas[times.cumsum(0).cumsum(1)[:-1, :-1] > 0].sum()
    return Held(float(np.clip(1 - areas.sum(), 0, 1)), float(np.clip(tiled, 0, 1)))


def _edges(start: Int64[np.ndarray, "lines"], side: int) -> Int64[np.ndarray, "edges"]:
    """Where tiles begin or end along one axis."""
    return np.unique(np.concatenate([start, start + side]))


def _areas(
    mask: Bool[np.ndarray, "height width"],
    l0_size: tuple[int, int],
    x: tuple[Int64[np.ndarray, "columns"], Int64[np.ndarray, "columns"]],
    y: tuple[Int64[np.ndarray, "rows"], Int64[np.ndarray, "rows"]],
) -> Float[np.ndarray, "rows columns"]:
    """Tissue in each box, in pixels of the mask; boxes begin and end at ``x`` and ``y``, level-0 pixels.

    The integral of a mask of square pixels is bilinear between their corners, so interpolating its integral image at
    the corners of a box gives the area inside without loss.
    """
    height, width = mask.shape
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = mask.cumsum(0, dtype=np.int64).cumsum(1)
    scale_x, scale_y = width / l0_size[0], height / l0_size[1]
    strips = _between(integral, y[0] * scale_y, y[1] * scale_y)
    return _between(strips.T, x[0] * scale_x, x[1] * scale_x).T


def _between(
    table: Float[np.ndarray, "points others"], start: Float[np.ndarray, "lines"], stop: Float[np.ndarray, "lines"]
) -> Float[np.ndarray, "lines others"]:
    """What an integral grows by between fractional positions."""
    return _interpolated(table, stop) - _interpolated(table, start)


def _interpolated(
    table: Float[np.ndarray, "points others"], at: Float[np.ndarray, "lines"]
) -> Float[np.ndarray, "lines others"]:
    """Rows of a table at fractional positions."""
    below = np.minimum(at.astype(int), len(table) - 2)
    part = (at - below)[:, None]
    return table[below] * (1 - part) + table[below + 1] * part


def spread(coords: Int64[np.ndarray, "tiles 2"], count: int, seed: int) -> Int64[np.ndarray, "chosen"]:
    """Choose tiles at random, each with the same chance, but evenly over the tissue.

    They are lined up along a curve that keeps neighbours together (Morton's), and drawn along it by the ordered pivotal
    method (Deville and Tille 1998, Biometrika 85; Chauvet 2012, Bernoulli 18): neighbours fight for their chances.

    Args:
        coords: of the tiles, level-0 pixels.
        count: how many to choose.
        seed: decides which; the same for every slide, so that a slide's choice does not depend on the others.

    Returns:
        Their indices, in order; all of them where there are no more than ``count``.
    """
    if len(coords) <= count:
        return np.arange(len(coords))
    rank = (np.unique(axis, return_inverse=True)[1].astype(np.int64) for axis in coords.T)
    line = np.argsort(np.bitwise_or(*(_spaced(axis) << shift for shift, axis in enumerate(rank))), kind="stable")
    return np.sort(line[_pivotal(len(coords), count, np.random.default_rng(seed))])


def _pivotal(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """Positions on a line, each with the chance ``count / total``; the chances are kept as whole numbers of 1/total."""
    chosen, holder, held = [], 0, count
    for position, luck in enumerate(rng.random(total - 1).tolist(), start=1):
        both = held + count
        if both < total:  # one of the two takes both chances
            holder = position if luck * both < count else holder
            held = both
        else:  # one of the two is chosen, the other keeps what is left
            stays = luck * (2 * total - both) < total - count
            chosen.append(holder if stays else position)
            holder, held = (position if stays else holder), both - total
    return chosen + ([holder] if len(chosen) < count else [])


def _spaced(values: Int64[np.ndarray, "tiles"]) -> Int64[np.ndarray, "tiles"]:
    """The bits of numbers below 2^31, a zero before each."""
    for shift, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
                        (2, 0x3333333333333333), (1, 0x5555555555555555)):  # fmt: skip
        values = (values | (values << shift)) & mask
    return values
