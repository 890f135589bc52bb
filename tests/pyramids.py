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
            _write_level(tiff, level, kind, subfiletype=0 if kind.aperio else min(index, 1))
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
        description=_APERIO if kind.aperio else None,
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        metadata=None,
        software=False,
        **tags,
    )


def _forget(path: Path, tiles: frozenset[int]) -> None:
    """Make some tiles of level 0 as if they had never been scanned."""
    if not tiles:
        return
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages[0].tags
        for name in ("TileOffsets", "TileByteCounts"):
            kept = [0 if index in tiles else value for index, value in enumerate(tags[name].value)]
            tags[name].overwrite(kept)
