"""Shares of squares inside polygons, against intersecting each with shapely."""

import time

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_mil.geometry import box_shares, cell_shares


def scribble(rng: np.random.Generator, points: int, side: float) -> shapely.MultiPolygon:
    """A valid area with holes and several parts, of a closed line drawn at random."""
    line = shapely.Polygon(rng.uniform(-0.2 * side, 1.2 * side, (points, 2)))
    return shapely.MultiPolygon([part for part in shapely.get_parts(shapely.make_valid(line)) if part.area])


def by_hand(area, coords: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    boxes = shapely.box(coords[:, 0], coords[:, 1], coords[:, 0] + size[0], coords[:, 1] + size[1])
    return shapely.area(shapely.intersection(boxes, area)) / (size[0] * size[1])


@settings(deadline=None, max_examples=50)  # one may wait for another process
@given(
    seed=st.integers(0, 2**32 - 1), points=st.integers(3, 30), size=st.tuples(st.integers(1, 99), st.integers(1, 99))
)
def test_shares_of_boxes_equal_intersections(seed, points, size):
    rng = np.random.default_rng(seed)
    area, coords = scribble(rng, points, 1000), rng.integers(-50, 1050, (25, 2))  # anywhere, over each other too
    assert box_shares(area, coords, size) == pytest.approx(by_hand(area, coords, size), abs=1e-7)


@settings(deadline=None, max_examples=50)  # one may wait for another process
@given(seed=st.integers(0, 2**32 - 1), points=st.integers(3, 30))
def test_shares_of_cells_equal_intersections_and_sum_to_the_area(seed, points):
    rng = np.random.default_rng(seed)
    area = scribble(rng, points, 1000)
    x, y = (np.sort(np.append(rng.uniform(0, 1000, 6), [-300, 1300])) for _ in range(2))
    shares = cell_shares(area, x, y)
    assert (shares * np.diff(y)[:, None] * np.diff(x)).sum() == pytest.approx(area.area)
    cells = [[shapely.box(x[i], y[j], x[i + 1], y[j + 1]) for i in range(7)] for j in range(7)]
    expected = shapely.area(shapely.intersection(np.array(cells), area)) / shapely.area(np.array(cells))
    assert shares == pytest.approx(expected, abs=1e-7)


def test_edges_along_the_lines_of_the_grid_give_whole_numbers():
    coords = np.stack(np.meshgrid(np.arange(10) * 50, np.arange(8) * 50), axis=-1).reshape(-1, 2)
    shares = box_shares(shapely.box(100, 50, 300, 350), coords, (50, 50))
    assert set(shares) == {0.0, 1.0}
    assert shares.sum() == 4 * 6


@pytest.mark.parametrize("turn", [1, -1])
def test_holes_are_holes_whichever_way_rings_turn(turn):
    outer, hole = [(0, 0), (0, 100), (100, 100), (100, 0)][::turn], [(25, 25), (75, 25), (75, 75), (25, 75)]
    for inner in (hole, hole[::-1]):
        area = shapely.Polygon(outer, [inner])
        assert box_shares(area, np.array([[0, 0], [30, 30], [-100, 0]]), (100, 100)).tolist() == [
            0.75, pytest.approx((70 * 70 - 45 * 45) / 1e4), 0,
        ]  # fmt: skip


def test_nothing_has_no_share_and_no_boxes_have_none():
    coords = np.array([[0, 0], [5, 5]])
    assert box_shares(shapely.Polygon(), coords, (10, 10)).tolist() == [0, 0]
    assert box_shares(shapely.box(90, 90, 99, 99), coords, (10, 10)).tolist() == [0, 0]
    assert box_shares(shapely.box(0, 0, 9, 9), np.zeros((0, 2), np.int64), (10, 10)).shape == (0,)


def test_a_large_slide_takes_no_time():
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * (3000 + 800 * np.sin(9 * angles))[:, None]
    area = shapely.union_all([shapely.Polygon(rng.uniform(5_000, 75_000, 2) + ring) for _ in range(100)])
    coords = np.stack(np.meshgrid(np.arange(320) * 250, np.arange(320) * 250), axis=-1).reshape(-1, 2)
    started = time.process_time()
    shares = box_shares(area, coords, (250, 250))
    assert time.process_time() - started < 3  # 100 polygons of 2,000 points, 102,400 tiles
    assert shares.sum() * 250 * 250 == pytest.approx(area.area, rel=1e-6)
