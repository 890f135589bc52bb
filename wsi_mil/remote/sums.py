"""Checksums that servers tell and hashlib has not: CRCs, of bits in reflected order, as storage services use them.

A CRC is linear over GF(2): that of a block is the sum (xor) of those of its parts, each moved on by the bytes behind.
So a block is cut into lanes, NumPy takes all of them eight bytes at a time, and the lanes are then added up in pairs;
nothing need be installed. Polynomials: CRC RevEng's catalogue, CRC-32/ISCSI and CRC-64/NVME.
"""

import hashlib
import zlib
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt64

_POLYNOMIALS = {"crc32c": (0x82F63B78, 32), "crc64nvme": (0x9A6C9329AC4BC9B5, 64)}
_LANE_BYTES = 1024
_WORD_BYTES, _HALF = 8, 1 << 16


@runtime_checkable
class Digest(Protocol):
    """What takes bytes, and tells a checksum of all of them."""

    def update(self, data: bytes, /) -> object:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """The checksum, in hexadecimal digits."""
        ...


def digest(name: str) -> Digest:
    """The algorithm of a name: crc32, crc32c, crc64nvme, or one of hashlib's.

    Example:
        sha = digest("sha256")
    """
    if name == "crc32":
        return _Crc32()
    return _Crc(*_POLYNOMIALS[name]) if name in _POLYNOMIALS else hashlib.new(name, usedforsecurity=False)


class _Crc32:
    """zlib's, as hashlib has them."""

    value = 0

    def update(self, data: bytes, /) -> None:
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


class _Crc:
    """One of `_POLYNOMIALS`, as hashlib has them; it begins with ones, and is told inverted."""

    def __init__(self, polynomial: int, bits: int) -> None:
        self._polynomial, self._bits = polynomial, bits
        self._value = self._ones = (1 << bits) - 1

    def update(self, data: bytes, /) -> None:
        before = np.array([self._value], np.uint64)
        for power in range(len(data).bit_length()):
            if len(data) >> power & 1:
                before = _moved(_columns(self._polynomial, self._bits, power), before)
        self._value = int(before[0]) ^ _of_block(self._polynomial, self._bits, data)

    def hexdigest(self) -> str:
        return f"{self._value ^ self._ones:0{self._bits // 4}x}"


def _of_block(polynomial: int, bits: int, data: bytes) -> int:
    """The CRC of a block alone, that begins with zeros: zeros before it change nothing, so they fill its lanes."""
    lanes = 1 << max(0, -(-len(data) // _LANE_BYTES) - 1).bit_length()
    filled = np.zeros(lanes * _LANE_BYTES, np.uint8)
    filled[len(filled) - len(data) :] = np.frombuffer(data, np.uint8)
    words = np.ascontiguousarray(filled.view("<u8").reshape(lanes, -1).T).astype(np.uint64, copy=False)
    tables, found = _tables(polynomial, bits), np.zeros(lanes, np.uint64)
    for column in words:
        halves = (found ^ column).astype("<u8", copy=False).view("<u2").reshape(lanes, -1)
        found = tables[0][halves[:, 0]]
        for table, half in zip(tables[1:], halves.T[1:], strict=True):
            found ^= table[half]
    power = _LANE_BYTES.bit_length() - 1
    while len(found) > 1:
        found = _moved(_columns(polynomial, bits, power), found[0::2]) ^ found[1::2]
        power += 1
    return int(found[0])


@cache
def _columns(polynomial: int, bits: int, power: int) -> tuple[int, ...]:
    """What each bit of a CRC becomes when 2**power bytes of zeros come after it."""
    if power:
        half = _columns(polynomial, bits, power - 1)
        return tuple(_moved(half, np.array(half, np.uint64)).tolist())
    columns = []
    for bit in range(bits):
        value = 1 << bit
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        columns.append(value)
    return tuple(columns)


def _moved(columns: tuple[int, ...], values: UInt64[np.ndarray, " lanes"]) -> UInt64[np.ndarray, " lanes"]:
    """CRCs after as many zeros as the columns stand for."""
    moved = np.zeros_like(values)
    for bit, column in enumerate(columns):
        moved ^= (values >> np.uint64(bit) & np.uint64(1)) * np.uint64(column)
    return moved


@cache
def _tables(polynomial: int, bits: int) -> tuple[UInt64[np.ndarray, " values"], ...]:
    """What each two bytes of a word become by its end, the first two first."""
    made, two = [np.arange(_HALF, dtype=np.uint64)], _columns(polynomial, bits, 1)
    for _ in range(_WORD_BYTES // 2):
        made.append(_moved(two, made[-1]))
    return tuple(made[:0:-1])
