"""Tiles as the slide shows them, side by side: those that counted most."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw

from wsi_mil.explain.figure import FAINT, INK, MARGIN, PAPER, TEXT_PX, TITLE_PX
from wsi_mil.explain.places import Places
from wsi_mil.lettering import fitted, font
from wsi_mil.slides import Slide

COLUMNS, ROWS = 4, 3
_TILE_PX, _GAP, _BORDER = 236, 20, 4


def sheet_size(tiles: int) -> int:
    """How many tiles a sheet shows of a slide with so many: none is on the sheet of both ends."""
    return min(COLUMNS * ROWS, max(1, tiles // 2))


def tile_sheet(
    slide: Slide,
    places: Places,
    chosen: Int[np.ndarray, " chosen"],
    texts: Sequence[tuple[str, str]],
    colours: Sequence[tuple[int, int, int]],
    title: str,
    subtitle: str,
) -> Image.Image:
    """Lay out tiles, first first, each with its rank, two lines of text and where it is.

    Args:
        slide: the slide.
        places: its tiles.
        chosen: which to show.
        texts: two lines for each, the first beside its rank.
        colours: of their frames.
        title: above all.
        subtitle: below that.

    Raises:
        SlideUnreadable: the tiles cannot be read.
    """
    size = (_TILE_PX, max(1, round(_TILE_PX * places.l0_tile[1] * places.mpp[1] / places.l0_tile[0] / places.mpp[0])))
    pixels = slide.read_tiles(places.coords[chosen], places.l0_tile, size)
    line, head = TEXT_PX + 5, MARGIN + TITLE_PX + TEXT_PX + 26
    step = (_TILE_PX + _GAP, size[1] + 3 * line + _GAP + 8)
    rows = -(-len(chosen) // COLUMNS)
    page = Image.new("RGB", (2 * MARGIN + COLUMNS * step[0] - _GAP, head + rows * step[1] - _GAP + MARGIN), PAPER)
    draw, room = ImageDraw.Draw(page), page.width - 2 * MARGIN
    for text, side, y, ink in ((title, TITLE_PX, MARGIN - 6, INK), (subtitle, TEXT_PX, MARGIN + TITLE_PX + 4, FAINT)):
        draw.text((MARGIN, y), fitted(text, font(side), room), fill=ink, font=font(side))
    for place, (tile, image) in enumerate(zip(chosen.tolist(), pixels, strict=True)):
        x, y = MARGIN + place % COLUMNS * step[0], head + place // COLUMNS * step[1]
        page.paste(Image.fromarray(image), (x, y))
        draw.rectangle([x, y, x + size[0] - 1, y + size[1] - 1], outline=colours[place], width=_BORDER)
        l0_x, l0_y = places.coords[tile].tolist()
        lines = (f"{place + 1}. {texts[place][0]}", texts[place][1], f"x {l0_x:,}, y {l0_y:,}")
        for number, text in enumerate(lines):
            where = (x, y + size[1] + 6 + number * line)
            letters = font(TEXT_PX if number == 0 else TEXT_PX - 1)
            draw.text(where, fitted(text, letters, _TILE_PX), fill=FAINT if number else INK, font=letters)
    return page
