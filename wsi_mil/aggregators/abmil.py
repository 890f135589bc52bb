"""AB-MIL: attention pooling of tiles (Ilse, Tomczak, Welling 2018, arXiv 1802.04712). Positions are ignored."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from wsi_mil.aggregators.layers import dense
from wsi_mil.aggregators.options import require_counts, require_fraction, require_sizes
from wsi_mil.aggregators.pooling import AttentionPool, Pooled
from wsi_mil.aggregators.pooling_aggregator import PoolingAggregator
from wsi_mil.bags import Batch


@dataclass(frozen=True)
class AbMilParams:
    """Options of `AbMil` and `GatedAbMil`."""

    hidden: int = 128
    """Width that features are projected to; 0 = no projection."""
    attention: int = 64
    """Width of the network that gives the attention."""
    dropout: float = 0.1
    """Share of the projected features dropped in training."""

    def __post_init__(self) -> None:
        require_sizes(hidden=self.hidden)
        require_counts(attention=self.attention)
        require_fraction(dropout=self.dropout)


class AbMil(PoolingAggregator):
    """Attention pooling. ``Output.attention``: the weights of the tiles in the mean that is classified."""

    uses_position = "none"
    Params = AbMilParams
    gated: ClassVar[bool] = False

    def __init__(self, dim: int, classes: int, params: AbMilParams):
        super().__init__(dim, classes, params)
        self.project = dense(dim, params.hidden, params.dropout)
        self.pool = AttentionPool(params.hidden or dim, params.attention, self.gated)
        self.classify = nn.Linear(params.hidden or dim, classes)

    def pooled(self, batch: Batch) -> Pooled:
        """The embedding of each bag."""
        return self.pool(self.project(self.standardise(batch)), batch.mask)


class GatedAbMil(AbMil):
    """`AbMil` whose attention is gated."""

    gated = True
