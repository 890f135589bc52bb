"""What the Triton kernels of distance-aware attention do per block: find it, load it, and functions of its pairs.

Not checked for types: a kernel is compiled from its source by Triton, and is Python in syntax only.
"""

from typing import no_type_check

import triton
import triton.language as tl

from wsi_mil.attention.dropout import MULTIPLIERS

_FIRST, _SECOND = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
LOWEST = tl.constexpr(-1e30)  # less than any score, yet finite, so that no difference of two is NaN
LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
# Sums along a row stay apart by column modulo this until the end: so many neighbouring columns of a block of scores lie
# in different threads, and adding those up in every step would cost shuffles.
LANES = tl.constexpr(8)


# ---- what to work on


@triton.jit
@no_type_check
def own_block(work_ptr, SIZE: tl.constexpr):
    """The program's row of work, the start of its own block, its tiles, and which of them there are."""
    work = work_ptr + tl.program_id(0) * 10
    start = tl.load(work)
    places = start + tl.arange(0, SIZE)
    return work, start.to(tl.int64), places, places < tl.load(work + 1)


@triton.jit
@no_type_check
def walk_of(work, MASKED: tl.constexpr, SIZE: tl.constexpr):
    """Start and stop of two ranges of partners, and how many blocks they make."""
    work += 6 if MASKED else 2
    first, first_stop, second, second_stop = tl.load(work), tl.load(work + 1), tl.load(work + 2), tl.load(work + 3)
    blocks = tl.cdiv(first_stop - first, SIZE) + tl.cdiv(second_stop - second, SIZE)
    return first, first_stop, second, second_stop, blocks


@triton.jit
@no_type_check
def partner_block(walk, step, SIZE: tl.constexpr):
    """Start of a block of partners, its tiles, and which of them there are."""
    first, first_stop, second, second_stop, _ = walk
    here = first + step * SIZE
    later = second + here - first - tl.cdiv(first_stop - first, SIZE) * SIZE
    start = tl.where(here < first_stop, here, later)
    places = start + tl.arange(0, SIZE)
    return start.to(tl.int64), places, places < tl.where(here < first_stop, first_stop, second_stop)


@triton.jit
@no_type_check
def paired(rows, cols, real, DIAGONAL: tl.constexpr):
    """Which pairs of a block attend."""
    if DIAGONAL:
        return real
    else:
        return real & (rows != cols)


# ---- from and to memory


