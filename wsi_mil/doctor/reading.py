"""Readers of slides, and the codecs that decode their tiles."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from wsi_mil.doctor.findings import OK, Check, Finding

if TYPE_CHECKING:
    import numpy as np

_MPP = 0.5
_SIDE = 512
_NOT_READ = "pip install --force-reinstall openslide-python openslide-bin tifffile simplejpeg imagecodecs"
CODECS = ("JPEG", "JPEG 2000", "LZW", "deflate", "zstd")


def readers() -> list[Check]:
    """Who reads pixels, each on a slide painted for that."""
    return [
        Check("readers", "OpenSlide", partial(_read, "slide.tif", "openslide"), _NOT_READ),
        Check("readers", "direct", partial(_read, "slide.tif", "direct"), _NOT_READ),
        Check("readers", "image", partial(_read, "slide.png", "auto"), _NOT_READ),
    ]


def codecs() -> list[Check]:
    """What decodes a tile."""
    again = "pip install --force-reinstall simplejpeg imagecodecs"
    return [Check("codecs", name, partial(_decode, name), again) for name in CODECS]


def _read(name: str, reader: str) -> Finding:
    import numpy as np
    from PIL import Image

    from wsi_mil.slides import open_slide, write_pyramid

    pixels = _pixels(_SIDE)
    with TemporaryDirectory(prefix="wsimil-doctor-") as folder:
        path = Path(folder) / name
        if path.suffix == ".tif":
            write_pyramid(path, pixels, _MPP)
        else:
            Image.fromarray(pixels).save(path)
        with open_slide(path, _MPP, reader) as slide:
            found = slide.read(0, 0, (_SIDE, _SIDE), (_SIDE, _SIDE))
    off = int(np.abs(found.astype(int) - pixels).mean())
    if off > 8:
        raise RuntimeError(f"pixels come back wrong, by {off} of 255 on average")
    return Finding(OK, f"reads a {_SIDE} px slide")


def _decode(name: str) -> Finding:
    import numpy as np

    from wsi_mil.slides.probing import decoded

    pixels = _pixels(32)
    off = int(np.abs(decoded(name, pixels).astype(int) - pixels).max())
    if off > (24 if name == "JPEG" else 0):
        raise RuntimeError(f"pixels come back wrong, by up to {off} of 255")
    return Finding(OK, "decodes a tile")


def _pixels(side: int) -> "np.ndarray":
    """A soft picture, which a JPEG keeps."""
    import numpy as np

    ramp = np.linspace(40, 220, side)
    flat = np.full((side, side), 180)
    return np.stack([np.add.outer(ramp, ramp) / 2, np.tile(ramp, (side, 1)), flat], axis=2).astype(np.uint8)
