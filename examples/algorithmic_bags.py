"""Bags whose labels follow a known rule: what `algorithmic_tests.py` learns from.

Three of them are the tests of Raff and Holt (NeurIPS 2023, arXiv 2310.17867). Each holds a *trap*: something that
tells the labels of the training bags without being what makes a bag positive, and that misleads in the test bags. Then
ShiftedMean (Harvey, Loevlie and Hughes 2025, arXiv 2510.25759), whose best possible answers are known in closed form,
and collages of digits (`collage_data.py`) that show what each digit is.

The distributions of the three tests are those of the ports in torchmil, which name the paper's algorithms; what differs
is said at each.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from collage_data import DIGIT_PX, RULES, Collage, draw_layouts, with_one_hot
from fitting import InMemory
from jaxtyping import Float32, Float64
from scipy.special import logsumexp

from wsi_mil.bags import Bag
from wsi_mil.errors import OptionError
from wsi_mil.learning import Example

TILE_UM = 256.0
PARTS = ("train", "val", "test", "plain")
"""Bags to learn from and to stop by, with the trap; test bags with the trap turned round; test bags without a trap."""
_GRID = 20  # cells a side, for tiles whose place means nothing


class Kind(IntEnum):
    """What an instance is."""

    POISON = -1
    BACKGROUND = 0
    FIRST = 1
    """The first concept."""
    SECOND = 2
    """The second concept."""


class Normal(NamedTuple):
    """A normal distribution, the same and independent in all features."""

    mean: float
    std: float


Composition = Counter[Kind]
"""How many instances of each kind a bag has."""


@dataclass(frozen=True)
class RaffHolt:
    """One of the three tests. Instances are in random order, in random cells of a grid: neither tells anything."""

    compose: Callable[[bool, str, np.random.Generator], Composition]
    """The composition of a bag, from whether it is positive, the part it is for, and a source of random numbers."""
    kinds: Mapping[Kind, Normal]
    """How the features of each kind are distributed."""
    rule: Callable[[Composition], bool]
    """What makes a bag positive."""
    dim: int = 16
    """Features of an instance."""

    def draw(self, part: str, count: int, seed: int) -> InMemory:
        """Draw bags, every other one positive; each part has its own random numbers.

        ``Bag.attrs["kinds"]`` tells the kind of each instance.
        """
        random = np.random.default_rng((seed, PARTS.index(part)))
        return InMemory(self._example(part, number, random) for number in range(count))

    def _example(self, part: str, number: int, random: np.random.Generator) -> Example:
        positive = number % 2 == 1
        kinds = np.array(list(self.compose(positive, part, random).elements()))
        random.shuffle(kinds)
        mean, std = np.array([self.kinds[Kind(kind)] for kind in kinds], np.float32).T[..., None]
        features = mean + std * random.standard_normal((len(kinds), self.dim), np.float32)
        cells = random.permutation(_GRID**2)[: len(kinds)]
        coords_um = TILE_UM * (np.stack([cells % _GRID, cells // _GRID], axis=1).astype(np.float32) + 0.5)
        bag = Bag(f"{part}-{number}", torch.from_numpy(features), torch.from_numpy(coords_um), {"kinds": kinds})
        return Example(bag, int(positive))


def _poisoned(positive: bool, part: str) -> bool:
    """Poison is in every negative bag to learn from, and in every positive bag to test on."""
    return (not positive and part in ("train", "val")) or (positive and part == "test")


def _one_concept(positive: bool, part: str, random: np.random.Generator) -> Composition:
    """Ten of the background; if positive, 1 to 3 of the concept, each of either distribution; poison."""
    concept = int(random.integers(1, 4)) if positive else 0
    first = int(random.binomial(concept, 0.5))
    counts = {Kind.POISON: int(_poisoned(positive, part)), Kind.FIRST: first, Kind.SECOND: concept - first}
    return Counter(counts | {Kind.BACKGROUND: 10})


def _two_concepts(positive: bool, part: str, random: np.random.Generator) -> Composition:
    """1 to 9 of the background; 1 to 3 of both concepts (as many of one as of the other) or 1 of either; poison."""
    counts = Counter({Kind.POISON: int(_poisoned(positive, part)), Kind.BACKGROUND: int(random.integers(1, 10))})
    if positive:
        each = int(random.integers(1, 4))
        return counts + Counter({Kind.FIRST: each, Kind.SECOND: each})
    return counts + Counter({_either(random): 1})


def _false_frequency(positive: bool, part: str, random: np.random.Generator) -> Composition:
    """1 to 9 of the background; 1 or 2 of both concepts each, or 1 or 2 of either: in negative test bags 35 to 44."""
    counts = Counter({Kind.BACKGROUND: int(random.integers(1, 10))})
    if positive:
        return counts + Counter({kind: int(random.integers(1, 3)) for kind in (Kind.FIRST, Kind.SECOND)})
    least, most = (35, 44) if part == "test" else (1, 2)
    return counts + Counter({_either(random): int(random.integers(least, most + 1))})


def _either(random: np.random.Generator) -> Kind:
    return (Kind.FIRST, Kind.SECOND)[int(random.integers(2))]


_CONCEPTS = {Kind.FIRST: Normal(2.0, 0.1), Kind.SECOND: Normal(3.0, 0.1)}
_OTHERS = {Kind.POISON: Normal(-10.0, 0.1), Kind.BACKGROUND: Normal(0.0, 1.0)}


def _has_any(bag: Composition) -> bool:
    return bag[Kind.FIRST] + bag[Kind.SECOND] > 0


def _has_both(bag: Composition) -> bool:
    return bag[Kind.FIRST] > 0 and bag[Kind.SECOND] > 0


SINGLE_CONCEPT = RaffHolt(
    _one_concept, _OTHERS | {Kind.FIRST: Normal(0.0, 3.0), Kind.SECOND: Normal(1.0, 1.0)}, _has_any
)
"""Test 1, single concept: positive if an instance is of the concept, a mixture of N(0, 3) and N(1, 1).

