"""The picture of a slide: tissue, tiles and annotations where they lie, and a legend that covers nothing."""

from io import BytesIO

import numpy as np
import pytest
import shapely
from PIL import Image

from wsi_mil.geometry import rings
from wsi_mil.preview import _CLASSES, _GRID, _OUTLINE, draw_preview
from wsi_mil.slides import Thumbnail

SIZE = (600, 400)
COORDS = np.array([[3000, 2000]])
TISSUE = rings([shapely.box(500, 500, 2500, 3500)])


def picture(classes: dict[str, shapely.Geometry], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Of a slide ten times as wide as its thumbnail, with a piece of tissue and a tile."""
    thumbnail = Thumbnail(np.full((size[1], size[0], 3), 240, np.uint8), 10.0, 10.0)
    lines = {name: rings(area) for name, area in classes.items()}
    drawn = draw_preview(thumbnail, (size[0] * 10, size[1] * 10), TISSUE, COORDS, (400, 400), lines)
    return np.array(Image.open(BytesIO(drawn)).convert("RGB"))


def shows(pixels: np.ndarray, l0_x: int, l0_y: int, colour: tuple[int, int, int]) -> bool:
    """Whether a place has a colour, as far as JPEG keeps it."""
    return bool(np.abs(pixels[l0_y // 10, l0_x // 10].astype(int) - colour).max() < 60)


def test_tissue_and_tiles_are_drawn_where_they_lie() -> None:
    pixels = picture({})
    assert pixels.shape == (400, 600, 3)
    assert shows(pixels, 500, 2000, _OUTLINE)
    assert shows(pixels, 3000, 2200, _GRID)
    assert shows(pixels, 1500, 2000, (240, 240, 240))


def test_annotations_have_a_colour_by_class_and_holes() -> None:
    ring = shapely.box(1000, 1000, 2000, 3000) - shapely.box(1300, 1300, 1700, 2700)
    pixels = picture(
        {"Stroma": shapely.box(4000, 500, 5000, 1500), "Tumor": ring | shapely.box(5500, 2500, 5900, 3500)}
    )
    for place, colour in (
        ((4000, 1000), _CLASSES[0]),
        ((1000, 2000), _CLASSES[1]),
        ((1300, 2000), _CLASSES[1]),  # the hole
        ((5500, 3000), _CLASSES[1]),  # its other part
        ((500, 2000), _OUTLINE),
        ((1500, 2000), (240, 240, 240)),
    ):
        assert shows(pixels, *place, colour), place


def test_the_legend_lies_under_the_slide_and_takes_as_many_lines_as_it_needs() -> None:
    area = shapely.box(4000, 500, 5000, 1500)
    one, many = picture({"Tumor": area}), picture({f"a class of the number {index}": area for index in range(9)})
    assert one.shape[1] == many.shape[1] == 600
    assert 400 < one.shape[0] < many.shape[0]
    assert shows(one, 100, 4100, _CLASSES[0])
    below = one[402:]
    assert (np.abs(below.astype(int) - _CLASSES[0]).max(-1) < 60).sum() > 100  # the swatch
    assert (below.max(-1) < 110).sum() > 20  # the name
    assert shows(one, 3000, 2200, _GRID)


@pytest.mark.parametrize("name", ["Drüse", "two\nlines", "腫瘍", "", "long " * 50])
def test_any_name_of_a_class_can_be_drawn(name: str) -> None:
    assert picture({name: shapely.box(4000, 500, 5000, 1500)}).shape[0] > 400
