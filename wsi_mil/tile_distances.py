"""How far apart the tiles of a cohort lie, in few enough numbers to be told with a model."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int, Int64

_PER_OCTAVE = 4


class TileDistances(NamedTuple):
    """All pairs of tiles by distance, in bins four of which double it.

    The edges are the same ones for every cohort as far as they go, so that distributions can be added.
    """

    edges_um: Float64[np.ndarray, " edges"]
    """From 0; one more than there are bins. A bin holds its lower edge."""
    pairs: Int64[np.ndarray, " bins"]

    @classmethod
    def of(cls, counts: Int[np.ndarray, " _"], bin_um: float) -> "TileDistances":
        """From a histogram in bins of equal width (`wsi_mil.distances`).

        Args:
            counts: bin b holds the distances in [b, b + 1) * ``bin_um``.
            bin_um: um.
        """
        edges = _ladder(len(counts))
        sums = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return cls(edges * bin_um, np.diff(sums[np.minimum(edges, len(counts))]))

    @classmethod
    def recorded(cls, training: Mapping[str, Any]) -> "TileDistances | None":
        """What the header of a checkpoint tells, in its ``training``; None where it does not."""
        told = training.get("distances")
        return None if told is None else cls(np.array(told["edges_um"], float), np.array(told["pairs"], np.int64))

    def record(self) -> dict[str, list[float] | list[int]]:
        """As JSON takes it: see `recorded`."""
        return {"edges_um": self.edges_um.tolist(), "pairs": self.pairs.tolist()}

    @property
    def shares(self) -> Float64[np.ndarray, " bins"]:
        """Of all pairs."""
        return self.pairs / self.pairs.sum()

    def quantile(self, q: float) -> float:
        """The distance in um below which a share q of all pairs lies, interpolated within its bin."""
        return float(np.interp(q, np.concatenate([[0], np.cumsum(self.shares)]), self.edges_um))


def merged(told: Iterable[TileDistances | None]) -> TileDistances | None:
    """Add the distributions of several trainings; None where one of them is not known, or there are none."""
    known = list(told)
    if not known or any(one is None for one in known):
        return None
    distributions = [one for one in known if one is not None]
    longest = max(distributions, key=lambda one: len(one.pairs))
    pairs = np.zeros_like(longest.pairs)
    for one in distributions:
        pairs[: len(one.pairs)] += one.pairs
    return TileDistances(longest.edges_um, pairs)


def _ladder(bins: int) -> Int64[np.ndarray, " edges"]:
    """Edges, counted in narrow bins, up to the first that leaves nothing out."""
    steps = np.arange(_PER_OCTAVE * int(np.ceil(np.log2(max(bins, 1)))) + 1)
    edges = np.unique(np.concatenate([[0], np.rint(2.0 ** (steps / _PER_OCTAVE)).astype(np.int64)]))
    return edges[: int(np.searchsorted(edges, bins)) + 1]
