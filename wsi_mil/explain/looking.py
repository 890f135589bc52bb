"""What a model looked at in one bag: how much each tile counted, for what, and together with which others."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from wsi_mil.aggregators import Aggregator, Explanation, PairAttention, answer_of, evaluating
from wsi_mil.bags import Bag, Batch, collate
from wsi_mil.errors import OptionError

_ROWS_AT_ONCE = 16  # each as long as the bag, for every head


@dataclass(frozen=True)
class LookOptions:
    """How closely to look; the answer is the same."""

    top: int = 12
    """How many tiles to tell the partners of: those of the largest contribution to any class, or, of a model that tells
    none, of the most attention."""
    partners: int = 5
    """How many partners of each."""
    occlusions: int = 16
    """How many of those tiles to leave out of the bag, one by one, each at the price of a prediction; 0 = none."""

    def __post_init__(self) -> None:
        for name, least in (("top", 0), ("partners", 1), ("occlusions", 0)):
            if (value := getattr(self, name)) < least:
                raise OptionError(f"--{name} {value}: give a whole number of at least {least}")


class Pairs(NamedTuple):
    """The tiles that some tiles attended to most, strongest first, never the tile itself."""

    tiles: Int64[np.ndarray, " rows"]
    """Rows of the bag: the tiles that counted most."""
    partners: Int64[np.ndarray, "rows k"]
    """Rows of the bag; -1, of weight 0 and NaN um away, where a bag has fewer tiles than that."""
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


def look(model: Aggregator, bag: Bag, options: LookOptions) -> Look:
    """What a model looked at in a bag, on the model's own device.

    Memory is linear in the tiles. Time is that of a prediction, as much again for each tile left out, and some of it
    for what tiles are attended to.

    Args:
        model: a trained model, or an ensemble, which calibrates (`wsi_mil.checkpoint.Checkpoint.model`).
        bag: the tiles of a slide, or of several slides of a patient.
        options: how closely to look.

    Raises:
        ArtifactError: the bag has no tiles.

    Example:
        >>> told = look(checkpoint.model(), read_bag(path), LookOptions(occlusions=0))
        >>> np.allclose(told.contribution.sum(axis=0) + told.base, told.evidence)
        True
    """
    with evaluating(model) as device:
        batch = collate([bag]).to(device)
        told = model.explain(batch)
        order = _strongest_first(told)
        between = model.pair_attention(batch)
        attended = None if between is None else _array(between.received(told.output.attention)[0])
        pairs = None if between is None else _pairs(between, bag, order[: options.top], options.partners)
        lost = _lost(model, batch, told, order[: options.occlusions])
    answer = answer_of(told.output)
    return Look(
        answer.probabilities,
        _array(told.evidence[0]),
        answer.attention,
        None if told.contribution is None else _array(told.contribution[0]),
        None if told.base is None else _array(told.base[0]),
        attended,
        lost,
        pairs,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _strongest_first(told: Explanation) -> Int[Tensor, " tiles"]:
    """The tiles by how much they counted; equal ones by their row."""
    gave = told.contribution
    strength = told.output.attention[0] if gave is None else gave[0].abs().amax(dim=1)
    return strength.argsort(descending=True, stable=True)


def _lost(
    model: Aggregator, batch: Batch, told: Explanation, tiles: Int[Tensor, " some"]
) -> Float64[np.ndarray, "tiles classes"]:
    """Evidence lost without each of some tiles.

    A tile is made padding, which no model sees, so that the bag is not copied.
    """
    lost = np.full((batch.mask.shape[1], told.evidence.shape[1]), np.nan)
    if len(lost) == 1:  # without its only tile there is no bag to ask about
        return lost
    for tile in tiles.tolist():
        mask = batch.mask.clone()
        mask[0, tile] = False
        lost[tile] = _array((told.evidence - model.explain(batch._replace(mask=mask)).evidence)[0])
    return lost


def _pairs(between: PairAttention, bag: Bag, tiles: Int[Tensor, " some"], count: int) -> Pairs:
    """The strongest partners of some tiles."""
    found = min(count, len(bag.features) - 1)
    weights, partners = (np.full((len(tiles), count), nothing) for nothing in (0.0, -1))
    for start in range(0, len(tiles), _ROWS_AT_ONCE):
        chosen = tiles[start : start + _ROWS_AT_ONCE]
        paid = between.rows(chosen)[0].scatter(1, chosen.unsqueeze(1), -torch.inf)  # to itself
        strongest = paid.topk(found, dim=1)
        of_chunk = slice(start, start + len(chosen)), slice(found)
        weights[of_chunk], partners[of_chunk] = _array(strongest.values), _array(strongest.indices)
    rows = _array(tiles)
    return Pairs(rows, partners, weights, _distances_um(bag, rows, partners))


def _distances_um(
    bag: Bag, tiles: Int64[np.ndarray, " rows"], partners: Int64[np.ndarray, "rows k"]
) -> Float64[np.ndarray, "rows k"]:
    coords = bag.coords_um.cpu().numpy().astype(np.float64)
    away = coords[tiles][:, None] - coords[partners]
    unknown = partners < 0
    if bag.slide is not None:
        slide = bag.slide.cpu().numpy()
        unknown = unknown | (slide[tiles][:, None] != slide[partners])
    return np.where(unknown, np.nan, np.hypot(away[..., 0], away[..., 1]))
