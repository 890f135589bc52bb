import functools

import numpy as np
import pytest
from painting import DAB, EOSIN, GLASS, HAEMATOXYLIN, disc, flat, noisy
from PIL import Image, ImageDraw
from scipy import ndimage

from wsi_mil.slides import open_slide
from wsi_mil.tissue import HOLES_MM2, WORKING_MPP, Tissue, find_tissue
from wsi_mil.tissue.masks import _at_working_scale

MPP = 8.0  # of what is painted here; the mask is half as fine


def found(image: np.ndarray, mpp: float = MPP, holes_mm2: float = HOLES_MM2) -> Tissue:
    """The tissue of an image, its mask at the image's own scale."""
    tissue = find_tissue(image, mpp, mpp, holes_mm2)
    mask = Image.fromarray(tissue.mask).resize(image.shape[1::-1], Image.Resampling.NEAREST)
    return tissue._replace(mask=np.array(mask), mpp_x=mpp, mpp_y=mpp)


def share(image: np.ndarray, mpp: float = MPP) -> float:
    return float(found(image, mpp).mask.mean())


@functools.cache
def mottled(height: int, width: int, colours: tuple[tuple[int, int, int], ...], seed: int = 0) -> np.ndarray:
    """A section that fills the frame: patches of these colours, a few pixels wide."""
    rng = np.random.default_rng(seed)
    patches = ndimage.gaussian_filter(rng.normal(size=(height, width, len(colours))), (2, 2, 0)).argmax(-1)
    return noisy(np.array(colours, np.uint8)[patches], 4, seed)


def stroke(image: np.ndarray, colour: tuple[int, int, int], blur: float = 1.5) -> np.ndarray:
    """The image under a pen stroke with soft edges, and where the stroke is."""
    where = np.zeros(image.shape[:2], np.float32)
    where[20:40, 20:-20] = 1
    cover = ndimage.gaussian_filter(where, blur)[..., None]
    return (image * (1 - cover) + np.array(colour) * cover).astype(np.uint8)


# --- the acceptance cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tint", [(235, 222, 230), (255, 255, 255), (243, 241, 243), (226, 229, 235), (235, 230, 205)])
@pytest.mark.parametrize("sigma", [0.0, 3.0, 8.0])
def test_empty_glass_of_any_tint_has_no_tissue(tint, sigma):
    tissue = found(noisy(flat(300, 400, tint), sigma))
    assert (tissue.mask.sum(), tissue.area_mm2) == (0, 0)
    assert "nothing coloured" in tissue.reason


@pytest.mark.parametrize(
    "colours",
    [
        (DAB, (205, 210, 225), (190, 195, 215), (170, 130, 90)),  # IHC: DAB on a pale counterstain
        ((215, 205, 205), (160, 110, 70)),
        (EOSIN, HAEMATOXYLIN, (235, 190, 215)),  # H&E
        ((228, 195, 215), (205, 165, 200)),  # pale H&E
        ((200, 205, 225), (215, 218, 232)),  # haematoxylin alone, faint
        ((190, 195, 215), (205, 210, 225)),
        ((225, 228, 238), (210, 215, 230)),
        ((215, 215, 232), (180, 185, 215)),
    ],
)
def test_a_frame_that_is_all_tissue_is_kept_whole(colours):
    assert share(mottled(300, 400, colours)) >= 0.95


@pytest.mark.parametrize("glass", [GLASS, (235, 222, 230), (226, 229, 235)])
@pytest.mark.parametrize("columns", [20, 60, 200, 380])
def test_however_little_glass_there_is_beside_pale_tissue_it_is_told_from_it(glass, columns):
    image = mottled(300, 400, ((190, 195, 215), (205, 210, 225))).copy()
    image[:, :columns] = noisy(flat(300, columns, glass), 4)
    mask = found(image).mask
    assert mask[:, : columns - 8].mean() < 0.01
    assert mask[:, columns + 8 :].mean() > 0.95


@pytest.mark.parametrize("colour", [EOSIN, HAEMATOXYLIN, DAB, (225, 195, 215), (200, 205, 225), (215, 195, 170)])
@pytest.mark.parametrize("glass", [GLASS, (235, 222, 230)])
@pytest.mark.parametrize("mm2", [0.3, 0.05])
def test_a_tiny_biopsy_is_kept_at_its_size(colour, glass, mm2):
    image = flat(400, 500, glass)
    radius = np.sqrt(mm2 / np.pi) * 1000 / MPP
    inside = disc(image, 300, 200, radius, colour)
    tissue = found(noisy(image, 2))
    assert tissue.reason == ""
    assert tissue.area_mm2 == pytest.approx(mm2, rel=0.2)
    assert tissue.mask[inside].mean() > 0.9


