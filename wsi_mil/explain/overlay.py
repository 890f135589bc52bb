"""Heat maps as slides of their own: pyramidal OME-TIFFs that viewers lay over the slide by micrometres."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from wsi_mil.explain.figure import faded
from wsi_mil.explain.places import Places
from wsi_mil.explain.raster import boxes, painted
from wsi_mil.explain.scales import Scale
from wsi_mil.slides import Slide, write_ome_pyramid

_MPP = 8.0  # fine enough for the edge of a tile and for glands
_LEAST_PX, _MOST_PX = 2048, 4096  # of the longer side: a small slide is drawn finer, a large one coarser
_STRIP_PX = 256


class Overlay(NamedTuple):
    """What is laid over a slide."""

    title: str
    """What viewers call it."""
    values: Float[np.ndarray, " tiles"]
    scale: Scale
    """Their colours."""


def overlay_mpp(slide: Slide) -> float:
    """Micrometres per pixel of a slide's overlay: about 8, and never finer than the slide."""
    longest_um = max(slide.l0_size[0] * slide.mpp_x, slide.l0_size[1] * slide.mpp_y)
    return max(min(_MPP, longest_um / _LEAST_PX), longest_um / _MOST_PX, min(slide.mpp_x, slide.mpp_y))


def write_overlays(folder: Path, slide: Slide, places: Places, wanted: Mapping[str, Overlay]) -> None:
    """Write values of tiles over the pale slide, over exactly the slide's area; the slide is read once.

    Each is at most 4,096 px a side whatever the slide, and worked out strip by strip.

    Args:
        folder: where to.
        slide: the open slide.
        places: its tiles.
        wanted: by the name of the file.

    Raises:
        SlideUnreadable: the slide cannot be read.
    """
    thumbnail = slide.thumbnail(overlay_mpp(slide))
    height, width = thumbnail.image.shape[:2]
    where = boxes(places, slide.l0_size, (width, height))
    for name, overlay in wanted.items():
        image = thumbnail.image.copy()
        for top in range(0, height, _STRIP_PX):
            rows = (top, min(top + _STRIP_PX, height))
            field = painted(overlay.values.astype(float), where, rows, width)
            image[slice(*rows)] = overlay.scale.over(faded(image[slice(*rows)]), field).round()
        write_ome_pyramid(folder / name, image, (thumbnail.mpp_x, thumbnail.mpp_y), overlay.title)
