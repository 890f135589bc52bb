"""The heaps of HDF5 files, where text of changing length lies, looked at before HDF5 does.

HDF5 2.0 walks such a heap from one object to the next by their sizes: where a disk lost a sector and gave zeros for it,
it stays at an object of size 0 for ever. So whatever is not data of a dataset is searched for heaps, and each is walked
here first. Format: "HDF5 File Format Specification", III.E, Global Heap.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wsi_mil.errors import ArtifactCorrupt
from wsi_mil.guards.hdf5 import File, places_of_data

_MAGIC = b"GCOL"
_HEAD = struct.Struct("<4xB3xQ")  # version, size of the whole
_OBJECT = struct.Struct("<H2x4xQ")  # number, size of its content; number 0 is what is free, its head included
_BLOCK = 1 << 20


def require_sound_heaps(path: Path, file: File) -> None:
    """Refuse a file with a heap that does not add up; call it before any attribute is read.

    Raises:
        ArtifactCorrupt: it has one.
    """
    with path.open("rb") as raw:
        for start, end in _between(places_of_data(path, file), os.fstat(raw.fileno()).st_size):
            for at in _heaps(raw, start, end):
                if not _adds_up(raw, at):
                    raise ArtifactCorrupt(f"{path} is damaged (its text at byte {at:,} does not add up): copy it again")


def _between(data: Iterator[tuple[int, int]], file_bytes: int) -> Iterator[tuple[int, int]]:
    """The rest of the file: begins and ends."""
    start = 0
    for offset, count in sorted(data):
        if offset > start:
            yield start, min(offset, file_bytes)
        start = max(start, offset + count)
    if start < file_bytes:
        yield start, file_bytes


def _heaps(raw: BinaryIO, start: int, end: int) -> Iterator[int]:
    """Where heaps begin in a part of a file."""
    while end - start >= len(_MAGIC):
        raw.seek(start)
        block = raw.read(min(_BLOCK, end - start))
        at = block.find(_MAGIC)
        while at >= 0:
            yield start + at
            at = block.find(_MAGIC, at + 1)
        if start + len(block) >= end or len(block) < len(_MAGIC):
            return
        start += len(block) - len(_MAGIC) + 1  # a word that lies across two blocks is seen in the second


def _adds_up(raw: BinaryIO, at: int) -> bool:
    raw.seek(at)
    head = raw.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return False
    version, size = _HEAD.unpack(head)
    rest = raw.read(size - _HEAD.size) if _HEAD.size <= size <= _BLOCK << 6 else b""
    if version != 1 or len(rest) != size - _HEAD.size:
        return False
    place = 0
    while len(rest) - place >= _OBJECT.size:
        number, count = _OBJECT.unpack_from(rest, place)
        step = _OBJECT.size + -(-count // 8) * 8 if number else count
        if step < _OBJECT.size or place + step > len(rest):
            return False
        place += step
    return True
