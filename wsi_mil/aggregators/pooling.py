"""From the tiles of a bag to one embedding: masked poolings, each with the attention that explains it.

A pooling also says what part of the embedding each tile gave, as its share of some values: of its own, where tiles are
averaged, or of the embedding's, where they compete for it feature by feature.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

_TILES_AT_ONCE = 4096


class Pooled(NamedTuple):
    """One vector for a bag, and how much each tile gave to it: ``embedding`` is the sum over tiles of
    ``shares * values``."""

    embedding: Float[Tensor, "bags dim"]
    attention: Float[Tensor, "bags tiles"]
    shares: Float[Tensor, "bags tiles dim"] | Float[Tensor, "bags tiles 1"]
    """0 on padding."""
    values: Float[Tensor, "bags tiles dim"] | Float[Tensor, "bags 1 dim"]

    def given(self, weight: Float[Tensor, "outputs dim"]) -> Float64[Tensor, "bags tiles outputs"]:
        """What each tile gave to a linear function of the embedding, to its value without bias.

        In float64, for some tiles at a time: the parts of the embedding may be as large as the features.

        Args:
            weight: of the function.
        """
        tiles, values = self.shares.shape[1], self.values.expand(-1, self.shares.shape[1], -1)
        chunks = (slice(start, start + _TILES_AT_ONCE) for start in range(0, tiles, _TILES_AT_ONCE))
        parts = (self.shares[:, chunk].double() * values[:, chunk].double() for chunk in chunks)
        return torch.cat([part @ weight.double().T for part in parts], dim=1)


def max_pool(tiles: Float[Tensor, "bags tiles dim"], mask: Bool[Tensor, "bags tiles"], rounding: float = 0.0) -> Pooled:
    """Maximum per feature. Attention: the share of the features that a tile won, ties shared equally.

    Args:
        tiles: what is pooled.
        mask: True = real tile.
        rounding: how far below the maximum is still a tie, as a share of the largest maximum of the bag: for tiles that
            are equal but for rounding, of which chance would choose one.
    """
    tiles = tiles.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    embedding = tiles.amax(dim=1)
    least = embedding - rounding * embedding.abs().amax(dim=1, keepdim=True)
    won = (tiles >= least.unsqueeze(1)).to(_wide(tiles))
    shares = won / won.sum(dim=1, keepdim=True)
    return Pooled(embedding, shares.mean(dim=-1), shares, embedding.unsqueeze(1))


def mean_pool(tiles: Float[Tensor, "bags tiles dim"], mask: Bool[Tensor, "bags tiles"]) -> Pooled:
    """Mean per feature. Attention: equal shares."""
    wide, count = _wide(tiles), mask.sum(dim=1, keepdim=True)
    shares = mask.to(wide) / count
    tiles = tiles.masked_fill(~mask.unsqueeze(-1), 0.0)
    return Pooled(tiles.sum(dim=1, dtype=wide) / count, shares, shares.unsqueeze(-1), tiles)


def log_sum_exp_pool(tiles: Float[Tensor, "bags tiles dim"], mask: Bool[Tensor, "bags tiles"]) -> Pooled:
    """log(mean(exp)) per feature, a maximum whose losers learn too. Attention: the mean share of the exponentials.

    A tile gave its share of the exponentials of each feature.
    """
    tiles = tiles.to(_wide(tiles)).masked_fill(~mask.unsqueeze(-1), -torch.inf)
    count = mask.sum(dim=1, keepdim=True).to(tiles.dtype)
    embedding = torch.logsumexp(tiles, dim=1) - count.log()
    shares = torch.softmax(tiles.detach(), dim=1)
    return Pooled(embedding, shares.mean(dim=-1), shares, embedding.unsqueeze(1))


def _wide(tiles: Tensor) -> torch.dtype:
    """What tiles are counted in: fp16 ends at 65,504, and bf16 knows no odd number beyond 256."""
    return torch.promote_types(tiles.dtype, torch.float32)


class AttentionPool(nn.Module):
    """Attention pooling (Ilse et al. 2018, arXiv 1802.04712, equations 8 and 9): a weight per tile, learned.

    Args:
        dim: dimension of a tile.
        hidden: width of the network that gives the weights.
        gated: multiply its tanh units by sigmoid gates.
    """

    def __init__(self, dim: int, hidden: int, gated: bool):
        super().__init__()
        self.content = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.score = nn.Linear(hidden, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, tiles: Float[Tensor, "bags tiles dim"], mask: Bool[Tensor, "bags tiles"]) -> Pooled:
        """Weighted mean of the tiles. Attention: the weights."""
        hidden = torch.tanh(self.content(tiles))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(tiles))
        scores = self.score(hidden).squeeze(-1).masked_fill(~mask, -torch.inf)
        weights = torch.softmax(scores, dim=1)
        return Pooled(torch.einsum("bn,bnd->bd", weights, tiles), weights, weights.unsqueeze(-1), tiles)