@pytest.mark.parametrize(
    "ink", [(40, 160, 110), (52, 163, 142), (30, 60, 190), (20, 40, 120), (30, 30, 34), (200, 25, 40), (170, 42, 67)]
)
def test_a_pen_stroke_is_no_tissue_and_costs_none(ink):
    image = flat(300, 400)
    inside = disc(image, 200, 180, 80, EOSIN)
    tissue = found(noisy(stroke(image, ink), 2))
    assert not tissue.mask[:60].any()
    assert tissue.mask[inside].mean() > 0.97


def test_a_slide_of_nothing_but_ink_says_so():
    tissue = found(stroke(flat(300, 400), (40, 160, 110)))
    assert not tissue.mask.any()
    assert "pen" in tissue.reason


@pytest.mark.parametrize("colour", [DAB, (90, 55, 30), (60, 40, 25), (190, 150, 110)])
def test_dab_alone_is_kept(colour):
    image = flat(300, 400)
    inside = disc(image, 200, 150, 60, colour)
    assert found(noisy(image)).mask[inside].mean() > 0.97


def test_fluorescence_is_empty_and_says_why():
    image = flat(300, 400, (0, 0, 3))
    disc(image, 200, 150, 60, (5, 5, 200))
    tissue = found(image)
    assert not tissue.mask.any()
    assert "fluorescence" in tissue.reason


# --- more of what slides do --------------------------------------------------------------------------------------


def test_what_was_never_scanned_is_neither_glass_nor_tissue():
    for unscanned in ((255, 255, 255), (0, 0, 0)):
        image = flat(300, 400, unscanned)
        image[:, 250:] = (235, 222, 230)
        inside = disc(image, 320, 150, 40, EOSIN)
        mask = found(noisy(image, 1) if unscanned[0] == 0 else image).mask
        assert mask[inside].mean() > 0.97
        assert mask.sum() < 1.2 * inside.sum()


def test_grey_things_are_no_tissue():
    image = flat(300, 400).astype(float)
    image *= np.linspace(0.85, 1, 400)[:, None]  # vignetting
    image[:, 30:34] = 90  # the edge of a coverslip
    image[200:204, 100:104] = 40  # dust
    assert share(noisy(image.astype(np.uint8))) == 0


def test_coloured_specks_are_dropped_and_counted_as_such():
    image = flat(300, 400)
    for x in range(40, 400, 60):
        disc(image, x, 100, 3, EOSIN)
    tissue = found(image)
    assert not tissue.mask.any()
    assert "specks" in tissue.reason


def test_small_holes_are_filled_and_large_ones_kept():
    image = flat(400, 400)
    disc(image, 200, 200, 150, EOSIN)
    small = disc(image, 140, 200, 12, GLASS)  # 0.029 mm2
    large = disc(image, 250, 200, 40, GLASS)  # 0.32 mm2
    mask = found(image).mask
    assert mask[small].all()
    assert mask[large].mean() < 0.1


@pytest.mark.parametrize(("holes_mm2", "small_kept", "large_kept"), [(0.0, 0, 0), (0.05, 1, 0), (float("inf"), 1, 1)])
def test_holes_are_kept_or_removed_as_asked(holes_mm2, small_kept, large_kept):
    image = flat(400, 400)
    disc(image, 200, 200, 150, EOSIN)
    small, large = disc(image, 140, 200, 12, GLASS), disc(image, 250, 200, 40, GLASS)
    mask = found(image, MPP, holes_mm2).mask
    assert mask[small].mean() == pytest.approx(small_kept, abs=0.3)
    assert mask[large].mean() == pytest.approx(large_kept, abs=0.1)


def test_every_section_of_a_slide_is_found():
    image, sections = flat(600, 1500), []
    for index, colour in enumerate((EOSIN, HAEMATOXYLIN, DAB, (225, 195, 215))):
        sections.append(disc(image, 200 + 350 * index, 150 + 80 * index, 60 + 20 * index, colour))
    mask = found(noisy(image, 2)).mask
    assert all(mask[section].mean() > 0.95 for section in sections)
    assert mask.sum() < 1.1 * sum(section.sum() for section in sections)


