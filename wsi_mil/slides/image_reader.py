"""Plain images through Pillow: PNG, JPEG, and the TIFFs that OpenSlide does not read (untiled, for one).

Pillow's classes are called directly, not `Image.open`, which warns of "decompression bombs" at a size that is ordinary
here; the limit below takes the place of that.
"""

import struct
import threading
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from wsi_mil.errors import SlideUnreadable, one_line
from wsi_mil.slides.base import Slide, on_background
from wsi_mil.slides.resolution import Hints, resolve

_CLASSES: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"II+\0": TiffImageFile,
    b"MM\0+": TiffImageFile,
}
_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA")
_MAX_PIXELS = 500_000_000  # an image is held in memory whole, at up to 4 bytes a pixel
_MOST_PACKED = {"": 1500, "raw": 1} | dict.fromkeys(("zstd", "lzma", "webp"), 1 << 20)
"""Times that a codec packs glass at best; deflate, LZW and JPEG are much alike."""
_ALWAYS_BYTES = 1 << 22
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_UNITS = {2: "inch", 3: "centimeter"}
_FAILURES = (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, struct.error)


class ImageSlide(Slide):
    """A slide that is a plain image of one level, decoded on the first read and held in memory."""

    reader = "image"

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        """Open an image.

        Raises:
            SlideUnreadable: it is no PNG, JPEG or TIFF that Pillow reads, not 8-bit, or too large to hold in memory.
            ResolutionError: its micrometres per pixel are unknown or nonsense.
        """
        self._file = _open(path)
        self._lock = threading.Lock()
        self._pixels: Image.Image | None = None
        try:
            _check(path, self._file)
            super().__init__(path, [self._file.size], resolve(path, mpp, _hints(self._file)))
        except BaseException:
            self._file.close()
            raise

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
        part = Image.new("RGB", (width, height), self.background)
        part.paste(self._whole(), (-x, -y))
        return np.array(part)

    def _whole(self) -> Image.Image:
        with self._lock:
            if self._pixels is None:
                try:
                    self._pixels = self._decoded()
                except _FAILURES as error:
                    raise SlideUnreadable(
                        f"{self.place}: its pixels cannot be read: Pillow: {one_line(error)}"
                    ) from error
            return self._pixels

    def _decoded(self) -> Image.Image:
        if self._file.mode in ("L", "RGB") and "transparency" not in self._file.info:
            return self._file.convert("RGB")
        return on_background(self._file.convert("RGBA"), self.background)

    def _close(self) -> None:
        self._file.close()
        self._pixels = None


def _open(path: Path) -> ImageFile.ImageFile:
    try:
        with path.open("rb") as file:
            start = file.read(4)
        kind = next((kind for magic, kind in _CLASSES.items() if start.startswith(magic)), None)
        if kind is None:
            raise SlideUnreadable(f"{path} is no PNG, JPEG or TIFF")
        return kind(path)
    except _FAILURES as error:
        raise SlideUnreadable(f"{path}: Pillow: {one_line(error)}") from error


def _check(path: Path, file: ImageFile.ImageFile) -> None:
    width, height = file.size
    if file.mode not in _MODES:
        raise SlideUnreadable(f"{path} has pixels of type {file.mode}: convert it to 8-bit RGB")
    if width * height > _MAX_PIXELS:
        raise SlideUnreadable(
            f"{path} is a plain image of {width} x {height} pixels, too large to hold in memory: "
            f"convert it to a tiled TIFF (vips tiffsave in.png out.tif --tile --pyramid --compression jpeg)"
        )
    most = _MOST_PACKED.get(file.info.get("compression", ""), _MOST_PACKED[""]) * path.stat().st_size
    needed = width * height * (len(file.getbands()) if file.mode != "P" else 1 / 8)  # a pixel of a palette may be a bit
    if needed > max(most, _ALWAYS_BYTES):
        raise SlideUnreadable(
            f"{path} is damaged: it says that it has {width:,} x {height:,} pixels, more than {path.stat().st_size:,}"
            " bytes can hold: copy or download it again"
        )


def _hints(file: ImageFile.ImageFile) -> Hints:
    if not isinstance(file, TiffImageFile):
        return Hints()  # the dpi of a PNG or JPEG is about paper
    tags = file.tag_v2
    x, y = (None if tag not in tags else str(float(tags[tag])) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    return Hints(pixels_per_unit=(x, y), unit=_UNITS.get(tags.get(_RESOLUTION_UNIT, 2), ""))