@triton.jit
@no_type_check
def load_vectors(first_ptr, tile, real, DIM: tl.constexpr, PAD: tl.constexpr, MASKED: tl.constexpr):
    """Vectors of tiles in a row, 0 where there is none."""
    dims = tl.arange(0, PAD)[None, :]
    ptrs = first_ptr + tl.arange(0, real.shape[0])[:, None] * tile + dims
    if MASKED:
        return tl.load(ptrs, mask=real[:, None] & (dims < DIM), other=0.0)
    elif DIM < PAD:
        return tl.load(ptrs, mask=dims < DIM, other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
@no_type_check
def load_numbers(ptr, base, places, real, other: tl.constexpr, MASKED: tl.constexpr):
    """Numbers of some tiles; zeros, which nothing uses, of an array that is None."""
    if ptr is None:
        return tl.zeros(places.shape, tl.float32)
    elif MASKED:
        return tl.load(ptr + base + places, mask=real, other=other)
    else:
        return tl.load(ptr + base + places)


@triton.jit
@no_type_check
def load_places(xy_ptr, tiles, places, real, MASKED: tl.constexpr):
    """Horizontal and vertical coordinate of some tiles."""
    return load_numbers(xy_ptr, 0, places, real, 0.0, MASKED), load_numbers(xy_ptr, tiles, places, real, 0.0, MASKED)


@triton.jit
@no_type_check
def load_curves(curve_ptr, head, heads, SHARED: tl.constexpr):
    """Factor and summand that turn a distance into the exponent of phi: of key, query and value."""
    if curve_ptr is None:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    else:
        key = curve_ptr + 2 * head
        query = key + (0 if SHARED else 2 * heads)
        value = query + (0 if SHARED else 2 * heads)
        return tl.load(key), tl.load(key + 1), tl.load(query), tl.load(query + 1), tl.load(value), tl.load(value + 1)


@triton.jit
@no_type_check
def store_vectors(first_ptr, vectors, own, DIM: tl.constexpr, PAD: tl.constexpr):
    """The counterpart of `load_vectors`; rows of the array follow each other without a gap."""
    dims = tl.arange(0, PAD)[None, :]
    ptrs = first_ptr + tl.arange(0, own.shape[0])[:, None] * DIM + dims
    tl.store(ptrs, vectors.to(first_ptr.dtype.element_ty), mask=own[:, None] & (dims < DIM))


@triton.jit
@no_type_check
def store_sums(ptr, alone, times_distance, factor, places, own, plane):
    """The two sums of one phi, per tile."""
    tl.store(ptr + places, tl.sum(alone, 1) * factor, mask=own)
    tl.store(ptr + plane + places, tl.sum(times_distance, 1) * factor, mask=own)


# ---- per pair


@triton.jit
@no_type_check
def distance_of(x, y, x_other, y_other, FAST: tl.constexpr):
    """By explicit differences: expanding the square would cancel far from the origin."""
    x -= x_other
    y -= y_other
    return _sqrt(x * x + y * y, FAST)


@triton.jit
@no_type_check
def phis_of(
    distance, curves, ROW: tl.constexpr, COL: tl.constexpr, FAR: tl.constexpr, SHARED: tl.constexpr, FAST: tl.constexpr
):
    """Of key, query and value; the distance in the stead of those not wanted."""
    key, query, value = distance, distance, distance
    if SHARED:
        key = _phi(distance, curves[0], curves[1], FAST)
        query, value = key, key
    else:
        if ROW:
            key = _phi(distance, curves[0], curves[1], FAST)
        if COL:
            query = _phi(distance, curves[2], curves[3], FAST)
        if FAR:
            value = _phi(distance, curves[4], curves[5], FAST)
    return key, query, value


@triton.jit
@no_type_check
def _phi(distance, factor, summand, FAST: tl.constexpr):
    if FAST:
        return 0.5 * _tanh(distance * factor + summand) + 0.5
    else:
        return 1.0 / (1.0 + tl.exp2(distance * factor + summand))


@triton.jit
@no_type_check
def slope_of(phi):
    """Derivative of phi by its exponent."""
    return phi - phi * phi


@triton.jit
@no_type_check
def biased(score, row, col, phi_key, phi_query, ROW: tl.constexpr, COL: tl.constexpr, SHARED: tl.constexpr):
    """Scores with what phi adds to them; given to a product to be added to, which costs nothing."""
    if SHARED:
        score += times_factor(phi_key, row, col, ROW, COL)
    else:
        if ROW:
            score += phi_key * row
        if COL:
            score += phi_query * col
    return score


@triton.jit
@no_type_check
def times_factor(pairs, row, col, ROW: tl.constexpr, COL: tl.constexpr):
    """Times what a shared phi is multiplied by in the scores."""
    if ROW and COL:
        return pairs * (row + col)
    elif ROW:
        return pairs * row
    elif COL:
        return pairs * col
    else:
        return tl.zeros_like(pairs)


@triton.jit
@no_type_check
def change_start(phi_value, dfar, dkept, steady, FAR: tl.constexpr, DROPOUT: tl.constexpr):
    """What the product of value and its gradient is added to: the other gradients of a weight."""
    start = dkept if DROPOUT else -steady
    if FAR:
        start += phi_value * dfar
    return start + tl.zeros_like(phi_value)


@triton.jit
@no_type_check
def change_of(weight, change, steady, code, threshold, DROPOUT: tl.constexpr):
    """Weights that dropout keeps and gradients of scores."""
    if DROPOUT:
        stays = stays_of(code, threshold)
        return tl.where(stays, weight, 0.0), weight * (tl.where(stays, change, 0.0) - steady)
    else:
        return weight, weight * change


@triton.jit
@no_type_check
def stays_of(code, threshold):
    """The fate of a pair, as `wsi_mil.attention.dropout.keep` has it."""
    word = code.to(tl.uint32, bitcast=True)
    word = (word ^ (word >> 16)) * _FIRST
    word = (word ^ (word >> 15)) * _SECOND
    word ^= word >> 16
    return word.to(tl.int32, bitcast=True) >= threshold


@triton.jit
@no_type_check
def by_lane(pairs):
    """Sums over columns that one thread holds: (rows, cols) to (rows, lanes)."""
    ROWS: tl.constexpr = pairs.shape[0]
    COLS: tl.constexpr = pairs.shape[1]
    return tl.sum(tl.reshape(pairs.to(tl.float32), (ROWS, COLS // LANES, LANES)), 1)


# ---- elementary functions, as one instruction each where 16-bit operands bound what accuracy is of use


@triton.jit
@no_type_check
def exp2(x, FAST: tl.constexpr):
    """Two to the power of ``x``."""
    if FAST:
        return _one("ex2.approx.ftz.f32 $0, $1;", x)
    else:
        return tl.exp2(x)


@triton.jit
@no_type_check
def _sqrt(x, FAST: tl.constexpr):
    if FAST:
        return _one("sqrt.approx.ftz.f32 $0, $1;", x)
    else:
        return tl.sqrt(x)


@triton.jit
@no_type_check
def _tanh(x):
    return _one("tanh.approx.f32 $0, $1;", x)


@triton.jit
@no_type_check
def _one(instruction: tl.constexpr, x):
    return tl.inline_asm_elementwise(instruction, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