def test_the_mask_is_the_same_whatever_the_scale_of_the_image():
    image = flat(1200, 1600)
    disc(image, 700, 500, 300, EOSIN)
    noisy_image = noisy(image)
    fine = find_tissue(noisy_image, 2.0, 2.0)
    coarse = find_tissue(np.array(Image.fromarray(noisy_image).reduce(8)), WORKING_MPP, WORKING_MPP)
    assert fine.mask.shape == coarse.mask.shape == (150, 200)
    assert (fine.mpp_x, fine.mpp_y) == (WORKING_MPP, WORKING_MPP)
    assert (fine.mask ^ coarse.mask).mean() < 0.002


def test_a_tall_image_comes_to_the_working_scale_alike_with_every_pillow():
    image = noisy(flat(1600, 400), 40)
    columns = Image.fromarray(image).resize((40, 1600), Image.Resampling.BOX)
    expected = np.asarray(columns.resize((40, 160), Image.Resampling.BOX))
    pixels, *mpp = _at_working_scale(image, 1.6, 1.6)
    assert mpp == [WORKING_MPP, WORKING_MPP]
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), expected)


def loose(share: float) -> np.ndarray:
    """A section of scattered cells, at the working scale."""
    rng, section = np.random.default_rng(3), disc(flat(400, 400), 200, 200, 150, EOSIN)
    cells = ndimage.gaussian_filter((rng.random((400, 400)) < share) * section * 1.0, 1.0)[..., None]
    cover = np.clip(1.5 * cells / cells.max(), 0, 1)
    return noisy((flat(400, 400) * (1 - cover) + np.array(EOSIN) * cover).astype(np.uint8), 1)


@pytest.mark.parametrize("share", [0.02, 0.04, 0.08])
def test_loose_tissue_is_the_same_within_a_hair_of_the_working_scale(share):
    """A slide's size leaves a little more or less than 16 um/px, on each axis for itself."""
    image, near = loose(share), (WORKING_MPP * 0.999, WORKING_MPP, WORKING_MPP * 1.001)
    areas = [find_tissue(image, mpp_x, mpp_y).area_mm2 for mpp_x in near for mpp_y in near]
    assert min(areas) > 1
    assert max(areas) < 1.01 * min(areas)


def test_areas_are_physical_on_slides_of_unequal_axes():
    image = flat(500, 800)
    rows, columns = np.ogrid[:500, :800]
    image[((columns - 400) * 4.0) ** 2 + ((rows - 250) * 8.0) ** 2 < 800**2] = EOSIN
    tissue = find_tissue(image, 4.0, 8.0)
    assert tissue.mask.shape == (250, 200)
    assert tissue.area_mm2 == pytest.approx(np.pi * 0.64, rel=0.1)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 16)])
def test_tiny_images_are_answered(size):
    assert find_tissue(flat(*size), 0.5, 0.5).area_mm2 == 0
    assert find_tissue(flat(*size, EOSIN), 0.5, 0.5).mask.all()


# --- strokes over tissue -----------------------------------------------------------------------------------------

INKS = {
    "green": (40, 160, 110), "teal": (52, 163, 142), "blue": (30, 60, 190), "navy": (20, 40, 120),
    "black": (30, 30, 34), "red": (200, 25, 40), "crimson": (170, 42, 67),
}  # fmt: skip


