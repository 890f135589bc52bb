"""Distance-aware attention fused by Numba: float32 on the CPU, exact, faster than `tiled`.

Memory is linear in the tiles but for the list of blocks: 8 MB at 100,000 tiles, 70 MB at 300,000.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wsi_mil.attention.dropout import threshold
from wsi_mil.attention.fused_arrays import COLS, LOW, ROWS, Inputs, Known, Made, Scratch, Sums
from wsi_mil.attention.fused_kernels import attend, retrace
from wsi_mil.attention.fused_math import WIDTH
from wsi_mil.attention.fused_schedule import schedule, share_out
from wsi_mil.attention.operands import LOG2E, Gradients, Operands, Part, Retrace, Task


def forward(operands: Operands, task: Task) -> Part:
    """Attend. See `wsi_mil.attention.operands`."""
    heads, tiles, dim_v = operands.v.shape
    given = _inputs(operands, task)
    best, total, kept, far = operands.q.new_zeros((4, heads, tiles))
    best.fill_(float(LOW))
    value = operands.q.new_zeros(given.v.shape)
    sums = Sums(*(tensor.numpy() for tensor in (best, total, kept, far, value)))
    share_out(attend, Scratch.new, *schedule(task, heads, ROWS, COLS), given, sums)
    attended = total > 0
    share = torch.where(attended, 1 / total, 0)
    value = value.mul_(share.unsqueeze(-1))[..., :dim_v]
    lse = best.add_(total.log2()).masked_fill_(~attended, -math.inf)
    kept = kept.mul_(share) if task.dropout_p else attended.to(kept)
    return Part(value.contiguous(), far.mul_(share) if task.far else far.zero_(), kept, lse)


def backward(operands: Operands, task: Task, retraced: Retrace) -> Gradients:
    """Gradients of the operands; the scores of every block are computed again."""
    heads, tiles, dim_v = operands.v.shape
    given = _inputs(operands, task)
    pieces, threads = schedule(task, heads, ROWS, COLS)
    of_kept = retraced.of_kept if task.dropout_p else torch.zeros_like(retraced.of_kept)
    rows = (retraced.lse, retraced.steady, of_kept, retraced.of_far, _padded(retraced.of_value), _across(operands.v))
    known = Known(*map(_array, rows))
    of_q, of_k, of_v = (operands.q.new_zeros(array.shape) for array in (given.q, given.k, given.v))
    of_row, of_col = operands.q.new_zeros((2, heads, tiles))
    places = int(pieces.place.max(initial=-1)) + 1
    exponent = torch.zeros((places, heads, 3, 2), dtype=torch.float64)
    made = Made(*(tensor.numpy() for tensor in (of_q, of_k, of_v, of_row, of_col, exponent)))
    share_out(retrace, Scratch.new, pieces, threads, given, known, made)
    for gradient in (of_q, of_k, of_row, of_col):
        gradient.mul_(math.log(2))  # scores are exponents of two
    dim = operands.q.shape[2]
    return Gradients(
        of_q[..., :dim].contiguous(),
        of_k[..., :dim].contiguous(),
        of_v[..., :dim_v].contiguous(),
        None if operands.row is None else of_row,
        None if operands.col is None else of_col,
        *_of_phi(operands, exponent.sum(0)),
    )


def _of_phi(operands: Operands, sums: Float[Tensor, "heads 3 2"]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of beta and theta."""
    if operands.beta is None or operands.theta is None:
        return None, None
    of_exponent = sums * sums.new_tensor([math.log(2), math.log(2), 1])[:, None]
    if len(operands.beta) == 1:
        of_exponent = of_exponent.sum(1, keepdim=True)
    alone, times_distance = of_exponent.permute(2, 1, 0)
    slope, shift = times_distance - operands.theta * alone, -operands.beta * alone
    return slope.to(operands.beta), shift.to(operands.beta)


def _inputs(operands: Operands, task: Task) -> Inputs:
    """Operands as the kernels want them: what is absent is without effect."""
    if operands.q.dtype != torch.float32:
        raise ValueError(f"backend numba computes in float32, not in {operands.q.dtype}")
    if operands.q.device.type != "cpu":
        raise ValueError(f"backend numba computes on the CPU, not on {operands.q.device.type}")
    heads, tiles, _ = operands.q.shape
    nothing = operands.q.new_zeros(heads, tiles)
    none = operands.q.new_zeros(0, heads)
    codes = (np.empty((heads, 0), np.uint32),) * 2
    if operands.row_code is not None and operands.col_code is not None:
        codes = (_array(operands.row_code).view(np.uint32), _array(operands.col_code).view(np.uint32))
    return Inputs(
        *(_array(_padded(rows)) for rows in (operands.q, operands.k, operands.v)),
        _array(_across(operands.k)),
        _array(nothing if operands.row is None else operands.row),
        _array(nothing if operands.col is None else operands.col),
        _array(none if operands.beta is None else operands.beta * -LOG2E),
        _array(none if operands.theta is None else operands.theta),
        _array(operands.q.new_zeros(2, 0) if operands.xy is None else operands.xy),
        *codes,
        np.int32(threshold(task.dropout_p)),
        np.float32(1 / (1 - task.dropout_p)),
        task.diagonal,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _padded(rows: Float[Tensor, "heads tiles dim"]) -> Float[Tensor, "heads tiles more_dim"]:
    """With zeros up to a multiple of a vector's width, if there is need to."""
    spare = -rows.shape[2] % WIDTH
    return torch.nn.functional.pad(rows, (0, spare)) if spare else rows


def _across(rows: Float[Tensor, "heads tiles dim"]) -> Float[Tensor, "heads more_dim more_tiles"]:
    """A row per dimension, of an odd number of vectors so that rows do not evict each other from cache."""
    heads, tiles, dim = rows.shape
    across = rows.new_zeros(heads, dim + -dim % WIDTH, ((tiles // WIDTH + 2) | 1) * WIDTH)
    across[:, :dim, :tiles] = rows.mT
    return across
