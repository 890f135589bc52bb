"""The slide small, its tissue outlined and its tiles drawn, as a JPEG."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from jaxtyping import Int64
from PIL import Image, ImageDraw

from wsi_mil.slides import Slide, Thumbnail

_PREVIEW_PX = 1500
_OUTLINE, _GRID = (0, 130, 60), (30, 60, 160)


def preview_mpp(slide: Slide) -> float:
    """Micrometres per pixel that a preview of a slide needs."""
    return max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y) / _PREVIEW_PX


def draw_preview(
    thumbnail: Thumbnail,
    l0_size: tuple[int, int],
    lines: Sequence[Sequence[tuple[float, float]]],
    coords: Int64[np.ndarray, "tiles 2"],
    l0_tile: tuple[int, int],
) -> bytes:
    """Draw a preview.

    Args:
        thumbnail: the slide.
        l0_size: (width, height) of the slide, level-0 pixels.
        lines: the outlines of its tissue, points (x, y) in level-0 pixels.
        coords: top left corners of its tiles, level-0 pixels.
        l0_tile: (width, height) of a tile, level-0 pixels.
    """
    image = Image.fromarray(thumbnail.image)
    image.thumbnail((_PREVIEW_PX, _PREVIEW_PX))
    draw = ImageDraw.Draw(image)
    scale = np.array(image.size) / l0_size
    corners = coords * scale
    for left_top, right_bottom in zip(corners, corners + np.array(l0_tile) * scale, strict=True):
        draw.rectangle([*left_top, *right_bottom], outline=_GRID, width=2)
    for line in lines:
        draw.line([tuple(point) for point in np.array(line) * scale], fill=_OUTLINE, width=5)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