def inked(image: np.ndarray, colour: tuple[int, int, int], where: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """The image seen through ink: transparencies multiply."""
    clear = (np.array(colour) / 245.0) ** strength
    return np.where(where[..., None], image * clear, image).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("section", ["H&E", "pale", "IHC"])
def test_of_a_stroke_across_tissue_nine_tenths_go_and_of_the_tissue_nine_tenths_stay(ink, section):
    colours = {
        "H&E": (EOSIN, HAEMATOXYLIN, (235, 190, 215)),
        "pale": ((228, 195, 215), (205, 165, 200)),
        "IHC": (DAB, (205, 210, 225), (190, 195, 215), (170, 130, 90)),
    }[section]
    image = flat(600, 700)
    tissue = disc(image, 350, 300, 250, GLASS)
    image[tissue] = mottled(600, 700, colours)[tissue]
    pen = np.zeros_like(tissue)
    pen[280:300, 20:680] = True
    mask = found(noisy(inked(image, INKS[ink], pen), 2)).mask
    assert mask[pen].mean() <= 0.1
    assert mask[tissue & ~pen].mean() >= 0.9


@pytest.mark.parametrize("eosin", [(0.07, 0.99, 0.11), (0.216, 0.801, 0.558), (0.09, 0.95, 0.28)])
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_tissue_of_eosin_alone_is_not_taken_for_red_ink(eosin, strength):
    image = flat(300, 400)
    inside = disc(image, 200, 150, 100, EOSIN)
    image[inside] = 245 * 10 ** (-strength * np.array(eosin))
    assert found(noisy(image, 2)).mask[inside].mean() > 0.95


SHADES = ((255, 255, 255), (200, 200, 200), (230, 230, 230))
STAINS = {  # optical density of red, green, blue, after Ruifrok and others
    "alcian blue": (0.875, 0.458, 0.158), "aniline blue": (0.853, 0.509, 0.113), "methyl blue": (0.800, 0.591, 0.105),
    "ponceau": (0.100, 0.737, 0.668), "fast red": (0.214, 0.851, 0.478),
}  # fmt: skip


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("stain", STAINS)
def test_a_section_of_the_colour_of_ink_is_too_thick_for_a_stroke(stain, strength):
    image = flat(600, 700)
    inside = disc(image, 350, 300, 220, GLASS)
    image[inside] = (245 * 10 ** (-strength * np.array(STAINS[stain])) * mottled(600, 700, SHADES) / 255)[inside]
    assert found(noisy(image, 2)).mask[inside].mean() > 0.95


@pytest.mark.parametrize("colour", [(180, 50, 60), (190, 60, 75), (45, 35, 32), (60, 90, 200)])
@pytest.mark.parametrize("radius", [20, 60, 110])
def test_blood_and_pigment_inside_tissue_are_tissue(colour, radius):
    image = flat(600, 700)
    section = disc(image, 350, 300, 250, GLASS)
    image[section] = mottled(600, 700, (EOSIN, HAEMATOXYLIN, (235, 190, 215)))[section]
    lake = disc(image, 350, 300, radius, colour)
    tissue = found(noisy(image, 2))
    assert tissue.mask[lake].mean() > 0.95
    assert tissue.mask[section].mean() > 0.95


def test_pens_are_not_looked_for_when_told():
    image = flat(300, 400)
    image[140:160, 20:-20] = (30, 60, 190)
    assert "--no-pens takes it for tissue" in found(image).reason
    tissue = find_tissue(image, MPP, MPP, pens=False)
    assert tissue.mask.mean() == pytest.approx(20 * 360 / 120_000, rel=0.3)
    assert not tissue.ink.any()


@pytest.mark.parametrize("tint", [(235, 215, 190), (250, 240, 210), (200, 195, 170), (180, 200, 210)])
def test_glass_of_a_strong_tint_is_glass_where_it_is_even(tint):
    image = flat(600, 700, tint)
    assert not find_tissue(noisy(image, 2), MPP, MPP).mask.any()
    inside = disc(image, 350, 300, 150, EOSIN)
    mask = found(noisy(image, 2)).mask
    assert mask[inside].mean() > 0.97
    assert mask[~inside].mean() < 0.01


def test_a_margin_that_was_never_scanned_is_no_ink():
    image = flat(600, 700, (0, 0, 0))
    image[100:500, 100:600] = GLASS
    inside = disc(image, 350, 300, 150, EOSIN)
    tissue = found(noisy(image, 1))
    assert not tissue.ink.any()
    assert tissue.mask[inside].mean() > 0.97
    assert tissue.mask.sum() < 1.05 * inside.sum()


@pytest.mark.parametrize("colour", [(60, 90, 200), (40, 160, 110), (200, 25, 40), (30, 30, 34)])
def test_a_frame_of_nothing_but_the_colour_of_ink_is_answered(colour):
    tissue = find_tissue(noisy(flat(300, 400, colour), 2), MPP, MPP)
    assert bool(tissue.reason) != tissue.mask.any()


# Around tissue that no pen or edge touches, in the pictures' own pixels. They carry no resolution: a section is taken
# to be about 15 mm wide, as a stroke of 1 to 2 mm beside it says too.
PEN_TISSUE = [
    (177, 148), (174, 290), (242, 277), (306, 294), (347, 331), (358, 363), (298, 374), (258, 395), (194, 427),
    (148, 465), (135, 532), (134, 605), (194, 653), (277, 710), (287, 839), (323, 863), (387, 881), (435, 879),
    (484, 871), (516, 826), (524, 815), (581, 806), (623, 790), (637, 745), (710, 718), (737, 702), (731, 645),
    (726, 548), (719, 435), (731, 347), (739, 290), (734, 197), (653, 177), (532, 161), (403, 145), (371, 132),
    (226, 142),
]  # fmt: skip
EDGE_TISSUE = [
    (478, 28), (517, 10), (557, 15), (561, 77), (599, 140), (644, 107), (714, 112), (763, 143), (791, 191),
    (774, 255), (768, 332), (761, 415), (714, 383), (638, 319), (596, 304), (587, 446), (510, 444), (434, 421),
    (425, 472), (380, 520), (312, 574), (270, 580), (258, 548), (181, 487), (191, 383), (207, 313), (147, 291),
    (210, 258), (278, 230), (342, 182), (398, 125), (468, 86),
]  # fmt: skip
PICTURES = {
    "pen, 25 um/px": ("pen_red_1k.png", "pen_red_1k-mask.png", 25.0, PEN_TISSUE, 1),
    "pen, 46 um/px": ("pen_markings_he-pen_red.png", "pen_markings_he-pen_red_mask.png", 46.0, PEN_TISSUE, 494 / 918),
    "edge, 20 um/px": (
        "coverslip_edge_he-coverslip_edge.png", "coverslip_edge_he-coverslip_edge_mask.png", 20.0, EDGE_TISSUE, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_of_real_strokes_and_edges_nine_tenths_go_and_of_the_tissue_nine_tenths_stay(shared, name):
    file, artefact_file, mpp, corners, scale = PICTURES[name]
    image = Image.open(shared / "data/masks" / file).convert("RGB")
    artefact = np.array(Image.open(shared / "data/masks" / artefact_file)) > 0
    outline = Image.new("1", image.size)
    ImageDraw.Draw(outline).polygon([(x * scale, y * scale) for x, y in corners], fill=1)
    tissue = np.array(outline) & ~artefact
    mask = found(np.array(image), mpp).mask
    assert 1 - mask[artefact].mean() >= 0.9
    assert mask[tissue].mean() >= 0.9


@pytest.mark.parametrize("ink", ["green", "teal", "blue", "navy", "red", "crimson"])
def test_strokes_too_wide_to_be_told_from_a_section_are_tissue_and_counted(ink):
    image = flat(600, 700)
    image[100:412, 20:680] = INKS[ink]  # 2.5 mm
    tissue = find_tissue(noisy(image, 2), MPP, MPP)
    assert tissue.wide_ink_mm2 == pytest.approx(13.2, rel=0.1)
    assert tissue.area_mm2 == pytest.approx(13.2, rel=0.1)
    assert find_tissue(noisy(image, 2), MPP, MPP, pens=False).wide_ink_mm2 == 0


@pytest.mark.parametrize("height", [20, 100])  # 0.2 mm, 0.8 mm
def test_nothing_is_counted_as_wide_of_h_and_e_and_of_thin_strokes(height):
    image = flat(600, 700)
    section = disc(image, 350, 300, 200, GLASS)
    image[section] = mottled(600, 700, (EOSIN, HAEMATOXYLIN, (235, 190, 215)))[section]
    image[:height, 20:680] = INKS["blue"]
    assert find_tissue(noisy(image, 2), MPP, MPP).wide_ink_mm2 == 0


# --- glass of more than one tint ---------------------------------------------------------------------------------

BARE, TINTS = (243, 243, 243), [(238, 232, 215), (235, 222, 230)]  # yellowed mountant, and pinkish


def gradient(start: tuple[int, int, int], end: tuple[int, int, int]) -> np.ndarray:
    """Glass whose tint changes from the left to the right."""
    return np.broadcast_to(np.linspace(start, end, 700)[None], (600, 700, 3))


@pytest.mark.parametrize("sigma", [0.0, 2.0, 8.0])
@pytest.mark.parametrize("tint", TINTS)
def test_empty_glass_of_two_tints_has_no_tissue(tint, sigma):
    beside, framed = flat(600, 700, BARE), flat(600, 700, BARE)
    beside[:, 350:] = tint
    framed[100:500, 150:550] = tint  # under a coverslip smaller than what was scanned
    for image in (beside, framed, gradient((245, 245, 245), tint), gradient((245, 245, 245), (235, 235, 215))):
        assert not found(noisy(image, sigma)).mask.any()


@pytest.mark.parametrize("tint", TINTS)
@pytest.mark.parametrize("x", [350, 200])  # within the mountant, and across its end
@pytest.mark.parametrize(
    "colours",
    [(EOSIN, HAEMATOXYLIN, (235, 190, 215)), ((228, 195, 215), (205, 165, 200)), ((200, 205, 225), (215, 218, 232))],
)
def test_tissue_is_told_from_glass_of_two_tints(tint, x, colours):
    image = flat(600, 700, BARE)
    image[:, 200:600] = tint
    inside = disc(image, x, 300, 150, EOSIN)
    image[inside] = mottled(600, 700, colours)[inside]
    mask = found(noisy(image, 2)).mask
    assert mask[inside].mean() > 0.97
    assert mask[~inside].mean() < 0.01


def test_mountant_seen_through_a_hole_is_no_tissue():
    image = flat(600, 700, BARE)
    image[:, 120:580] = TINTS[0]
    section = disc(image, 350, 300, 150, EOSIN)
    image[section] = mottled(600, 700, (EOSIN, HAEMATOXYLIN, (235, 190, 215)))[section]
    hole = disc(image, 350, 300, 30, TINTS[0])  # 0.18 mm2
    assert found(noisy(image, 2)).mask[hole].mean() < 0.1


@pytest.mark.parametrize("ink", INKS)
def test_a_stroke_over_mountant_is_no_tissue(ink):
    image = flat(600, 700, BARE)
    image[:, 120:580] = TINTS[0]
    pen = np.zeros(image.shape[:2], bool)
    pen[100:120, 20:680] = True
    assert not found(noisy(inked(image, INKS[ink], pen), 2)).mask.any()


@pytest.mark.parametrize("colour", [(200, 205, 225), (225, 195, 215), (215, 195, 170)])
def test_pale_tissue_is_no_tint_of_glass_however_even(colour):
    image = flat(600, 700)
    inside = disc(image, 350, 300, 200, colour)  # 8 mm2
    assert found(noisy(image, 2)).mask[inside].mean() > 0.97


@pytest.mark.parametrize(("beside", "kept"), [(False, True), (True, False)])
def test_fat_of_the_palest_membranes_is_tissue_alone_and_none_beside_stronger_stain(beside, kept):
    image = flat(600, 700)
    fat = disc(image, 500, 300, 180, GLASS)
    rows, columns = np.ogrid[:600, :700]
    image[fat & ((rows % 8 == 0) | (columns % 8 == 0))] = (215, 165, 198)  # cells of 64 um
    if beside:
        disc(image, 160, 300, 140, EOSIN)
    share = found(noisy(image, 2)).mask[fat].mean()
    assert (share > 0.95) if kept else (share < 0.05)


# --- real pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("he-target", 0.99, 1),
        ("tissue-level0-4302-10273-4814-10785", 0.95, 1),
        ("tissue-level0-7352-11762-7864-12274", 0.75, 1),
        ("no-tissue", 0, 0),
        ("no-tissue2", 0, 0),
        ("almost-white-1", 0, 0),
        ("no-tissue-line", 0, 0),
        ("no-tissue-green-pen", 0, 0),
        ("no-tissue-red-pen", 0, 0),
    ],
)
def test_real_tiles(shared, name, low, high):
    image = np.array(Image.open(shared / f"data/tiles/{name}.png").convert("RGB"))
    assert low <= share(image, 0.5) <= high


@pytest.mark.parametrize(("name", "low", "high"), [("camelyon-jpeg", 0.2, 0.3), ("camelyon-jpeg2000", 0.25, 0.4)])
def test_whole_real_slides_of_tinted_glass(shared, name, low, high):
    with open_slide(shared / f"data/wsi/{name}.dcm", mpp=8.0) as slide:
        thumbnail = slide.thumbnail(WORKING_MPP)
    assert low < find_tissue(*thumbnail).mask.mean() < high
