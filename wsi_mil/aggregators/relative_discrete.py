"""Self-attention MIL with a bias for each bin of distance (baseline "disc. rel. SA" of arXiv 2305.10552)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsi_mil.aggregators.das_mil_paper import LARGEST_DISTANCE_UM
from wsi_mil.aggregators.explanation import PairAttention
from wsi_mil.aggregators.options import require_positive
from wsi_mil.aggregators.self_attention import SelfAttention, SelfAttentionParams
from wsi_mil.attention import BinBias, discrete_distance_attention, discrete_received, discrete_rows
from wsi_mil.bags import Batch
from wsi_mil.errors import OptionError


@dataclass(frozen=True)
class RelativeDiscreteParams(SelfAttentionParams):
    """Options of `RelativeDiscrete`."""

    bins: int = 10
    """How many distances are told apart."""
    max_distance_um: float = LARGEST_DISTANCE_UM
    """Distance of the last bin, which holds all that is farther too. The default is what was published for CAMELYON16:
    a bin is 8.4 mm wide."""
    key_bias: bool = True
    """Whether distance changes what a tile looks for."""
    query_bias: bool = True
    """Whether distance changes what a tile is found by."""
    value_bias: bool = True
    """Whether a tile is told how far away what it attends to is."""
    self_bias: bool = False
    """Whether a tile is biased towards itself, at distance 0."""
    table_std: float = 1.0
    """Standard deviation of what distance adds at first. Smaller: little at first, so less to unlearn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.key_bias or self.query_bias or self.value_bias):
            raise OptionError("key_bias, query_bias and value_bias are all off: use self-attention instead")
        if self.bins < 2:
            raise OptionError(f"bins {self.bins}: give at least 2, one for near and one for far")
        require_positive(max_distance_um=self.max_distance_um, table_std=self.table_std)


class RelativeDiscrete(SelfAttention):
    """`SelfAttention` whose scores and values depend on the bin that the distance of two tiles falls into.

    Bins are of equal width and centred on multiples of ``max_distance_um / (bins - 1)``, so the first and the last are
    half as wide. Tables start at N(0, ``table_std``²).

    What was published is the published form of `SelfAttention` with ``attention_dropout`` 0.1 and these defaults
    (CAMELYON16), or with ``max_distance_um`` 362.04 where coordinates are pixels (MNIST-COLLAGE). Its code counted
    queries times keys twice, which is this model with the query's weights doubled and the key's table halved: it learns
    the same functions from another start.

    ``Output.attention`` is that of `SelfAttention`.
    """

    uses_position = "relative"
    Params = RelativeDiscreteParams

    def __init__(self, dim: int, classes: int, params: RelativeDiscreteParams):
        super().__init__(dim, classes, params)
        scores, values = ((params.heads, params.bins, width) for width in (params.head_dim, params.value_width))
        self.key_table = nn.Parameter(params.table_std * torch.randn(scores)) if params.key_bias else None
        self.query_table = nn.Parameter(params.table_std * torch.randn(scores)) if params.query_bias else None
        self.value_table = nn.Parameter(params.table_std * torch.randn(values)) if params.value_bias else None

    def attention(
        self,
        q: Float[Tensor, "bags heads tiles dim"],
        k: Float[Tensor, "bags heads tiles dim"],
        v: Float[Tensor, "bags heads tiles dim_v"],
        batch: Batch,
    ) -> Float[Tensor, "bags heads tiles dim_v"]:
        """Let queries attend to keys, with the bias of each bin."""
        return discrete_distance_attention(q, k, v, batch.coords_um, self.bin_bias(), **self._attending(batch))

    def attention_between(
        self, q: Float[Tensor, "bags heads tiles dim"], k: Float[Tensor, "bags heads tiles dim"], batch: Batch
    ) -> PairAttention:
        """What `attention` pays."""
        operands = q, k, batch.coords_um, self.bin_bias()
        return PairAttention.of(discrete_rows, discrete_received, *operands, **self._setting(batch))

    def bin_bias(self) -> BinBias:
        """How attention depends on the bin of a distance, in micrometres."""
        tables = (self.key_table, self.query_table, self.value_table)
        return BinBias(self.params.max_distance_um, *tables, self_bias=self.params.self_bias)

    def distance_tables(self) -> Sequence[Float[Tensor, "heads places dim"]]:
        """What distance adds to keys, queries and values."""
        tables = (self.key_table, self.query_table, self.value_table)
        return [table for table in tables if table is not None]
