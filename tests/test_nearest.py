"""The nearest tiles: the same whatever the order in which they are looked for, in memory linear in the tiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from wsi_mil import nearest as module
from wsi_mil.nearest import nearest


def one_by_one(coords_um: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each tile among all that lie as far as its k-th nearest, sorted by distance and number."""
    k = min(k, len(coords_um) - 1)
    tree = KDTree(coords_um)
    reach = tree.query(coords_um, k + 1)[0][:, -1] * (1 + 1e-9)
    index, um = np.empty((len(coords_um), k), np.int32), np.empty((len(coords_um), k), np.float32)
    for tile, within in enumerate(tree.query_ball_point(coords_um, reach, return_sorted=True)):
        others = np.array([other for other in within if other != tile])
        far = np.linalg.norm(coords_um[others] - coords_um[tile], axis=1).round(6)
        order = np.argsort(far, kind="stable")[:k]
        index[tile], um[tile] = others[order], far[order]
    return index, um


@given(
    seed=st.integers(0, 1000),
    tiles=st.integers(2, 60),
    side=st.sampled_from([1, 2, 5, 30]),
    unit=st.sampled_from([1.0, 0.2521 * 224, 1e-7]),
    k=st.integers(1, 9),
    at_once=st.sampled_from([1, 64, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_neighbours_are_to_the_bit_those_found_one_by_one(seed, tiles, side, unit, k, at_once):
    """On grids on which tiles coincide, and where distances differ by less than they are told to."""
    coords_um = np.random.default_rng(seed).integers(0, side, (tiles, 2)) * unit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", at_once)
        got = nearest(coords_um, k)
    for mine, theirs in zip(got, one_by_one(coords_um, k), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_more_ties_than_were_asked_for_are_asked_for_again():
    plane = np.stack(np.mgrid[-65:66, -65:66], axis=-1).reshape(-1, 2)
    circle = np.concatenate([plane[(plane**2).sum(axis=1) == 65**2], [[0, 0]]]).astype(float)
    assert len(circle) == 36 + 1  # the centre is as far from all others
    for mine, theirs in zip(nearest(circle, 2), one_by_one(circle, 2), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("places", [1, 7])
def test_tiles_in_one_place_are_not_asked_about_one_by_one(places, monkeypatch):
    """Bags of other programs may come without places: looked for among all, they would take their number squared."""
    asked = []

    class Counting(KDTree):
        def query(self, x, k):
            asked.append(len(x) * k)
            return super().query(x, k)

    monkeypatch.setattr(module, "KDTree", Counting)
    tiles = 20_000
    index, um = nearest(np.stack([np.arange(tiles) % places, np.zeros(tiles)], axis=1), 8)
    assert sum(asked) <= places * (8 + 1) * places
    assert not um.any()
    for tile in (0, 2 * places, tiles - 1):
        first = [tile % places + places * rank for rank in range(9)]
        assert index[tile].tolist() == [other for other in first if other != tile][:8]
