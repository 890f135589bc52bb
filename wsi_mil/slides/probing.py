"""A tile through each codec that slides are compressed by, to see that all of them work here."""

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from jaxtyping import UInt8

_Coders = tuple[Callable[[np.ndarray], Any], Callable[[Any], Any]]
"""What compresses pixels, and what decodes that again: to pixels, or to their bytes."""


def decoded(name: str, pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Compress a tile and decode it again, without loss but for JPEG.

    Args:
        name: JPEG, JPEG 2000, LZW, deflate or zstd.
        pixels: the tile, RGB.

    Raises:
        KeyError: there is no such codec.
        RuntimeError: it does not work here; imagecodecs' own errors are such.
    """
    encode, decode = _codecs()[name]
    found = decode(encode(pixels))
    return np.frombuffer(found, np.uint8).reshape(pixels.shape) if isinstance(found, bytes | bytearray) else found


def _codecs() -> dict[str, _Coders]:
    return {
        "JPEG": (
            lambda pixels: simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95, "RGB", "444"),
            lambda data: simplejpeg.decode_jpeg(data, "RGB"),
        ),
        "JPEG 2000": (lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0), imagecodecs.jpeg2k_decode),
        "LZW": (lambda pixels: imagecodecs.lzw_encode(pixels.tobytes()), imagecodecs.lzw_decode),
        "deflate": (lambda pixels: imagecodecs.zlib_encode(pixels.tobytes()), imagecodecs.zlib_decode),
        "zstd": (lambda pixels: imagecodecs.zstd_encode(pixels.tobytes()), imagecodecs.zstd_decode),
    }
