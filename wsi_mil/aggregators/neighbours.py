"""Which tiles of a slide are neighbours, and sums over neighbours whose memory is linear in the tiles."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from wsi_mil.bags import Batch
from wsi_mil.errors import OptionError
from wsi_mil.nearest import tied

TIE_UM = 1.0
"""Distances that differ by less are ties: tiles lie on whole pixels, and a turned slide is rounded anew."""
MOST_PAIRS = 4096**2
"""Of one slide. All pairs of 4,096 tiles; 100,000 tiles with 8 neighbours each have a million."""


class Graph(NamedTuple):
    """Neighbours among the tiles of a batch, which are numbered through, padding included: bag * tiles + tile.

    Edges are sorted by target, so that sums over the neighbours of a tile are sums over a run of edges.
    """

    source: Int[Tensor, " edges"]
    """The neighbour."""
    target: Int[Tensor, " edges"]
    """Whose neighbour it is."""
    um: Float[Tensor, " edges"]
    """How far apart they are."""
    degree: Int[Tensor, " nodes"]
    """How many neighbours a tile has; 0 for padding."""

    def weighted_sum(
        self, nodes: Float[Tensor, "nodes dim"], weights: Float[Tensor, " edges"]
    ) -> Float[Tensor, "nodes dim"]:
        """Sum over the neighbours of each tile, weighted by edge; gradients reach both. No array of edges x dim."""
        first = self.degree.cumsum(0) - self.degree
        weights = weights.to(nodes.dtype)
        return functional.embedding_bag(self.source, nodes, first, mode="sum", per_sample_weights=weights)

    def sum(self, values: Float[Tensor, " edges"]) -> Float[Tensor, " nodes"]:
        """Sum over the edges of each tile; 0 where there are none."""
        return self.weighted_sum(values.new_ones(len(self.degree), 1), values).squeeze(1)

    def mean(self, nodes: Float[Tensor, "nodes dim"]) -> Float[Tensor, "nodes dim"]:
        """Mean over the neighbours of each tile; 0 where there are none."""
        return self.weighted_sum(nodes, 1 / self.degree[self.target].to(nodes.dtype))

    def softmax(self, scores: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
        """Softmax over the edges of each tile."""
        lowest = scores.new_full((len(self.degree),), -torch.inf)
        top = lowest.scatter_reduce(0, self.target, scores.detach(), "amax")
        shares = (scores - top[self.target]).exp()
        return shares / self.sum(shares)[self.target]


def neighbour_graph(batch: Batch, neighbours: int, self_loops: bool = False) -> Graph:
    """Find which tiles are neighbours: of two tiles of a slide, one is among the nearest of the other.

    Tiles as far as the last of the nearest (within `TIE_UM`) are nearest too: which tiles are neighbours does not
    depend on their order, nor on where the slide lies or how it is turned. Found on the CPU.

    Args:
        batch: padded bags; tiles of different bags or slides are no neighbours.
        neighbours: how many tiles are nearest, a tile itself left out; 0 = all others of the slide.
        self_loops: whether each real tile is its own neighbour too.

    Raises:
        OptionError: a slide has more than `MOST_PAIRS` pairs of neighbours.
    """
    nodes = batch.mask.numel()
    coords = batch.coords_um.detach().cpu().double().flatten(0, 1).numpy()
    keys = [np.empty(0, np.int64)]  # target * nodes + source: one number per edge, in the order of edges
    for tiles in _slides(batch):
        if self_loops:
            keys.append(tiles * nodes + tiles)
        first, second = tiles[_nearest(coords[tiles], neighbours)]
        keys += [first * nodes + second, second * nodes + first]
    edges = np.sort(np.concatenate(keys))
    edges = edges[np.diff(edges, prepend=-1) > 0]  # np.unique does the same, many times slower
    target, source = np.divmod(edges, nodes)
    um = np.linalg.norm(coords[source] - coords[target], axis=1)
    device = batch.features.device
    return Graph(
        source=torch.from_numpy(source).to(device),
        target=torch.from_numpy(target).to(device),
        um=torch.from_numpy(um).to(batch.features),
        degree=torch.from_numpy(np.bincount(target, minlength=nodes)).to(device),
    )


def _slides(batch: Batch) -> Iterator[Int[np.ndarray, " tiles"]]:
    """The numbers of the real tiles of each slide of each bag."""
    mask: Bool[np.ndarray, "bags tiles"] = batch.mask.cpu().numpy()
    slide = np.zeros(mask.shape, np.int64) if batch.slide is None else batch.slide.cpu().numpy()
    for bag, real in enumerate(mask):
        for one in np.unique(slide[bag, real]):
            yield bag * len(real) + np.flatnonzero(real & (slide[bag] == one))


def _nearest(coords_um: Float[np.ndarray, "tiles 2"], neighbours: int) -> Int[np.ndarray, "2 pairs"]:
    """Pairs of a tile and one of its nearest, of one slide; each pair once or twice, either way round."""
    tiles = len(coords_um)
    rank = min(neighbours or tiles, tiles - 1)
    if rank == tiles - 1:
        _require_few(tiles**2, tiles, neighbours)
        return np.stack(np.triu_indices(tiles, 1))
    _require_few(tiles * (rank + 1), tiles, neighbours)
    found, count = list[Int[np.ndarray, "2 some"]](), 0
    for rows, other, _, near in tied(KDTree(coords_um), coords_um, rank, lambda um: um + TIE_UM):
        row, column = near.nonzero()
        count += len(row)
        _require_few(count, tiles, neighbours)
        found.append(np.stack([rows[row], other[row, column]]))
    both = np.concatenate(found, axis=1)
    return both[:, both[0] != both[1]]


def _require_few(pairs: int, tiles: int, neighbours: int) -> None:
    if pairs > MOST_PAIRS:
        raise OptionError(
            f"neighbours {neighbours}: too many pairs among {tiles:,} tiles, choose fewer, such as 8 (tiles in one"
            " place are neighbours all)"
        )
