"""Does space matter? A model asked again with its slides' geometry taken apart.

What a model says is compared with what it says of the same tiles (i) dealt anew over the places of their slide, (ii)
at stretched and shrunk distances, and (iii) without what distance adds to attention. A model that answers as before
under (i) did not use where its tiles lie, whatever its architecture promises. (iii) is what the model was never trained
with, so that it tells how much of the model is distance, and not whether the task is.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch

from wsi_mil.aggregators import Aggregator
from wsi_mil.bags import Bag
from wsi_mil.evaluation.answers import Answers
from wsi_mil.evaluation.comparing import lost
from wsi_mil.evaluation.figures import Arrays, mean_auroc
from wsi_mil.metrics import Interval, Resampling

Change = Callable[[Bag], Bag]
PERMUTED = "tiles dealt anew"
UNBIASED = "no distance biases"
SCALES = (0.5, 2.0)
_UNMOVED = 0.005  # a change of probability that nobody acts upon
_TABLES = ("key_table", "query_table", "value_table")  # what distance adds, by the names of `wsi_mil.attention`


class Variant(NamedTuple):
    """One way to take the geometry apart."""

    name: str
    change: Change


def variants(model: Aggregator, seed: int, permutations: int) -> Iterator[Variant]:
    """What a model is asked again with.

    Args:
        model: without use for positions it is asked nothing.
        seed: decides the permutations: together with the bag's name, so that the order of bags does not matter.
        permutations: how many times tiles are dealt anew.
    """
    if model.uses_position == "none":
        return
    for index in range(permutations):
        yield Variant(PERMUTED, _permuting(seed + index))
    for scale in SCALES:
        yield Variant(f"distances x {scale:g}", _scaling(scale))


def permuted(bag: Bag, seed: int) -> Bag:
    """The same tiles dealt anew over the places of their slide: what there is and where tiles lie stays, which is where
    does not."""
    rng = np.random.default_rng([seed, *bag.slide_id.encode()])
    order = np.arange(len(bag.features))
    for rows in _slides(bag):
        order[rows] = rng.permutation(rows)
    return bag._replace(coords_um=bag.coords_um[torch.from_numpy(order)])


def scaled(bag: Bag, factor: float) -> Bag:
    """The same tiles, all distances multiplied."""
    return bag._replace(coords_um=bag.coords_um * factor)


def unbiased(model: Aggregator) -> Aggregator | None:
    """A copy of a model in which distance adds nothing to attention; None where it never does."""
    copy = deepcopy(model)
    tables = [
        table for module in copy.modules() for name in _TABLES if (table := getattr(module, name, None)) is not None
    ]
    with torch.no_grad():
        for table in tables:
            table.zero_()
    return copy if tables else None


def _permuting(seed: int) -> Change:
    return lambda bag: permuted(bag, seed)


def _scaling(factor: float) -> Change:
    return lambda bag: scaled(bag, factor)


def _slides(bag: Bag) -> list[np.ndarray]:
    """The rows of each slide."""
    if bag.slide is None:
        return [np.arange(len(bag.features))]
    slide = bag.slide.numpy()
    return [np.flatnonzero(slide == number) for number in np.unique(slide)]


class Row(NamedTuple):
    """What became of a model's answers when its slides were laid out otherwise."""

    name: str
    auroc: float
    lost: Interval
    """AUROC as the slides are less AUROC so, with the interval of a paired bootstrap over patients."""
    moved: float
    """Mean absolute change of a bag's probabilities."""


class Spatial(NamedTuple):
    """Whether a model uses where its tiles lie."""

    rows: tuple[Row, ...]
    sentence: str
    """The answer, in one."""


def does_space_matter(
    ask: Callable[[Aggregator, Change], Answers], network: Aggregator, how: Resampling, permutations: int = 5
) -> Spatial:
    """Ask a model again with its slides laid out otherwise.

    Args:
        ask: gives a model's answers to the same labelled bags, each changed first.
        network: the model that answers.
        how: how intervals come about; its seed also decides the permutations.
        permutations: how many times tiles are dealt anew.
    """
    as_they_lie = ask(network, lambda bag: bag)
    found: dict[str, list[Answers]] = {}
    for variant in variants(network, how.seed, permutations):
        found.setdefault(variant.name, []).append(ask(network, variant.change))
    without = unbiased(network)
    if without is not None:
        found[UNBIASED] = [ask(without, lambda bag: bag)]
    rows = tuple(_row(name, as_they_lie, others, how) for name, others in found.items())
    return Spatial(rows, _sentence(rows, mean_auroc(Arrays.of(as_they_lie))))


def _row(name: str, as_they_lie: Answers, others: list[Answers], how: Resampling) -> Row:
    auroc = float(np.mean([mean_auroc(Arrays.of(other)) for other in others]))
    moved = float(np.mean([np.abs(other.scores - as_they_lie.scores).mean() for other in others]))
    return Row(name, auroc, lost(mean_auroc, as_they_lie, others, how, f"AUROC lost, {name}"), moved)


def _sentence(rows: tuple[Row, ...], auroc: float) -> str:
    """Whether this task used where tiles lie, said of tiles that were dealt anew."""
    worst = next((row for row in rows if row.name == PERMUTED), None)
    if worst is None:
        return "This model cannot use where tiles lie: it is not told."
    if np.isnan(worst.lost.value):
        return (
            "Whether this task used where tiles lie cannot be told: some class has no slide here, so there is no AUROC."
        )
    limits = "" if np.isnan(worst.lost.low) else f" [{worst.lost.low:.3f}, {worst.lost.high:.3f}]"
    change = f"AUROC {auroc:.3f} becomes {worst.auroc:.3f} ({worst.name}; lost {worst.lost.value:.3f}{limits})"
    if worst.lost.low > 0:
        return f"This task used where tiles lie: {change}."
    if worst.moved < _UNMOVED:
        return f"This model ignores where tiles lie: its answers stay when that is taken away ({change})."
    if not limits and worst.lost.value > 0:
        return f"Too little to tell whether this task used where tiles lie: {change}, and nothing to judge that by."
    return f"No sign that this task used where tiles lie, though answers move: {change}."
