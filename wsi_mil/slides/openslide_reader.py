"""Slides through OpenSlide: every format it knows."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from jaxtyping import UInt8

from wsi_mil.errors import SlideUnreadable
from wsi_mil.slides.base import WHITE, Slide, on_background
from wsi_mil.slides.resolution import Hints, resolve

_FAILURES = (openslide.OpenSlideError, OSError)


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide."""

    reader = "openslide"

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        """Open a slide.

        Raises:
            SlideUnreadable: OpenSlide cannot open it.
            ResolutionError: its micrometres per pixel are unknown or nonsense.
        """
        try:
            self._file = openslide.OpenSlide(path)
        except _FAILURES as error:
            raise SlideUnreadable(f"{path}: OpenSlide: {error}") from error
        try:
            properties = self._file.properties
            resolution = resolve(path, mpp, _hints(properties))
            super().__init__(path, list(self._file.level_dimensions), resolution, _background(properties))
            self._downsamples = self._file.level_downsamples
        except BaseException:
            self._file.close()
            raise

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
        # OpenSlide takes level-0 coordinates and divides them by its own downsample, one for both axes, so that very
        # number must be multiplied by here to arrive at the pixel that is meant.
        downsample, size = self._downsamples[level], self.levels[level]
        location = (_locate(x, width, size.width, downsample), _locate(y, height, size.height, downsample))
        try:
            image = self._file.read_region(location, level, (width, height))
        except _FAILURES as error:
            raise SlideUnreadable(f"{self.place}: its pixels cannot be read: OpenSlide: {error}") from error
        return np.array(on_background(image, self.background))

    @property
    def vendor(self) -> str:
        """Which of its formats OpenSlide takes it for: "aperio", "generic-tiff", ..."""
        return self._file.properties[openslide.PROPERTY_NAME_VENDOR]

    @property
    def downsamples(self) -> tuple[float, ...]:
        """By how much OpenSlide divides level-0 coordinates on each level."""
        return self._downsamples

    def _close(self) -> None:
        self._file.close()


def series_of(path: Path) -> str | None:
    """The series that a DICOM file belongs to; None if OpenSlide cannot say."""
    try:
        with openslide.OpenSlide(path) as file:
            return file.properties.get("dicom.SeriesInstanceUID")
    except _FAILURES:
        return None


def _locate(start: int, length: int, size: int, downsample: float) -> int:
    """Where a span of a level starts in OpenSlide's level-0 pixels: the nearest whole one that does not lead it over
    the level's border, where OpenSlide would blend in emptiness."""
    nearest = round(start * downsample)
    return min(nearest, int((size - length) * downsample)) if start + length <= size else nearest


def _hints(properties: Mapping[str, str]) -> Hints:
    return Hints(
        mpp=(properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y)),
        pixels_per_unit=(properties.get("tiff.XResolution"), properties.get("tiff.YResolution")),
        unit=properties.get("tiff.ResolutionUnit", ""),
        power=properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER),
    )


def _background(properties: Mapping[str, str]) -> tuple[int, int, int]:
    text = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
    if text is None:
        return WHITE
    red, green, blue = bytes.fromhex(text)
    return red, green, blue
