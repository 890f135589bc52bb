"""Write a picture over a whole slide: a pyramidal OME-TIFF, with its micrometres per pixel, for other viewers."""

import uuid
from pathlib import Path

import numpy as np
import tifffile
import xxhash
from jaxtyping import UInt8
from PIL import Image

from wsi_mil.publishing import replacing

_UM_PER_CM = 10_000.0


def write_ome_pyramid(
    path: Path, image: UInt8[np.ndarray, "height width 3"], mpp: tuple[float, float], name: str, tile: int = 256
) -> None:
    """Write an image without loss as OME-TIFF, published atomically.

    Each level is half the one before, averaged over 2 x 2 pixels, down to the first that fits into one tile; levels
    after the first are sub-resolutions (SubIFDs), as OME-TIFF has it since 6.0.

    Args:
        path: the file, `.ome.tif`.
        image: RGB pixels of level 0.
        mpp: micrometres per pixel of level 0, along its width and height.
        name: what viewers call it.
        tile: side of the tiles, pixels, a multiple of 16.
    """
    levels = [Image.fromarray(image)]
    while max(levels[-1].size) > tile:
        levels.append(levels[-1].reduce(2))
    # Unless told, tifffile makes a UUID of the clock and the network card: the same picture gives the same bytes.
    name_of_all = uuid.UUID(bytes=xxhash.xxh3_128(image.tobytes()).digest())
    sizes = {"PhysicalSizeX": mpp[0], "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp[1], "PhysicalSizeYUnit": "µm"}
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as tiff:
        for index, level in enumerate(levels):
            shrunk = (level.width / image.shape[1], level.height / image.shape[0])
            tiff.write(
                np.asarray(level),
                tile=(tile, tile),
                photometric="rgb",
                compression="adobe_deflate",
                predictor=True,
                resolution=(_UM_PER_CM / mpp[0] * shrunk[0], _UM_PER_CM / mpp[1] * shrunk[1]),
                resolutionunit="CENTIMETER",
                software=False,
                subifds=None if index else len(levels) - 1,
                subfiletype=min(index, 1),
                metadata=None if index else {"axes": "YXS", "Name": name, "UUID": str(name_of_all), **sizes},
            )
