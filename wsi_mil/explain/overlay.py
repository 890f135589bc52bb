"""The heat map as a slide of its own: a pyramidal OME-TIFF that viewers lay over the slide by micrometres."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from wsi_mil.explain.figure import faded
from wsi_mil.explain.places import Places
from wsi_mil.explain.raster import boxes, painted
from wsi_mil.explain.scales import attention_scale
from wsi_mil.slides import Slide, write_ome_pyramid

_MPP = 8.0  # fine enough for the edge of a tile and for glands
_LEAST_PX, _MOST_PX = 2048, 4096  # of the longer side: a small slide is drawn finer, a large one coarser
_STRIP_PX = 256


def overlay_mpp(slide: Slide) -> float:
    """Micrometres per pixel of a slide's overlay: about 8, and never finer than the slide."""
    longest_um = max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y)
    return max(min(_MPP, longest_um / _LEAST_PX), longest_um / _MOST_PX, min(slide.mpp_x, slide.mpp_y))


def write_overlay(path: Path, slide: Slide, places: Places, attention: Float[np.ndarray, " tiles"]) -> None:
    """Write attention over the pale slide, over exactly the slide's area, in the colours of ``heatmap.png``.

    It is at most 4,096 px a side whatever the slide, and worked out strip by strip.

    Raises:
        SlideUnreadable: the slide cannot be read.
    """
    thumbnail = slide.thumbnail(overlay_mpp(slide))
    image, scale = thumbnail.image, attention_scale(attention)
    height, width = image.shape[:2]
    where = boxes(places, slide.l0_size, (width, height))
    for top in range(0, height, _STRIP_PX):
        rows = (top, min(top + _STRIP_PX, height))
        field = painted(attention.astype(float), where, rows, width)
        image[slice(*rows)] = scale.over(faded(image[slice(*rows)]), field).round()
    write_ome_pyramid(path, image, (thumbnail.mpp_x, thumbnail.mpp_y), "attention")
