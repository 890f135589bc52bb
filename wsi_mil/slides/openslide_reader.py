"""Slides through OpenSlide: every format it knows."""

from collections.abc import Mapping
from pathlib import Path

import openslide
from PIL import Image

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

    def _read_level(self, index: int, x: int, y: int, width: int, height: int) -> Image.Image:
        # OpenSlide takes level-0 coordinates and divides them by its own downsample, one for both axes, so that very
        # number must be multiplied by here to arrive at the pixel that is meant.
        downsample, level = self._downsamples[index], self.levels[index]
        location = (_locate(x, width, level.width, downsample), _locate(y, height, level.height, downsample))
        try:
            image = self._file.read_region(location, index, (width, height))
        except _FAILURES as error:
            raise SlideUnreadable(f"{self.path}: its pixels cannot be read: OpenSlide: {error}") from error
        return on_background(image, self.background)

    def close(self) -> None:
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
