"""Pictures show what they should where it lies, and their frames cover nothing."""

import io

import numpy as np
import pytest
import torch
from explained import Plain, some_look, some_places
from PIL import Image

from wsi_mil.bags import Bag, join_bags
from wsi_mil.errors import SlideError
from wsi_mil.explain import attention_png, drawing
from wsi_mil.explain.annotations import class_colour
from wsi_mil.explain.figure import FAINT, INK, MARGIN, backdrop, colour_bar, framed, nice_length_um
from wsi_mil.explain.heatmap import attention_picture, contribution_picture
from wsi_mil.explain.pairs_picture import pairs_picture
from wsi_mil.explain.raster import boxes, painted
from wsi_mil.explain.scales import attention_scale, contribution_scale, rgba
from wsi_mil.explain.sheet import sheet_size, tile_sheet
from wsi_mil.slides import open_slide

GREY = np.array([0.299, 0.587, 0.114])
CENTRE = np.array([100, 50])  # of a tile, from its corner


def slow_field(values: np.ndarray, where: np.ndarray, height: int, width: int) -> np.ndarray:
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for value, (left, top, right, bottom) in zip(values, where, strict=True):
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def test_pixels_are_the_mean_of_the_tiles_that_cover_them_whatever_the_strips() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 50, (40, 2))
    where = np.hstack([low, low + rng.integers(1, 30, (40, 2))])
    values = rng.normal(size=40)
    expected = slow_field(values, where.clip(0, (70, 60, 70, 60)), 60, 70)
    np.testing.assert_allclose(painted(values, where, (0, 60), 70), expected, atol=1e-12)
    strips = [painted(values, where, (top, min(top + 17, 60)), 70) for top in range(0, 60, 17)]
    np.testing.assert_allclose(np.vstack(strips), expected, atol=1e-12)


def test_tiles_meet_without_a_seam_and_the_smallest_still_shows() -> None:
    places = some_places()
    fine, coarse = boxes(places, (2000, 1000), (333, 167)), boxes(places, (2000, 1000), (5, 3))
    assert np.isfinite(painted(np.ones(24), fine, (0, 167), 333)).sum() == (216 - 17) * (100 - 33)
    assert (coarse[:, 2:] > coarse[:, :2]).all()
    assert (coarse[:, :2] < (5, 3)).all()


def test_more_attention_is_darker_and_less_transparent() -> None:
    colours = rgba(attention_scale(np.array([0.0, 2.0])), np.linspace(0, 2, 33))
    assert (np.diff(colours[:, :3] @ GREY) < 0).all()
    assert (np.diff(colours[:, 3]) > 0).all()


def test_contributions_are_centred_on_zero_which_has_hardly_a_colour() -> None:
    scale = contribution_scale(np.array([-0.1, 0.4]))
    assert (scale.low, scale.high, scale.clipped) == (-0.4, 0.4, False)
    opacity = rgba(scale, np.linspace(-0.4, 0.4, 33))[:, 3]
    np.testing.assert_allclose(opacity, opacity[::-1])
    assert opacity.argmin() == 16
    assert opacity[16] <= 0.1
    blue, orange = rgba(scale, np.array([-0.3, 0.3]))
    assert blue[2] > blue[0] + 50
    assert orange[0] > orange[2] + 50


def test_an_outlier_does_not_take_all_colours_and_nothing_is_no_error() -> None:
    values = np.append(np.full(999, 0.001), 1.0)
    scale = attention_scale(values)
    assert scale.clipped
    assert scale.high == pytest.approx(0.004)
    np.testing.assert_array_equal(*rgba(scale, np.array([1.0, scale.high])))
    assert not attention_scale(np.array([0.0, 0.0, 1.0])).clipped
    assert contribution_scale(np.zeros(4)).high == 1.0


@pytest.mark.parametrize(("most", "nice"), [(1000.0, 1000), (999.0, 500), (499.0, 200), (0.3, 0.2), (7e4, 5e4)])
def test_scale_bars_are_of_round_length(most: float, nice: float) -> None:
    assert nice_length_um(most) == pytest.approx(nice)


@pytest.mark.parametrize(("width", "um_per_px"), [(1000, 2.0), (300, 13.7), (1000, 0.25)])
def test_the_frame_covers_nothing_and_its_scale_bar_is_as_long_as_it_says(width: int, um_per_px: float) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(90, 255, (200, width, 3), dtype=np.uint8))
    key = colour_bar("key", attention_scale(np.ones(2)), [["0"], ["1"]])
    page = np.array(framed(picture, um_per_px, key, "A title", "and more"))
    top = MARGIN + 36 + 30
    left = (page.shape[1] - width) // 2
    np.testing.assert_array_equal(page[top : top + 200, left : left + width], np.array(picture))
    row = page[top + 200 + MARGIN + 9, : MARGIN + 300]  # right of it is the key
    length_px = int((row == INK).all(axis=1).sum())
    assert length_px == round(nice_length_um(width / 4 * um_per_px) / um_per_px)
    assert (page[[0, -1]] == 255).all()


def test_a_long_title_stays_on_the_page() -> None:
    key = Image.new("RGB", (100, 50), "white")
    page = np.array(framed(Image.new("RGB", (300, 100)), 1.0, key, "wide " * 100, "more " * 300))
    assert (page[:, -MARGIN + 1 :] == 255).all()


