"""Bags whose tiles have neighbours, and the same neighbours as dense matrices."""

import torch

from wsi_mil.aggregators.neighbours import TIE_UM, Graph
from wsi_mil.bags import Batch


def batch_of(*coords, slide=None):
    """Bags at the given positions, padded with NaN; double precision."""
    longest = max(map(len, coords))
    xy, mask = torch.full((len(coords), longest, 2), torch.nan).double(), torch.zeros(len(coords), longest).bool()
    for bag, one in enumerate(coords):
        xy[bag, : len(one)], mask[bag, : len(one)] = torch.as_tensor(one).double(), True
    return Batch(torch.zeros(*mask.shape, 1).double(), xy, mask, slide)


def grid(tiles, seed, side=9):
    g = torch.Generator().manual_seed(seed)
    cells = torch.randperm(side * side, generator=g)[:tiles]
    return 256.0 * torch.stack((cells % side, cells // side), dim=1)


def scattered(tiles, seed):
    return 3000 * torch.rand(tiles, 2, generator=torch.Generator().manual_seed(seed))


def two_slides(tiles, shape):
    """The first tiles of each bag are of slide 5, the others of slide 2."""
    return torch.where(torch.arange(shape[1]) < tiles, 5, 2).expand(shape)


def dense(batch: Batch, neighbours: int, self_loops: bool = False):
    """Who is whose neighbour, (nodes, nodes): every pair looked at."""
    bags, tiles = batch.mask.shape
    joined = torch.zeros(bags * tiles, bags * tiles, dtype=torch.bool)
    for bag in range(bags):
        real = [tile for tile in range(tiles) if batch.mask[bag, tile]]
        for i in real:
            others = [j for j in real if j != i and (batch.slide is None or batch.slide[bag, i] == batch.slide[bag, j])]
            um = {j: float(torch.dist(batch.coords_um[bag, i], batch.coords_um[bag, j])) for j in others}
            reach = sorted(um.values())[: neighbours or None][-1] + TIE_UM if um else 0
            for j in (j for j in others if um[j] <= reach):
                joined[bag * tiles + i, bag * tiles + j] = joined[bag * tiles + j, bag * tiles + i] = True
            joined[bag * tiles + i, bag * tiles + i] = self_loops
    return joined


def matrix(graph: Graph, values=None):
    """An array (nodes, nodes) from one number per edge, 1 unless told; row = target."""
    values = torch.ones_like(graph.um) if values is None else values
    nodes = len(graph.degree)
    return values.new_zeros(nodes, nodes).index_put((graph.target, graph.source), values)


CASES = {
    "grid": batch_of(grid(40, 0)),
    "full grid": batch_of(grid(81, 0)),
    "off the grid": batch_of(scattered(40, 0)),
    "padded": batch_of(grid(12, 0), grid(40, 1), grid(1, 2), scattered(25, 3)),
    "slides": batch_of(grid(30, 0), scattered(20, 1), slide=two_slides(13, (2, 30))),
    "a slide of one tile": batch_of(grid(10, 0), slide=two_slides(1, (1, 10))),
    "coinciding": batch_of(torch.cat([grid(10, 0).repeat(3, 1), torch.zeros(40, 2)])),
}
