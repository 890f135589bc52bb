"""Self-attention MIL with sines and cosines of absolute positions (baseline "axial" of arXiv 2305.10552)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from wsi_mil.aggregators.absolute import AbsoluteParams, AbsoluteSelfAttention
from wsi_mil.errors import OptionError

_BASE = 10_000.0  # of the geometric frequencies


@dataclass(frozen=True)
class AxialParams(AbsoluteParams):
    """Options of `AxialSelfAttention`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection:
            _require_quarters("hidden", self.hidden)


class AxialSelfAttention(AbsoluteSelfAttention):
    """`AbsoluteSelfAttention` that encodes x in half of the features and y in the other half.

    In each half are sines and cosines of the coordinate, at frequencies from 1 down to nearly 1 / 10,000 radian per
    unit in equal ratios (Vaswani et al. 2017, arXiv 1706.03762, along each axis). Nothing of it is learnt.

    ``Output.attention`` is that of `SelfAttention`.

    Raises:
        OptionError: the width that enters attention is not divisible by 4.
    """

    Params = AxialParams

    def __init__(self, dim: int, classes: int, params: AxialParams):
        super().__init__(dim, classes, params)
        _require_quarters("projection false, features of dimension", self.query.in_features)

    def encode(self, position: Float[Tensor, "bags tiles 2"]) -> Float[Tensor, "bags tiles dim"]:
        """Sines of x, cosines of x, sines of y, cosines of y."""
        quarter = self.query.in_features // 4
        frequencies = _BASE ** -(torch.arange(quarter, device=position.device) / quarter)
        angles = position.unsqueeze(-1) * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)


def _require_quarters(name: str, width: int) -> None:
    if width % 4:
        raise OptionError(f"{name} {width}: sines and cosines of x and y need a number divisible by 4")
