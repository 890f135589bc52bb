"""Dropout on attention weights without an array of them: each pair's fate is computed from its place.

A tile as row and a tile as column each get a 32-bit code; a pair is kept or dropped by the mixed sum of its two codes.
So the backward pass, and every backend, sees the same fates without storing any.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

# The integer finaliser "lowbias32" (C. Wellons, Hash Function Prospector): each input bit flips each output bit with a
# probability of one half, to within a bias of 0.17.
MULTIPLIERS = 0x7FEB352D, 0x846CA68B
GOLDEN = 0x9E3779B9  # steps by it spread consecutive counters evenly over 32 bits
_WORD = 0xFFFFFFFF


class Codes(NamedTuple):
    """What decides the fate of every pair of tiles, for one seed."""

    row: Int32[Tensor, "bags heads tiles"]
    col: Int32[Tensor, "bags heads tiles"]


def draw_seed() -> Int[Tensor, ""]:
    """A seed from torch's global CPU generator, as a tensor, so that no compiled graph is broken by reading it."""
    return torch.randint(0, 2**31, ())


def codes(seed: Int[Tensor, ""], bags: int, heads: int, tiles: int, device: torch.device) -> Codes:
    """The codes of every tile of a padded batch."""
    place = torch.arange(bags * heads * tiles, dtype=torch.int64, device=device).view(bags, heads, tiles)
    seed = seed.to(device)
    row = _mix64(place * GOLDEN + _mix64(seed))
    col = _mix64(place * GOLDEN + _mix64(seed + 0x5BD1E995))
    return Codes(_as_int32(row), _as_int32(col))


def keep(row: Int32[Tensor, "*rows"], col: Int32[Tensor, "*cols"], dropout_p: float) -> Bool[Tensor, "*pairs"]:
    """Which pairs stay: the two broadcast against each other."""
    return scramble(row + col) >= threshold(dropout_p)


def threshold(dropout_p: float) -> int:
    """The lowest signed 32-bit number that is kept."""
    return min(round(dropout_p * 2**32), 2**32 - 1) - 2**31


def scramble(x: Int32[Tensor, "*any"]) -> Int32[Tensor, "*any"]:
    """Mix 32-bit numbers; torch has no logical shift of signed ones, so the sign's copies are masked off."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _signed(MULTIPLIERS[0])
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _signed(MULTIPLIERS[1])
    return x ^ ((x >> 16) & 0xFFFF)


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _mix64(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """`scramble` of unsigned words held in int64; products stay exact modulo 2**32 because int64 wraps."""
    x = x & _WORD
    x = ((x ^ (x >> 16)) * MULTIPLIERS[0]) & _WORD
    x = ((x ^ (x >> 15)) * MULTIPLIERS[1]) & _WORD
    return x ^ (x >> 16)


def _as_int32(word: Int[Tensor, "*any"]) -> Int32[Tensor, "*any"]:
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)
