"""Whether a slide read directly shows what OpenSlide shows: compared on the slide itself before anything trusts it.

OpenSlide takes level-0 coordinates and divides them by its own downsample, so it can be asked for exactly the pixels of
a level only where that comes out whole: everywhere on level 0, at multiples of a whole downsample, and at (0, 0) of any
level. Elsewhere it interpolates between pixels, and tells nothing. What can be compared must be equal, bit for bit.
"""

from collections.abc import Iterator

import numpy as np

from wsi_mil.errors import SlideUnreadable
from wsi_mil.slides.base import Part, Slide
from wsi_mil.slides.direct.layout import NotDirect, TileTable
from wsi_mil.slides.openslide_reader import OpenSlideSlide

_SIDE = 64  # pixels compared at each place; the tiles around it are decoded whole by both


def prove(direct: Slide, tables: list[TileTable], openslide: OpenSlideSlide) -> int:
    """Compare a slide read directly with OpenSlide's reading of it.

    On each level: the corner (0, 0), the largest tile, where there is most to see; on level 0 also the middle, the
    corners and the middles of the borders.

    Returns:
        At how many places they are equal.

    Raises:
        NotDirect: they differ, or the slide cannot be read directly.
    """
    places = 0
    for level, table in enumerate(tables):
        downsample = openslide.downsamples[level]
        for part in _places(level, table, downsample):
            try:
                ours, theirs = direct.read_level(*part), openslide.read_level(*part)
            except SlideUnreadable as error:
                why = error.__cause__ or error  # without the advice to whoever named a reader
                raise NotDirect(
                    f"level {level} at ({part.x}, {part.y}) cannot be compared with OpenSlide's: {why}"
                ) from error
            if not np.array_equal(ours, theirs):
                worst = int(np.abs(ours.astype(int) - theirs).max())
                raise NotDirect(
                    f"level {level} at ({part.x}, {part.y}) differs from OpenSlide's by up to {worst} grey levels"
                )
            places += 1
    return places


def _places(level: int, table: TileTable, downsample: float) -> Iterator[Part]:
    width, height = min(_SIDE, table.width), min(_SIDE, table.height)
    far_x, far_y = table.width - width, table.height - height
    wanted = [(0, 0)]
    if downsample == round(downsample):
        x, y = table.corner(int(table.counts[: table.columns * table.rows].argmax()))
        wanted.append((min(x + table.tile_width - width // 2, far_x), min(y + table.tile_height - height // 2, far_y)))
        middle = (far_x // 2, far_y // 2)
        wanted.append(middle)
        if level == 0:
            wanted += [(far_x, far_y), (far_x, middle[1]), (middle[0], far_y), (far_x, 0), (0, far_y)]
    for x, y in dict.fromkeys(wanted):
        yield Part(level, x, y, width, height)
