"""The nearest tiles of each tile, in an order that does not depend on how they are found."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32
from scipy.spatial import KDTree

_AT_ONCE = 1 << 20  # distances that are looked at together
_Found = tuple[
    Int[np.ndarray, " some"],
    Int[np.ndarray, "some asked"],
    Float[np.ndarray, "some asked"],
    Bool[np.ndarray, "some asked"],
]
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
    tree = KDTree(coords_um[among])
    for rows, found, _, near in tied(tree, places, k, lambda um: um * (1 + _SLACK)):
        far = np.linalg.norm(tree.data[found] - places[rows][:, None], axis=2).round(6)
        far[~near] = np.inf
        others = among[found]
        order = np.lexsort((others, far))[:, : k + 1]
        index_of[rows] = np.take_along_axis(others, order, axis=1)
        um_of[rows] = np.take_along_axis(far, order, axis=1)
    for some in _parts(np.arange(tiles), k + 1):
        found = index_of[place[some]]
        left_out = found == some[:, None]
        left_out[~left_out.any(axis=1), -1] = True  # who is not among the nearest of its place
        index[some] = found[~left_out].reshape(-1, k)
        um[some] = um_of[place[some]][~left_out].reshape(-1, k)
    return index, um


def tied(
    tree: KDTree,
    places: Float[np.ndarray, "places 2"],
    rank: int,
    as_far: Callable[[Float[np.ndarray, "some 1"]], Float[np.ndarray, "some 1"]],
) -> Iterator[_Found]:
    """Find for each place the nearest tiles and whatever ties with the last of them, a few places at a time.

    Args:
        tree: of the tiles.
        places: asked about, in any order.
        rank: which of the nearest is the last, from 0: where a tile lies, that is itself or one in its place.
        as_far: from the distance of the last, how far tiles still tie with it.

    Yields:
        Some rows of ``places``, each once; for each row tiles, their distances, and which of these count.
    """
    rows, asked = np.arange(len(places)), min(2 * rank + 8, tree.n)
    while len(rows):
        left = []
        for some in _parts(rows, asked):
            um, found = tree.query(places[some], asked)
            near = um <= as_far(um[:, [rank]])
            whole = ~near[:, -1] | (asked == tree.n)
            yield some[whole], found[whole], um[whole], near[whole]
            left.append(some[~whole])
        rows, asked = np.concatenate(left), min(2 * asked, tree.n)  # who has more ties is asked about again


def _ranks(place: Int[np.ndarray, " tiles"]) -> Int[np.ndarray, " tiles"]:
    """How many tiles before it lie in a tile's place."""
    order, counts = np.argsort(place, kind="stable"), np.bincount(place)
    ranks = np.empty(len(place), np.int64)
    ranks[order] = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _parts(rows: Int[np.ndarray, " rows"], each: int) -> list[Int[np.ndarray, " some"]]:
    """Rows a few at a time, that take so many numbers each."""
    return np.array_split(rows, max(math.ceil(len(rows) * each / _AT_ONCE), 1))
