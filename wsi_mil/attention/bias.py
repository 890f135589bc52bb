"""The parameters of distance awareness."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class DistanceBias(NamedTuple):
    """How attention depends on distance, per head (arXiv 2305.10552).

    With ``phi_ij = sigmoid(beta * (distance_ij - theta))``, the bias of a pair of tiles is
    ``phi_ij * far + (1 - phi_ij) * near``, one far and one near vector each for keys, queries and values.
    """

    beta: Float[Tensor, " heads"] | Float[Tensor, "3 heads"]
    """Slope of phi, per unit of the coordinates. One per head, as published and cheaper, or one each for key, query and
    value."""
    theta: Float[Tensor, " heads"] | Float[Tensor, "3 heads"]
    """Distance at which phi is one half, in the unit of the coordinates; of the shape of ``beta``."""
    key: Float[Tensor, "heads 2 dim"] | None
    """Far (row 0) and near (row 1) vector that a query meets beside the key; None = no such bias."""
    query: Float[Tensor, "heads 2 dim"] | None
    """Far and near vector that a key meets beside the query."""
    value: Float[Tensor, "heads 2 dim_v"] | None
    """Far and near vector added to the value."""
    self_bias: bool = True
    """Whether a tile is biased towards itself, at distance 0 (the paper's equation says so, its code does not)."""
