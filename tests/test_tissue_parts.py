"""Parts of masks, and ink by its place: what is done fast is what the definitions say."""

import numpy as np
import pytest
from painting import EOSIN, GLASS, HAEMATOXYLIN, disc, flat, noisy
from scipy import ndimage

from wsi_mil.tissue import areas
from wsi_mil.tissue.density import Density, density_of
from wsi_mil.tissue.ink import find_ink

SHAPES = [(1, 1), (1, 40), (37, 1), (37, 53)]
INKS = {"green": (40, 160, 110), "blue": (30, 60, 190), "black": (30, 30, 34), "red": (200, 25, 40)}


GLASS_COLOUR = np.array(GLASS, np.float32)[:, None, None]


def speckled(shape: tuple[int, int], share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def density(image: np.ndarray) -> Density:
    """Against glass, of an image whose noise is smoothed as it is on slides."""
    light = ndimage.gaussian_filter(np.moveaxis(image, -1, 0), (0, 1, 1), output=np.float32)
    return density_of(light, GLASS_COLOUR, np.zeros(image.shape[:2], bool))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 0), (0, 2), (3, 4), (11, 5), (70, 64)])
def test_the_highest_within_reach_is_what_a_maximum_filter_finds(shape, rows, columns):
    size = (2 * rows + 1, 2 * columns + 1)
    drawn = np.random.default_rng(0).integers(0, 250, shape) * speckled(shape, 0.02)
    for values in (drawn > 0, drawn.astype(np.uint8), drawn):
        found = areas.highest(values, rows, columns)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, ndimage.maximum_filter(values, size, mode="nearest"))


def test_a_mask_grows_by_micrometres_on_each_axis():
    mask = np.zeros((41, 41), bool)
    mask[20, 20] = True
    rows, columns = np.nonzero(areas.grown(mask, 48.0, 8.0, 16.0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 23, 14, 26)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_parts_with_a_core_are_what_spreads_from_it(shape, share):
    mask = speckled(shape, share)
    core = mask & speckled(shape, 0.05, 1)
    np.testing.assert_array_equal(areas.reaching(mask, core), ndimage.binary_propagation(core, mask=mask))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("pixels", [0, 1, 3, float("inf")])
def test_holes_are_what_no_border_reaches_and_small_below_an_area(shape, share, pixels):
    mask = speckled(shape, share)
    holes = ndimage.binary_fill_holes(mask) & ~mask
    small = holes & ~areas.without_small(holes, pixels * 2e-4, 10.0, 20.0)
    np.testing.assert_array_equal(areas.small_holes(mask, pixels * 2e-4, 10.0, 20.0), small)


def test_a_box_has_its_margin_as_far_as_the_image_goes():
    mask = np.zeros((30, 40), bool)
    mask[4:7, 30] = mask[20, 35] = True
    box = areas.box_around(mask, 5, 3)
    kept = np.zeros_like(mask)
    kept[box] = True
    rows, columns = np.nonzero(kept)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 25, 27, 38)


def test_density_is_by_the_law_of_beer_and_lambert_and_its_rows_are_all_of_it():
    light = np.random.default_rng(0).uniform(0, 255, (3, 75, 20)).astype(np.float32)
    unscanned = speckled((75, 20), 0.1)
    found = density_of(light, GLASS_COLOUR, unscanned)
    wanted = -np.log10((light.astype(float) + 1) / (np.array(GLASS)[:, None, None] + 1)).clip(max=0) * ~unscanned
    np.testing.assert_allclose(found.channels, wanted, atol=1e-6)
    np.testing.assert_allclose(found.span, wanted.max(0) - wanted.min(0), atol=1e-6)
    np.testing.assert_allclose(found.mean, wanted.mean(0), atol=1e-6)
    seen = np.zeros_like(found.mean)
    for rows, part in found.by_rows():
        seen[rows] += part.mean
        np.testing.assert_array_equal(part.channels, found.channels[:, rows])
    np.testing.assert_array_equal(seen, found.mean)


