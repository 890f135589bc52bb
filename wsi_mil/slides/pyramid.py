"""Write a slide: a tiled pyramidal TIFF that OpenSlide opens, with the right micrometres per pixel."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image

from wsi_mil.executors import available_cores, map_ordered
from wsi_mil.publishing import replacing

_UM_PER_CM = 10_000.0
_COMPRESSION, _JPEG = 259, 7
_SUBSAMPLING, _HALVED = 530, (2, 2)
_BIG = 1 << 31  # bytes of raw pixels from which offsets may not fit into 32 bits


def write_pyramid(
    path: Path,
    image: UInt8[np.ndarray, "height width 3"],
    mpp: float,
    *,
    tile: int = 256,
    levels: int | None = None,
    quality: int = 90,
) -> None:
    """Write an image as a slide, published atomically.

    Each level is half the one before, averaged over 2 x 2 pixels, odd sizes rounded up.

    Args:
        path: the file, `.tif`.
        image: RGB pixels of level 0.
        mpp: micrometres per pixel of level 0.
        tile: side of the JPEG tiles, pixels, a multiple of 32.
        levels: how many levels; unless told, down to the first that fits into one tile.
        quality: of the JPEGs, 1 to 95.

    Example:
        write_pyramid(Path("a.tif"), np.full((512, 512, 3), 240, np.uint8), mpp=0.5)
    """
    per_cm = _UM_PER_CM / mpp
    with replacing(path) as temporary:
        with tifffile.TiffWriter(temporary, bigtiff=image.nbytes > _BIG) as tiff:
            for index, level in enumerate(_pyramid(Image.fromarray(image), tile, levels)):
                scale = image.shape[1] / level.width
                tags = {"resolution": (per_cm / scale, per_cm / scale), "resolutionunit": "CENTIMETER"}
                _write_level(tiff, level, tile=tile, quality=quality, subfiletype=min(index, 1), **tags)
        _declare_jpeg(temporary)


def _write_level(tiff: tifffile.TiffWriter, level: Image.Image, *, tile: int, quality: int, **tags: Any) -> None:
    """Append one level as JPEG tiles, encoded in threads."""
    if level.size == (tile, tile):  # tifffile takes a level of just one tile for raw pixels
        tile //= 2
    tiff.write(
        map_ordered(lambda part: _encode(part, quality), _tiles(level, tile), available_cores()),
        shape=(level.height, level.width, 3),
        dtype=np.uint8,
        tile=(tile, tile),
        photometric="ycbcr",
        metadata=None,
        software=False,
        **tags,
    )


def _declare_jpeg(path: Path) -> None:
    """Say that the tiles are JPEG, and how their colour is sampled.

    While writing, tifffile lets nobody say so who has not installed its own codecs.
    """
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for page in tiff.pages:
            tags = page.aspage().tags
            tags[_COMPRESSION].overwrite(_JPEG)
            tags[_SUBSAMPLING].overwrite(_HALVED)


def _pyramid(image: Image.Image, tile: int, levels: int | None) -> Iterator[Image.Image]:
    count = 0
    while True:
        yield image
        count += 1
        if count == levels or (levels is None and max(image.size) <= tile):
            return
        image = image.reduce(2)


def _tiles(level: Image.Image, tile: int) -> Iterator[np.ndarray]:
    """Tiles row by row; those over the edge repeat the last pixels, which leaves no ringing behind."""
    pixels = np.asarray(level)
    for y in range(0, level.height, tile):
        for x in range(0, level.width, tile):
            part = pixels[y : y + tile, x : x + tile]
            yield np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)), mode="edge")


def _encode(part: np.ndarray, quality: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(part).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")  # which is _HALVED
    return buffer.getvalue()
