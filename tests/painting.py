"""Slides that tests paint for themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from wsi_mil.slides import write_pyramid
from wsi_mil.slides.pyramid import _declare_jpeg, _write_level

GLASS, EOSIN, HAEMATOXYLIN, DAB = (243, 241, 243), (222, 140, 186), (110, 70, 150), (140, 90, 50)


def flat(height: int, width: int, colour: tuple[int, int, int] = GLASS) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def disc(image: np.ndarray, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> np.ndarray:
    """Paint a disc onto an image, and return where it is."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    inside = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    image[inside] = colour
    return inside


def noisy(image: np.ndarray, sigma: float = 3.0, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def smooth_grey(height: int, width: int, cell: int = 16, seed: int = 0) -> np.ndarray:
    """A grey texture without detail finer than a cell, which JPEG and resampling keep."""
    small = np.random.default_rng(seed).integers(60, 230, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    grey = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(grey.convert("RGB"))


def write_tiff(path: Path, levels: list[np.ndarray], **tags: Any) -> Path:
    """A tiled TIFF of exactly these levels and tags."""
    with tifffile.TiffWriter(path) as tiff:
        for index, level in enumerate(levels):
            _write_level(tiff, Image.fromarray(level), tile=256, quality=95, subfiletype=min(index, 1), **tags)
    _declare_jpeg(path)
    return path


def write_aperio(path: Path, levels: list[np.ndarray], properties: str) -> Path:
    """An SVS as Aperio's scanners write it."""
    return write_tiff(path, levels, description=f"Aperio Image Library v12.0.15\r\n1x1 [0,0 1x1]|{properties}")


def slide_of_a_disc(
    path: Path, size: tuple[int, int] = (2048, 1536), mpp: float = 1.0, radius_um: float = 500, seed: int = 0
) -> Path:
    """Write a slide of glass with one disc of H&E tissue in the middle."""
    width, height = size
    image = flat(height, width)
    disc(image, width / 2, height / 2, radius_um / mpp, EOSIN)
    middle, nucleus = np.array([width, height]) / 2, max(1, round(4 / mpp))
    for x, y in (middle + np.random.default_rng(seed).uniform(-0.6, 0.6, (400, 2)) * radius_um / mpp).astype(int):
        image[max(0, y) : y + nucleus, max(0, x) : x + nucleus] = HAEMATOXYLIN
    write_pyramid(path, noisy(image, 2, seed), mpp)
    return path
