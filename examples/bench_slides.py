"""Slides for benchmarks: painted ones of uneven size, and one that is huge but nearly empty."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

from wsi_mil import store
from wsi_mil.slides import open_slide, slide_fingerprint, write_pyramid

MPP = 0.5
TILE_PX = 224
STAINS = np.array([(243, 241, 243), (222, 140, 186), (110, 70, 150), (235, 190, 215)], np.uint8)
_JPEG, _COMPRESSION, _SUBSAMPLING = 7, 259, 530
_DATA_EVERY = 97  # tiles of the huge slide: all others are left out of the file


def paint(path: Path, width: int, height: int, seed: int) -> Path:
    """Write a slide textured as tissue is, all over, as JPEG tiles of 0.5 um/px.

    Without further levels: between 0.25 um/px and 1, scanners' files seldom have what an encoder wants either.
    """
    write_pyramid(path, texture(width, height, seed), MPP, levels=1)
    return path


def texture(width: int, height: int, seed: int) -> np.ndarray:
    """Patches of H&E with noise, as a square of 1,024 px that is repeated."""
    rng = np.random.default_rng(seed)
    stain = ndimage.gaussian_filter(rng.normal(size=(4, 128, 128)), (0, 2, 2), mode="wrap").argmax(0)
    square = STAINS[stain].repeat(8, 0).repeat(8, 1) + rng.integers(0, 12, (1024, 1024, 3), dtype=np.uint8)
    return np.tile(square, (-(-height // 1024), -(-width // 1024), 1))[:height, :width]


def paint_cohort(folder: Path, count: int, side: int) -> list[Path]:
    """Write slides of uneven size, the smallest a quarter as wide and high as the largest, of ``side`` px."""
    sides = [max(512, int(side * share)) for share in np.linspace(0.25, 1.0, count)]
    return [paint(folder / f"slide-{i}.tif", side, side, seed=i) for i, side in enumerate(sides)]


def write_sparse(path: Path, side: int, tile: int = 256) -> Path:
    """Write a slide of ``side`` x ``side`` px, 0.25 um/px, whose file holds few of its tiles."""
    buffer = BytesIO()
    Image.fromarray(texture(tile, tile, 0)).save(buffer, "JPEG", subsampling="4:2:0")
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in (level for level in range(4) if side > tile * 4**level):
            size, per_cm = -(-side // 4**level), 10_000 / 0.25 / 4**level
            tiff.write(
                _sparse((-(-size // tile)) ** 2, buffer.getvalue()),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="ycbcr",
                metadata=None,
                subfiletype=min(level, 1),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
            )
    with tifffile.TiffFile(path, mode="r+") as tiff:  # as in `wsi_mil.slides.pyramid`
        for page in tiff.pages:
            tags = page.aspage().tags
            tags[_COMPRESSION].overwrite(_JPEG)
            tags[_SUBSAMPLING].overwrite((2, 2))
    return path


def _sparse(tiles: int, data: bytes) -> Iterator[bytes]:
    return (data if index % _DATA_EVERY == 0 else b"" for index in range(tiles))


def lay_tiles(path: Path, folder: Path, tile_um: float) -> Path:
    """Write what `wsimil tile` would, with a tile everywhere."""
    with open_slide(path) as slide:
        l0_width, l0_height = slide.l0_size
        l0_tile = round(tile_um / slide.mpp_x)
        grid = np.mgrid[0 : l0_height - l0_tile + 1 : l0_tile, 0 : l0_width - l0_tile + 1 : l0_tile]
        attrs = {
            "mpp_x": slide.mpp_x, "mpp_y": slide.mpp_y, "mpp_source": slide.mpp_source, "tile_um": tile_um,
            "tile_px": TILE_PX, "l0_tile_width": l0_tile, "l0_tile_height": l0_tile, "slide_path": str(path),
            "level0_width": l0_width, "level0_height": l0_height, "status": "done", "stage": "tile", "params": "{}",
            "fingerprint": path.stem, "upstream": slide_fingerprint(path),
        }  # fmt: skip
    coords = np.stack([grid[1].ravel(), grid[0].ravel()], axis=1).astype(np.int64)
    made = folder / f"{path.stem}.h5"
    store.write(made, store.Artifact({"coords": coords}, attrs))
    return made