def test_the_heat_map_lies_on_the_tiles() -> None:
    slide, places = Plain(), some_places()
    ground = backdrop(slide, 1000)
    assert ground.size_px == (1000, 1000)  # pixels of the slide are half as wide as high
    drawn = np.array(attention_picture(ground, places, some_look(places).attention))[MARGIN : MARGIN + 1000]
    drawn = drawn[:, MARGIN : MARGIN + 1000].astype(int)
    differs = (drawn != ground.image.round()).any(axis=2)
    expected = np.zeros((1000, 1000), bool)
    expected[200:600, 50:650] = True
    np.testing.assert_array_equal(differs, expected)
    lightness = drawn @ GREY
    assert lightness[550, 600] < lightness[250, 100]


def test_contributions_have_the_colour_of_what_they_speak_for() -> None:
    slide, places = Plain(), some_places()
    look, ground = some_look(places), backdrop(slide, 1000)
    assert look.contribution is not None
    values = look.contribution[:, 1]
    page = np.array(contribution_picture(ground, places, values, ("for far", "for near"))).astype(int)
    for tile in (int(values.argmax()), int(values.argmin())):
        x, y = (((places.coords + CENTRE) * (0.5, 1.0))[tile]).astype(int) + MARGIN
        red, _, blue = page[y, x]
        assert (red > blue) == (values[tile] > 0)


def test_attention_is_drawn_over_one_slide_and_never_over_the_first_of_several(make_slide) -> None:
    attrs = {"tile_um": 256.0, "slide_path": "a.tif"}
    one, other = (Bag(name, torch.zeros(3, 2), 300.0 * torch.rand(3, 2), attrs) for name in ("a", "b"))
    with open_slide(make_slide()) as slide:
        for bag in (one, join_bags([one], "p-1")):
            assert Image.open(io.BytesIO(attention_png(slide, bag, np.ones(3)))).format == "PNG"
        with pytest.raises(SlideError, match=r"p-1 is a bag of 2 slides \(a, b\): draw each from its own bag"):
            attention_png(slide, join_bags([one, other], "p-1"), np.ones(6))


def test_lines_run_from_tile_to_partner() -> None:
    slide, places = Plain(), some_places()
    pairs, ground = some_look(places).pairs, backdrop(slide, 1000)
    assert pairs is not None
    page = np.array(pairs_picture(ground, places, pairs)).astype(int)[MARGIN:, MARGIN:]
    centres = (places.coords + CENTRE) * (0.5, 1.0)
    start, end = centres[23], centres[0]
    for share in (0.1, 0.2, 0.8, 0.9):
        x, y = (start + share * (end - start)).round().astype(int)
        near = np.abs(page[y - 3 : y + 4, x - 3 : x + 4] - class_colour(0)).sum(axis=2)
        assert near.min() < 60
    untouched = page[700:, 700:1000][:200]
    assert (untouched == ground.image[700:900, 700:1000].round()).all()


def test_a_pair_alone_and_no_pair_at_all() -> None:
    slide, places = Plain(), some_places()
    pairs = some_look(places).pairs
    assert pairs is not None
    none = pairs._replace(partners=np.full_like(pairs.partners, -1))
    ground = backdrop(slide, 400)
    assert pairs_picture(ground, places, none).size == pairs_picture(ground, places, pairs).size


def test_a_sheet_shows_the_tiles_as_the_slide_has_them(make_slide) -> None:
    places = some_places()._replace(mpp=(1.0, 1.0), l0_tile=(118, 118))
    chosen = np.array([5, 0, 7])
    with open_slide(make_slide(size=(1600, 900))) as slide:
        expected = slide.read_tiles(places.coords[chosen], (118, 118), (236, 236))
        page = np.array(tile_sheet(slide, places, chosen, [("+0.1", "x")] * 3, [(9, 9, 9)] * 3, "Title", "subtitle"))
    for place, tile in enumerate(expected):
        x, y = MARGIN + place * 256, MARGIN + 26 + 18 + 26
        np.testing.assert_array_equal(page[y + 4 : y + 232, x + 4 : x + 232], tile[4:232, 4:232])
        assert (page[y, x] == 9).all()


def test_tiles_that_gave_nothing_speak_for_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that pools by maximum asks few tiles; the others are framed in the colour of neither class."""
    seen = []

    def sheet(*arguments: object) -> Image.Image:
        seen.append(arguments[4])
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(drawing, "tile_sheet", sheet)
    (side,) = drawing._sides(["far", "near"])
    given = np.array([2.0, 1.0, 0.5, *([0.0] * 36), -1.0])
    drawing._sheets(Plain(), "a", some_places(), np.ones(40) / 40, (side, given), "near")
    top, bottom = seen
    assert top == [side.colours[1]] * 3 + [FAINT] * 9
    assert bottom == [side.colours[0]] + [FAINT] * 11


@pytest.mark.parametrize(("tiles", "shown"), [(1, 1), (2, 1), (7, 3), (24, 12), (100_000, 12)])
def test_no_tile_is_on_both_sheets(tiles: int, shown: int) -> None:
    assert sheet_size(tiles) == shown


@pytest.mark.parametrize(
    ("classes", "endings"),
    [
        (("a", "b c", "d"), ["_a", "_b-c", "_d"]),
        (("a b", "a-b", "a-b-0", "x"), ["_0-a-b", "_1-a-b", "_2-a-b-0", "_3-x"]),
        (("Grade", "grade", "x"), ["_0-Grade", "_1-grade", "_2-x"]),
    ],
)
def test_no_picture_of_a_class_takes_the_name_of_anothers(classes: tuple[str, ...], endings: list[str]) -> None:
    assert [side.ending for side in drawing._sides(classes)] == endings
