"""What graph networks on neighbouring tiles share: the graph, layers with ReLU, pooling over tiles, classifier."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.neighbours import neighbour_graph
from wsi_mil.aggregators.options import require_choice, require_counts, require_fraction, require_neighbours
from wsi_mil.aggregators.pooling import Pooled, max_pool, mean_pool
from wsi_mil.aggregators.pooling_aggregator import PoolingAggregator
from wsi_mil.bags import Batch


@dataclass(frozen=True)
class GraphParams:
    """Options of `GraphNetwork`."""

    hidden: int = 128
    """Width of the layers."""
    layers: int = 2
    """How many layers: how many steps from neighbour to neighbour a tile looks."""
    neighbours: int = 8
    """How many of the nearest tiles are neighbours of a tile; 0 = all other tiles of the slide, as published, for
    slides of up to 4,096 tiles."""
    pooling: str = "max"
    """How tiles become one embedding: max (as published) or mean."""
    dropout: float = 0.0
    """Share of the features dropped in training."""

    def __post_init__(self) -> None:
        require_counts(hidden=self.hidden, layers=self.layers)
        require_neighbours(self.neighbours)
        require_choice("pooling", self.pooling, ("max", "mean"))
        require_fraction(dropout=self.dropout)


class GraphNetwork(PoolingAggregator):
    """Layers on the graph of neighbouring tiles, each with ReLU, pooling over tiles, classifier.

    A subclass implements `layer`. Memory and time grow with the number of neighbours. If all tiles are neighbours of
    all, and ``layer`` ignores distances, positions are ignored.

    ``Output.attention``: for max pooling the share of the pooled features that a tile won (ties shared), for mean
    pooling equal shares. A tile stands for its neighbours too.
    """

    uses_position = "relative"
    Params = GraphParams

    def __init__(self, dim: int, classes: int, params: GraphParams):
        super().__init__(dim, classes, params)
        if not params.neighbours:
            self.uses_position, self.all_pairs = "none", True
        self.dropout = nn.Dropout(params.dropout)
        widths = [dim] + [params.hidden] * (params.layers - 1)
        self.layers = nn.ModuleList(self.layer(width) for width in widths)
        self.classify = nn.Linear(params.hidden, classes)

    def layer(self, dim: int) -> nn.Module:
        """A layer that maps tiles (nodes, dim) and their `Graph`, self-loops included, to (nodes, hidden)."""
        raise NotImplementedError

    def pooled(self, batch: Batch) -> Pooled:
        """The embedding of each bag."""
        graph = neighbour_graph(batch, self.params.neighbours, self_loops=True)
        tiles = self.dropout(self.standardise(batch)).flatten(0, 1)
        for layer in self.layers:
            tiles = torch.relu(layer(tiles, graph))
        return self.pool(tiles.unflatten(0, batch.mask.shape), batch)

    def pool(self, tiles: Float[Tensor, "bags tiles hidden"], batch: Batch) -> Pooled:
        """From tiles to one embedding."""
        if self.params.pooling == "mean":
            return mean_pool(tiles, batch.mask)
        # Tiles that have the same neighbours may come out the same: in exact arithmetic they tie.
        return max_pool(tiles, batch.mask, rounding=1e-5)
