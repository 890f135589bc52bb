"""MIL-GNN: a graph of tiles, pooled into a graph of clusters (Tu et al. 2019, arXiv 1906.04881)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.aggregators.base import Aggregator, Output
from wsi_mil.aggregators.neighbours import Graph, neighbour_graph
from wsi_mil.aggregators.options import require_counts, require_fraction, require_neighbours
from wsi_mil.bags import Batch


@dataclass(frozen=True)
class MilGnnParams:
    """Options of `MilGnn`."""

    hidden: int = 128
    """Width of the embeddings."""
    clusters: int = 4
    """Clusters that tiles are pooled into. The published baseline has 1, which needs no layers that assign tiles."""
    cluster_mean: bool = True
    """Whether a cluster is the mean of its tiles and not, as published, their sum, which grows with the bag."""
    neighbours: int = 8
    """How many of the nearest tiles are neighbours of a tile; 0 = all other tiles of the slide, as published, for
    slides of up to 4,096 tiles."""
    dropout: float = 0.0
    """Share of the features dropped in training."""

    def __post_init__(self) -> None:
        require_counts(hidden=self.hidden, clusters=self.clusters)
        require_neighbours(self.neighbours)
        require_fraction(dropout=self.dropout)


class MilGnn(Aggregator):
    """GraphSAGE layer on the graph of tiles, soft clusters (DiffPool), GraphSAGE layer on those, classifier on all.

    With S the shares that tiles give to clusters, X the tiles and A who is whose neighbour, clusters are S^T X (or the
    means, see ``cluster_mean``) and their graph S^T A S. Layers are followed by a leaky ReLU. Memory and time grow with
    the number of neighbours. If all tiles are neighbours of all, positions are ignored.

    The form is that of arXiv 2305.10552 (``clusters`` 1, ``cluster_mean`` off, ``neighbours`` 0), without what exists
    for training alone: the losses of links and of entropy, and deep supervision.

    ``Output.attention``: a tile's share of a cluster, averaged over clusters.
    """

    uses_position = "relative"
    Params = MilGnnParams

    def __init__(self, dim: int, classes: int, params: MilGnnParams):
        super().__init__(dim, classes, params)
        if not params.neighbours:
            self.uses_position, self.all_pairs = "none", True
        self.dropout = nn.Dropout(params.dropout)
        self.embed = SageLayer(dim, params.hidden)
        # A softmax over one cluster is 1 whatever assigns tiles to it.
        self.assign = SageLayer(params.hidden, params.clusters) if params.clusters > 1 else None
        self.sharpen = nn.Linear(params.clusters, params.clusters) if params.clusters > 1 else None
        self.embed_clusters = SageLayer(params.hidden, params.hidden)
        self.classify = nn.Linear(params.clusters * params.hidden, classes)

    def forward(self, batch: Batch) -> Output:
        """Logits and attention of each bag."""
        graph = neighbour_graph(batch, self.params.neighbours)
        nodes = self.embed(self.dropout(self.standardise(batch)).flatten(0, 1), graph.mean)
        padding, shape = ~batch.mask.unsqueeze(-1), batch.mask.shape
        log_shares = self.log_shares(nodes, graph).unflatten(0, shape)
        shares = log_shares.exp().masked_fill(padding, 0.0)
        weights = log_shares.masked_fill(padding, -torch.inf).softmax(dim=1)
        clusters = (weights if self.params.cluster_mean else shares).transpose(1, 2) @ nodes.unflatten(0, shape)
        reached = graph.weighted_sum(shares.flatten(0, 1), torch.ones_like(graph.um)).unflatten(0, shape)
        links = shares.transpose(1, 2) @ reached
        # As published: a cluster linked to less than one neighbour's worth is not scaled up.
        links = links / links.sum(dim=2, keepdim=True).clamp_min(1.0)
        embedding = self.embed_clusters(clusters, lambda values: links @ values).flatten(1)
        return Output(self.classify(embedding), weights.mean(dim=2))

    def log_shares(self, nodes: Float[Tensor, "nodes dim"], graph: Graph) -> Float[Tensor, "nodes clusters"]:
        """Logarithm of the share of a tile that each cluster gets."""
        if self.assign is None or self.sharpen is None:
            return nodes.new_zeros(len(nodes), 1)
        scores = functional.leaky_relu(self.sharpen(self.assign(nodes, graph.mean)))
        return functional.log_softmax(scores, dim=1)


class SageLayer(nn.Module):
    """GraphSAGE layer (Hamilton et al. 2017, arXiv 1706.02216): ``LeakyReLU_0.01(W x_i + b + V mean_j x_j)``.

    Args:
        dim: width of what enters.
        width: width of the result.
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.root = nn.Linear(dim, width)
        self.neighbour = nn.Linear(dim, width, bias=False)

    def forward(
        self,
        values: Float[Tensor, "*nodes dim"],
        mean: Callable[[Float[Tensor, "*nodes width"]], Float[Tensor, "*nodes width"]],
    ) -> Float[Tensor, "*nodes width"]:
        """Mix with the neighbours, over which ``mean`` averages; it is linear, so that it may come after V."""
        return functional.leaky_relu(self.root(values) + mean(self.neighbour(values)), 0.01)
