"""Max and mean pooling of tiles, as in MI-Net (Wang et al. 2018, arXiv 1610.02501). Positions are ignored."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from wsi_mil.aggregators.layers import dense
from wsi_mil.aggregators.options import require_fraction, require_sizes
from wsi_mil.aggregators.pooling import Pooled, max_pool, mean_pool
from wsi_mil.aggregators.pooling_aggregator import PoolingAggregator
from wsi_mil.bags import Batch


@dataclass(frozen=True)
class MaxMeanParams:
    """Options of `MaxMil` and `MeanMil`."""

    hidden: int = 128
    """Width that features are projected to; 0 = no projection (as in arXiv 2305.10552)."""
    dropout: float = 0.1
    """Share of the projected features dropped in training."""

    def __post_init__(self) -> None:
        require_sizes(hidden=self.hidden)
        require_fraction(dropout=self.dropout)


class MaxMil(PoolingAggregator):
    """Projection (optional), maximum over tiles, classifier.

    ``Output.attention``: the share of the pooled features that a tile won, ties shared.
    """

    uses_position = "none"
    Params = MaxMeanParams

    def __init__(self, dim: int, classes: int, params: MaxMeanParams):
        super().__init__(dim, classes, params)
        self.project = dense(dim, params.hidden, params.dropout)
        self.classify = nn.Linear(params.hidden or dim, classes)

    def pooled(self, batch: Batch) -> Pooled:
        """The embedding of each bag."""
        return self.pool(self.project(self.standardise(batch)), batch.mask)

    def pool(self, tiles: Float[Tensor, "bags tiles dim"], mask: Bool[Tensor, "bags tiles"]) -> Pooled:
        """From tiles to one embedding."""
        return max_pool(tiles, mask)


class MeanMil(MaxMil):
    """`MaxMil` with the mean over tiles. ``Output.attention``: equal shares."""

    def pool(self, tiles: Float[Tensor, "bags tiles dim"], mask: Bool[Tensor, "bags tiles"]) -> Pooled:
        """From tiles to one embedding."""
        return mean_pool(tiles, mask)
