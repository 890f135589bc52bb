"""GAT: attention among neighbouring tiles (Velickovic et al. 2018, arXiv 1710.10903)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.aggregators.graph_network import GraphNetwork, GraphParams
from wsi_mil.aggregators.neighbours import Graph
from wsi_mil.aggregators.options import require_counts, require_heads


@dataclass(frozen=True)
class GatParams(GraphParams):
    """Options of `Gat`."""

    heads: int = 1
    """Attention heads, which share the width of a layer and lie side by side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(heads=self.heads)
        require_heads(self.hidden, self.heads)


class Gat(GraphNetwork):
    """`GraphNetwork` of graph attention: the baseline "GAT" of arXiv 2305.10552 with ``neighbours`` 0.

    Distances are not used, only who is whose neighbour. ``Output.attention`` is that of `GraphNetwork`.
    """

    Params = GatParams

    def layer(self, dim: int) -> nn.Module:
        """Graph attention."""
        return GatLayer(dim, self.params.hidden, self.params.heads)


class GatLayer(nn.Module):
    """Graph attention: ``x'_i = sum_j a_ij W x_j + b`` over neighbours and itself.

    Per head ``a_ij = softmax_j(LeakyReLU_0.2(t . W x_i + s . W x_j))``, with a learned vector t for who looks and s for
    who is looked at.

    Args:
        dim: width of the tiles.
        width: width of the result, all heads together.
        heads: attention heads.
    """

    def __init__(self, dim: int, width: int, heads: int):
        super().__init__()
        self.linear = nn.Linear(dim, width, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)
        self.target, self.source = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width // heads))) for _ in range(2)
        )
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tiles: Float[Tensor, "nodes dim"], graph: Graph) -> Float[Tensor, "nodes width"]:
        """Let each tile attend to its neighbours."""
        values = self.linear(tiles).unflatten(-1, self.source.shape)
        looks, looked_at = ((values * vector).sum(dim=-1) for vector in (self.target, self.source))
        scores = functional.leaky_relu(looks[graph.target] + looked_at[graph.source], 0.2)
        pairs = zip(values.unbind(1), scores.unbind(1), strict=True)
        heads = [graph.weighted_sum(one, graph.softmax(score)) for one, score in pairs]
        return torch.cat(heads, dim=1) + self.bias
