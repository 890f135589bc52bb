"""Which thread does which block of pairs when, such that no two add to the same sums at once.

Blocks have an order, and threads take them in that order. A block waits for the last one before it that has its rows,
and for the last one that has its columns: every sum is made in the same order, whatever the number of threads. The
order goes along diagonals, so that neighbours have nothing in common and hardly ever wait.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Int8, Int64
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from wsi_mil.attention.operands import Task

Run = tuple[int, int]


class Schedule(NamedTuple):
    """Every block of pairs of a task, in order, for all heads."""

    span: Int64[np.ndarray, "blocks 4"]
    """Start and stop of rows, start and stop of columns."""
    before: Int64[np.ndarray, "blocks 2"]
    """The last block before with the same rows, and with the same columns; -1 = none."""
    place: Int64[np.ndarray, " blocks"]
    """Number of the block of rows."""
    heads: int
    taken: Int64[np.ndarray, "1"]
    """How many pieces (one head of one block) threads have begun."""
    done: Int8[np.ndarray, " pieces"]


def schedule(task: Task, heads: int, rows: int, cols: int) -> tuple[Schedule, int]:
    """Cut a task into blocks of so many rows and columns; also gives how many threads find work at once."""
    spans, turns = [np.empty((0, 4), np.int64)], [np.empty(0, np.int64)]
    for bag in task.runs:
        turn = 0
        for one, other in permutations(bag, 2) if task.across else zip(bag, bag, strict=True):
            span, diagonal = _diagonals(_cut(one, rows), _cut(other, cols))
            spans.append(span)
            turns.append(turn + diagonal)
            if task.across and len(span):  # the same rows come again with the next slide
                turn += int(diagonal[-1]) + 1
    span, turn = np.concatenate(spans), np.concatenate(turns)
    span = span[np.argsort(turn, kind="stable")]
    before = np.stack((_before(span[:, 0]), _before(span[:, 2])), axis=1)
    place = np.unique(span[:, 0], return_inverse=True)[1]
    pieces = Schedule(span, before, place, heads, np.zeros(1, np.int64), np.zeros(len(span) * heads, np.int8))
    return pieces, int(np.bincount(turn, minlength=1).max()) * heads


def _cut(run: Run, side: int) -> np.ndarray:
    starts = np.arange(*run, side)
    return np.stack((starts, np.minimum(starts + side, run[1])), axis=1)


def _diagonals(rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows and columns, diagonal by diagonal of their table, and the number of the diagonal of each."""
    long, short = max(len(rows), len(cols)), min(len(rows), len(cols))
    shift, i = np.divmod(np.arange(long * short), short)
    j = (i + shift) % long
    row, col = (j, i) if len(rows) > len(cols) else (i, j)
    return np.concatenate((rows[row], cols[col]), axis=1), shift


def _before(numbers: np.ndarray) -> np.ndarray:
    """Per entry, the index of the last equal one before it; -1 = none."""
    order = np.argsort(numbers, kind="stable")
    same = numbers[order[1:]] == numbers[order[:-1]]
    before = np.full(len(numbers), -1)
    before[order[1:][same]] = order[:-1][same]
    return before


def share_out(
    kernel: Callable[..., None], scratch: Callable[[], tuple], pieces: Schedule, threads: int, *arrays: tuple
) -> None:
    """Call a kernel, with scratch of its own, on as many threads as torch may use; together they do all pieces."""
    others = min(torch.get_num_threads(), threads) - 1
    if others <= 0:
        kernel(*arrays, pieces, scratch())
        return
    with ThreadPoolExecutor(others) as pool:
        helpers = [pool.submit(kernel, *arrays, pieces, scratch()) for _ in range(others)]
        kernel(*arrays, pieces, scratch())
        for helper in helpers:
            helper.result()


_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@no_type_check
def _place(context, builder, signature, args):
    """Pointer to an entry of an array."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return cgutils.get_item_pointer(context, builder, signature.args[0], array, [args[1]])


@intrinsic
@no_type_check
def _count(_context, array, index):
    """Add one to an entry; returns what it was."""

    def generate(context, builder, signature, args):
        place = _place(context, builder, signature, args)
        return builder.atomic_rmw("add", place, ir.Constant(place.type.pointee, 1), "monotonic")

    return array.dtype(array, types.intp), generate


@intrinsic
@no_type_check
def _read(_context, array, index):
    """An entry that another thread may have raised; what that thread wrote before is seen after."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(_place(context, builder, signature, args), "acquire", 1)

    return array.dtype(array, types.intp), generate


@intrinsic
@no_type_check
def _raise(_context, array, index):
    """Set an entry to one, for other threads to see."""

    def generate(context, builder, signature, args):
        place = _place(context, builder, signature, args)
        builder.store_atomic(ir.Constant(place.type.pointee, 1), place, "release", 1)
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@njit(nogil=True)
@no_type_check
def take(pieces):
    """The next block and head, once what it waits for is done; a block of -1 when there is none."""
    piece = _count(pieces.taken, 0)
    if piece >= len(pieces.done):
        return -1, -1
    block, head = divmod(piece, pieces.heads)
    for earlier in pieces.before[block]:
        if earlier >= 0:
            while not _read(pieces.done, earlier * pieces.heads + head):
                _sched_yield()
    return block, head


@njit(nogil=True)
@no_type_check
def finish(pieces, block, head):
    """Let those that wait for a block go on."""
    _raise(pieces.done, block * pieces.heads + head)
