"""The tile tables of a TIFF, read by tifffile, level by level as OpenSlide counts them."""

import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import UInt8

from wsi_mil.slides.base import Level
from wsi_mil.slides.direct.codecs import Undecodable, decode_jpeg2000, jpeg_decoder, rgb_of, stream_decoder
from wsi_mil.slides.direct.layout import Compressed, Decoder, NotDirect, TileTable

_JPEG, _JPEG2000_YCBCR = 7, 33003
_JPEG2000 = (_JPEG2000_YCBCR, 33005, 34712)
_COMPRESSIONS = (1, 5, _JPEG, 8, 32946, *_JPEG2000, 50000)  # none, LZW, deflate, zstd
_RGB, _YCBCR = 2, 6
_MOST_PIXELS = 4096 * 4096  # of a tile: 48 MB
_FAILURES = (
    tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError,
    struct.error,
)  # fmt: skip


def read_tables(path: Path, levels: Sequence[Level]) -> list[TileTable]:
    """Read where the tiles of each level lie.

    NDPI stores fewer levels than OpenSlide has, which makes the coarsest by scaling; these are left out.

    Args:
        path: the slide.
        levels: as OpenSlide has them.

    Raises:
        NotDirect: it is no TIFF, or one whose tiles are not understood here.
    """
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page for page in _pages(file) if page.is_tiled and page.dataoffsets]
            found = [_page_of(pages, level, bool(file.is_philips)) for level in levels]
            stored = sum(page is not None for page in found) if file.is_ndpi else len(found)
            return [_table(page, level) for page, level in zip(found[:stored], levels, strict=False)]
    except _FAILURES as error:
        raise NotDirect(f"its tables are not understood: {error}") from error


def _pages(file: tifffile.TiffFile) -> list[Any]:
    pages: list[Any] = [page.aspage() for page in file.pages]
    return [one.aspage() for page in pages for one in (page, *(page.pages or ()))]


def _page_of(pages: list[Any], level: Level, padded: bool) -> Any | None:
    """The page that a level was read from: of the same size, or, padded, as much larger as fills up its last tiles.

    Raises:
        NotDirect: it may be any of several, and a proof need not show which.
    """
    exact = [page for page in pages if _is_exact(page, level)]
    fitting = exact or [page for page in pages if padded and _is_padded(page, level)]
    if len(fitting) > 1:
        raise NotDirect(f"several of its pages have {level.width} x {level.height} pixels")
    return fitting[0] if fitting else None


def _is_exact(page: Any, level: Level) -> bool:
    return (page.imagewidth, page.imagelength) == (level.width, level.height)


def _is_padded(page: Any, level: Level) -> bool:
    """Philips gives the size of a level in whole tiles, which OpenSlide corrects."""
    over = page.imagewidth - level.width, page.imagelength - level.height
    return 0 <= over[0] < page.tilewidth and 0 <= over[1] < page.tilelength


def _table(page: Any | None, level: Level) -> TileTable:
    if page is None:
        raise NotDirect(f"no page of tiles has {level.width} x {level.height} pixels")
    _require_plain(page)
    size = (page.tilelength, page.tilewidth)
    offsets, counts = (np.asarray(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    decode, reduced = _decoders(page, size)
    table = TileTable(level.width, level.height, size[1], size[0], offsets, counts, decode, reduced)
    if -(-page.imagewidth // size[1]) != table.columns or len(offsets) < table.columns * table.rows:
        raise NotDirect(f"it lists {len(offsets)} tiles instead of {table.columns} x {table.rows}")
    if len(counts) != len(offsets):
        raise NotDirect("its table of tiles makes no sense")
    return table


def _require_plain(page: Any) -> None:
    """Refuse pixels that are not 8-bit RGB in the end.

    Raises:
        NotDirect: they are not.
    """
    if int(page.compression) not in _COMPRESSIONS:
        raise NotDirect(f"its tiles are compressed by {getattr(page.compression, 'name', page.compression)}")
    if (page.samplesperpixel, page.bitspersample, page.planarconfig, page.imagedepth) != (3, 8, 1, 1):
        raise NotDirect("its pixels are not 8-bit RGB side by side")
    if int(page.photometric) not in (_RGB, _YCBCR):
        raise NotDirect(f"its colours are {getattr(page.photometric, 'name', page.photometric)}")
    if page.tilewidth * page.tilelength > _MOST_PIXELS:
        raise NotDirect(f"its tiles have {page.tilewidth} x {page.tilelength} pixels")


def _decoders(page: Any, size: tuple[int, int]) -> tuple[Decoder, Callable[[int], Decoder] | None]:
    """How its tiles are decoded, and how at a fraction of their size."""
    if int(page.compression) == _JPEG2000_YCBCR:
        return lambda data: rgb_of(decode_jpeg2000(size, data)), None
    if int(page.compression) in _JPEG2000:
        return partial(decode_jpeg2000, size), None
    if int(page.compression) != _JPEG:
        return partial(_decode_by_tifffile, page.decode, size), None
    if page.jpegheader:
        return stream_decoder(page.jpegheader, size), None
    reduced = partial(jpeg_decoder, page.jpegtables or b"", size, int(page.photometric) == _RGB)
    return reduced(1), reduced


def _decode_by_tifffile(decode: Any, size: tuple[int, int], data: Compressed) -> UInt8[np.ndarray, "height width 3"]:
    try:
        pixels = decode(bytes(data), 0)[0]
    except (ValueError, RuntimeError, TypeError) as error:  # each codec has its own RuntimeError
        raise Undecodable(str(error)) from error
    if pixels is None or pixels.shape[-3:] != (*size, 3) or pixels.dtype != np.uint8:
        raise Undecodable("it has other pixels than its table says")
    return np.ascontiguousarray(pixels.reshape(*size, 3))
