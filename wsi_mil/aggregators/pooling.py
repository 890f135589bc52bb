"""From the tiles of a bag to one embedding: masked poolings, each with the attention that explains it."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Pooled(NamedTuple):
    """One vector for a bag, and how much each tile gave to it."""

    embedding: Float[Tensor, "bags dim"]
    attention: Float[Tensor, "bags tiles"]


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
    won = (tiles >= least.unsqueeze(1)).to(tiles.dtype)
    return Pooled(embedding, (won / won.sum(dim=1, keepdim=True)).mean(dim=-1))


def mean_pool(tiles: Float[Tensor, "bags tiles dim"], mask: Bool[Tensor, "bags tiles"]) -> Pooled:
    """Mean per feature. Attention: equal shares."""
    shares = mask.to(tiles.dtype) / mask.sum(dim=1, keepdim=True)
    tiles = tiles.masked_fill(~mask.unsqueeze(-1), 0.0)
    return Pooled(torch.einsum("bn,bnd->bd", shares, tiles), shares)


def log_sum_exp_pool(tiles: Float[Tensor, "bags tiles dim"], mask: Bool[Tensor, "bags tiles"]) -> Pooled:
    """log(mean(exp)) per feature, a maximum whose losers learn too. Attention: the mean share of the exponentials."""
    tiles = tiles.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    count = mask.sum(dim=1, keepdim=True).to(tiles.dtype)
    embedding = torch.logsumexp(tiles, dim=1) - count.log()
    return Pooled(embedding, torch.softmax(tiles.detach(), dim=1).mean(dim=-1))


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
        return Pooled(torch.einsum("bn,bnd->bd", weights, tiles), weights)
