"""Tables of DICOM frames looked at before a library in C believes them.

OpenSlide takes the place of the next frame, less that of this one, for the length of a frame, and ends the process
where a table goes down. Whatever is not understood here passes: the libraries say what is wrong with it.
"""

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wsi_mil.errors import SlideUnreadable

_MAGIC_AT, _MAGIC = 128, b"DICM"
_SERIES = re.compile(rb"\x20\x00\x0e\x00UI(..)", re.DOTALL)
_EXTENDED = re.compile(rb"\xe0\x7f\x01\x00OV..(....)", re.DOTALL)
_PIXELS = re.compile(rb"\xe0\x7f\x10\x00.{8}\xfe\xff\x00\xe0(....)", re.DOTALL)
"""Pixels in parts (PS3.5 A.4), up to the length of the table before them, whatever kind of value they are told to be:
OpenSlide does not mind. The group is a length each time."""
_LONGEST = 20  # bytes of what these find
_MOST_HEADER = 1 << 27  # bytes in which they must begin: a header grows by some 200 a frame
_PART = 1 << 20


def require_credible_frames(path: Path) -> None:
    """Refuse a DICOM slide in whose series a table of frames goes down; pass what is no DICOM.

    Raises:
        SlideUnreadable: a file of its series is damaged so.
    """
    header = _header(path)
    if header is None:
        return
    with os.scandir(path.parent) as entries:
        beside = sorted(Path(entry.path) for entry in entries if entry.is_file())
    for file in beside:
        found = header if file == path else _header(file)
        if found is not None and found[0] == header[0] and any(_goes_down(table) for table in found[1:]):
            raise SlideUnreadable(
                f"{file} is damaged: the places it tells of its frames go down: copy or download it again"
            )


def _header(path: Path) -> tuple[bytes, np.ndarray, np.ndarray] | None:
    """The series, and the frames' places by its two tables, empty where it has none; None if it is no DICOM."""
    try:
        with path.open("rb") as file:
            if file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] != _MAGIC:
                return None
            data, pixels = _before_pixels(file)
            before = pixels.start() if pixels else len(data)
            extended = _table(file, _EXTENDED.search(data, 0, before), "<u8")
            return _series(data[:before]), extended, _table(file, pixels, "<u4")
    except OSError:
        return None  # as opening it will say


def _before_pixels(file: BinaryIO) -> tuple[bytes, re.Match[bytes] | None]:
    """The file up to some bytes behind where its pixels in parts begin, and where they do, if they do."""
    file.seek(0)
    data = bytearray()
    while len(data) < _MOST_HEADER and (part := file.read(_PART)):
        seen = max(0, len(data) - _LONGEST)
        data += part
        if _PIXELS.search(data, seen):
            break
    whole = bytes(data)
    return whole, _PIXELS.search(whole)


def _series(header: bytes) -> bytes:
    found = _SERIES.search(header)
    return header[found.end() : found.end() + int.from_bytes(found[1], "little")] if found else b""


def _table(file: BinaryIO, found: re.Match[bytes] | None, kind: str) -> np.ndarray:
    """The table that begins where its length ends."""
    if found is None:
        return np.empty(0, kind)
    file.seek(found.end())
    held = file.read(min(int.from_bytes(found[1], "little"), os.fstat(file.fileno()).st_size))
    size = np.dtype(kind).itemsize
    return np.frombuffer(held[: len(held) // size * size], kind)


def _goes_down(table: np.ndarray) -> bool:
    return bool((table[1:] <= table[:-1]).any())
