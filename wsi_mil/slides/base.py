"""What every reader offers: pixels of a slide at any scale, from the best level, always RGB on its background.

A reader says which levels it has and how to read a whole-pixel rectangle of one; everything else is done here once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from wsi_mil.errors import SlideDamaged, SlideUnreadable
from wsi_mil.slides.naming import Place
from wsi_mil.slides.resample import RESAMPLE, resample
from wsi_mil.slides.resolution import Resolution

_AT_ONCE_PX = 5 << 20  # of a level, read at once: 16 MB, a little more than 2048 x 2048
_BLOCK_PX = 2048  # side of the blocks that a thumbnail is read in: 16 MB each
_MOST_SIDE = 1 << 24  # of a slide, px: 0.8 m at the finest resolution that is taken
_MOST_PIXELS = 1 << 29  # of a thumbnail: 180 x 180 mm at 8 um
WHITE = (255, 255, 255)


class Thumbnail(NamedTuple):
    """A whole slide, small."""

    image: UInt8[np.ndarray, "height width 3"]
    mpp_x: float
    mpp_y: float


class Level(NamedTuple):
    """One level of a pyramid."""

    width: int
    height: int
    scale_x: float
    """Level-0 pixels per pixel of this level."""
    scale_y: float


class Part(NamedTuple):
    """A rectangle of a level, in the level's whole pixels."""

    level: int
    x: int
    y: int
    width: int
    height: int


