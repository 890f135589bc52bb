"""The slide small, its tissue outlined, its tiles drawn, and what was annotated on it by class, as a JPEG."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle

import numpy as np
from jaxtyping import Int64
from PIL import Image, ImageDraw

from wsi_mil.lettering import font, plain
from wsi_mil.slides import Slide, Thumbnail

_PREVIEW_PX = 1500
_OUTLINE, _GRID, _TEXT, _PAPER = (0, 130, 60), (30, 60, 160), (29, 35, 48), (255, 255, 255)
_CLASSES = ((235, 70, 0), (0, 0, 0), (255, 205, 0), (0, 175, 200), (160, 0, 160), (120, 70, 20))
"""One after the other, then from the start: of no stain, and neither that of tissue nor of tiles."""
_TEXT_PX = 14

Lines = Sequence[Sequence[tuple[float, float]]]
"""Closed lines of points (x, y), level-0 pixels."""


def preview_mpp(slide: Slide) -> float:
    """Micrometres per pixel that a preview of a slide needs."""
    return max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y) / _PREVIEW_PX


def draw_preview(
    thumbnail: Thumbnail,
    l0_size: tuple[int, int],
    tissue: Lines,
    coords: Int64[np.ndarray, "tiles 2"],
    l0_tile: tuple[int, int],
    classes: Mapping[str, Lines],
) -> bytes:
    """Draw a preview; where there are annotations, a strip under the slide names their classes.

    Args:
        thumbnail: the slide.
        l0_size: (width, height) of the slide, level-0 pixels.
        tissue: the outlines of its tissue.
        coords: top left corners of its tiles, level-0 pixels.
        l0_tile: (width, height) of a tile, level-0 pixels.
        classes: the outlines of what was annotated, by class.
    """
    image = Image.fromarray(thumbnail.image)
    image.thumbnail((_PREVIEW_PX, _PREVIEW_PX))
    draw = ImageDraw.Draw(image)
    scale = np.array(image.size) / l0_size
    corners = coords * scale
    for left_top, right_bottom in zip(corners, corners + np.array(l0_tile) * scale, strict=True):
        draw.rectangle([*left_top, *right_bottom], outline=_GRID, width=2)
    colours = dict(zip(classes, cycle(_CLASSES), strict=False))
    for lines, colour in ((tissue, _OUTLINE), *((classes[name], colours[name]) for name in classes)):
        for line in lines:
            draw.line([tuple(point) for point in np.array(line) * scale], fill=colour, width=5)
    buffer = BytesIO()
    (_with_legend(image, colours) if colours else image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _with_legend(image: Image.Image, colours: Mapping[str, tuple[int, int, int]]) -> Image.Image:
    """An image on a strip that says what its colours are; nothing of the image is covered."""
    side = max(_TEXT_PX, image.width // 50)
    letters, gap = font(side), side // 2
    entries, x, y = [], gap, image.height + gap
    for name, colour in colours.items():
        text = plain(name)
        width = side + gap + round(letters.getlength(text)) + 2 * gap
        if x > gap and x + width > image.width:
            x, y = gap, y + side + gap
        entries.append((x, y, text, colour))
        x += width
    result = Image.new("RGB", (image.width, y + side + gap), _PAPER)
    result.paste(image)
    draw = ImageDraw.Draw(result)
    for x, y, text, colour in entries:
        draw.rectangle([x, y, x + side - 1, y + side - 1], fill=colour)
        draw.text((x + side + gap, y + side // 2), text, fill=_TEXT, font=letters, anchor="lm")
    return result
