"""DAS-MIL exactly as published (Wölflein et al. 2023, arXiv 2305.10552): paper and released code."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.aggregators.explanation import PairAttention
from wsi_mil.aggregators.layers import dense
from wsi_mil.aggregators.options import (
    require_choice,
    require_counts,
    require_fraction,
    require_positive,
    require_sizes,
)
from wsi_mil.aggregators.pooling import Pooled, max_pool, mean_pool
from wsi_mil.aggregators.pooling_aggregator import PoolingAggregator
from wsi_mil.attention import DistanceBias, attention_received, attention_rows, distance_attention
from wsi_mil.bags import Batch

# The diagonal of a square of 46816 px, the largest coordinate of its cohort, at 256 um per 224 px.
LARGEST_DISTANCE_UM = 46_816 * math.sqrt(2) * 256 / 224


@dataclass(frozen=True)
class DasMilPaperParams:
    """Options of `DasMilPaper`; the defaults are what was published for CAMELYON16."""

    hidden: int = 512
    """Width that features are projected to; 0 = no projection, as published for MNIST-COLLAGE."""
    heads: int = 1
    """Attention heads."""
    head_dim: int = 10
    """Width of a head's queries and keys."""
    value_dim: int = 16
    """Width of a head's values."""
    pooling: str = "max"
    """How tiles become one embedding: max or mean."""
    max_distance_um: float = LARGEST_DISTANCE_UM
    """What distances are divided by, for all slides alike."""
    attention_dropout: float = 0.1
    """Share of the attention weights dropped in training."""

    def __post_init__(self) -> None:
        require_sizes(hidden=self.hidden)
        require_counts(heads=self.heads, head_dim=self.head_dim, value_dim=self.value_dim)
        require_choice("pooling", self.pooling, ("max", "mean"))
        require_positive(max_distance_um=self.max_distance_um)
        require_fraction(attention_dropout=self.attention_dropout)


class DasMilPaper(PoolingAggregator):
    """Projection (optional), one layer of distance-aware self-attention, pooling over tiles, one linear unit.

    Per head ``phi = sigmoid(beta * (distance / max_distance_um - theta))``, with theta 0.5 and beta 10 at first. Keys,
    queries and values are biased, a tile towards itself is not. Scores are divided by the square root of the width that
    enters the layer, not of ``head_dim``. Tables start at N(0, 1), linear layers as torch starts them. Features are
    taken as they are, not standardised.

    Two classes have one logit z and a sigmoid, as published, given as the logits (0, z): a softmax over them gives the
    same probability, and cross-entropy the same gradients. More classes have a logit each.

    It differs from the released code in that attention is over all tiles and not over 6,000 drawn at random, and that
    the classifier fits several heads. How it is trained is not part of it: the paper used RAdam with Lookahead.

    ``Output.attention``: for max pooling the share of the pooled features that a tile won (ties shared), for mean
    pooling equal shares.
    """

    uses_position = "relative"
    all_pairs = True
    standardises = False
    Params = DasMilPaperParams

    def __init__(self, dim: int, classes: int, params: DasMilPaperParams):
        super().__init__(dim, classes, params)
        entering, heads = params.hidden or dim, params.heads
        self.project = dense(dim, params.hidden)
        self.query, self.key, self.value = (
            nn.Linear(entering, heads * width, bias=False)
            for width in (params.head_dim, params.head_dim, params.value_dim)
        )
        self.theta = nn.Parameter(torch.full((heads,), 0.5))
        self.beta = nn.Parameter(torch.full((heads,), 10.0))
        self.key_table = nn.Parameter(torch.randn(heads, 2, params.head_dim))
        self.query_table = nn.Parameter(torch.randn(heads, 2, params.head_dim))
        self.value_table = nn.Parameter(torch.randn(heads, 2, params.value_dim))
        self.classify = nn.Linear(heads * params.value_dim, 1 if classes == 2 else classes)

    def undecayed(self) -> Sequence[nn.Parameter]:
        """What says where near becomes far; published code decays it."""
        return self.theta, self.beta

    def pooled(self, batch: Batch) -> Pooled:
        """The embedding of each bag."""
        q, k, v = self._heads(batch, self.query, self.key, self.value)
        attended = distance_attention(
            q,
            k,
            v,
            batch.coords_um,
            self.distance_bias(),
            dropout_p=self.params.attention_dropout if self.training else 0.0,
            wide=True,
            **self._setting(batch),
        )
        pool = max_pool if self.params.pooling == "max" else mean_pool
        return pool(attended.transpose(1, 2).flatten(2), batch.mask)

    def pair_attention(self, batch: Batch) -> PairAttention:
        """How tiles attend to each other."""
        q, k = self._heads(batch, self.query, self.key)
        operands = q, k, batch.coords_um, self.distance_bias()
        return PairAttention.of(attention_rows, attention_received, *operands, **self._setting(batch))

    def classifier(self) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
        """Weight and bias of the linear function from embeddings to logits: of two classes the first has logit 0."""
        first = 1 if self.classes == 2 else 0
        return functional.pad(self.classify.weight, (0, 0, first, 0)), functional.pad(self.classify.bias, (first, 0))

    def distance_bias(self) -> DistanceBias:
        """Near and far of each head, in micrometres."""
        unit = self.params.max_distance_um
        tables = (self.key_table, self.query_table, self.value_table)
        return DistanceBias(self.beta / unit, self.theta * unit, *tables, self_bias=False)

    def distance_tables(self) -> Sequence[Float[Tensor, "heads places dim"]]:
        """What distance adds to keys, queries and values."""
        return self.key_table, self.query_table, self.value_table

    def _heads(self, batch: Batch, *linears: nn.Module) -> list[Float[Tensor, "bags heads tiles _"]]:
        """What linear layers make of the tiles, by head."""
        tiles = self.project(self.standardise(batch))
        return [linear(tiles).unflatten(-1, (self.params.heads, -1)).transpose(1, 2) for linear in linears]

    def _setting(self, batch: Batch) -> dict[str, Any]:
        """What attention is told besides its operands, in training or not."""
        return {"scale": self.query.in_features**-0.5, "mask": batch.mask, "slide": batch.slide}
