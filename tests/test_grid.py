"""The lattice: inside the slide, one for all pieces of tissue, covered exactly as a mask says, drawn from evenly."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_mil.grid import (
    Geometry,
    Lattice,
    coverage,
    l0_tile_size,
    lattice,
    spread,
    tiles_on_tissue,
    tissue_held,
    trident_attrs,
)

SIDES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


def share(start: float, end: float, count: int) -> np.ndarray:
    """How much of each unit interval lies between start and end."""
    edges = np.arange(count)
    return np.clip(np.minimum(edges + 1, end) - np.maximum(edges, start), 0, None)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    l0_size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    l0_tile=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    l0_step=st.tuples(st.integers(3, 20), st.integers(3, 20)),
)
def test_coverage_equals_brute_force(seed, shape, l0_size, l0_tile, l0_step):
    mask = np.random.default_rng(seed).random(shape) > 0.5
    grid = Lattice(l0_size, l0_tile, l0_step)
    scale_y, scale_x = np.array(shape) / l0_size[::-1]
    found = coverage(mask, grid)
    assert found.shape == (len(grid.l0_y), len(grid.l0_x))
    for y, row in zip(grid.l0_y, found, strict=True):
        for x, value in zip(grid.l0_x, row, strict=True):
            weights = np.outer(
                share(y * scale_y, (y + l0_tile[1]) * scale_y, shape[0]),
                share(x * scale_x, (x + l0_tile[0]) * scale_x, shape[1]),
            )
            assert value == pytest.approx((mask * weights).sum() / weights.sum(), abs=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    l0_size=SIDES,
    l0_tile=st.tuples(st.integers(50, 900), st.integers(50, 900)),
    least=st.floats(0.01, 1),
    overlap=st.floats(0, 0.9),
)
def test_tiles_are_inside_on_one_lattice_and_row_by_row(seed, l0_size, l0_tile, least, overlap):
    mask = np.random.default_rng(seed).random((9, 7)) > 0.4
    grid = lattice(l0_size, l0_tile, overlap)
    coords, covered = tiles_on_tissue(mask, grid, least)
    assert (coords >= 0).all()
    assert (coords + l0_tile <= l0_size).all()
    assert (coords % grid.l0_step == 0).all()
    assert (np.diff(coords[:, 1] * 10_000 + coords[:, 0]) > 0).all()
    assert (covered >= least - 1e-6).all()
    assert (coords.dtype, covered.dtype) == (np.int64, np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    l0_size=st.tuples(st.integers(5, 60), st.integers(5, 60)),
    l0_tile=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    overlap=st.floats(0, 0.9),
    share=st.floats(0, 1),
)
def test_tissue_beyond_the_lattice_and_in_tiles_equals_a_count_of_pixels(seed, l0_size, l0_tile, overlap, share):
    rng, grid = np.random.default_rng(seed), lattice(l0_size, l0_tile, overlap)
    mask = rng.random(l0_size[::-1]) < share
    places = np.array([(x, y) for y in grid.l0_y for x in grid.l0_x], np.int64).reshape(-1, 2)
    coords = places[rng.random(len(places)) < 0.4]
    possible, tiled = np.zeros((2, *mask.shape), bool)
    for drawn, corners in ((possible, places), (tiled, coords)):
        for x, y in corners:
            drawn[y : y + l0_tile[1], x : x + l0_tile[0]] = True
    total = max(1, mask.sum())
    expected = [(mask & ~possible).sum() / total, (mask & tiled).sum() / total]
    assert tissue_held(mask, grid, coords) == pytest.approx(expected, abs=1e-9)


def test_tissue_is_held_at_any_scale_of_the_mask():
    grid = lattice((100, 50), (40, 40))  # two columns and a row: 80 x 40 px
    held = tissue_held(np.ones((1, 2), bool), grid, np.array([[40, 0]]))
    assert held == pytest.approx((1 - 80 * 40 / 5000, 40 * 40 / 5000))


def test_all_tissue_keeps_every_tile_and_none_keeps_no_tile():
    grid = lattice((1000, 750), (100, 75))
    assert len(tiles_on_tissue(np.ones((3, 4), bool), grid, 1.0).coords) == 100
    assert tiles_on_tissue(np.zeros((3, 4), bool), grid, 0.01).coords.shape == (0, 2)


def test_a_tile_is_rounded_once_per_axis():
    assert l0_tile_size(256.0, 0.25, 0.31) == (1024, 826)
    assert l0_tile_size(256.0, 0.499, 0.2281750559) == (513, 1122)


def test_an_overlap_makes_the_step_of_the_lattice_smaller():
    assert lattice((1000, 750), (100, 75)).l0_step == (100, 75)
    assert lattice((1000, 750), (100, 75), 0.5).l0_step == (50, 38)
    assert lattice((1000, 750), (1, 1), 0.9).l0_step == (1, 1)


@given(seed=st.integers(0, 1000), count=st.integers(1, 80))
def test_what_is_drawn_is_in_order_and_as_many_as_asked(seed, count):
    coords = np.argwhere(np.random.default_rng(seed).random((8, 9)) > 0.3)[:, ::-1] * 256
    chosen = spread(coords, count, seed)
    assert len(chosen) == min(count, len(coords))
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, spread(coords, count, seed))


def test_what_is_drawn_is_spread_evenly_where_chance_alone_is_not():
    coords = np.stack(np.meshgrid(np.arange(32), np.arange(32)), -1).reshape(-1, 2) * 256
    quarters = coords // (16 * 256) @ (1, 2)
    drawn = np.array([np.bincount(quarters[spread(coords, 64, seed)], minlength=4) for seed in range(20)])
    assert np.abs(drawn - 16).max() <= 1  # by chance alone the counts differ by 3 to 4
    assert len({tuple(spread(coords, 64, seed)) for seed in range(20)}) == 20


@pytest.mark.parametrize(("side", "count"), [(7, 30), (7, 48), (7, 1), (32, 256)])
def test_every_tile_has_the_same_chance(side, count):
    coords = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 256
    seeds = 400
    drawn = np.bincount(np.concatenate([spread(coords, count, seed) for seed in range(seeds)]), minlength=side**2)
    chance = count / side**2
    assert drawn.sum() == seeds * count
    assert np.abs(drawn - seeds * chance).max() < 5 * np.sqrt(seeds * chance * (1 - chance)) + 1


def test_tiles_are_told_in_the_words_of_trident(tmp_path: Path) -> None:
    tiles = Geometry(224, 256 / 224, 16, 1113, 0.23, (9000, 8000))
    assert trident_attrs("sub/a.b", tmp_path, tiles) == {
        "patch_size": 224, "patch_size_level0": 1113, "level0_magnification": 40, "target_magnification": 10,
        "overlap": 16, "name": "a.b", "savetodir": str(tmp_path), "level0_width": 9000, "level0_height": 8000,
    }  # fmt: skip
    unknown = trident_attrs("a", tmp_path, tiles._replace(l0_tile_width=None, l0_mpp=None, l0_size=None))
    assert unknown.keys() == {"patch_size", "target_magnification", "overlap", "name", "savetodir"}
