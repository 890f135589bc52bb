"""Tables of DICOM frames looked at before a library in C believes them.

OpenSlide takes the place of the next frame, less that of this one, for the length of a frame, and ends the process
where a table goes down. Whatever is not understood here passes: the libraries say what is wrong with it.
"""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from wsi_mil.errors import SlideUnreadable

Known = TypeVar("Known")

_MAGIC_AT, _MAGIC = 128, b"DICM"
_STUDY = re.compile(rb"\x20\x00\x0d\x00UI(..)", re.DOTALL)
_SERIES = re.compile(rb"\x20\x00\x0e\x00UI(..)", re.DOTALL)
_EXTENDED = re.compile(rb"\xe0\x7f\x01\x00OV..(....)", re.DOTALL)
_IN_PARTS = re.compile(rb"\xe0\x7f\x10\x00.{8}\xfe\xff\x00\xe0(....)", re.DOTALL)
"""Pixels in parts (PS3.5 A.4), up to the length of the table before them, whatever kind of value they are told to be:
OpenSlide does not mind. The group is a length each time.
"""
_WHOLE = re.compile(rb"\xe0\x7f\x10\x00O[BW]\x00\x00(?!\xff\xff\xff\xff)....", re.DOTALL)
_LONGEST = 20  # bytes of what these find
_START = 1 << 16  # bytes in which a file tells its series
_MOST_HEADER = 1 << 27  # bytes in which pixels must begin: a header grows by some 200 a frame
_PART = 1 << 20


def require_credible_frames(path: Path) -> None:
    """Refuse a DICOM slide in whose series a table of frames goes down; pass what is no DICOM.

    Raises:
        SlideUnreadable: a file of its series is damaged so.
    """
    series = _of(_series, path)
    if series is None:
        return
    with os.scandir(path.parent) as entries:
        beside = sorted(Path(entry.path) for entry in entries if entry.is_file())
    for file in beside:
        if (file == path or (series and _of(_series, file) == series)) and _of(_goes_down, file):
            raise SlideUnreadable(
                f"{file} is damaged: the places it tells of its frames go down: copy or download it again"
            )


def _of(look: Callable[[Path, int, int], Known], path: Path) -> Known | None:
    """What is known of a file as it is now; None where it cannot be read, as opening it will say."""
    try:
        status = path.stat()
        return look(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


@lru_cache(1 << 16)
def _series(path: Path, size: int, changed: int) -> bytes | None:
    """The series of a file, empty where it does not tell; None if it is no DICOM."""
    with path.open("rb") as file:
        start = file.read(_START)
    if start[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return None
    for study in _STUDY.finditer(start):  # of the series behind it; those that are referred to come without
        found = _SERIES.match(start, study.end() + int.from_bytes(study[1], "little"))
        if found:
            return start[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return b""


@lru_cache(1 << 16)
def _goes_down(path: Path, size: int, changed: int) -> bool:
    """Whether a place in one of its two tables is not behind the one before."""
    with path.open("rb") as file:
        data, pixels = _before_pixels(file)
        if pixels is None:
            return False
        tables = (
            _table(file, _EXTENDED.search(data, 0, pixels.start()), "<u8", size),
            _table(file, pixels, "<u4", size),
        )
    return any(bool((table[1:] <= table[:-1]).any()) for table in tables)


def _before_pixels(file: BinaryIO) -> tuple[bytearray, re.Match[bytes] | None]:
    """The file up to some bytes behind where its pixels in parts begin, and where they do, if they do."""
    data = bytearray()
    while len(data) < _MOST_HEADER and (part := file.read(_PART)):
        seen = max(0, len(data) - _LONGEST)
        data += part
        if found := _IN_PARTS.search(data, seen):
            return data, found
        if _WHOLE.search(data, seen):
            break
    return data, None


def _table(file: BinaryIO, found: re.Match[bytes] | None, kind: str, most: int) -> np.ndarray:
    """The table that begins where its length ends."""
    if found is None:
        return np.empty(0, kind)
    file.seek(found.end())
    held = file.read(min(int.from_bytes(found[1], "little"), most))
    size = np.dtype(kind).itemsize
    return np.frombuffer(held[: len(held) // size * size], kind)
