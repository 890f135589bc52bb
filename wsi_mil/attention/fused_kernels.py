"""Numba kernels of `wsi_mil.attention.fused`: attention of blocks of pairs, and its gradients.

Every loop over the pairs of a row is one that LLVM turns into vector instructions, which wants contiguous rows and no
function call that stays one.
"""

from pathlib import Path
from typing import no_type_check

import numpy as np
import xxhash
from numba import njit

from wsi_mil.attention.dropout import MULTIPLIERS
from wsi_mil.attention.fused_arrays import DISTANCE, FATE, PHI
from wsi_mil.attention.fused_math import FASTMATH, WIDTH, exp2, greater, matmul
from wsi_mil.attention.fused_schedule import finish, take
from wsi_mil.compiling import compiled

_MASKED = np.float32(-3e38)
"""Stands for the score of a pair that is none: its weight is exactly 0."""

_SOURCES = xxhash.xxh3_64_hexdigest(
    b"".join(
        Path(__file__).with_name(f"{name}.py").read_bytes()
        for name in ("fused_kernels", "fused_arrays", "fused_math", "fused_schedule", "dropout")
    )
)


@no_type_check
def _published(function):
    """Compile, and keep the result.

    Numba names what it keeps after the function, and notices no change of the files that a file imports from; so the
    name tells what they all are.
    """
    function.__qualname__ += f"_{_SOURCES}"
    return compiled(function, nogil=True, error_model="numpy", fastmath=FASTMATH)


_compiled = njit(nogil=True, error_model="numpy", fastmath=FASTMATH)
# At the door of a function references to arrays are counted, which for a row of a block costs as much as its work.
_inlined = njit(inline="always", nogil=True, error_model="numpy", fastmath=FASTMATH)


@_inlined
@no_type_check
def _measure(x, y, xs, ys, slopes, thetas, lines):
    """Distances of a tile to others, and their phis."""
    width = len(xs)
    for j in range(width):
        across, down = xs[j] - x, ys[j] - y
        lines[DISTANCE, j] = np.sqrt(across * across + down * down)
    for index in range(len(slopes)):
        slope, theta = slopes[index], thetas[index]
        for j in range(width):
            lines[PHI + index, j] = np.float32(1) / (np.float32(1) + exp2(slope * (lines[DISTANCE, j] - theta)))


@_inlined
@no_type_check
def _decide(row, cols, threshold, kept, fates):
    """What dropout makes of the weights of a row: as `wsi_mil.attention.dropout.keep`."""
    for j in range(len(cols)):
        x = np.uint32(row + cols[j])
        x = np.uint32(x ^ (x >> np.uint32(16)))
        x = np.uint32(x * np.uint32(MULTIPLIERS[0]))
        x = np.uint32(x ^ (x >> np.uint32(15)))
        x = np.uint32(x * np.uint32(MULTIPLIERS[1]))
        x = np.uint32(x ^ (x >> np.uint32(16)))
        fates[j] = kept if np.int32(x) >= threshold else np.float32(0)


@_inlined
@no_type_check
def _view(given, head, here, there):
    """What decides distances, phis and fates of a block."""
    x, y, xs, ys = given.xy[0, here], given.xy[1, here], given.xy[0, there], given.xy[1, there]
    slopes, thetas = given.slope[:, head].copy(), given.theta[:, head].copy()
    return x, y, xs, ys, slopes, thetas, given.row_code[head, here], given.col_code[head, there]


@_inlined
@no_type_check
def _phis(given, lines):
    """The lines with the phi of key, query and value; without distances all are zero."""
    count = len(given.slope)
    return lines[PHI], lines[PHI + (count > 1)], lines[PHI + 2 * (count > 1)]


@_inlined
@no_type_check
def _prepare(view, i, threshold, kept, lines):
    """Fill the lines with distances, phis and fates of a row."""
    x, y, xs, ys, slopes, thetas, row_code, col_code = view
    if len(slopes):
        _measure(x[i], y[i], xs, ys, slopes, thetas, lines)
    if len(row_code):
        _decide(row_code[i], col_code, threshold, kept, lines[FATE])


@_inlined
@no_type_check
def _weigh(scores, i, row, cols, best, phis, fates):
    """Turn scores of a row into weights; returns the greatest score so far, to which they and their sums relate."""
    width, top = len(cols), best
    key, query, value = phis
    for j in range(width):
        scores[i, j] += key[j] * row + query[j] * cols[j]
        top = greater(top, scores[i, j])
    total, kept, far = np.float32(0), np.float32(0), np.float32(0)
    for j in range(width):
        weight = exp2(scores[i, j] - top)
        total += weight
        weight *= fates[j]
        kept += weight
        far += weight * value[j]
        scores[i, j] = weight
    return top, total, kept, far


