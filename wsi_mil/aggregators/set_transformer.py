"""Set Transformer and its induced form (Lee et al. 2019, arXiv 1810.00825). Positions are ignored."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wsi_mil.aggregators.base import Aggregator, Output
from wsi_mil.aggregators.options import require_counts, require_fraction, require_heads
from wsi_mil.attention import distance_attention
from wsi_mil.bags import Batch


@dataclass(frozen=True)
class SetTransformerParams:
    """Options of `SetTransformer`."""

    hidden: int = 128
    """Width of all layers."""
    heads: int = 4
    """Attention heads, which share that width."""
    dropout: float = 0.5
    """Share of the numbers dropped in training, before and after tiles are pooled."""

    def __post_init__(self) -> None:
        require_counts(hidden=self.hidden, heads=self.heads)
        require_heads(self.hidden, self.heads)
        require_fraction(dropout=self.dropout)


@dataclass(frozen=True)
class InducedSetTransformerParams(SetTransformerParams):
    """Options of `InducedSetTransformer`."""

    inducing: int = 32
    """Learned points through which tiles attend to each other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(inducing=self.inducing)


class SetTransformer(Aggregator):
    """Two layers of attention among tiles (SAB), pooling by attention with one learned query (PMA), classifier.

    The form is that of arXiv 2305.10552: no layer norm, no layers between pooling and classifier. Among tiles attention
    is exact; its memory grows with their number, its time with their pairs.

    ``Output.attention``: the weights of the tiles in the pooling, averaged over heads.
    """

    uses_position = "none"
    all_pairs = True
    Params = SetTransformerParams

    def __init__(self, dim: int, classes: int, params: SetTransformerParams):
        super().__init__(dim, classes, params)
        self.layers = nn.ModuleList(self.layer(entering) for entering in (dim, params.hidden))
        self.seed = nn.Parameter(_points(1, params.hidden))
        self.pool = AttentionBlock(params.hidden, params.hidden, params.hidden, params.heads)
        self.dropout = nn.Dropout(params.dropout)
        self.classify = nn.Linear(params.hidden, classes)

    def layer(self, dim: int) -> nn.Module:
        """A layer that maps tiles of width ``dim``, which attend to each other, to width ``hidden``."""
        return SetLayer(dim, self.params.hidden, self.params.heads)

    def forward(self, batch: Batch) -> Output:
        """Logits and attention of each bag."""
        tiles = self.standardise(batch)
        for layer in self.layers:
            tiles = layer(tiles, batch)
        seed = self.seed.expand(len(tiles), 1, -1)
        pooled, weights = self.pool(seed, self.dropout(tiles), batch.mask)
        return Output(self.classify(self.dropout(pooled.squeeze(1))), weights.squeeze(2).mean(dim=1))


class InducedSetTransformer(SetTransformer):
    """`SetTransformer` whose tiles attend to each other through learned points (ISAB): time is linear in the tiles."""

    all_pairs = False
    Params = InducedSetTransformerParams

    def layer(self, dim: int) -> nn.Module:
        """A layer that maps tiles of width ``dim``, which attend to each other, to width ``hidden``."""
        return InducedSetLayer(dim, self.params.hidden, self.params.heads, self.params.inducing)


class AttentionBlock(nn.Module):
    """Multihead attention block (MAB, equation 6 of the paper, without layer norm) of width ``hidden``.

    Scores are divided by the square root of ``hidden``, not of a head's width. The published bias vector of the keys is
    kept, although it cancels in the softmax.

    Args:
        query_dim: width of what attends.
        key_dim: width of what is attended to.
        hidden: width of the result.
        heads: attention heads, which share ``hidden``.
    """

    def __init__(self, query_dim: int, key_dim: int, hidden: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, hidden**-0.5
        self.query = nn.Linear(query_dim, hidden)
        self.key, self.value = nn.Linear(key_dim, hidden), nn.Linear(key_dim, hidden)
        self.output = nn.Linear(hidden, hidden)

    def forward(
        self,
        queries: Float[Tensor, "bags queries query_dim"],
        keys: Float[Tensor, "bags keys key_dim"],
        mask: Bool[Tensor, "bags keys"] | None = None,
    ) -> tuple[Float[Tensor, "bags queries hidden"], Float[Tensor, "bags heads queries keys"]]:
        """Update the queries by what they attend to; also the weights. For few queries or few keys: it makes all pairs.

        Args:
            queries: what attends.
            keys: what is attended to.
            mask: True = is attended to; None = all are.
        """
        q, k, v = self.projected(queries, keys)
        scores = self.scale * q @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        weights = scores.softmax(dim=-1)
        return self.finished(q, weights @ v), weights

    def projected(
        self, queries: Float[Tensor, "bags queries query_dim"], keys: Float[Tensor, "bags keys key_dim"]
    ) -> tuple[
        Float[Tensor, "bags heads queries head_dim"],
        Float[Tensor, "bags heads keys head_dim"],
        Float[Tensor, "bags heads keys head_dim"],
    ]:
        """Queries, keys and values of each head."""
        flat = self.query(queries), self.key(keys), self.value(keys)
        q, k, v = (tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in flat)
        return q, k, v

    def finished(
        self, q: Float[Tensor, "bags heads queries head_dim"], attended: Float[Tensor, "bags heads queries head_dim"]
    ) -> Float[Tensor, "bags queries hidden"]:
        """Join the heads of the queries and what they attended to; then the block's layer, beside it."""
        mixed = (q + attended).transpose(1, 2).flatten(2)
        return mixed + torch.relu(self.output(mixed))


class SetLayer(nn.Module):
    """Set attention block (SAB): an `AttentionBlock` in which all tiles of a bag attend to all.

    Args:
        dim: width of the tiles.
        hidden: width of the result.
        heads: attention heads.
    """

    def __init__(self, dim: int, hidden: int, heads: int):
        super().__init__()
        self.block = AttentionBlock(dim, dim, hidden, heads)

    def forward(self, tiles: Float[Tensor, "bags tiles dim"], batch: Batch) -> Float[Tensor, "bags tiles hidden"]:
        """Update tiles by the real tiles of their bag, without an array of all pairs."""
        q, k, v = self.block.projected(tiles, tiles)
        attended = distance_attention(q, k, v, batch.coords_um, None, scale=self.block.scale, mask=batch.mask)
        return self.block.finished(q, attended)


class InducedSetLayer(nn.Module):
    """Induced set attention block (ISAB): learned points attend to the tiles, then the tiles to those.

    Args:
        dim: width of the tiles.
        hidden: width of the result.
        heads: attention heads.
        inducing: how many points.
    """

    def __init__(self, dim: int, hidden: int, heads: int, inducing: int):
        super().__init__()
        self.points = nn.Parameter(_points(inducing, hidden))
        self.gather = AttentionBlock(hidden, dim, hidden, heads)
        self.spread = AttentionBlock(dim, hidden, hidden, heads)

    def forward(self, tiles: Float[Tensor, "bags tiles dim"], batch: Batch) -> Float[Tensor, "bags tiles hidden"]:
        """Update tiles by the real tiles of their bag."""
        points, _ = self.gather(self.points.expand(len(tiles), -1, -1), tiles, batch.mask)
        return self.spread(tiles, points)[0]


def _points(count: int, hidden: int) -> Float[Tensor, "count hidden"]:
    """First values of learned points, as published: by Xavier's rule, of a tensor (1, count, hidden)."""
    return nn.init.xavier_uniform_(torch.empty(1, count, hidden)).squeeze(0)
