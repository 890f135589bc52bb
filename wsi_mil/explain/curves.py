"""What does a model do with distance? What it does to the attention of each head, and to the answers.

Attention of a head is compared with where tiles lie: `AtDistance.enrichment` is the share of attention that is paid at
a distance by the share of tiles that lie there; attention to all alike has 1 everywhere. But what tiles show depends on
where they lie, too: what distance does is the difference to the same queries and keys without their bias. Tiles of
other slides have no distance, and what a tile pays to itself says nothing here: both are left out.

Distance also reaches the values that are attended to. So each head is asked, too, how the model's answer changes when
the head's biases are the same at all distances (`reliance`).
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from wsi_mil.aggregators import Aggregator, apply, evaluating
from wsi_mil.aggregators.explanation import PairAttention, Rows, evidence_of
from wsi_mil.bags import Bag, Batch, collate
from wsi_mil.explain.heads import as_table

EDGES_UM = 16.0 * 2 ** (np.arange(0.5, 28) / 2)
"""Two bins double a distance. On a grid of tiles of 2^k * 16 um no distance to a neighbour lies near an edge."""
_PAIRS_AT_ONCE = 1 << 21


class AtDistance(NamedTuple):
    """Where a head's attention goes, by distance; each array of shares sums to 1. The mean over some slides."""

    member: int
    """Which model of an ensemble, counted from 1."""
    head: int
    """Counted from 1."""
    edges_um: Float64[np.ndarray, " edges"]
    """One more than there are bins."""
    tiles: Float64[np.ndarray, " bins"]
    """Share of the tiles that lie there, as the chosen tiles see them."""
    biased: Float64[np.ndarray, " bins"]
    """Share of the attention that is paid there."""
    unbiased: Float64[np.ndarray, " bins"]
    """What it would be without what distance adds to scores."""

    @property
    def enrichment(self) -> Float64[np.ndarray, " bins"]:
        """Attention by tiles; NaN where there are none."""
        return _by(self.biased, self.tiles)

    @property
    def enrichment_unbiased(self) -> Float64[np.ndarray, " bins"]:
        """The same without what distance adds."""
        return _by(self.unbiased, self.tiles)

    @property
    def moved(self) -> float:
        """Share of the attention that the bias moves to other distances."""
        return float(np.abs(self.biased - self.unbiased).sum() / 2)

    @property
    def nearer(self) -> bool:
        """Whether it moves it to nearer tiles, by the mean of the distances' logarithms."""
        middles = np.log(self.edges_um[1:] * self.edges_um[:-1])
        return bool(((self.biased - self.unbiased) * middles).sum() < 0)


class Reliance(NamedTuple):
    """How much the answers of a model depend on what one head makes of distance."""

    member: int
    """Which model of an ensemble, counted from 1."""
    head: int
    """Counted from 1."""
    log_odds: float
    """Mean change of each class's evidence (its logit less the mean of the others': of two classes the log-odds, not
    calibrated) where the head's biases are the same at all distances."""


class Asked(NamedTuple):
    """Whose attention is looked at, in each bag."""

    top: int = 32
    """Tiles that counted most."""
    drawn: int = 32
    """Others, drawn at random."""
    seed: int = 0
    """Decides these, together with the bag's name."""


_ASKED = Asked()


def enrichment(model: Aggregator, bags: Iterable[Bag], asked: Asked = _ASKED) -> list[AtDistance]:
    """Where attention goes, by distance, with the distance bias and without.

    Slides count alike, and so do the chosen tiles of each, by how much they attend to others. No array is as large as
    all pairs of tiles: a few chosen tiles are looked at together.

    Args:
        model: a trained model or ensemble.
        bags: what it is asked about; bags without two tiles of one slide tell nothing.
        asked: whose attention is looked at.

    Returns:
        One for each head of each member whose attention depends on distance; bins without tiles at both ends are left
        out. Empty where there is no such head, or no bag tells anything.
    """
    singles = [(member, one) for member, one in enumerate(model.single_models(), 1) if one.distance_tables()]
    found: dict[int, list[Float64[Tensor, "3 heads bins"]]] = {}
    for bag in bags if singles else ():
        batch = collate([bag]).to(next(model.parameters()).device)
        for member, single in singles:
            found.setdefault(member, []).extend(_of_bag(single, batch, bag.slide_id, asked))
    means = {member: torch.stack(each).mean(dim=0).numpy() for member, each in found.items() if each}
    return [one for member, mean in means.items() for one in _trimmed(member, mean)]


def reliance(model: Aggregator, bags: Iterable[Bag]) -> list[Reliance]:
    """How much the answers of a model, or of each member of an ensemble, rely on what a head makes of distance.

    Of every head in turn the biases (of keys, queries and values) are made the same at all distances, their mean.

    Args:
        model: a trained model or ensemble.
        bags: what it is asked about.
    """
    flattened = {
        (member, head + 1): (single, _flat(single, head))
        for member, single in enumerate(model.single_models(), 1)
        for head in range(max((len(table) for table in single.distance_tables()), default=0))
    }
    moved: dict[tuple[int, int], list[float]] = {key: [] for key in flattened}
    for bag in bags if flattened else ():
        batch = collate([bag])
        as_is = {id(single): _evidence(single, batch) for single, _ in flattened.values()}
        for key, (single, without) in flattened.items():
            moved[key].append(float((as_is[id(single)] - _evidence(without, batch)).abs().mean()))
    return [Reliance(*key, float(np.mean(each))) for key, each in moved.items() if each]


