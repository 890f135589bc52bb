"""How the heads of a model attend, with what distance adds and without."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float, Int, Num
from torch import Tensor

from wsi_mil.attention import attention_rows

Rows = Callable[[Int[Tensor, " rows"]], Float[Tensor, "bags heads rows tiles"]]


class HeadAttention(NamedTuple):
    """What chosen tiles of a batch, by their indices, pay to all tiles, head by head: each row sums to 1, rows of
    padding are 0. One asks for some rows: no answer is as large as all pairs, and nothing of it has a gradient."""

    biased: Rows
    """As the model attends."""
    unbiased: Rows
    """By the same queries and keys, without what distance adds to scores."""

    @classmethod
    def of(
        cls,
        rows: Callable[..., Tensor],
        q: Float[Tensor, "bags heads tiles dim"],
        k: Float[Tensor, "bags heads tiles dim"],
        coords: Num[Tensor, "bags tiles 2"],
        bias: Any,
        **setting: Any,
    ) -> "HeadAttention":
        """Of a form of attention.

        Args:
            rows: how it is read, such as `wsi_mil.attention.attention_rows`.
            q: queries.
            k: keys.
            coords: positions.
            bias: what ``rows`` takes as such.
            **setting: what it is told by name.
        """
        return cls(
            lambda chosen: rows(q, k, coords, bias, chosen, **setting),
            lambda chosen: attention_rows(q, k, coords, None, chosen, **setting),
        )
