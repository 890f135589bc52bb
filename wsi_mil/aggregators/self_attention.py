"""Self-attention MIL without positions: what DAS-MIL is when it cannot see distances (baseline of arXiv 2305.10552)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.base import Aggregator, Output
from wsi_mil.aggregators.options import require_choice, require_counts, require_fraction
from wsi_mil.aggregators.pooling import AttentionPool, Pooled, log_sum_exp_pool, max_pool
from wsi_mil.attention import DistanceBias, distance_attention
from wsi_mil.bags import Batch


@dataclass(frozen=True)
class SelfAttentionParams:
    """Options of `SelfAttention`, shared by `DasMil`."""

    hidden: int = 128
    """Width that features are projected to, and that of the mixed features."""
    heads: int = 4
    """Attention heads."""
    head_dim: int = 32
    """Width of a head's queries, keys and values."""
    pooling: str = "max"
    """How tiles become one embedding: max (as published), attention or log-sum-exp."""
    dropout: float = 0.25
    """Share of the projected and of the mixed features dropped in training."""
    projection: bool = True
    """Whether features are projected first; otherwise attention is on the standardised features themselves."""
    attention_dropout: float = 0.0
    """Share of the attention weights dropped in training."""

    def __post_init__(self) -> None:
        require_counts(hidden=self.hidden, heads=self.heads, head_dim=self.head_dim)
        require_fraction(dropout=self.dropout, attention_dropout=self.attention_dropout)
        require_choice("pooling", self.pooling, ("max", "attention", "log-sum-exp"))


class SelfAttention(Aggregator):
    """Projection (optional), one layer of self-attention, mixing, pooling over tiles, classifier.

    Positions are ignored.

    Mixing puts what a tile is beside what it attends to, so that one hidden unit can ask for both at once ("a nest, and
    lymphocytes near it"). As published there is neither, and a tile shows what it is only by what it attends to.

    ``Output.attention``: for max pooling the share of the pooled features that a tile won (ties shared), for attention
    pooling its weights, for log-sum-exp a tile's mean share of the exponentials.

    Attention is exact over all tiles; its memory grows with their number, its time with their pairs.
    """

    uses_position = "none"
    Params = SelfAttentionParams

    def __init__(self, dim: int, classes: int, params: SelfAttentionParams):
        super().__init__(dim, classes, params)
        width = params.heads * params.head_dim
        self.project = _layer(dim, params.hidden, params.dropout) if params.projection else nn.Identity()
        entering = params.hidden if params.projection else dim
        self.query, self.key, self.value = (nn.Linear(entering, width, bias=False) for _ in range(3))
        self.mix = _layer(entering + width, params.hidden, params.dropout)
        self.pool = AttentionPool(params.hidden, params.hidden, gated=True) if params.pooling == "attention" else None
        self.classify = nn.Linear(params.hidden, classes)

    def forward(self, batch: Batch) -> Output:
        """Logits and attention of each bag."""
        tiles = self.project(self.standardise(batch))
        pooled = self._pooled(self.mix(torch.cat([tiles, self.attend(tiles, batch)], dim=-1)), batch)
        return Output(self.classify(pooled.embedding), pooled.attention)

    def attend(self, tiles: Float[Tensor, "bags tiles dim"], batch: Batch) -> Float[Tensor, "bags tiles width"]:
        """Let tiles attend to each other; heads lie side by side."""
        q, k, v = (linear(tiles).unflatten(-1, (self.params.heads, -1)).transpose(1, 2) for linear in self._linears())
        bias = self.distance_bias()
        dropout_p = self.params.attention_dropout if self.training else 0.0
        z = distance_attention(q, k, v, batch.coords_um, bias, mask=batch.mask, slide=batch.slide, dropout_p=dropout_p)
        return z.transpose(1, 2).flatten(2)

    def distance_bias(self) -> DistanceBias | None:
        """How attention depends on distance: not at all."""
        return None

    def _linears(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.query, self.key, self.value

    def _pooled(self, tiles: Float[Tensor, "bags tiles dim"], batch: Batch) -> Pooled:
        if self.pool is not None:
            return self.pool(tiles, batch.mask)
        pool = max_pool if self.params.pooling == "max" else log_sum_exp_pool
        return pool(tiles, batch.mask)


def _layer(dim: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(dropout))
