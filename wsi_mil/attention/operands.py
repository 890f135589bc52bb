"""What every backend is given, and what it gives: one part of attention, reduced to numbers per tile.

A bias mixes two fixed vectors, so its product with a query is two numbers per row mixed by phi, and its product with a
key two per column; what is constant in a row cancels in the softmax, what is constant in a column belongs to the query.
There remains, in powers of two and with one phi for all three or one each::

    score_ij  = scale * (q_i . k_j + near_j + phi_key_ij * row_i + phi_query_ij * col_j)
    weight_ij = 2 ** (score_ij - lse_i)
    value_i   = sum_j kept_ij weight_ij v_j          far_i  = sum_j kept_ij weight_ij phi_value_ij
    lse_i     = log2 sum_j 2 ** score_ij             kept_i = sum_j kept_ij weight_ij

where ``kept_ij`` is 1, or with dropout 0 or 1 / (1 - p). What several parts give (pairs of one slide, pairs of two) is
joined by their ``lse`` afterwards, which makes ``lse`` an output with a gradient.
"""

import math
from typing import NamedTuple

from jaxtyping import Float, Int32
from torch import Tensor

LOG2E = math.log2(math.e)
"""Scores of backends are exponents of two: this many times those of the softmax."""
Runs = tuple[tuple[tuple[int, int], ...], ...]
"""Per bag, the start and stop of each of its slides among the packed tiles."""


class Operands(NamedTuple):
    """The real tiles of all bags, one bag after another and within a bag one slide after another."""

    q: Float[Tensor, "heads tiles dim"]
    """Where sums are made in the type of the queries, scaled already, and what every distance adds to them added."""
    k: Float[Tensor, "heads tiles dim"]
    v: Float[Tensor, "heads tiles dim_v"]
    row: Float[Tensor, "heads tiles"] | None
    """What phi_key adds to the products of a row; None = nothing."""
    col: Float[Tensor, "heads tiles"] | None
    """What phi_query adds to the products of a column."""
    beta: Float[Tensor, "phis heads"] | None
    """Slopes of phi: one row for all three, or the rows key, query, value. None = a part without distances."""
    theta: Float[Tensor, "phis heads"] | None
    xy: Float[Tensor, "2 tiles"] | None
    """Coordinates, near the origin."""
    row_code: Int32[Tensor, "heads tiles"] | None
    """See `wsi_mil.attention.dropout`; None = no dropout."""
    col_code: Int32[Tensor, "heads tiles"] | None
    near: Float[Tensor, "heads tiles"] | None = None
    """What is added to the products of a column at every distance; None = nothing, or it is in q."""
    scale: float = 1.0
    """Of scores, log2(e) included, so that they are exponents of two; 1 = it is in q, row and col. Queries of 16 bits
    stay as they came: scaled or added to they would be rounded a second time."""


class Task(NamedTuple):
    """Which pairs of tiles a part is of, and what is wanted of it."""

    runs: Runs
    across: bool
    """Pairs of different slides of a bag instead of pairs of the same slide."""
    diagonal: bool
    """Whether a tile attends to itself. Means nothing across slides."""
    far: bool
    """Whether ``far`` is wanted."""
    dropout_p: float


class Part(NamedTuple):
    """What a tile gets from one part; a tile without keys there has 0, 0, 0 and -inf."""

    value: Float[Tensor, "heads tiles dim_v"]
    far: Float[Tensor, "heads tiles"]
    """Zeros where it is not wanted."""
    kept: Float[Tensor, "heads tiles"]
    """Ones (zeros without keys) when there is no dropout."""
    lse: Float[Tensor, "heads tiles"]


class Retrace(NamedTuple):
    """What the backward pass is given: the outcome of the forward pass and the gradients of its sums, per row.

    The gradient of a score is ``weight_ij * (kept_ij * of_weight_ij - steady_i)`` times ln 2, with
    ``of_weight_ij = of_value_i . v_j + of_far_i * phi_value_ij + of_kept_i``; without dropout ``kept`` is left out of
    both. ``of_`` = gradient of.
    """

    lse: Float[Tensor, "heads tiles"]
    """inf instead of -inf for a tile without keys, whose weights then are 0."""
    steady: Float[Tensor, "heads tiles"]
    """What is taken off every weight's gradient, because the weights of a row sum to one."""
    of_value: Float[Tensor, "heads tiles dim_v"]
    of_far: Float[Tensor, "heads tiles"]
    """Zeros where it is not wanted."""
    of_kept: Float[Tensor, "heads tiles"]


class Gradients(NamedTuple):
    """Of the operands that have one; None as they are."""

    q: Float[Tensor, "heads tiles dim"]
    k: Float[Tensor, "heads tiles dim"]
    v: Float[Tensor, "heads tiles dim_v"]
    row: Float[Tensor, "heads tiles"] | None
    col: Float[Tensor, "heads tiles"] | None
    beta: Float[Tensor, "phis heads"] | None
    theta: Float[Tensor, "phis heads"] | None
    near: Float[Tensor, "heads tiles"] | None = None