class Slide(ABC):
    """An open slide: a context manager. Reading is thread-safe."""

    path: Path
    """The file that is read."""
    place: Place
    """Where the slide lies, for messages and records: elsewhere than its file, if it was staged."""
    held: ExitStack
    """What is let go of when it is closed."""
    reader: str
    """Who reads it: "direct", "openslide" or "image"."""
    why: str = ""
    """Why it is this reader, where there was a choice."""
    tolerance: float = 2e-3
    """A level this much coarser than asked still serves: less than the rounding of a tile's side."""
    resampling: str = RESAMPLE
    """How pixels are brought to another size than they are stored in."""

    def __init__(
        self, path: Path, sizes: list[tuple[int, int]], resolution: Resolution, background: tuple[int, int, int] = WHITE
    ) -> None:
        """Take the (width, height) of each level, level 0 first.

        Raises:
            SlideDamaged: level 0 is larger than any slide's, or another is larger than it.
        """
        self.path = path
        self.place: Place = path
        self.held = ExitStack()
        self.l0_size = sizes[0]
        for width, height in sizes:
            if max(width, height) > _MOST_SIDE or width > self.l0_size[0] or height > self.l0_size[1]:
                whole = "{:,} x {:,}".format(*self.l0_size)
                raise SlideDamaged(f"{path} is damaged: a level of {width:,} x {height:,} px in a slide of {whole} px")
        self.resolution = resolution
        self.levels = [Level(*size, *map(_scale, sizes[0], size)) for size in sizes]
        self.mpp_x, self.mpp_y, self.mpp_source = resolution
        self.background = background

    @property
    def level_downsamples(self) -> list[float]:
        """How much coarser each level is than level 0, averaged over the axes."""
        return [(level.scale_x + level.scale_y) / 2 for level in self.levels]

    def read(
        self, l0_x: int, l0_y: int, l0_size: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Read a rectangle at a chosen scale.

        The pixels are those of the coarsest level that is not coarser than asked: the whole-pixel rectangle of that
        level nearest to the one asked for, then resampled by Pillow's antialiased bilinear filter unless it has the
        right size already. Much of a fine level is read in strips, since rows are resized each for itself: the same
        pixels in less memory.

        Args:
            l0_x: left edge, level-0 pixels.
            l0_y: top edge, level-0 pixels.
            l0_size: (width, height) of the rectangle, level-0 pixels. What lies outside the slide is background.
            size_px: (width, height) of the result, pixels.

        Raises:
            SlideUnreadable: the pixels cannot be read.
        """
        part = self.locate(l0_x, l0_y, l0_size, size_px)
        strips = list(self._strips(part))
        if len(strips) == 1:
            return resample(self.read_level(*part), size_px)
        narrow = np.empty((part.height, size_px[0], 3), np.uint8)
        for strip in strips:
            top = strip.y - part.y
            narrow[top : top + strip.height] = resample(self.read_level(*strip), (size_px[0], strip.height))
        return resample(narrow, size_px)

    def _strips(self, part: Part) -> Iterator[Part]:
        """A part of a level from top to bottom, in strips that end where rows of its tiles do; whole if it is small."""
        rows = self._tile_rows(part.level)
        step = rows * max(1, _AT_ONCE_PX // (part.width * rows))
        top, bottom = part.y, part.y + part.height
        while top < bottom:
            end = bottom if part.width * part.height <= _AT_ONCE_PX else min(bottom, (top // step + 1) * step)
            yield part._replace(y=top, height=end - top)
            top = end

    def _tile_rows(self, level: int) -> int:
        """How many rows of pixels a level's tiles have, a guess where a reader keeps what it has just decoded."""
        return 256

    def locate(self, l0_x: int, l0_y: int, l0_size: tuple[int, int], size_px: tuple[int, int]) -> Part:
        """Return the part of a level that `read` makes such a rectangle of."""
        return self.locate_all(np.array([(l0_x, l0_y)]), l0_size, size_px)[0]

    def locate_all(
        self, l0_corners: Int64[np.ndarray, "tiles 2"], l0_size: tuple[int, int], size_px: tuple[int, int]
    ) -> list[Part]:
        """`locate` for rectangles of one size, by their top left corners (x, y)."""
        index = self.level_for(l0_size[0] / size_px[0], l0_size[1] / size_px[1])
        level, parts = self.levels[index], []
        for l0_x, l0_y in l0_corners.tolist():
            x, width = _span(l0_x, l0_size[0], level.scale_x, self.l0_size[0], level.width)
            y, height = _span(l0_y, l0_size[1], level.scale_y, self.l0_size[1], level.height)
            parts.append(Part(index, x, y, width, height))
        return parts

    def expect(  # noqa: B027 - most readers have nothing to do with it
        self, l0_corners: Int64[np.ndarray, "tiles 2"], l0_size: tuple[int, int], size_px: tuple[int, int]
    ) -> None:
        """Be told of all tiles that `read_tiles` will be asked for, each once and in any order.

        A reader may keep then what several of them need, until the last of them has been read. It changes no pixel.
        """

    def read_tiles(
        self, l0_corners: Int64[np.ndarray, "tiles 2"], l0_size: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "tiles height width 3"]:
        """Read several tiles of one size by their top left corners (x, y), level-0 pixels; each as by `read`.

        Raises:
            SlideUnreadable: the pixels cannot be read.
        """
        tiles = np.empty((len(l0_corners), size_px[1], size_px[0], 3), np.uint8)
        for tile, (l0_x, l0_y) in zip(tiles, l0_corners.tolist(), strict=True):
            tile[:] = self.read(l0_x, l0_y, l0_size, size_px)
        return tiles

    def level_for(self, scale_x: float, scale_y: float) -> int:
        """Return the coarsest level that is not coarser than so many level-0 pixels per pixel; level 0 if all are."""
        fine = [
            index
            for index, level in enumerate(self.levels)
            if level.scale_x <= scale_x * (1 + self.tolerance) and level.scale_y <= scale_y * (1 + self.tolerance)
        ]
        return max(fine, key=lambda index: self.level_downsamples[index], default=0)

    def thumbnail(self, mpp: float) -> Thumbnail:
        """Read the whole slide at about ``mpp`` micrometres per pixel (at its own, if that is coarser).

        The level is read in blocks that are averaged down at once, so that a slide of a single level, however large,
        takes little more memory than its thumbnail.

        Raises:
            SlideUnreadable: the pixels cannot be read, or there would be too many of them.
        """
        l0_width, l0_height = self.l0_size
        size = (
            min(l0_width, max(1, round(l0_width * self.mpp_x / mpp))),
            min(l0_height, max(1, round(l0_height * self.mpp_y / mpp))),
        )
        if size[0] * size[1] > _MOST_PIXELS:
            raise SlideUnreadable(
                f"{self.path} says that it is {l0_width:,} x {l0_height:,} px of {self.mpp_x:.4g} um, larger than any"
                " slide: give its um/px by --slide-mpp if that is wrong, or copy it again"
            )
        index = self.level_for(l0_width / size[0], l0_height / size[1])
        image = resample(np.array(self._reduced_level(index, size)), size)
        return Thumbnail(image, self.mpp_x * l0_width / size[0], self.mpp_y * l0_height / size[1])

    def _reduced_level(self, index: int, size: tuple[int, int]) -> Image.Image:
        """A whole level, averaged over whole blocks of pixels to not less than ``size``."""
        level = self.levels[index]
        factor = (max(1, level.width // size[0]), max(1, level.height // size[1]))
        step_x, step_y = (max(1, _BLOCK_PX // along) * along for along in factor)
        whole = Image.new("RGB", (-(-level.width // factor[0]), -(-level.height // factor[1])))
        for y in range(0, level.height, step_y):
            for x in range(0, level.width, step_x):
                block = Part(index, x, y, min(step_x, level.width - x), min(step_y, level.height - y))
                small = Image.fromarray(self.read_level(*block)).reduce(factor)
                whole.paste(small, (x // factor[0], y // factor[1]))
        return whole

    @abstractmethod
    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
        """Read a rectangle, in pixels of the level, as RGB on the slide's background.

        Raises:
            SlideUnreadable: the pixels cannot be read.
        """

    @abstractmethod
    def _close(self) -> None:
        """Let go of the file."""

    def close(self) -> None:
        """Let go of the file, and of what keeps it where it is."""
        self._close()
        self.held.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def on_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lay an RGBA image on a background: what was never scanned is transparent, and must not turn black."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    result = Image.new("RGB", image.size, background)
    result.paste(image, mask=alpha)
    return result


def _scale(l0_size: int, size: int) -> float:
    """Level-0 pixels per pixel along one axis.

    Levels are made by a whole factor, then rounded up or down to whole pixels (1001 / 4 = 250 or 251), so the ratio of
    the sizes is only nearly that factor. The factor is what places pixels rightly.
    """
    factor = max(1, round(l0_size / size))
    return float(factor) if abs(l0_size / factor - size) < 1 else l0_size / size


def _span(l0_start: int, l0_length: int, scale: float, l0_size: int, size: int) -> tuple[int, int]:
    """The whole-pixel span of a level nearest to a level-0 span; inside the level if that is inside the slide."""
    start, length = round(l0_start / scale), max(1, round(l0_length / scale))
    if l0_start + l0_length <= l0_size:
        start = min(start, max(0, size - length))
    return start, length