Negative training bags hold poison, N(-10, 0.1), so that its absence tells a positive one. In the test bags it is in the
positive ones. All numbers after the comma are standard deviations, as in the ports.
"""
MULTI_CONCEPT = RaffHolt(_two_concepts, _OTHERS | _CONCEPTS, _has_both)
"""Test 2, multi-concept: positive if both concepts, N(2, 0.1) and N(3, 0.1), are there; poison as in test 1."""
FALSE_FREQUENCY = RaffHolt(_false_frequency, _OTHERS | _CONCEPTS, _has_both)
"""Test 3, false frequency: positive if both concepts are there, however often.

In training, positive bags hold more of the concepts than negative ones (2 to 4 against 1 or 2); negative test bags hold
35 to 44. There is no poison. The ports draw the concept of a negative bag by ``randint(0, 1)``, whose upper end is
excluded, so that it is always the first and the second alone tells the label; and the counts of training by
``randint(1, 2)``, always 1. Here both ends are meant: either concept is as likely, and counts are 1 or 2.
"""
RAFF_HOLT = {"single concept": SINGLE_CONCEPT, "multi-concept": MULTI_CONCEPT, "false frequency": FALSE_FREQUENCY}


@dataclass(frozen=True)
class ShiftedMean:
    """Bags of instances in a row; if positive, a run of them is shifted in a few features.

    A bag has ``least`` to ``most`` instances, all sizes as likely, in a row one tile apart. Features are N(0, 1). A bag
    is positive with probability ``positive``; then ``run`` instances in a row, from a start that is anywhere as likely,
    have ``shift`` added to their first ``shifted`` features. The released code has 768 features and a shift of 1; here
    the noise is less and the shift larger, so that a few hundred bags are enough to learn from.
    """

    run: int = 3
    """Instances in a row that are shifted."""
    shift: float = 2.0
    """What is added, in standard deviations."""
    shifted: int = 1
    """Features that are shifted."""
    dim: int = 8
    """Features of an instance."""
    least: int = 15
    """Instances of a bag, at least."""
    most: int = 45
    """Instances of a bag, at most."""
    positive: float = 0.5
    """Probability that a bag is positive."""

    def __post_init__(self) -> None:
        if not 0 < self.run <= self.least <= self.most:
            raise OptionError(f"run {self.run}, least {self.least}, most {self.most}: give them in rising order from 1")
        if not 0 < self.positive < 1:
            raise OptionError(f"positive {self.positive}: give a probability between 0 and 1")

    def draw(self, part: str, count: int, seed: int) -> InMemory:
        """Draw bags; each part has its own random numbers. Array order is the order in the row."""
        random = np.random.default_rng((seed, PARTS.index(part)))
        return InMemory(self._example(f"{part}-{number}", random) for number in range(count))

    def _example(self, name: str, random: np.random.Generator) -> Example:
        size = int(random.integers(self.least, self.most + 1))
        features = random.standard_normal((size, self.dim), np.float32)
        positive = bool(random.random() < self.positive)
        if positive:
            start = int(random.integers(0, size - self.run + 1))
            features[start : start + self.run, : self.shifted] += self.shift
        along = TILE_UM * (np.arange(size, dtype=np.float32) + 0.5)
        coords_um = np.stack([along, np.full_like(along, TILE_UM / 2)], axis=1)
        return Example(Bag(name, torch.from_numpy(features), torch.from_numpy(coords_um), {}), int(positive))

    def log_odds(self, features: Float32[np.ndarray, "tiles dim"]) -> float:
        """Log-odds that a bag is positive, given its instances in their order: nothing can rank bags better.

        With ``r_s`` the ratio of the densities of instance s, shifted over not, the odds are those of a positive bag
        times the mean over all starts of the product of ``r_s`` over the run that begins there.
        """
        run_sums = np.convolve(self._log_ratios(features), np.ones(self.run), mode="valid")
        return float(logsumexp(run_sums) - math.log(len(run_sums)) + self._prior())

    def log_odds_without_order(self, features: Float32[np.ndarray, "tiles dim"]) -> float:
        """The same where the order of instances is not known: nothing that ignores positions can rank bags better.

        Any ``run`` instances may be the shifted ones, so the mean is over all subsets of that size: the elementary
        symmetric polynomial of the ``r_s``, over the number of subsets.
        """
        log_e = np.full(self.run + 1, -np.inf)  # of the subsets of 0, 1, ... of the instances so far
        log_e[0] = 0.0
        for log_ratio in self._log_ratios(features):
            log_e[1:] = np.logaddexp(log_e[1:], log_e[:-1] + log_ratio)
        return float(log_e[-1] - math.log(math.comb(len(features), self.run)) + self._prior())

    def _log_ratios(self, features: Float32[np.ndarray, "tiles dim"]) -> Float64[np.ndarray, " tiles"]:
        values = features[:, : self.shifted].astype(np.float64)
        return (self.shift * values - self.shift**2 / 2).sum(axis=1)

    def _prior(self) -> float:
        return math.log(self.positive / (1 - self.positive))


class Collages(NamedTuple):
    """Collages, and the bags made of them."""

    layouts: list[Collage]
    bags: InMemory


def draw_collages(part: str, count: int, seed: int) -> Collages:
    """Collages whose digits are told (ten features, one of them 1); a digit is as wide as a tile of 256 um.

    Each part has its own random numbers: in the published set all positive test bags repeat a layout of training.
    """
    layouts = draw_layouts(RULES["collage"], count, np.random.RandomState([seed, PARTS.index(part)]))
    um_per_px = TILE_UM / DIGIT_PX
    in_um = (
        Example(bag._replace(coords_um=bag.coords_um * um_per_px), target) for bag, target in with_one_hot(layouts)
    )
    return Collages(layouts, InMemory(in_um))
