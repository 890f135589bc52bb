"""Compressed tiles to pixels. The only door to simplejpeg and imagecodecs.

simplejpeg brings libjpeg-turbo along; imagecodecs has all the other codecs, and tifffile finds them in it. The JPEGs of
a TIFF are not whole: their tables are kept apart, once for a level, and whether colours are RGB or YCbCr is said by
the TIFF and not by the JPEG. Both are put in front of each tile, as libjpeg expects them.
"""

import struct
from functools import partial
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from wsi_mil.slides.direct.layout import Compressed, Decoder

_START, _END = b"\xff\xd8", b"\xff\xd9"
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"  # how its codestream begins, which a JP2 has some boxes before
_SIZES = struct.Struct(">8x4I")  # after that, a length and capabilities: where the image ends and begins, x and y
_JFIF = b"\xff\xe0"
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # the last byte says: colours are not transformed
_CHROMA = np.arange(256) - 128
# What chrominance adds to luminance: red by Cr, blue by Cb, green by Cb and by Cr, these in 100,000ths.
_RED, _BLUE = ((np.sign(_CHROMA) * ((share * abs(_CHROMA) + 500) // 1000)) for share in (1402, 1772))
_GREEN = -34_414 * _CHROMA, -71_414 * _CHROMA


class Undecodable(ValueError):
    """What is wrong with the bytes of a tile."""


def jpeg_decoder(tables: bytes, size: tuple[int, int], rgb: bool, reduction: int = 1) -> Decoder:
    """Return a decoder of JPEGs that lack their tables.

    Args:
        tables: a JPEG of nothing but tables; empty where the tiles have their own.
        size: (height, width) of a tile, pixels.
        rgb: whether the JPEGs hold red, green and blue rather than luminance and chrominance.
        reduction: 1, 2, 4 or 8: decode at such a fraction of the size, by libjpeg's scaled inverse transform.
    """
    inner = tables.removeprefix(_START).removesuffix(_END)
    return partial(_decode_jpeg, _START + (_ADOBE_RGB if rgb else b"") + inner, size, rgb, reduction)


def _decode_jpeg(
    head: bytes, size: tuple[int, int], rgb: bool, reduction: int, data: Compressed
) -> UInt8[np.ndarray, "height width 3"]:
    if data[:2] != _START:
        raise Undecodable("it does not begin like a JPEG")
    body = 2
    if rgb and data[2:4] == _JFIF:  # which would say that colours are YCbCr
        body += 2 + int.from_bytes(data[4:6], "big")
    return _whole_jpeg(b"".join((head, memoryview(data)[body:])), size, reduction)


def stream_decoder(head: bytes, size: tuple[int, int]) -> Decoder:
    """Return a decoder of parts of one long JPEG, between its restart markers, as NDPI has them.

    Args:
        head: everything up to the compressed data, for an image of the size of a part.
        size: (height, width) of a part, pixels.
    """
    return partial(_decode_part, head, size)


def _decode_part(head: bytes, size: tuple[int, int], data: Compressed) -> UInt8[np.ndarray, "height width 3"]:
    # A part ends with the restart marker before the next, in whose place the end of the image goes.
    body = data[:-2] if len(data) > 1 and data[-2] == 0xFF and 0xD0 <= data[-1] <= 0xD9 else data
    return _whole_jpeg(b"".join((head, body, _END)), size)


def _whole_jpeg(data: bytes, size: tuple[int, int], reduction: int = 1) -> UInt8[np.ndarray, "height width 3"]:
    height, width = (side // reduction for side in size)
    scale: dict[str, Any] = {"min_height": height, "min_width": width, "min_factor": reduction} if reduction > 1 else {}
    try:
        _require_size(simplejpeg.decode_jpeg_header(data)[:2], size)
        pixels = simplejpeg.decode_jpeg(data, "RGB", **scale)
    except ValueError as error:
        raise Undecodable(str(error)) from error
    _require_size(pixels.shape[:2], (height, width))
    return pixels


def decode_jpeg2000(size: tuple[int, int], data: Compressed) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a whole JPEG 2000 of so many (height, width) pixels."""
    whole = bytes(data)
    start = whole.find(_JPEG2000_SIZE)
    if start < 0 or len(whole) < start + _SIZES.size:
        raise Undecodable("it does not begin like a JPEG 2000")
    right, bottom, left, top = _SIZES.unpack_from(whole, start)
    _require_size((bottom - top, right - left), size)
    try:
        pixels = imagecodecs.jpeg2k_decode(whole)
    except (RuntimeError, ValueError) as error:
        raise Undecodable(str(error)) from error
    if pixels.shape != (*size, 3) or pixels.dtype != np.uint8:
        raise Undecodable(f"it has other pixels than its table says: {pixels.dtype} {pixels.shape}")
    return pixels


def _require_size(found: tuple[object, ...], size: tuple[int, int]) -> None:
    """Refuse other pixels (height, width) than the table says: before they are decoded, since that takes memory.

    Raises:
        Undecodable: they are others.
    """
    if found != size:
        raise Undecodable("it has {1} x {0} pixels instead of {3} x {2}".format(*found, *size))


def rgb_of(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Red, green and blue of luminance and chrominance (ITU-T T.871), rounded as OpenSlide rounds them."""
    luminance, blueness, redness = np.moveaxis(pixels, -1, 0)
    green = (_GREEN[0][blueness] + _GREEN[1][redness] + 50_000) // 100_000
    made = np.stack([luminance + _RED[redness], luminance + green, luminance + _BLUE[blueness]], axis=-1)
    return made.clip(0, 255).astype(np.uint8)
