"""The heaps of HDF5 files, where text of changing length lies, looked at before HDF5 does.

HDF5 2.0 walks such a heap from one object to the next by their sizes: where a disk lost a sector and gave zeros for it,
it stays at an object of size 0 for ever. So whatever is not data of a dataset is searched for heaps, and each is walked
here first. The four letters that a heap begins with may also stand in a text, such as the name of a slide: what HDF5
itself takes for no heap is passed over. Format: "HDF5 File Format Specification", III.E, Global Heap.
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
_LENGTH_BYTES = 8  # of sizes, in all files but those that somebody made odd on purpose
_BLOCK = 1 << 20


def require_sound_heaps(path: Path, file: File) -> None:
    """Refuse a file with a heap that does not add up; call it before any attribute is read.

    Raises:
        ArtifactCorrupt: it has one.
    """
    usual = file.id.get_create_plist().get_sizes()[1] == _LENGTH_BYTES
    with path.open("rb") as raw:
        file_bytes = os.fstat(raw.fileno()).st_size
        for start, end in _between(places_of_data(path, file), file_bytes):
            for at in _heaps(raw, start, end):
                if (_is_read(raw, at, file_bytes) or not usual) and not _adds_up(raw, at):
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


def _is_read(raw: BinaryIO, at: int, file_bytes: int) -> bool:
    """Whether HDF5 would read a heap here: of another version, or beyond the end of the file, it refuses it at once.

    Not asked is whether something leads here, nor what lies around: a heap may be hidden in a text of another one.
    """
    version, size = _head(raw, at)
    return version == 1 and at + size <= file_bytes


def _head(raw: BinaryIO, at: int) -> tuple[int, int]:
    raw.seek(at)
    head = raw.read(_HEAD.size)
    return _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)


def _adds_up(raw: BinaryIO, at: int) -> bool:
    version, size = _head(raw, at)
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