def marked(ink: str, at_edge: bool) -> np.ndarray:
    """A section on glass under one stroke that crosses it, and beside another."""
    image = flat(220, 300)
    disc(image, 150, 110, 60, EOSIN)
    disc(image, 150, 110, 20, HAEMATOXYLIN)
    seen = noisy(image, 2).astype(float)
    for rows, columns in ((slice(96, 112), slice(0 if at_edge else 30, 260)), (slice(0, 12), slice(100, 200))):
        seen[rows, columns] *= np.array(INKS[ink]) / 245
    return seen.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("at_edge", [False, True])
@pytest.mark.parametrize("ink", INKS)
def test_ink_is_the_same_however_the_slide_lies(ink, at_edge):
    image = marked(ink, at_edge)
    found = find_ink(density(image), 16.0, 24.0).strokes
    assert found[98:110, 40:250].mean() > 0.9
    assert found[:10, 105:195].mean() > 0.9
    assert not found[150:].any()
    turned = find_ink(density(np.ascontiguousarray(image.transpose(1, 0, 2))), 24.0, 16.0).strokes.T
    mirrored = find_ink(density(np.ascontiguousarray(image[::-1, ::-1])), 16.0, 24.0).strokes[::-1, ::-1]
    assert (turned ^ found).mean() < 1e-3  # one rounds otherwise
    assert (mirrored ^ found).mean() < 1e-3


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (40, 7), (150, 400)])
def test_glass_around_a_slide_changes_no_ink(ink, rows, columns):
    image = marked(ink, at_edge=False)
    image[:20] = GLASS  # the stroke at the edge would get glass on one side more
    wider = np.full((220 + 2 * rows, 300 + 2 * columns, 3), GLASS, np.uint8)
    wider[rows:-rows, columns:-columns] = image
    found = find_ink(density(image), 16.0, 16.0).strokes
    assert found.any()
    around = find_ink(density(wider), 16.0, 16.0).strokes
    np.testing.assert_array_equal(around[rows:-rows, columns:-columns], found)
    assert around.sum() == found.sum()


def test_a_wide_patch_of_the_colour_of_ink_is_no_stroke_in_either_direction_of_unequal_axes():
    for mpp_x, mpp_y, kept in ((16.0, 8.0, True), (16.0, 40.0, False), (8.0, 16.0, True), (40.0, 16.0, True)):
        image = flat(220, 300)
        image[80:140, 40:260] = INKS["green"]  # 60 pixels high: 0.5 mm, or 2.4 mm
        ink = find_ink(density(noisy(image, 2)), mpp_x, mpp_y)
        assert (ink.strokes.any(), ink.wide.any()) == (kept, not kept), (mpp_x, mpp_y)


def test_ink_is_the_same_within_a_hair_of_the_working_scale():
    """Faded ink reaches farther than it is followed, and patches are as thick as strokes may just be."""
    near = [(mpp_x, mpp_y) for mpp_x in (15.98, 16.0, 16.02) for mpp_y in (15.98, 16.0, 16.02)]
    faded = flat(220, 300)
    faded[40:180, 40:260][:, np.arange(220) % 24 < 14] = (114, 164, 235)
    faded[108:112, 40:260] = INKS["blue"]
    assert len({find_ink(density(faded), *mpp).strokes.sum() for mpp in near}) == 1
    for height in range(110, 130):
        patch = flat(220, 300)
        patch[40 : 40 + height, 40:260] = INKS["green"]
        assert len({find_ink(density(patch), *mpp).wide.any() for mpp in near}) == 1, height


def test_glass_beside_a_stroke_is_sought_in_micrometres_on_each_axis():
    for mpp_x, mpp_y, kept in ((8.0, 32.0, False), (32.0, 8.0, True)):
        image = flat(120, 300)
        image[40:60, 20:280] = EOSIN
        image[46:54, 26:274] = INKS["blue"]  # with 6 pixels of tissue on each side: 0.2 mm, or 0.05 mm
        light = np.moveaxis(image, -1, 0).astype(np.float32)
        ink = find_ink(density_of(light, GLASS_COLOUR, np.zeros((120, 300), bool)), mpp_x, mpp_y)
        assert not ink.wide.any()
        assert ink.strokes.any() == kept, (mpp_x, mpp_y)
