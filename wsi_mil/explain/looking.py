"""What a model looked at in one bag: how much each tile counted, for what, and together with which others."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64


class Pairs(NamedTuple):
    """The tiles that some tiles attended to most, strongest first, never the tile itself."""

    tiles: Int64[np.ndarray, " rows"]
    """Rows of the bag: the tiles that counted most."""
    partners: Int64[np.ndarray, "rows k"]
    """Rows of the bag; -1 where a bag has fewer tiles than that."""
    weights: Float[np.ndarray, "rows k"]
    """Attention paid to each, averaged over heads (and over the members of an ensemble); of what a tile pays in all,
    1, itself included."""
    distance_um: Float[np.ndarray, "rows k"]
    """Between the centres; NaN between tiles of different slides."""


class Look(NamedTuple):
    """What a model looked at in one bag.

    Evidence for a class is its calibrated logit less the mean of those of the others: of two classes the log-odds.
    """

    probabilities: Float[np.ndarray, " classes"]
    """What `wsi_mil.aggregators.infer` gives, to the bit."""
    evidence: Float64[np.ndarray, " classes"]
    """For each class. Of an ensemble the mean over its members."""
    attention: Float[np.ndarray, " tiles"]
    """`Output.attention`: sums to 1."""
    contribution: Float64[np.ndarray, "tiles classes"] | None
    """What each tile gave to the evidence through the model's pooling: with ``base`` they sum to ``evidence``. None for
    a model that classifies something else than a pooling of its tiles."""
    base: Float64[np.ndarray, " classes"] | None
    """The evidence that no tile gave: the classifier's bias and the frequencies of the classes."""
    attended: Float[np.ndarray, " tiles"] | None
    """How much each tile was attended to by the tiles that counted (weighted by ``attention``), averaged over heads:
    sums to 1. None for a model without pairwise attention."""
    occlusion: Float64[np.ndarray, "tiles classes"]
    """Evidence lost when the tile is left out of the bag; NaN where that was not tried."""
    pairs: Pairs | None
    """None for a model without pairwise attention."""
