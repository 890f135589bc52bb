"""The tile tables of a DICOM slide, read by pydicom: a file for each level, a frame for each tile (PS3.3 A.32.8)."""

import importlib.util
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8

from wsi_mil.slides.base import Level
from wsi_mil.slides.direct.codecs import Undecodable, decode_jpeg2000, jpeg_decoder
from wsi_mil.slides.direct.layout import Compressed, Decoder, NotDirect, TileTable

_JPEG = "1.2.840.10008.1.2.4.50"
_JPEG2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_YCBCR = ("YBR_FULL", "YBR_FULL_422")
_RGB = ("RGB", "YBR_ICT", "YBR_RCT")  # JPEG 2000 undoes these two itself
_ITEM, _ITEM_TAG = 8, b"\xfe\xff\x00\xe0"  # bytes before a frame: this tag and its length
_FAILURES = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, struct.error)
_TAGS = [
    "BitsAllocated", "Columns", "DimensionOrganizationType", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "ImageType", "NumberOfFrames", "NumberOfOpticalPaths", "PhotometricInterpretation", "PixelData",
    "PlanarConfiguration", "Rows", "SamplesPerPixel", "SeriesInstanceUID", "TotalPixelMatrixColumns",
    "TotalPixelMatrixFocalPlanes", "TotalPixelMatrixRows",
]  # fmt: skip


def read_tables(path: Path, levels: Sequence[Level]) -> list[TileTable]:
    """Read where the tiles of each level lie.

    Args:
        path: one file of the slide's series; the others lie beside it.
        levels: as OpenSlide has them.

    Raises:
        NotDirect: pydicom is not installed, or the frames are not understood here.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise NotDirect("pydicom is not installed: pip install 'wsi-mil[dicom]'")
    from pydicom.errors import BytesLengthException

    try:
        found = _tables_of_series(path)
    except (BytesLengthException, *_FAILURES) as error:  # pydicom understands a value only when it is asked for
        raise NotDirect(f"its headers are not understood: {error}") from error
    missing = [level[:2] for level in levels if level[:2] not in found]
    if missing:
        raise NotDirect("no file of its series has {} x {} pixels".format(*missing[0]))
    return [found[level.width, level.height] for level in levels]


def _tables_of_series(path: Path) -> dict[tuple[int, int], TileTable]:
    """By the (width, height) of the level."""
    series = _header(path)[0].SeriesInstanceUID
    files = [path, *(other for other in sorted(path.parent.glob("*.dcm")) if other != path)]
    found: dict[tuple[int, int], TileTable] = {}
    for file in files:
        try:
            header, start = _header(file)
        except NotDirect:
            continue  # none of the series; if it is one after all, its level will be missed
        if header.get("SeriesInstanceUID") == series and "VOLUME" in header.get("ImageType", ()):
            size = (int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows))
            found.setdefault(size, _table(file, header, start))
    return found


def _header(path: Path) -> tuple[Any, int]:
    """What a file says of itself, and where its pixels begin."""
    from pydicom import dcmread
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with path.open("rb") as file:
            return dcmread(file, stop_before_pixels=True, specific_tags=_TAGS), file.tell()
    except (InvalidDicomError, BytesLengthException, EOFError, *_FAILURES) as error:
        raise NotDirect(f"{path.name} is not understood: {error}") from error


def _table(path: Path, header: Any, start: int) -> TileTable:
    decode, reduced = _decoders(header)
    width, height = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
    wanted = -(-width // header.Columns) * -(-height // header.Rows)
    frames = int(header.get("NumberOfFrames", 1))
    tiled = header.get("DimensionOrganizationType", "TILED_FULL" if frames == 1 else "") == "TILED_FULL"
    if not tiled or frames != wanted or header.get("TotalPixelMatrixFocalPlanes", 1) != 1:
        raise NotDirect(f"{path.name} has {frames} frames, not {wanted} row by row")
    with path.open("rb") as file:
        offsets, counts = _places(file, header, start)
    if len(offsets) != frames:
        raise NotDirect(f"{path.name} has its {frames} frames in {len(offsets)} parts")
    return TileTable(width, height, int(header.Columns), int(header.Rows), offsets, counts, decode, reduced, path)


def _decoders(header: Any) -> tuple[Decoder, Callable[[int], Decoder] | None]:
    """How items are decoded, and how at a fraction of their size."""
    photometric, syntax = header.PhotometricInterpretation, str(header.file_meta.TransferSyntaxUID)
    if (header.SamplesPerPixel, header.BitsAllocated, header.get("PlanarConfiguration", 0)) != (3, 8, 0):
        raise NotDirect("its pixels are not 8-bit RGB side by side")
    size = (int(header.Rows), int(header.Columns))
    if syntax == _JPEG and photometric in ("RGB", *_YCBCR):
        reduced = partial(jpeg_decoder, b"", size, photometric == "RGB")
        return partial(_decode_item, reduced(1)), lambda factor: partial(_decode_item, reduced(factor))
    if syntax in _JPEG2000 and photometric in _RGB:
        return partial(_decode_item, partial(decode_jpeg2000, size)), None
    raise NotDirect(f"its frames are {header.file_meta.TransferSyntaxUID.name}, {photometric}")


def _decode_item(decode: Decoder, item: Compressed) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a frame with the tag and the length before it, if they show that it lies there in one piece.

    A table tells where frames are, and not which of them have more headers inside: libjpeg decodes these as pixels.
    """
    length, spare = int.from_bytes(item[4:_ITEM], "little"), len(item) - _ITEM
    if item[:4] != _ITEM_TAG or not 0 <= length - spare <= 1:  # some tables do not count a byte that makes it even
        raise Undecodable("it lies in several parts")
    return decode(item[_ITEM:])


def _places(file: BinaryIO, header: Any, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the items of the frames begin and how long they are, by whichever table there is."""
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    file.seek(start + 12)  # tag, kind and length of the pixels as a whole
    basic = parse_basic_offsets(file)
    first = file.tell()
    if "ExtendedOffsetTable" in header:
        offsets = np.frombuffer(header.ExtendedOffsetTable, "<u8").astype(np.int64) + first
        counts = np.frombuffer(header.ExtendedOffsetTableLengths, "<u8").astype(np.int64)
        return offsets, counts + _ITEM
    if len(basic) > 1:
        offsets = np.asarray(basic, np.int64) + first
        return offsets, np.append(np.diff(offsets), _lengths(file, offsets[-1:]))
    offsets = np.asarray(parse_fragments(file)[1], np.int64)
    return offsets, _lengths(file, offsets)


def _lengths(file: BinaryIO, offsets: np.ndarray) -> np.ndarray:
    lengths = []
    for offset in offsets.tolist():
        file.seek(offset + 4)
        lengths.append(_ITEM + int.from_bytes(file.read(4), "little"))
    return np.asarray(lengths, np.int64)
