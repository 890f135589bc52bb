"""What the Numba kernels of `wsi_mil.attention.fused_kernels` are given and fill."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt32

from wsi_mil.attention.fused_math import HEIGHT

ROWS, COLS = 32 * HEIGHT, 64 * HEIGHT
"""Tiles per block: scores and their gradients stay in a second-level cache of 1 MB."""
LOW = np.float32(-1e30)
"""Stands for the greatest score of a row that has met none yet."""
# Lines of scratch: distances, three phis and the fates of dropout.
DISTANCE, PHI, FATE = 0, 1, 4


class Inputs(NamedTuple):
    """The operands; dimensions padded with zeros to a multiple of `WIDTH`."""

    q: Float32[np.ndarray, "heads tiles dim"]
    k: Float32[np.ndarray, "heads tiles dim"]
    v: Float32[np.ndarray, "heads tiles dim_v"]
    k_across: Float32[np.ndarray, "heads dim more_tiles"]
    """k with a row per dimension and at least `WIDTH` columns to spare."""
    row: Float32[np.ndarray, "heads tiles"]
    col: Float32[np.ndarray, "heads tiles"]
    slope: Float32[np.ndarray, "phis heads"]
    """Of the exponent of two in ``phi = 1 / (1 + 2 ** (slope * (distance - theta)))``."""
    theta: Float32[np.ndarray, "phis heads"]
    xy: Float32[np.ndarray, "2 tiles"]
    row_code: UInt32[np.ndarray, "heads tiles"]
    """Of no length without dropout."""
    col_code: UInt32[np.ndarray, "heads tiles"]
    threshold: np.int32
    kept: np.float32
    """The factor of weights that dropout keeps."""
    diagonal: bool


class Sums(NamedTuple):
    """What the forward pass keeps of each row: the greatest score, and sums relative to it."""

    best: Float32[np.ndarray, "heads tiles"]
    total: Float32[np.ndarray, "heads tiles"]
    kept: Float32[np.ndarray, "heads tiles"]
    far: Float32[np.ndarray, "heads tiles"]
    value: Float32[np.ndarray, "heads tiles dim_v"]


class Known(NamedTuple):
    """What the backward pass knows of each row (``of_`` = gradient of), and v with a row per dimension."""

    lse: Float32[np.ndarray, "heads tiles"]
    steady: Float32[np.ndarray, "heads tiles"]
    of_kept: Float32[np.ndarray, "heads tiles"]
    of_far: Float32[np.ndarray, "heads tiles"]
    of_value: Float32[np.ndarray, "heads tiles dim_v"]
    v_across: Float32[np.ndarray, "heads dim_v more_tiles"]


class Made(NamedTuple):
    """Gradients, in the unit of scores."""

    q: Float32[np.ndarray, "heads tiles dim"]
    k: Float32[np.ndarray, "heads tiles dim"]
    v: Float32[np.ndarray, "heads tiles dim_v"]
    row: Float32[np.ndarray, "heads tiles"]
    col: Float32[np.ndarray, "heads tiles"]
    exponent: Float64[np.ndarray, "row_blocks heads 3 2"]
    """Of the exponents of phi for key, query and value: alone, and times distance."""


class Scratch(NamedTuple):
    """Of one thread."""

    pairs: Float32[np.ndarray, "2 rows cols"]
    lines: Float32[np.ndarray, "5 cols"]
    """Of one row of a block."""

    @classmethod
    def new(cls) -> "Scratch":
        lines = np.zeros((5, COLS), np.float32)
        lines[FATE] = 1
        return cls(np.empty((2, ROWS, COLS), np.float32), lines)
