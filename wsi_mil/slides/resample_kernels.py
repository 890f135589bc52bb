"""Pillow's bilinear filter, compiled by numba: columns first, then rows, in whole numbers.

Along columns the values that are added up lie side by side in memory, so that eight are added at once. Along rows they
do not, so strips of rows are turned on their side first, in cache.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from numba import int32, njit

from wsi_mil.filters import POINT, pillow_weights

_POINT, _HALF = POINT, 1 << (POINT - 1)
_STRIP = 32  # rows turned at once: a strip of 512 px fills 64 KB
_TOGETHER = 4  # inputs added at once


@no_type_check
def _compiled(function):
    """Compile, and keep the result in ``__pycache__`` here or in the user's cache."""
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError as error:
        warnings.warn(f"kernels are compiled anew in each process (see NUMBA_CACHE_DIR): {error}", stacklevel=2)
        return njit(**options)(function)


def resample(
    pixels: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "{size[1]} {size[0]} 3"]:
    """Resize an image to ``size`` (width, height), along both axes."""
    height, width = pixels.shape[:2]
    made = np.empty((size[1], size[0], 3), np.uint8)
    narrow = np.empty((height, size[0], 3), np.uint8)
    add_band([Piece(np.ascontiguousarray(pixels), 0, width)], 0, width, narrow)
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
    _add_band(*flat, columns, top, narrow.reshape(len(narrow), -1), _taps(width, narrow.shape[1]))


def finish(narrow: UInt8[np.ndarray, "height size 3"], made: UInt8[np.ndarray, "rows size 3"]) -> None:
    """Resize an image, whose rows have been resized, along its columns, into ``made``; both are contiguous."""
    _add_rows(narrow.reshape(len(narrow), -1), made.reshape(len(made), -1), _taps(len(narrow), len(made)))


class _Taps(NamedTuple):
    """What each output along one axis is made of."""

    places: Int64[np.ndarray, "size taps"]
    """The inputs, filled up with any to a multiple of four."""
    weights: Int32[np.ndarray, "size taps"]
    """What each of them counts for; the filling nothing."""


@functools.lru_cache(maxsize=64)
def _taps(length: int, size: int) -> _Taps:
    weights = pillow_weights(length, size, "bilinear")
    used = weights != 0
    first, last = used.argmax(1), length - used[:, ::-1].argmax(1)
    places = first[:, None] + np.arange(-(-(last - first).max() // _TOGETHER) * _TOGETHER)
    inside = np.minimum(places, length - 1)
    counts = np.where(places < length, np.take_along_axis(weights, inside, 1), 0)
    return _Taps(np.ascontiguousarray(inside, np.int64), np.ascontiguousarray(counts, np.int32))


@_compiled
@no_type_check
def _add_band(first, second, third, columns, top, narrow, taps):
    a, b, c = columns[1] - columns[0], columns[3] - columns[2], columns[5] - columns[4]
    turned = np.empty((a + b + c, _STRIP), np.int32)
    strip = np.empty((narrow.shape[1] // 3, 4 * _STRIP), np.uint8)
    for start in range(0, narrow.shape[0], _STRIP):
        rows = narrow[start : start + _STRIP]
        begin, end = top + start, top + start + rows.shape[0]
        _turn(first[begin:end, 3 * columns[0] : 3 * columns[1]], turned[:a])
        _turn(second[begin:end, 3 * columns[2] : 3 * columns[3]], turned[a : a + b])
        _turn(third[begin:end, 3 * columns[4] : 3 * columns[5]], turned[a + b :])
        _add_rows(turned.view(np.uint8), strip, taps)
        _turn_back(strip.view(np.int32), rows)


@_compiled
@no_type_check
def _turn(rows, turned):
    """Lay some rows on their side, four bytes a pixel."""
    for y in range(rows.shape[0]):
        for x in range(turned.shape[0]):
            red, green, blue = rows[y, 3 * x], rows[y, 3 * x + 1], rows[y, 3 * x + 2]
            turned[x, y] = int32(red) | (int32(green) << 8) | (int32(blue) << 16)


@_compiled
@no_type_check
def _turn_back(strip, rows):
    for y in range(rows.shape[0]):
        for x in range(strip.shape[0]):
            pixel = strip[x, y]
            rows[y, 3 * x], rows[y, 3 * x + 1], rows[y, 3 * x + 2] = pixel, pixel >> 8, pixel >> 16


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
        total[:] = _HALF
        for tap in range(0, places.shape[1], _TOGETHER):  # four at a time: what is added to is loaded once for them
            a, b, c, d = places[y, tap], places[y, tap + 1], places[y, tap + 2], places[y, tap + 3]
            of_a, of_b, of_c, of_d = weights[y, tap], weights[y, tap + 1], weights[y, tap + 2], weights[y, tap + 3]
            for x in range(width):
                first = int32(int32(rows[a, x]) * of_a + int32(rows[b, x]) * of_b)
                second = int32(int32(rows[c, x]) * of_c + int32(rows[d, x]) * of_d)
                total[x] = int32(total[x] + first + second)
        for x in range(width):
            made[y, x] = int32(total[x] >> int32(_POINT))
