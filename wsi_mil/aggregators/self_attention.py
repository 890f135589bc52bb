"""Self-attention MIL without positions: what DAS-MIL is when it cannot see distances (baseline of arXiv 2305.10552)."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.explanation import PairAttention
from wsi_mil.aggregators.layers import dense
from wsi_mil.aggregators.options import require_choice, require_counts, require_fraction, require_sizes
from wsi_mil.aggregators.pooling import AttentionPool, Pooled, log_sum_exp_pool, max_pool
from wsi_mil.aggregators.pooling_aggregator import PoolingAggregator
from wsi_mil.attention import attention_received, attention_rows, distance_attention
from wsi_mil.bags import Batch


@dataclass(frozen=True)
class SelfAttentionParams:
    """Options of `SelfAttention`, shared by the models that add positions to it."""

    hidden: int = 128
    """Width that features are projected to, and that of the mixed features."""
    heads: int = 4
    """Attention heads."""
    head_dim: int = 32
    """Width of a head's queries and keys."""
    pooling: str = "max"
    """How tiles become one embedding: max (as published), attention or log-sum-exp."""
    dropout: float = 0.25
    """Share of the projected and of the mixed features dropped in training."""
    projection: bool = True
    """Whether features are projected first; otherwise attention is on the standardised features themselves."""
    attention_dropout: float = 0.0
    """Share of the attention weights dropped in training."""
    mix: bool = True
    """Whether what a tile is and what it attends to are mixed by a layer; otherwise what it attends to is pooled and
    classified as it is (as published)."""
    value_dim: int = 0
    """Width of a head's values; 0 = ``head_dim``."""
    scale_by_input: bool = False
    """Whether scores are divided by the square root of the width that enters attention (as published) and not by that
    of ``head_dim``."""

    def __post_init__(self) -> None:
        require_counts(hidden=self.hidden, heads=self.heads, head_dim=self.head_dim)
        require_sizes(value_dim=self.value_dim)
        require_fraction(dropout=self.dropout, attention_dropout=self.attention_dropout)
        require_choice("pooling", self.pooling, ("max", "attention", "log-sum-exp"))

    @property
    def value_width(self) -> int:
        """Width of a head's values."""
        return self.value_dim or self.head_dim


class SelfAttention(PoolingAggregator):
    """Projection (optional), one layer of self-attention, mixing (optional), pooling over tiles, classifier.

    Positions are ignored.

    Mixing puts what a tile is beside what it attends to, so that one hidden unit can ask for both at once ("a nest, and
    lymphocytes near it"). Without it a tile shows what it is only by what it attends to.

    What was published is ``projection=False, mix=False, heads=1, head_dim=10, scale_by_input=True`` with ``value_dim``
    32 (MNIST-COLLAGE) or 16 (CAMELYON16), on features that are not standardised.

    ``Output.attention``: for max pooling the share of the pooled features that a tile won (ties shared), for attention
    pooling its weights, for log-sum-exp a tile's mean share of the exponentials.

    Attention is exact over all tiles; its memory grows with their number, its time with their pairs.
    """

    uses_position = "none"
    all_pairs = True
    Params = SelfAttentionParams

    def __init__(self, dim: int, classes: int, params: SelfAttentionParams):
        super().__init__(dim, classes, params)
        keys, values = params.heads * params.head_dim, params.heads * params.value_width
        entering = params.hidden if params.projection else dim
        self.project = dense(dim, params.hidden, params.dropout) if params.projection else nn.Identity()
        self.query, self.key, self.value = (nn.Linear(entering, width, bias=False) for width in (keys, keys, values))
        self.mix = dense(entering + values, params.hidden, params.dropout) if params.mix else None
        pooled = params.hidden if params.mix else values
        self.pool = AttentionPool(pooled, params.hidden, gated=True) if params.pooling == "attention" else None
        self.classify = nn.Linear(pooled, classes)

    def pooled(self, batch: Batch) -> Pooled:
        """The embedding of each bag."""
        tiles = self.project(self.standardise(batch))
        attended = self.attend(tiles, batch)
        mixed = attended if self.mix is None else self.mix(torch.cat([tiles, attended], dim=-1))
        if self.pool is not None:
            return self.pool(mixed, batch.mask)
        pool = max_pool if self.params.pooling == "max" else log_sum_exp_pool
        return pool(mixed, batch.mask)

    def pair_attention(self, batch: Batch) -> PairAttention:
        """How tiles attend to each other."""
        q, k = self._queries_and_keys(batch)
        return self.attention_between(q, k, batch)

    def attend(self, tiles: Float[Tensor, "bags tiles dim"], batch: Batch) -> Float[Tensor, "bags tiles width"]:
        """Let tiles attend to each other; heads lie side by side."""
        q, k, v = self._heads(tiles, batch, self.query, self.key, self.value)
        return self.attention(q, k, v, batch).transpose(1, 2).flatten(2)

    def placed(self, tiles: Float[Tensor, "bags tiles dim"], batch: Batch) -> Float[Tensor, "bags tiles dim"]:
        """Tiles as they enter attention: as they are."""
        return tiles

    def attention(
        self,
        q: Float[Tensor, "bags heads tiles dim"],
        k: Float[Tensor, "bags heads tiles dim"],
        v: Float[Tensor, "bags heads tiles dim_v"],
        batch: Batch,
    ) -> Float[Tensor, "bags heads tiles dim_v"]:
        """Let queries attend to keys, with `distance_bias`."""
        return distance_attention(q, k, v, batch.coords_um, self.distance_bias(), **self._attending(batch))

    def attention_between(
        self, q: Float[Tensor, "bags heads tiles dim"], k: Float[Tensor, "bags heads tiles dim"], batch: Batch
    ) -> PairAttention:
        """What `attention` pays."""
        operands = q, k, batch.coords_um, self.distance_bias()
        return PairAttention.of(attention_rows, attention_received, *operands, **self._setting(batch))

    def _attending(self, batch: Batch) -> dict[str, Any]:
        """What `attention` is told besides its operands; attended values that are pooled as they are come unrounded."""
        dropout_p = self.params.attention_dropout if self.training else 0.0
        return {"dropout_p": dropout_p, "wide": self.mix is None and self.pool is None, **self._setting(batch)}

    def _setting(self, batch: Batch) -> dict[str, Any]:
        """What attention is told besides its operands, in training or not."""
        return {
            "scale": self.query.in_features**-0.5 if self.params.scale_by_input else None,
            "mask": batch.mask,
            "slide": batch.slide,
        }

    def _queries_and_keys(self, batch: Batch) -> list[Float[Tensor, "bags heads tiles _"]]:
        return self._heads(self.project(self.standardise(batch)), batch, self.query, self.key)

    def _heads(
        self, tiles: Float[Tensor, "bags tiles dim"], batch: Batch, *linears: nn.Module
    ) -> list[Float[Tensor, "bags heads tiles _"]]:
        """What linear layers make of the tiles, by head."""
        tiles = self.placed(tiles, batch)
        return [linear(tiles).unflatten(-1, (self.params.heads, -1)).transpose(1, 2) for linear in linears]
