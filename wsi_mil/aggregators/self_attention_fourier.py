"""Self-attention MIL with learnable Fourier features of absolute positions (Li et al. 2021, arXiv 2106.02795)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.absolute import AbsoluteParams, AbsoluteSelfAttention

# The sizes and gamma of the baseline of arXiv 2305.10552.
_WAVES, _HIDDEN, _GAMMA = 16, 16, 10.0


class FourierSelfAttention(AbsoluteSelfAttention):
    """`AbsoluteSelfAttention` that learns how to encode positions.

    Cosines and sines of 8 learnt projections of (x, y), divided by the square root of 16, their number, go through a
    linear layer of 16 units, GELU, and a linear layer to the width that enters attention. Projections start at
    N(0, gamma**-4), gamma being 10: a standard deviation of 0.01 radian per unit.

    ``Output.attention`` is that of `SelfAttention`.
    """

    def __init__(self, dim: int, classes: int, params: AbsoluteParams):
        super().__init__(dim, classes, params)
        self.frequencies = nn.Parameter(_GAMMA**-2 * torch.randn(_WAVES // 2, 2))
        self.encoding = nn.Sequential(nn.Linear(_WAVES, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, self.query.in_features))

    def encode(self, position: Float[Tensor, "bags tiles 2"]) -> Float[Tensor, "bags tiles dim"]:
        """What is learnt of each position."""
        # No matrix product: autocast would round positions to the three digits of bf16.
        x, y = position.to(self.frequencies).unsqueeze(-1).unbind(dim=-2)
        angles = x * self.frequencies[:, 0] + y * self.frequencies[:, 1]
        return self.encoding(torch.cat([angles.cos(), angles.sin()], dim=-1) / math.sqrt(_WAVES))
