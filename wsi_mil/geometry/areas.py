"""How much of a square is inside a polygon: exact areas over a whole grid at once.

By Green's theorem the area of a polygon inside a cell is a sum over its edges, each cut where it crosses a line of the
grid: a piece counts in its own cell by what lies between it and the cell's right side, and in all cells to the right by
their full width. So one pass over the edges gives every cell, however many there are, and no cell is intersected with
anything.
"""

from typing import NamedTuple

import numpy as np
import shapely
from jaxtyping import Float, Int
from shapely.geometry.base import BaseGeometry

_DECIMALS = 9  # of a share: beyond what float64 leaves of sums over coordinates of a slide


def cell_shares(
    area: BaseGeometry, l0_x: Float[np.ndarray, "x_lines"], l0_y: Float[np.ndarray, "y_lines"]
) -> Float[np.ndarray, "rows columns"]:
    """Share of each cell of a grid that lies inside an area.

    Args:
        area: valid polygons, level-0 pixels.
        l0_x: the grid's vertical lines, level-0 pixels, ascending.
        l0_y: its horizontal lines.

    Returns:
        Between 0 and 1, exact to 1e-6.
    """
    return _cleaned(_cell_areas(area, l0_x, l0_y) / (np.diff(l0_y)[:, None] * np.diff(l0_x)))


def box_shares(
    area: BaseGeometry, coords: Int[np.ndarray, "boxes 2"], l0_size: tuple[int, int]
) -> Float[np.ndarray, "boxes"]:
    """Share of each of many boxes of one size that lies inside an area.

    Args:
        area: valid polygons, level-0 pixels.
        coords: top left corners of the boxes (x, y), level-0 pixels; boxes may overlap.
        l0_size: (width, height) of each box, level-0 pixels.

    Returns:
        Between 0 and 1, exact to 1e-6.
    """
    (x, left, right), (y, top, bottom) = (_lines(coords[:, axis], l0_size[axis]) for axis in (0, 1))
    integral = np.zeros((len(y), len(x)))
    if len(coords):
        integral[1:, 1:] = _cell_areas(area, x, y).cumsum(0).cumsum(1)
    inside = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    return _cleaned(inside / (l0_size[0] * l0_size[1]))


def _lines(
    start: Int[np.ndarray, "boxes"], side: int
) -> tuple[Float[np.ndarray, "lines"], Int[np.ndarray, "boxes"], Int[np.ndarray, "boxes"]]:
    """The lines that boxes begin and end at, along one axis, and which of them are each box's own."""
    lines, index = np.unique(np.concatenate([start, start + side]), return_inverse=True)
    return lines.astype(float), index[: len(start)], index[len(start) :]


def _cleaned(shares: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    return np.clip(np.round(shares, _DECIMALS), 0, 1)


class _Edges(NamedTuple):
    """Straight pieces of outlines; the sign makes areas positive, and those of holes negative."""

    start: Float[np.ndarray, "edges 2"]
    end: Float[np.ndarray, "edges 2"]
    sign: Float[np.ndarray, "edges"]


def _cell_areas(
    area: BaseGeometry, x: Float[np.ndarray, "x_lines"], y: Float[np.ndarray, "y_lines"]
) -> Float[np.ndarray, "rows columns"]:
    middle_x, middle_y, dy = _pieces(_edges(area), x, y)
    column, row = np.searchsorted(x, middle_x, "right") - 1, np.searchsorted(y, middle_y, "right") - 1
    rows, columns = len(y) - 1, len(x) - 1
    seen = (row >= 0) & (row < rows) & (column < columns)  # what is right of the grid has nothing to its right
    column, row, middle_x, dy = column[seen], row[seen], middle_x[seen], dy[seen]
    # Column 0 of this table is everything left of the grid.
    passed = np.bincount(row * (columns + 1) + column + 1, dy, rows * (columns + 1)).reshape(rows, columns + 1)
    own = column >= 0
    cell, beside = (row * columns + column)[own], (x[column + 1] - middle_x)[own]
    here = np.bincount(cell, dy[own] * beside, rows * columns).reshape(rows, columns)
    return here + passed.cumsum(1)[:, :-1] * np.diff(x)


def _edges(area: BaseGeometry) -> _Edges:
    polygons = shapely.get_parts(area)
    rings, owner = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    within = ring[1:] == ring[:-1]
    start, end, ring = points[:-1][within], points[1:][within], ring[1:][within]
    turned = np.bincount(ring, (start[:, 0] + end[:, 0]) / 2 * (end[:, 1] - start[:, 1]), len(rings))
    outer = np.append(True, owner[1:] != owner[:-1])[: len(rings)]  # the first ring of a polygon is its outside
    return _Edges(start, end, (np.where(outer, -1.0, 1.0) * np.sign(turned))[ring])


def _pieces(
    edges: _Edges, x: Float[np.ndarray, "x_lines"], y: Float[np.ndarray, "y_lines"]
) -> tuple[Float[np.ndarray, "pieces"], Float[np.ndarray, "pieces"], Float[np.ndarray, "pieces"]]:
    """Cut edges at the lines of a grid: the middle (x, y) of each piece, and its height with the edge's sign."""
    edge, part = np.arange(len(edges.start)), np.zeros(len(edges.start))
    crossings = [_crossings(edges.start[:, axis], edges.end[:, axis], lines) for axis, lines in ((0, x), (1, y))]
    which = np.concatenate([edge, edge, *(crossed for crossed, _ in crossings)])
    where = np.concatenate([part, part + 1, *(at for _, at in crossings)])
    order = np.lexsort((where, which))
    which, where = which[order], where[order]
    within = which[1:] == which[:-1]
    which, begins, ends = which[1:][within], where[:-1][within], where[1:][within]
    along = (edges.end - edges.start)[which]
    middle = edges.start[which] + along * ((begins + ends) / 2)[:, None]
    return middle[:, 0], middle[:, 1], along[:, 1] * (ends - begins) * edges.sign[which]


def _crossings(
    start: Float[np.ndarray, "edges"], end: Float[np.ndarray, "edges"], lines: Float[np.ndarray, "lines"]
) -> tuple[Int[np.ndarray, "crossings"], Float[np.ndarray, "crossings"]]:
    """Which edges cross lines, along one axis, and after which part of their length (0 to 1)."""
    first = np.searchsorted(lines, np.minimum(start, end), "right")
    count = np.maximum(np.searchsorted(lines, np.maximum(start, end), "left") - first, 0)
    edge = np.repeat(np.arange(len(start)), count)
    line = first[edge] + np.arange(len(edge)) - (np.cumsum(count) - count)[edge]
    return edge, np.clip((lines[line] - start[edge]) / (end - start)[edge], 0, 1)
