"""DAS-MIL: self-attention that knows how far apart tiles are, in um (Wölflein et al. 2023, arXiv 2305.10552)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.options import require_positive
from wsi_mil.aggregators.self_attention import SelfAttention, SelfAttentionParams
from wsi_mil.attention import DistanceBias
from wsi_mil.errors import OptionError

FINEST_UM, COARSEST_UM = 256.0, 16_384.0
FARTHEST_QUANTILE = 0.95
"""Which distance of a cohort its coarsest head starts from: beyond lie the far corners of the largest slides."""


def length_scales(nearest_um: float, farthest_um: float, heads: int) -> tuple[float, ...]:
    """Distances for the heads to start from, in equal ratios from the nearest to the farthest.

    Args:
        nearest_um: the least distance of two tiles in the training bags.
        farthest_um: the quantile `FARTHEST_QUANTILE` of all their distances.
        heads: how many.
    """
    return tuple(map(float, np.geomspace(nearest_um, farthest_um, heads)))


@dataclass(frozen=True)
class DasMilParams(SelfAttentionParams):
    """Options of `DasMil`."""

    length_scales_um: Sequence[float] = ()
    """Distance at which each head starts to tell near from far, one per head; training takes them from the distances
    of its patients. Empty = from 256 um (a tile) to 16 mm (a section) in equal ratios."""
    sharpness: float = 4.0
    """How steeply each head passes from near to far at first: phi goes from 0.1 to 0.9 within 4.4 / sharpness of its
    length scale."""
    key_bias: bool = True
    """Whether distance changes what a tile looks for."""
    query_bias: bool = False
    """Whether distance changes what a tile is found by."""
    value_bias: bool = True
    """Whether a tile is told how far away what it attends to is."""
    self_bias: bool = True
    """Whether a tile is biased towards itself, at distance 0."""
    separate_phi: bool = False
    """Whether keys, queries and values each tell near from far at a distance of their own; as published they share
    one per head. What belongs to a bias that is off is not used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(sharpness=self.sharpness)
        if not (self.key_bias or self.query_bias or self.value_bias):
            raise OptionError("key_bias, query_bias and value_bias are all off: use self-attention instead")
        scales = tuple(map(float, self.length_scales_um)) or length_scales(FINEST_UM, COARSEST_UM, self.heads)
        object.__setattr__(self, "length_scales_um", scales)
        if len(scales) != self.heads or not all(0 < scale < math.inf for scale in scales):
            raise OptionError(f"length_scales_um {scales}: give {self.heads} positive lengths, one per head")


class DasMil(SelfAttention):
    """`SelfAttention` whose scores and values depend on the distance of tiles.

    Each head knows near from far by ``phi = sigmoid(beta * (distance - theta))``. theta starts at the head's length
    scale and beta at ``sharpness`` divided by it: by default phi rises from 0.1 to 0.9 within about that scale. Both
    are learned as logarithms: they stay positive, and a step means the same at every scale. What distance does to
    scores starts at nothing, what it tells through values at random: attention that distance steers at random from the
    start overfits a small cohort (``docs/decisions.md``).

    ``Output.attention`` is that of `SelfAttention`.
    """

    uses_position = "relative"
    Params = DasMilParams

    def __init__(self, dim: int, classes: int, params: DasMilParams):
        super().__init__(dim, classes, params)
        log_scales = torch.tensor(params.length_scales_um).log()
        self.log_theta_um = nn.Parameter(log_scales.repeat(3, 1) if params.separate_phi else log_scales)
        self.log_slope = nn.Parameter(torch.full_like(self.log_theta_um, math.log(params.sharpness)))
        scores, values = ((params.heads, 2, width) for width in (params.head_dim, params.value_width))
        self.key_table = nn.Parameter(torch.zeros(scores)) if params.key_bias else None
        self.query_table = nn.Parameter(torch.zeros(scores)) if params.query_bias else None
        self.value_table = nn.Parameter(torch.randn(values)) if params.value_bias else None

    def undecayed(self) -> Sequence[nn.Parameter]:
        """What says where near becomes far: decay would pull it to 1 um."""
        return self.log_theta_um, self.log_slope

    def distance_bias(self) -> DistanceBias:
        """Near and far of each head, in micrometres."""
        theta = self.log_theta_um.exp()
        beta = self.log_slope.exp() / theta
        tables = (self.key_table, self.query_table, self.value_table)
        return DistanceBias(beta, theta, *tables, self_bias=self.params.self_bias)

    def distance_tables(self) -> Sequence[Float[Tensor, "heads places dim"]]:
        """What distance adds to keys, queries and values."""
        tables = (self.key_table, self.query_table, self.value_table)
        return [table for table in tables if table is not None]