@_compiled
@no_type_check
def _attend(given, sums, head, top, left, width, scores, lines):
    """Scores of a block become weights, and the sums of its rows grow."""
    here, there = slice(top, top + len(scores)), slice(left, left + width)
    view, row, cols = _view(given, head, here, there), given.row[head, here], given.col[head, there]
    phis, fates = _phis(given, lines), lines[FATE]
    greatest, totals, kepts = sums.best[head, here], sums.total[head, here], sums.kept[head, here]
    fars, values = sums.far[head, here], sums.value[head, here]
    for i in range(len(scores)):
        _prepare(view, i, given.threshold, given.kept, lines)
        if not given.diagonal and 0 <= top + i - left < width:
            scores[i, top + i - left] = _MASKED
        best = greatest[i]
        greatest[i], total, kept, far = _weigh(scores, i, row[i], cols, best, phis, fates)
        shrink = exp2(best - greatest[i])
        totals[i] = totals[i] * shrink + total
        kepts[i] = kepts[i] * shrink + kept
        fars[i] = fars[i] * shrink + far
        for d in range(values.shape[1]):
            values[i, d] *= shrink


@_published
@no_type_check
def attend(given, sums, pieces, scratch):
    """Add the pairs of pieces to the sums of their rows (online softmax)."""
    block, head = take(pieces)
    while block >= 0:
        top, bottom, left, right = pieces.span[block]
        width = right - left
        ceiling = -(-width // WIDTH) * WIDTH
        scores = scratch.pairs[0, : bottom - top]
        matmul(scores[:, :ceiling], given.q[head, top:bottom], given.k_across[head, :, left : left + ceiling], False)
        _attend(given, sums, head, top, left, width, scores, scratch.lines)
        matmul(sums.value[head, top:bottom], scores[:, :width], given.v[head, left:right], True)
        finish(pieces, block, head)
        block, head = take(pieces)


@_inlined
@no_type_check
def _retrace_row(weights, changes, i, steady, row, cols, of_cols, lse, of_kept, of_far, distances, phis, fates):
    """Scores of a row become weights, and gradients of weights those of scores; returns sums of gradients of phi."""
    key, query, value = phis
    of_row, by_key, by_query, by_value = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    far_key, far_query, far_value = np.float32(0), np.float32(0), np.float32(0)
    for j in range(len(cols)):
        weight = exp2(weights[i, j] + key[j] * row + query[j] * cols[j] - lse)
        kept = weight * fates[j]
        change = kept * (changes[i, j] + of_far * value[j] + of_kept) - weight * steady
        weights[i, j], changes[i, j] = kept, change
        part = change * key[j]
        of_row += part
        part -= part * key[j]
        by_key += part
        far_key += part * distances[j]
        part = change * query[j]
        of_cols[j] += part
        part = (part - part * query[j]) * cols[j]
        by_query += part
        far_query += part * distances[j]
        part = kept * value[j]
        part -= part * value[j]
        by_value += part
        far_value += part * distances[j]
    return of_row, by_key * row, far_key * row, by_query, far_query, by_value * of_far, far_value * of_far


@_compiled
@no_type_check
def _retrace(given, known, made, head, place, top, left, width, weights, changes, lines):
    """Scores of a block become weights, the gradients of weights those of scores, and the gradients of phi grow."""
    here, there = slice(top, top + len(weights)), slice(left, left + width)
    view, row, cols = _view(given, head, here, there), given.row[head, here], given.col[head, there]
    distances, phis, fates = lines[DISTANCE], _phis(given, lines), lines[FATE]
    lse, steady, of_kept, of_far = (
        known.lse[head, here],
        known.steady[head, here],
        known.of_kept[head, here],
        known.of_far[head, here],
    )
    of_row, of_cols, sums = made.row[head, here], made.col[head, there], made.exponent[place, head]
    for i in range(len(weights)):
        _prepare(view, i, given.threshold, given.kept, lines)
        if not given.diagonal and 0 <= top + i - left < width:
            weights[i, top + i - left] = _MASKED
        parts = _retrace_row(
            weights, changes, i, steady[i], row[i], cols, of_cols, lse[i], of_kept[i], of_far[i], distances, phis, fates
        )
        of_row[i] += parts[0]
        for index in range(3):
            sums[index, 0] += parts[1 + 2 * index]
            sums[index, 1] += parts[2 + 2 * index]


@_published
@no_type_check
def retrace(given, known, made, pieces, scratch):
    """Add the pairs of pieces to the gradients."""
    block, head = take(pieces)
    while block >= 0:
        top, bottom, left, right = pieces.span[block]
        place = pieces.place[block]
        width = right - left
        ceiling = -(-width // WIDTH) * WIDTH
        weights, changes = scratch.pairs[0, : bottom - top], scratch.pairs[1, : bottom - top]
        matmul(weights[:, :ceiling], given.q[head, top:bottom], given.k_across[head, :, left : left + ceiling], False)
        across = known.v_across[head, :, left : left + ceiling]
        matmul(changes[:, :ceiling], known.of_value[head, top:bottom], across, False)
        _retrace(given, known, made, head, place, top, left, width, weights, changes, scratch.lines)
        weights, changes = weights[:, :width], changes[:, :width]
        matmul(made.v[head, left:right], weights.T, known.of_value[head, top:bottom], True)
        matmul(made.q[head, top:bottom], changes, given.k[head, left:right], True)
        matmul(made.k[head, left:right], changes.T, given.q[head, top:bottom], True)
        finish(pieces, block, head)
        block, head = take(pieces)