def _flat(single: Aggregator, head: int) -> Aggregator:
    copy = deepcopy(single)
    with torch.no_grad():
        for table in copy.distance_tables():
            table[head] = table[head].mean(dim=0)
    return copy


def _evidence(single: Aggregator, batch: Batch) -> Float64[Tensor, " classes"]:
    return evidence_of(apply(single, batch).logits[0]).cpu()


def enrichment_csv(found: Sequence[AtDistance]) -> bytes:
    """A table of `enrichment`: member, head, from_um, to_um and shares of tiles, attention and attention_unbiased."""
    rows = [
        (one.member, one.head, f"{start:.1f}", f"{end:.1f}", *(f"{share:.6f}" for share in shares))
        for one in found
        for start, end, *shares in zip(
            one.edges_um[:-1], one.edges_um[1:], one.tiles, one.biased, one.unbiased, strict=True
        )
    ]
    return as_table(("member", "head", "from_um", "to_um", "tiles", "attention", "attention_unbiased"), rows)


def _of_bag(single: Aggregator, batch: Batch, name: str, asked: Asked) -> Iterator[Float64[Tensor, "3 heads bins"]]:
    """Shares of tiles and of attention with and without bias, if the bag tells any."""
    counted = apply(single, batch).attention[0]
    with evaluating(single):
        attention = single.pair_attention(batch)
        sums = None if attention is None else _sums(attention, batch, _chosen(counted, name, asked))
    if sums is not None and bool((sums.sum(dim=2) > 0).all()):
        yield sums / sums.sum(dim=2, keepdim=True)


def _chosen(counted: Float[Tensor, " tiles"], name: str, asked: Asked) -> Int64[Tensor, " rows"]:
    """The tiles that counted most, and some of the others."""
    order = counted.argsort(descending=True, stable=True).cpu()
    others = order[asked.top :].numpy()
    rng = np.random.default_rng([asked.seed, *name.encode()])
    drawn = rng.choice(others, min(asked.drawn, len(others)), replace=False)
    return torch.cat([order[: asked.top], torch.from_numpy(drawn)])


def _sums(attention: PairAttention, batch: Batch, chosen: Int64[Tensor, " rows"]) -> Float64[Tensor, "3 heads bins"]:
    """Tiles, and what they get with and without bias, by distance from the chosen ones: some of these at a time."""
    (tiles,) = batch.mask.shape[1:]
    edges = torch.from_numpy(EDGES_UM).to(batch.coords_um)
    totals: Float64[Tensor, "3 heads bins"] | None = None
    for rows in chosen.to(batch.coords_um.device).split(max(_PAIRS_AT_ONCE // tiles, 1)):
        away = batch.coords_um[0].unsqueeze(0) - batch.coords_um[0, rows].unsqueeze(1)
        bins = torch.bucketize(torch.hypot(*away.unbind(-1)), edges[1:-1], right=True)
        others = torch.arange(tiles, device=rows.device) != rows.unsqueeze(1)
        if batch.slide is not None:
            others &= batch.slide[0] == batch.slide[0, rows].unsqueeze(1)
        paid = [_by_bin(read, rows, bins, others) for read in (attention.heads, attention.unbiased)]
        lying = torch.bincount(bins[others], minlength=len(edges) - 1).double().cpu()
        some = torch.stack([lying.expand_as(paid[0]), *paid])
        totals = some if totals is None else totals + some
    assert totals is not None  # a bag has tiles
    return totals


def _by_bin(read: Rows, rows: Tensor, bins: Tensor, others: Tensor) -> Float64[Tensor, "heads bins"]:
    (weights,) = read(rows)
    sums = [torch.bincount(bins[others], one[others].double(), minlength=len(EDGES_UM) - 1) for one in weights]
    return torch.stack(sums).double().cpu()  # without pairs they are whole numbers


def _trimmed(member: int, shares: Float64[np.ndarray, "3 heads bins"]) -> Iterator[AtDistance]:
    filled = np.flatnonzero(shares[0, 0])
    first, last = filled[0], filled[-1] + 1
    tiles, biased, unbiased = shares[:, :, first:last]
    for head in range(shares.shape[1]):
        yield AtDistance(member, head + 1, EDGES_UM[first : last + 1], tiles[head], biased[head], unbiased[head])


def _by(shares: Float64[np.ndarray, " bins"], tiles: Float64[np.ndarray, " bins"]) -> Float64[np.ndarray, " bins"]:
    return np.divide(shares, tiles, out=np.full_like(shares, np.nan), where=tiles > 0)
