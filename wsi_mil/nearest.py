"""The nearest tiles of each tile, in an order that does not depend on how they are found."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from scipy.spatial import KDTree

_AT_ONCE = 1 << 20  # distances that are looked at together
_SLACK = 1e-9  # of the farthest: what lies as far but for rounding is a tie


def nearest(
    coords_um: Float[np.ndarray, "tiles 2"], k: int
) -> tuple[Int32[np.ndarray, "tiles k"], Float32[np.ndarray, "tiles k"]]:
    """Find the k nearest other tiles of each tile, nearest first; ties in the order of the tiles.

    Returns:
        Their indices, and their distances in um.
    """
    tiles = len(coords_um)
    k = min(k, max(tiles - 1, 0))
    index, um = np.empty((tiles, k), np.int32), np.empty((tiles, k), np.float32)
    if k == 0:
        return index, um
    # Tiles in one place have the same neighbours but for themselves, and only the first k + 1 of them are anybody's. So
    # places are asked about, among those: tiles that all lie in one place take no more than others.
    places, place = np.unique(coords_um, axis=0, return_inverse=True)
    place = place.reshape(-1)
    index_of, um_of = np.empty((len(places), k + 1), np.int32), np.empty((len(places), k + 1), np.float32)
    among = np.flatnonzero(_ranks(place) <= k)
    tree, asked = KDTree(coords_um[among]), min(2 * k + 8, len(among))
    for rows, found, far in _in_parts(np.arange(len(places)), places, tree, k, asked, among):
        index_of[rows], um_of[rows] = found, far
    for some in _parts(np.arange(tiles), k + 1):
        found = index_of[place[some]]
        left_out = found == some[:, None]
        left_out[~left_out.any(axis=1), -1] = True  # who is not among the nearest of its place
        index[some] = found[~left_out].reshape(-1, k)
        um[some] = um_of[place[some]][~left_out].reshape(-1, k)
    return index, um


def _ranks(place: Int[np.ndarray, " tiles"]) -> Int[np.ndarray, " tiles"]:
    """How many tiles before it lie in a tile's place."""
    order, counts = np.argsort(place, kind="stable"), np.bincount(place)
    ranks = np.empty(len(place), np.int64)
    ranks[order] = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _parts(rows: Int[np.ndarray, " rows"], each: int) -> list[Int[np.ndarray, " some"]]:
    """Rows a few at a time, that take so many numbers each."""
    return np.array_split(rows, max(math.ceil(len(rows) * each / _AT_ONCE), 1))


def _in_parts(
    rows: Int[np.ndarray, " rows"],
    places: Float[np.ndarray, "places 2"],
    tree: KDTree,
    k: int,
    asked: int,
    among: Int[np.ndarray, " among"],
) -> Iterator[tuple[Int[np.ndarray, " some"], Int[np.ndarray, "some k1"], Float[np.ndarray, "some k1"]]]:
    """Some places, with the k + 1 nearest of each; where ties may go on beyond those asked for, more are asked for."""
    for some in _parts(rows, asked):
        um, found = tree.query(places[some], asked)
        near = um <= um[:, [k]] * (1 + _SLACK)
        whole = ~near[:, -1] | (asked == tree.n)
        tiles, near, row = among[found[whole]], near[whole], some[whole]
        far = np.linalg.norm(tree.data[found[whole]] - places[row][:, None], axis=2).round(6)
        far[~near] = np.inf
        order = np.lexsort((tiles, far))[:, : k + 1]
        yield row, np.take_along_axis(tiles, order, axis=1), np.take_along_axis(far, order, axis=1)
        if not whole.all():
            yield from _in_parts(some[~whole], places, tree, k, min(2 * asked, tree.n), among)
