"""Tiles per second by several ways of reading the same slide; `bench_reading.py` prints them."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
import simplejpeg
import tifffile
from PIL import Image
from scipy import ndimage

from wsi_mil.slides import Slide, open_slide

TILE_PX, L0_TILE = 256, 512  # a tile of 256 px at half of the slide's resolution, as at 20x from a scan at 40x
_TOGETHER = 16  # tiles that a thread reads at once
_COMMON = "OpenSlide + Pillow, tile by tile"
_LIMIT = "decoding alone"


class Rate(NamedTuple):
    """How fast one way was."""

    way: str
    per_cpu_s: float
    """Tiles per CPU second: the median over the rounds."""
    per_s: float
    """Tiles per second."""
    psnr: float | None = None
    """How near the pixels are to those of the common way, dB; None where there are none to compare."""


def write_slide(path: Path, side: int, compression: str) -> Path:
    """Write a slide of levels 1 and 4 of tissue-like texture: blobs of nuclei on fibres, and the noise of a camera."""
    rng = np.random.default_rng(0)
    fields = (ndimage.gaussian_filter(rng.normal(size=(side, side)).astype(np.float32), width) for width in (2, 6, 24))
    nuclei, fibres, areas = (field / field.std() for field in fields)
    image = np.empty((side, side, 3), np.uint8)
    for channel, (glass, pink, purple) in enumerate(((243, 222, 110), (241, 140, 70), (243, 186, 150))):
        value = glass + (pink - glass) * (fibres + areas > -1) + (purple - pink) * (nuclei > 1)
        smooth = ndimage.gaussian_filter(value.astype(np.float32), 1)
        image[..., channel] = np.clip(smooth + rng.normal(0, 2, smooth.shape), 0, 255)
    jpeg = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 1), "compressionargs": {"level": 70}}
    jpeg2000 = {"compression": "aperio_jp2000_rgb", "photometric": "rgb", "compressionargs": {"level": 35}}
    how: dict[str, Any] = jpeg if compression == "jpeg" else jpeg2000
    text = "Aperio Image Library v12.0.15\r\n1x1 [0,0 1x1]|AppMag = 40|MPP = 0.25"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in (image, np.asarray(Image.fromarray(image).reduce(4))):
            tiff.write(level, tile=(256, 256), description=text, metadata=None, software=False, **how)
    return path


def rates(path: Path, offset: int, most: int, rounds: int) -> list[Rate]:
    """Measure all ways, one after the other in each round.

    Args:
        path: a tiled slide.
        offset: how far the lattice of tiles is off that of the file, level-0 px.
        most: read so many tiles, in a square.
        rounds: how often.
    """
    corners = _corners(path, offset, most)
    with ExitStack() as opened:
        return _measured(dict(_ways(path, corners, opened)), len(corners), rounds)


def _measured(ways: dict[str, Callable[[], np.ndarray | None]], tiles: int, rounds: int) -> list[Rate]:
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    pixels = {way: run() for way, run in ways.items()}  # a first time for compiling and for the disk's cache
    for _ in range(rounds):
        for way, run in ways.items():
            began, cpu = time.perf_counter(), time.process_time()
            run()
            times[way].append((time.process_time() - cpu, time.perf_counter() - began))
    told = []
    for way in ways:
        cpu, wall = np.median(times[way], axis=0) / tiles
        told.append(Rate(way, 1 / cpu, 1 / wall, _psnr(pixels[_COMMON], pixels[way])))
    return told


def _corners(path: Path, offset: int, most: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        sides = [(size - offset) // L0_TILE for size in slide.dimensions]
    across = min(int(most**0.5), *sides)
    return np.array([(x, y) for y in range(across) for x in range(across)]) * L0_TILE + offset


def _ways(path: Path, corners: np.ndarray, opened: ExitStack) -> Iterator[tuple[str, Callable[[], np.ndarray | None]]]:
    """Each way by its name, on slides that are open already."""
    theirs = opened.enter_context(openslide.OpenSlide(path))
    yield _COMMON, partial(_common, theirs, corners)
    yield "wsimil", partial(_ours, opened.enter_context(open_slide(path, 0.25)), corners)
    fast = opened.enter_context(open_slide(path, 0.25, fast=True))
    if fast.resampling.startswith("libjpeg"):
        yield "wsimil --fast-decode", partial(_ours, fast, corners)
    yield _LIMIT, _decoder(path, corners)


def _common(slide: openslide.OpenSlide, corners: np.ndarray) -> np.ndarray:
    level = slide.get_best_level_for_downsample(L0_TILE / TILE_PX)
    side = round(L0_TILE / slide.level_downsamples[level])
    images = (slide.read_region((int(x), int(y)), level, (side, side)).convert("RGB") for x, y in corners)
    resized = (image.resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR) for image in images)
    return np.stack([np.asarray(image) for image in resized])


def _ours(slide: Slide, corners: np.ndarray) -> np.ndarray:
    size = (L0_TILE, L0_TILE), (TILE_PX, TILE_PX)
    slide.expect(corners, *size)
    parts = (corners[start : start + _TOGETHER] for start in range(0, len(corners), _TOGETHER))
    return np.concatenate([slide.read_tiles(part, *size) for part in parts])


def _decoder(path: Path, corners: np.ndarray) -> Callable[[], None]:
    """Decode the compressed tiles that these tiles lie on, each once, from memory, and do nothing with them."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        side, columns = page.tilewidth, -(-page.imagewidth // page.tilewidth)
        low, high = corners.min(0) // side, (corners.max(0) + L0_TILE - 1) // side
        wanted = [row * columns + column for row in range(low[1], high[1] + 1) for column in range(low[0], high[0] + 1)]
        spans = ([table[index] for index in wanted] for table in (page.dataoffsets, page.databytecounts))
        raw = [data for data, _ in tiff.filehandle.read_segments(*spans)]
        decode = page.decode
        if int(page.compression) == 7:
            head = (page.jpegtables or b"\xff\xd8")[: -2 if page.jpegtables else None]
            raw = [head + data[2:] for data in raw]
            decode = simplejpeg.decode_jpeg

    def run() -> None:
        for data in raw:
            decode(data) if decode is simplejpeg.decode_jpeg else decode(data, 0)

    return run


def _psnr(truth: np.ndarray, found: np.ndarray | None) -> float | None:
    if found is None or found is truth:
        return None
    error = float(np.mean((truth.astype(np.float32) - found) ** 2))
    return 10 * np.log10(255**2 / error) if error else float("inf")
