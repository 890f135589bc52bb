"""Quality of tiles: what the columns mean, at one resolution, however the slide is read."""

import numpy as np
import pytest
from painting import EOSIN, flat, noisy, smooth_grey, write_tiff
from scipy import ndimage

from wsi_mil.grid import lattice, tiles_on_tissue
from wsi_mil.qc import Limits, Quality, measure
from wsi_mil.slides import open_slide, write_pyramid

TILE = 128


def quality_of(path, l0_tile=(TILE, TILE), overlap=0.0, ink=None) -> tuple[np.ndarray, Quality]:
    with open_slide(path) as slide:
        grid = lattice(slide.l0_size, l0_tile, overlap)
        coords = tiles_on_tissue(np.ones((1, 1), bool), grid, 1.0).coords
        return coords, measure(slide, grid, coords, np.zeros((4, 4), bool) if ink is None else ink)


@pytest.fixture
def board(tmp_path):
    """Four tiles of 256 um at 2 um/px: sharp, blurred, half white, half black."""
    sharp = noisy(flat(TILE, TILE, EOSIN), 12)
    blurred = ndimage.gaussian_filter(sharp, (3, 3, 0))
    white, black = sharp.copy(), sharp.copy()
    white[:, : TILE // 2], black[:, : TILE // 2] = 250, 5
    image = np.vstack([np.hstack([sharp, blurred]), np.hstack([white, black])])
    return write_tiff(tmp_path / "board.tif", [image], resolution=(5000, 5000), resolutionunit="CENTIMETER")


def test_each_measure_tells_its_fault(board):
    _, quality = quality_of(board)
    assert quality.sharpness[1] < 0.1 * quality.sharpness[0]
    assert quality.white == pytest.approx([0, 0, 0.5, 0], abs=0.02)
    assert quality.black == pytest.approx([0, 0, 0, 0.5], abs=0.02)
    assert quality.saturation == pytest.approx([1, 1, 0.5, 0.5], abs=0.02)
    assert not quality.pen.any()
    assert all(column.dtype == np.float32 for column in quality)


def test_sharpness_is_the_variance_of_the_laplacian(board):
    with open_slide(board) as slide:
        grey = slide.read(0, 0, (TILE, TILE), (TILE, TILE)) @ np.array([0.299, 0.587, 0.114])
    inside = ndimage.laplace(grey)[:-1, :-1]  # at the rim the neighbouring tile is seen
    assert quality_of(board)[1].sharpness[0] == pytest.approx(inside.var(), rel=0.03)


def test_ink_counts_by_the_part_inside_a_tile(board):
    ink = np.zeros((4, 4), bool)
    ink[0, 0] = ink[2:, 2:] = True
    assert quality_of(board, ink=ink)[1].pen == pytest.approx([0.25, 0, 0, 1])


def test_a_tile_is_judged_alike_whatever_block_it_is_read_in(tmp_path):
    write_pyramid(tmp_path / "a.tif", noisy(smooth_grey(2300, 3100), 8), 1.0)
    coords, whole = quality_of(tmp_path / "a.tif", (256, 256))
    with open_slide(tmp_path / "a.tif") as slide:
        grid = lattice(slide.l0_size, (256, 256))
        for index in (0, 17, len(coords) - 1):
            alone = measure(slide, grid, coords[index : index + 1], np.zeros((1, 1), bool))
            assert alone.sharpness[0] == pytest.approx(whole.sharpness[index], rel=0.1)
            assert alone.saturation[0] == pytest.approx(whole.saturation[index], abs=0.01)


@pytest.mark.parametrize("reader", ["direct", "openslide"])
def test_a_slide_of_one_fine_level_is_read_a_little_at_a_time(reader, tmp_path, monkeypatch):
    write_pyramid(tmp_path / "a.tif", noisy(smooth_grey(3600, 3200), 8), 0.25, levels=1)
    with open_slide(tmp_path / "a.tif", reader=reader) as slide:
        grid, read = lattice(slide.l0_size, (800, 800)), []
        coords = tiles_on_tissue(np.ones((1, 1), bool), grid, 1.0).coords
        read_level = slide.read_level
        monkeypatch.setattr(slide, "read_level", lambda *part: read.append(part[3] * part[4]) or read_level(*part))
        quality = measure(slide, grid, coords, np.zeros((1, 1), bool))
        assert (sum(read), max(read) <= 5 << 20) == (3200 * 3200, True)  # 4 x 4 tiles, each pixel once
        monkeypatch.setattr("wsi_mil.slides.base._AT_ONCE_PX", 1 << 40)
        whole = measure(slide, grid, coords, np.zeros((1, 1), bool))
    for column, same in zip(quality, whole, strict=True):
        np.testing.assert_array_equal(column, same)


def test_a_fine_slide_is_judged_at_the_same_resolution_as_a_coarse_one(tmp_path):
    image = smooth_grey(1024, 1024, cell=32)
    write_pyramid(tmp_path / "fine.tif", image, 0.5)
    coarse = np.asarray(ndimage.zoom(image, (0.25, 0.25, 1), order=1))
    write_tiff(tmp_path / "coarse.tif", [coarse], resolution=(5000, 5000), resolutionunit="CENTIMETER")
    fine, same = quality_of(tmp_path / "fine.tif", (512, 512))[1], quality_of(tmp_path / "coarse.tif", (128, 128))[1]
    assert fine.sharpness == pytest.approx(same.sharpness, rel=0.5)


def test_no_tiles_have_no_quality(board):
    with open_slide(board) as slide:
        grid, no_tiles = lattice(slide.l0_size, (TILE, TILE)), np.zeros((0, 2), np.int64)
        nothing = measure(slide, grid, no_tiles, np.zeros((1, 1), bool))
    assert [len(column) for column in nothing] == [0] * 5


def test_overlapping_tiles_are_measured_where_they_lie(board):
    coords, quality = quality_of(board, overlap=0.5)
    middle = np.flatnonzero((coords == (TILE // 2, TILE)).all(1))
    assert quality.white[middle] == pytest.approx(0, abs=0.02)
    assert quality.black[middle] == pytest.approx(0.5, abs=0.02)


def test_limits_name_the_fault():
    one = Quality(*(np.array([value], np.float32) for value in (10, 0.3, 0.6, 0.1, 0.2)))
    broken = Limits(min_sharpness=20.0, max_white=0.5, max_black=0.05, min_saturation=0.3).broken(one)
    assert {fault: bool(value[0]) for fault, value in broken.items()} == dict.fromkeys(
        ("blur", "pen", "white", "black", "grey"), True
    )
    assert not any(value[0] for value in Limits(max_pen=0.5).broken(one).values())
