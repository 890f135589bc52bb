"""TIFF headers looked at before a library in C believes them: tiles larger than the file, more tiles than are listed.

OpenSlide takes memory for a tile by the length that the header tells, and ends the process where there is not as much.
Whatever is not understood here passes: the libraries say what is wrong with it.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wsi_mil.errors import SlideUnreadable

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS = 256, 257, 322, 323, 324, 325
_WANTED = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS)
_TYPES = {3: "u2", 4: "u4", 16: "u8"}
_MOST_PAGES, _MOST_ENTRIES, _MOST_VALUES = 1000, 4096, 1 << 26
_MOST_TILE_PX = 1 << 26  # 256 MB as OpenSlide decodes it; slides have tiles of up to 4096 x 4096
_ALWAYS_PX, _MOST_PACKED = 1 << 29, 5000
_UNLISTED = 1024  # tiles that may be missing from a table

Page = dict[int, np.ndarray]


def require_credible(path: Path) -> None:
    """Refuse a TIFF whose tables of tiles are lies. Takes no more memory than the tables that are there.

    Raises:
        SlideUnreadable: a tile takes more than the whole file or than any slide's does, or most tiles are in no table.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for page in _pages(file, size):
                if fault := _fault(page, size):
                    raise SlideUnreadable(f"{path} is damaged: it says that {fault}: copy or download it again")
    except (OSError, struct.error):
        return  # not a TIFF to its end, as opening it will say


def _fault(page: Page, file_bytes: int) -> str:
    """What of a page cannot be; nothing where all may."""
    counts = page.get(_COUNTS)
    if counts is not None and counts.size and int(counts.max()) > file_bytes:
        return f"a tile takes {int(counts.max()):,} bytes of a file of {file_bytes:,}"
    width, height, tile_width, tile_height = (
        int(page[tag][0]) if tag in page and page[tag].size else 0 for tag in _WANTED[:4]
    )
    if not (tile_width and tile_height):  # one picture, as a level of NDPI is: OpenSlide takes 40 bytes a part of it
        beyond = width * height > max(_ALWAYS_PX, _MOST_PACKED * file_bytes)
        return f"it has {width:,} x {height:,} pixels in {file_bytes:,} bytes" if beyond else ""
    if tile_width * tile_height > _MOST_TILE_PX:
        return f"a tile has {tile_width:,} x {tile_height:,} pixels"
    tiles, listed = -(-width // tile_width) * -(-height // tile_height), len(page.get(_OFFSETS, ()))
    if tiles > max(_UNLISTED, 4 * listed):
        return f"it has {width:,} x {height:,} pixels in {listed:,} tiles of {tile_width} x {tile_height}"
    return ""


def _pages(file: BinaryIO, size: int) -> Iterator[Page]:
    """What the directories of a TIFF say of tiles, one after the other."""
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    if not order or len(start) < 16:
        return
    version = struct.unpack_from(f"{order}H", start, 2)[0]
    if version not in (42, 43) or (version == 42 and size > 1 << 32):  # an NDPI beyond 4 GB goes on in a way of its own
        return
    big = version == 43
    word, head = ("Q", "Q") if big else ("I", "H")
    at, seen = struct.unpack_from(f"{order}{word}", start, 8 if big else 4)[0], set[int]()
    while at and at < size and at not in seen and len(seen) < _MOST_PAGES:
        seen.add(at)
        file.seek(at)
        count = struct.unpack(f"{order}{head}", file.read(struct.calcsize(head)))[0]
        if count > _MOST_ENTRIES:
            return
        entries = file.read(count * (20 if big else 12))
        following = file.read(struct.calcsize(word))
        yield dict(_values(file, entries, order, big))
        at = struct.unpack(f"{order}{word}", following)[0]


def _values(file: BinaryIO, entries: bytes, order: str, big: bool) -> Iterator[tuple[int, np.ndarray]]:
    form, inline = struct.Struct(f"{order}HH{'QQ' if big else 'II'}"), 12 if big else 8
    for first in range(0, len(entries) - form.size + 1, form.size):
        tag, kind, count, place = form.unpack_from(entries, first)
        if tag not in _WANTED or kind not in _TYPES or not 0 < count <= _MOST_VALUES:
            continue
        dtype = np.dtype(f"{order}{_TYPES[kind]}")
        if count * dtype.itemsize <= form.size - inline:
            data = entries[first + inline : first + inline + count * dtype.itemsize]
        else:
            file.seek(place)
            data = file.read(count * dtype.itemsize)
        yield tag, np.frombuffer(data, dtype, len(data) // dtype.itemsize)
