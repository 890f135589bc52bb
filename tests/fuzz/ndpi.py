"""A slide as Hamamatsu's NDPI: each level one JPEG with restart markers, and a table of where its parts begin."""

from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

_PART = 64  # pixels between restart markers: eight blocks of 4:4:4


def write_ndpi(path: Path, levels: list[np.ndarray], mpp: float = 0.5) -> Path:
    """Write levels of pixels, the first 20 x; sides are cut to whole parts."""
    with tifffile.TiffWriter(path) as file:
        for index, level in enumerate(levels):
            height, width = level.shape[0] // 8 * 8, level.shape[1] // _PART * _PART
            jpeg = _jpeg(level[:height, :width])
            per_cm = round(10_000 / mpp / 2**index)
            file.write(
                iter([jpeg]),
                shape=(height, width, 3),
                dtype=np.uint8,
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(1, 1),
                rowsperstrip=height,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
                software=False,
                extratags=[
                    (271, 2, 0, "Hamamatsu", True),
                    (65420, 4, 1, 1, True),
                    (65421, 11, 1, 20.0 / 2**index, True),
                    (65424, 9, 1, 0, True),
                    (65426, 4, len(_starts(jpeg)), _starts(jpeg), True),
                ],
            )
    return path


def _jpeg(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80, subsampling=0, restart_marker_blocks=_PART // 8)
    return buffer.getvalue()


def _starts(jpeg: bytes) -> list[int]:
    """Where parts begin: behind the header of the scan, and behind each restart marker."""
    scan = jpeg.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    marks = [at for at in range(first, len(jpeg) - 1) if jpeg[at] == 0xFF and 0xD0 <= jpeg[at + 1] <= 0xD7]
    return [first, *(at + 2 for at in marks)]
