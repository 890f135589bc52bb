"""Pillow's bilinear filter, compiled by numba: columns first, then rows, in whole numbers.

Along columns the values that are added up lie side by side in memory, and compilers know how to add several at once.
Along rows they do not, so that is spelt out in LLVM's vector types, which it compiles for any instruction set.

All in one module, since numba compiles anew only what is in a file that has changed.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Int16, Int32, Int64, UInt8
from llvmlite import ir
from numba import int32, types
from numba.core import cgutils
from numba.extending import intrinsic

from wsi_mil.compiling import compiled
from wsi_mil.filters import POINT, pillow_taps

_POINT, _ROUND = POINT, 1 << (POINT - 1)
_GROUP = 4  # inputs added at once: as many pixels of 3 bytes as are whole in 16
_TOGETHER = 8  # pixels of a row made at once
_LOADED = 16  # bytes read where a group begins
# Two bits more than `POINT` after the point of weights: the highest byte of a sum of 32 bits is the value.
_HALF = (POINT + 2) // 2

_BYTE, _SHORT, _WORD, _INDEX = (ir.IntType(bits) for bits in (8, 16, 32, 64))


@no_type_check
def _compiled(function):
    return compiled(function, nogil=True, error_model="numpy", boundscheck=False)


def resample(
    pixels: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "{size[1]} {size[0]} 3"]:
    """Resize an image to ``size`` (width, height), along those axes that need it."""
    height, width = pixels.shape[:2]
    narrow = np.ascontiguousarray(pixels)
    if width != size[0]:
        whole, narrow = narrow, np.empty((height, size[0], 3), np.uint8)
        add_band([Piece(whole, 0, width)], 0, width, narrow)
    if height == size[1]:
        return narrow
    made = np.empty((size[1], size[0], 3), np.uint8)
    finish(narrow, made)
    return made


class Piece(NamedTuple):
    """Some columns of an image."""

    pixels: UInt8[np.ndarray, "_ _ 3"]
    """The image, contiguous."""
    left: int
    """Its first column that counts."""
    right: int
    """And the one after the last."""


MOST_PIECES = 3
"""How many may lie side by side: as many as a tile of twice as many pixels touches wherever it lies."""


def add_band(pieces: Sequence[Piece], top: int, width: int, narrow: UInt8[np.ndarray, "rows size 3"]) -> None:
    """Resize a band of rows along their length. It lies in one to three pieces, side by side.

    Args:
        pieces: they make up rows of ``width`` pixels.
        top: their first row that counts.
        width: pixels of a row.
        narrow: where the rows go, contiguous.
    """
    whole = [*pieces, *([Piece(pieces[0].pixels, 0, 0)] * (MOST_PIECES - len(pieces)))]
    flat = [piece.pixels.reshape(len(piece.pixels), -1) for piece in whole]
    columns = tuple(side for piece in whole for side in (piece.left, piece.right))
    _add_band(*flat, columns, top, narrow.reshape(len(narrow), -1), _row_taps(width, narrow.shape[1]))


def finish(narrow: UInt8[np.ndarray, "height size 3"], made: UInt8[np.ndarray, "rows size 3"]) -> None:
    """Resize an image, whose rows have been resized, along its columns, into ``made``; both are contiguous."""
    _add_rows(narrow.reshape(len(narrow), -1), made.reshape(len(made), -1), _column_taps(len(narrow), len(made)))


class _RowTaps(NamedTuple):
    """What each output of a row is made of."""

    first: Int64[np.ndarray, "size"]
    """Its first input."""
    halves: Int16[np.ndarray, "size groups 2 16"]
    """High and low halves of the weights of that input and those after it, of each pair of them four times."""


class _ColumnTaps(NamedTuple):
    """What each output along columns is made of."""

    places: Int64[np.ndarray, "size taps"]
    """The inputs, filled up with any to a multiple of four."""
    weights: Int32[np.ndarray, "size taps"]
    """What each of them counts for; the filling nothing."""


@functools.lru_cache(maxsize=64)
def _column_taps(length: int, size: int) -> _ColumnTaps:
    taps = list(pillow_taps(length, size, "bilinear"))
    most = -(-max(len(weights) for _, weights in taps) // _GROUP) * _GROUP
    places = np.array([first for first, _ in taps], np.int64)[:, None] + np.arange(most)
    counts = np.zeros((size, most), np.int32)
    for line, (_, weights) in zip(counts, taps, strict=True):
        line[: len(weights)] = weights
    return _ColumnTaps(np.minimum(places, length - 1), counts)


@functools.lru_cache(maxsize=64)
def _row_taps(length: int, size: int) -> _RowTaps:
    places, weights = _column_taps(length, size)
    pairs = (weights << (2 * _HALF - POINT)).reshape(size, -1, 2, 1, 2).repeat(4, axis=3).reshape(size, -1, 16)
    halves = np.stack([pairs >> _HALF, pairs & ((1 << _HALF) - 1)], axis=2)
    return _RowTaps(np.ascontiguousarray(places[:, 0]), np.ascontiguousarray(halves, np.int16))


@no_type_check
def _pick(builder, one, other, places):
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_WORD, len(places)), list(places)))


@no_type_check
def _load(builder, place, kind, count):
    vector = ir.VectorType(kind, count)
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=kind.width // 8)


@no_type_check
def _add_products(builder, total, values, high, low):
    """Add the products of values and their weights to a sum, those of two neighbours to one number of it.

    Processors multiply numbers of 16 bits and add the products in pairs at once; but numbers of 32 bits, fewer and
    later. So weights come in two halves, whose sums, put together, are the sum modulo 2**32, and that is the sum.
    """
    wide = ir.VectorType(_WORD, values.type.count)
    sums = []
    for weights in (high, low):
        products = builder.mul(builder.sext(values, wide), builder.sext(weights, wide), flags=["nsw"])
        sums.append(builder.add(*(_pick(builder, products, products, range(of, wide.count, 2)) for of in (0, 1))))
    high_sum = builder.shl(sums[0], ir.Constant(total.type, [_HALF] * total.type.count))
    return builder.add(total, builder.add(high_sum, sums[1]))


@no_type_check
def _add_groups(builder, groups, places, weights):
    """The loop over the groups of inputs, with the sums of several pixels in registers.

    Args:
        builder: of the code.
        groups: how many.
        places: pointers to the first input of each pixel.
        weights: and to their weights.
    """
    # Where red of the first two inputs, green, blue and anything, then of the next two, lie in the bytes of a group;
    # with a zero after each, which makes numbers of 16 bits of them on the machines that numba knows.
    order = [3 * (pair + of) + min(channel, 2) for pair in (0, 2) for channel in range(4) for of in (0, 1)]
    spread = [index for place in order for index in (place, _LOADED)]
    nothing = ir.Constant(ir.VectorType(_BYTE, _LOADED), [0] * _LOADED)
    kind, shorts = ir.VectorType(_WORD, 8), ir.VectorType(_SHORT, 16)
    entry, loop, done = builder.block, builder.append_basic_block("groups"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    group, sums, grown = builder.phi(_INDEX), [builder.phi(kind) for _ in places], []
    for total, place, shares in zip(sums, places, weights, strict=True):
        loaded = _load(builder, builder.gep(place, [builder.mul(group, _INDEX(3 * _GROUP))]), _BYTE, _LOADED)
        values = builder.bitcast(_pick(builder, loaded, nothing, spread), shorts)
        at = builder.mul(group, _INDEX(32))
        halves = (_load(builder, builder.gep(shares, [builder.add(at, _INDEX(n))]), _SHORT, 16) for n in (0, 16))
        grown.append(_add_products(builder, total, values, *halves))
    following = builder.add(group, _INDEX(1))
    for phi, first, later in zip((group, *sums), (0, *([0] * 8 for _ in sums)), (following, *grown), strict=True):
        phi.add_incoming(ir.Constant(phi.type, first), entry)
        phi.add_incoming(later, loop)
    builder.cbranch(builder.icmp_signed("<", following, groups), loop, done)
    builder.position_at_end(done)
    return grown


@no_type_check
def _bytes_of(builder, sums):
    """The bytes of pixels: the sums of pairs added to each other, rounded."""
    while len(sums) > 1:  # side by side, as many as there are
        both = zip(sums[::2], sums[1::2], strict=True)
        sums = [_pick(builder, one, other, range(2 * one.type.count)) for one, other in both]
    fours = ([index for index in range(sums[0].type.count) if index % 8 // 4 == pair] for pair in (0, 1))
    total = builder.add(*(_pick(builder, sums[0], sums[0], four) for four in fours))
    half, point = (ir.Constant(total.type, [number] * total.type.count) for number in (1 << 23, 24))
    made = builder.trunc(builder.lshr(builder.add(total, half), point), ir.VectorType(_BYTE, total.type.count))
    return _pick(builder, made, made, [index for index in range(made.type.count) if index % 4 < 3])


@no_type_check
def _pixels(count):
    """Code that makes pixels ``x`` to ``x + count`` of row ``y`` out of the inputs in a line."""

    def generate(context, builder, signature, args):
        kinds, (y, x) = signature.args[:4], args[4:]
        line, made, first, halves = (
            context.make_array(kind)(context, builder, arg) for kind, arg in zip(kinds, args[:4], strict=True)
        )
        groups = cgutils.unpack_tuple(builder, halves.shape, 4)[1]
        outputs = [builder.add(x, _INDEX(index)) for index in range(count)]
        begins = [builder.load(builder.gep(first.data, [output])) for output in outputs]
        places = [builder.gep(line.data, [builder.mul(begin, _INDEX(3))]) for begin in begins]
        each = builder.mul(groups, _INDEX(32))
        weights = [builder.gep(halves.data, [builder.mul(output, each)]) for output in outputs]
        pixels = _bytes_of(builder, _add_groups(builder, groups, places, weights))
        row = builder.mul(y, cgutils.unpack_tuple(builder, made.strides, 2)[0])
        target = builder.gep(made.data, [builder.add(row, builder.mul(x, _INDEX(3)))])
        builder.store(pixels, builder.bitcast(target, pixels.type.as_pointer()), align=1)
        return context.get_dummy_value()

    @intrinsic
    def make(_context, line, made, first, halves, y, x):
        return types.void(line, made, first, halves, types.intp, types.intp), generate

    return make


_MAKE_PIXELS, _MAKE_PIXEL = _pixels(_TOGETHER), _pixels(1)


@_compiled
@no_type_check
def _add_band(first, second, third, columns, top, narrow, taps):
    """Row by row: lay the pieces side by side, with room for a group that reaches over the end, and add up."""
    a, b, c = columns[1] - columns[0], columns[3] - columns[2], columns[5] - columns[4]
    size, groups = taps.halves.shape[:2]
    whole = size - size % _TOGETHER
    line = np.zeros(3 * (a + b + c + _GROUP * groups) + _LOADED, np.uint8)
    for y in range(narrow.shape[0]):
        _copy(first[top + y, 3 * columns[0] : 3 * columns[1]], line)
        _copy(second[top + y, 3 * columns[2] : 3 * columns[3]], line[3 * a :])
        _copy(third[top + y, 3 * columns[4] : 3 * columns[5]], line[3 * (a + b) :])
        for x in range(0, whole, _TOGETHER):
            _MAKE_PIXELS(line, narrow, taps.first, taps.halves, y, x)
        for x in range(whole, size):
            _MAKE_PIXEL(line, narrow, taps.first, taps.halves, y, x)


@_compiled
@no_type_check
def _copy(values, target):
    """NumPy's way of saying it is twenty times slower here."""
    for index in range(values.shape[0]):
        target[index] = values[index]


@_compiled
@no_type_check
def _add_rows(rows, made, taps):
    """Make each row a weighted sum of others.

    One function, since calling another for each row would cost as much as the sums do; and each sum said to be of 32
    bits, since half as many of 64 are added at once.
    """
    places, weights = taps
    width, total = rows.shape[1], np.empty(rows.shape[1], np.int32)
    for y in range(places.shape[0]):
        total[:] = _ROUND
        for tap in range(0, places.shape[1], _GROUP):  # four at a time: what is added to is loaded once for them
            a, b, c, d = places[y, tap], places[y, tap + 1], places[y, tap + 2], places[y, tap + 3]
            of_a, of_b, of_c, of_d = weights[y, tap], weights[y, tap + 1], weights[y, tap + 2], weights[y, tap + 3]
            for x in range(width):
                first = int32(int32(rows[a, x]) * of_a + int32(rows[b, x]) * of_b)
                second = int32(int32(rows[c, x]) * of_c + int32(rows[d, x]) * of_d)
                total[x] = int32(total[x] + first + second)
        for x in range(width):
            made[y, x] = int32(total[x] >> int32(_POINT))
