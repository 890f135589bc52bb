"""GCN: graph convolutions on neighbouring tiles (Kipf & Welling 2017, arXiv 1609.02907)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.das_mil_paper import LARGEST_DISTANCE_UM
from wsi_mil.aggregators.graph_network import GraphNetwork, GraphParams
from wsi_mil.aggregators.neighbours import Graph
from wsi_mil.aggregators.options import require_positive


@dataclass(frozen=True)
class GcnParams(GraphParams):
    """Options of `Gcn`."""

    distance_weights: bool = False
    """Whether a neighbour counts by its distance, the farther the more, and a tile itself like one at
    ``max_distance_um``: so did the published baseline of DAS-MIL, with all tiles as neighbours."""
    max_distance_um: float = LARGEST_DISTANCE_UM
    """What distances are divided by, for all slides alike, if they count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(max_distance_um=self.max_distance_um)


class Gcn(GraphNetwork):
    """`GraphNetwork` of graph convolutions: the baseline "GCN" of arXiv 2305.10552 with ``neighbours`` 0 and
    ``distance_weights``.

    ``Output.attention`` is that of `GraphNetwork`.
    """

    Params = GcnParams

    def __init__(self, dim: int, classes: int, params: GcnParams):
        super().__init__(dim, classes, params)
        if params.distance_weights:
            self.uses_position = "relative"

    def layer(self, dim: int) -> nn.Module:
        """A graph convolution."""
        unit_um = self.params.max_distance_um if self.params.distance_weights else None
        return GcnLayer(dim, self.params.hidden, unit_um)


class GcnLayer(nn.Module):
    """Graph convolution: ``x'_i = sum_j w_ij / sqrt(d_i d_j) W x_j + b`` over neighbours and itself, d_i = sum_j w_ij.

    Args:
        dim: width of the tiles.
        width: width of the result.
        unit_um: None = all w are 1; otherwise w is the distance in this unit, and 1 for the tile itself.
    """

    def __init__(self, dim: int, width: int, unit_um: float | None):
        super().__init__()
        self.unit_um = unit_um
        self.linear = nn.Linear(dim, width, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tiles: Float[Tensor, "nodes dim"], graph: Graph) -> Float[Tensor, "nodes width"]:
        """Mix each tile with its neighbours."""
        return graph.weighted_sum(self.linear(tiles), self.weights(graph)) + self.bias

    def weights(self, graph: Graph) -> Float[Tensor, " edges"]:
        """Weight of each edge, symmetrically normalised."""
        weights = torch.ones_like(graph.um)
        if self.unit_um is not None:
            weights = torch.where(graph.source == graph.target, weights, graph.um / self.unit_um)
        scale = graph.sum(weights).rsqrt()
        return scale[graph.target] * weights * scale[graph.source]
