"""Tiles on a grid, and convolution over its occupied cells: what a zero-padded image would give, without the image.

A slide's tissue may fill little of the box around it, and so may a tile that lies far off. So each occupied cell looks
up its neighbours in a sorted list of the occupied cells: memory grows with the tiles and not with the box.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor
from torch.autograd.function import once_differentiable

# A tile half way between two cells goes to the further one, whatever rounding made of its coordinates.
_HALF_WAY = 0.5 + 1e-3
_BLOCK = 1024


class Grid(NamedTuple):
    """Which cells are occupied, by which tiles, and next to which other cells."""

    cell: Int[Tensor, " tiles"]
    """The occupied cell that each tile lies in."""
    neighbours: Int[Tensor, "window cells"]
    """The cell at each place of a square window around each cell, row by row; where none is occupied, their number."""

    def mean(self, tiles: Float[Tensor, "tiles dim"]) -> Float[Tensor, "cells dim"]:
        """Mean of the tiles in each cell."""
        cells = self.neighbours.shape[1]
        total = tiles.new_zeros(cells, tiles.shape[1]).index_add(0, self.cell, tiles)
        return total / self.cell.bincount(minlength=cells).unsqueeze(-1)


def make_grid(cells: Int[Tensor, "tiles 3"], side: int) -> Grid:
    """Index the cells that are occupied.

    Args:
        cells: slide, row and column of each tile, each counted from 0. Slides are not next to each other.
        side: cells along a side of the window, odd.
    """
    reach = side // 2
    slide, row, column = cells.unbind(dim=1)
    # A margin around each slide: no step of a window leads from one row's end, or one slide, into another.
    height, width = (cells[:, 1:].amax(dim=0) + 1 + 2 * reach).tolist()
    occupied, cell = torch.unique((slide * height + row + reach) * width + column + reach, return_inverse=True)
    step = torch.arange(-reach, reach + 1, device=cells.device)
    wanted = occupied + (step.unsqueeze(1) * width + step).view(-1, 1)
    found = torch.searchsorted(occupied, wanted).clamp_max(len(occupied) - 1)
    return Grid(cell, found.where(occupied[found] == wanted, len(occupied)))


def find_cells(
    coords_um: Float[Tensor, "tiles 2"], slide: Int[Tensor, " tiles"], pitch_um: float
) -> Int[Tensor, "tiles 3"]:
    """Slide, row and column of each tile, each counted from 0; a slide's rows and columns start at its first tiles."""
    slides, slide = torch.unique(slide, return_inverse=True)
    coords_um = coords_um.double()
    owner = slide.unsqueeze(1).expand(-1, 2)
    origin = coords_um.new_full((len(slides), 2), torch.inf).scatter_reduce(0, owner, coords_um, "amin")
    column, row = ((coords_um - origin[slide]) / pitch_um + _HALF_WAY).floor().long().unbind(dim=1)
    return torch.stack([slide, row, column], dim=1)


def typical_pitch_um(coords_um: Float[Tensor, "tiles 2"], slide: Int[Tensor, " tiles"]) -> float:
    """Median distance from a place with tiles to the nearest other one of its slide; on a tile grid, its pitch.

    Where no slide has two places there is nothing to measure: 1 um, and any other would make the same grid.
    """
    coords, slides = coords_um.detach().double().cpu().numpy(), slide.cpu().numpy()
    places = [np.unique(coords[slides == one], axis=0) for one in np.unique(slides)]
    nearest = [KDTree(place).query(place, k=2)[0][:, 1] for place in places if len(place) > 1]
    return float(np.median(np.concatenate(nearest))) if nearest else 1.0


def convolve(
    cells: Float[Tensor, "cells dim"], kernel: Float[Tensor, "dim side side"], grid: Grid
) -> Float[Tensor, "cells dim"]:
    """Convolve each feature with its own kernel (depthwise, as ``conv2d`` does it); empty cells are zeros.

    Differentiable once. Nothing is kept for the backward pass but the arguments.
    """
    return _Convolution.apply(cells, kernel.flatten(1).T.contiguous(), grid.neighbours)


class _Convolution(torch.autograd.Function):
    """Sums over windows; the window of ``side * side`` places is flat."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, kernel: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(cells, kernel, neighbours)
        return _window_sums(cells, kernel, neighbours)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        cells, kernel, neighbours = ctx.saved_tensors
        # Who sees a cell at one place of its window is seen by it at the opposite place.
        return _window_sums(gradient, kernel.flip(0), neighbours), _products(gradient, cells, neighbours), None


def _window_sums(
    cells: Float[Tensor, "cells dim"], kernel: Float[Tensor, "window dim"], neighbours: Int[Tensor, "window cells"]
) -> Float[Tensor, "cells dim"]:
    bordered = _with_empty(cells)
    sums = torch.zeros_like(cells)
    # In blocks that stay in cache.
    for total, block in zip(sums.split(_BLOCK), neighbours.split(_BLOCK, dim=1), strict=True):
        for weights, index in zip(kernel, block, strict=True):
            total.addcmul_(bordered[index], weights)
    return sums


def _products(
    gradient: Float[Tensor, "cells dim"], cells: Float[Tensor, "cells dim"], neighbours: Int[Tensor, "window cells"]
) -> Float[Tensor, "window dim"]:
    bordered = _with_empty(cells)
    products = gradient.new_zeros(len(neighbours), gradient.shape[1])
    for part, block in zip(gradient.split(_BLOCK), neighbours.split(_BLOCK, dim=1), strict=True):
        for place, index in enumerate(block):
            products[place] += (part * bordered[index]).sum(dim=0)
    return products


def _with_empty(cells: Float[Tensor, "cells dim"]) -> Float[Tensor, "bordered dim"]:
    """Add the empty cell at the end, which the neighbours that are not there point to."""
    return torch.cat([cells, cells.new_zeros(1, cells.shape[1])])
