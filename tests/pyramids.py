"""Tiled TIFF slides of every kind that scanners write, for the tests of reading them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

_APERIO = "Aperio Image Library v12.0.15\r\n1x1 [0,0 1x1]|AppMag = 20|MPP = 0.5"


@dataclass(frozen=True)
class Kind:
    """How a slide is stored."""

    compression: str = "jpeg"
    tile: int = 256
    subsampling: tuple[int, int] | None = (2, 2)
    photometric: str = "ycbcr"
    aperio: bool = False
    philips: bool = False
    """Levels are filled up with white to whole tiles, and an XML tells their true spacing."""
    sparse: frozenset[int] = frozenset()
    """Tiles of level 0 that were never scanned."""
    predictor: bool = False


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colours that vary over a few pixels, so that any mistake of colour or place shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 3), -(-width // 3), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(3, 0).repeat(3, 1)[:height, :width])


def write(path: Path, levels: list[np.ndarray], kind: Kind) -> Path:
    """Write these levels."""
    with tifffile.TiffWriter(path) as tiff:
        for index, level in enumerate(levels):
            text = _philips(len(levels)) if kind.philips and index == 0 else _APERIO if kind.aperio else None
            tags = {"description": text, "software": "Philips DP v1.0" if kind.philips else False}
            whole = _filled_up(level, kind.tile) if kind.philips else level
            _write_level(tiff, whole, kind, subfiletype=0 if kind.aperio else min(index, 1), **tags)
    _forget(path, kind.sparse)
    return path


def _write_level(tiff: tifffile.TiffWriter, level: np.ndarray, kind: Kind, **tags: Any) -> None:
    if kind.compression == "jpeg":
        tags |= {"subsampling": kind.subsampling, "compressionargs": {"level": 85}}
    if kind.compression.startswith("aperio"):
        tags |= {"compressionargs": {"level": 40}}
    tiff.write(
        level,
        tile=(kind.tile, kind.tile),
        compression=None if kind.compression == "none" else kind.compression,
        photometric=kind.photometric,
        predictor=kind.predictor or None,
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        metadata=None,
        **tags,
    )


def _filled_up(level: np.ndarray, side: int) -> np.ndarray:
    height, width = level.shape[:2]
    return np.pad(level, ((0, -height % side), (0, -width % side), (0, 0)), constant_values=255)


def _philips(levels: int) -> str:
    """What OpenSlide wants to read in a Philips TIFF: that it is a slide, and the spacing of each level, mm."""
    spacings = [f"&quot;{0.0005 * 2**level}&quot; &quot;{0.0005 * 2**level}&quot;" for level in range(levels)]
    attribute = '<Attribute Name="{}">{}</Attribute>'.format
    many = "<Array>{}</Array>".format
    objects = [
        f'<DataObject ObjectType="PixelDataRepresentation">{attribute("DICOM_PIXEL_SPACING", spacing)}'
        f"{attribute('PIIM_PIXEL_DATA_REPRESENTATION_NUMBER', level)}</DataObject>"
        for level, spacing in enumerate(spacings)
    ]
    image = attribute("PIM_DP_IMAGE_TYPE", "WSI") + attribute("DICOM_PIXEL_SPACING", spacings[0])
    image += attribute("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", many("".join(objects)))
    scanned = many(f'<DataObject ObjectType="DPScannedImage">{image}</DataObject>')
    inner = attribute("DICOM_MANUFACTURER", "PHILIPS") + attribute("PIM_DP_SCANNED_IMAGES", scanned)
    return f'<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">{inner}</DataObject>'


def _forget(path: Path, tiles: frozenset[int]) -> None:
    """Make some tiles of level 0 as if they had never been scanned."""
    if not tiles:
        return
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages[0].tags
        for name in ("TileOffsets", "TileByteCounts"):
            kept = [0 if index in tiles else value for index, value in enumerate(tags[name].value)]
            tags[name].overwrite(kept)
