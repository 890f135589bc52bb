"""Which reader, options and learning rate a model of MNIST-COLLAGE learns best with, as validation judges."""

import argparse
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from collage_data import Source
from collage_models import CHOICES, READERS_TRIED
from collage_runs import FRESH_EPOCHS, LEARNING_RATES, TRIAL_SEEDS, Recipe, try_recipe
from collage_work import in_processes
from row_files import read_rows, write_rows

LOWEST_RATE = 1e-6
Pair = tuple[str, str]
"""A model and a variant."""


class Trial(NamedTuple):
    """Validation loss of a recipe."""

    model: str
    variant: str
    reader: str
    choice: str
    lr: float
    seed: int
    loss: float


def trial(pair: Pair, recipe: Recipe, seed: int, source: Source, weights: Path) -> Trial:
    """Measure a recipe once; what diverges is the worst."""
    loss = try_recipe(*pair, recipe, seed, source, weights)
    return Trial(*pair, recipe.reader, recipe.choice, recipe.lr, seed, loss if math.isfinite(loss) else math.inf)


def search(options: argparse.Namespace, source: Source) -> dict[Pair, Recipe]:
    """The recipe of each model and variant: that of the least mean loss among its trials; earlier trials count.

    The reader is chosen first, unless one is given, then options, where there are `CHOICES`, both at the two rates in
    the middle; then the rate: where the best is the lowest or the highest, the next one beyond is tried too.
    """
    trials = _Trials(options, source)
    pairs = list(itertools.product(options.models, options.variant))
    readers = [options.reader] if options.reader else READERS_TRIED
    middle = [Recipe(lr, options.epochs or FRESH_EPOCHS, reader) for reader in readers for lr in LEARNING_RATES[1:3]]
    chosen = trials.best(dict.fromkeys(pairs, middle)) if len(readers) > 1 else dict.fromkeys(pairs, middle[0])
    chosen |= trials.best({pair: _options(chosen[pair], CHOICES[pair[0]]) for pair in pairs if pair[0] in CHOICES})
    asked: dict[Pair, list[float]] = {}
    wanted = {pair: list(LEARNING_RATES) for pair in pairs}
    while wanted != asked:
        asked = wanted
        chosen = trials.best({pair: [chosen[pair]._replace(lr=lr) for lr in rates] for pair, rates in asked.items()})
        wanted = {pair: widened(rates, chosen[pair].lr) for pair, rates in asked.items()}
    return chosen


def _options(recipe: Recipe, choices: Iterable[str]) -> list[Recipe]:
    """A recipe with its usual options and with each of the others, at the two rates in the middle."""
    return [recipe._replace(choice=choice, lr=lr) for choice in ("", *choices) for lr in LEARNING_RATES[1:3]]


class _Trials:
    """Trials, those of earlier runs among them."""

    def __init__(self, options: argparse.Namespace, source: Source) -> None:
        self.options, self.source = options, source
        self.path = options.out.with_suffix(".trials.csv")
        self.done = {trial[:-1]: trial for trial in read_rows(self.path, Trial)}

    def best(self, wanted: Mapping[Pair, Sequence[Recipe]]) -> dict[Pair, Recipe]:
        """Of some recipes of each model and variant the one of the least mean loss."""
        self._measure([(pair, recipe) for pair, recipes in wanted.items() for recipe in recipes])
        return {
            pair: min(recipes, key=lambda recipe, pair=pair: self._loss(pair, recipe))
            for pair, recipes in wanted.items()
        }

    def _loss(self, pair: Pair, recipe: Recipe) -> float:
        return statistics.fmean(self.done[key].loss for key in _keys(pair, recipe))

    def _measure(self, recipes: Sequence[tuple[Pair, Recipe]]) -> None:
        jobs = [
            (pair, recipe, key[-1], self.source, weights_of(self.options.out))
            for pair, recipe in recipes
            for key in _keys(pair, recipe)
            if key not in self.done
        ]
        for made in in_processes(trial, jobs, self.options.workers, "trials"):
            self.done[made[:-1]] = made
            write_rows(self.path, sorted(self.done.values()))


def _keys(pair: Pair, recipe: Recipe) -> list[tuple[str, str, str, str, float, int]]:
    """What the trials of a recipe are known by."""
    return [(*pair, recipe.reader, recipe.choice, recipe.lr, seed) for seed in TRIAL_SEEDS]


def weights_of(out: Path) -> Path:
    """The folder of what has been trained for a table."""
    return out.with_suffix(".weights")


def widened(rates: list[float], best: float) -> list[float]:
    """Rising rates, and one more beyond the best if that is the first or the last of them; none below a millionth."""
    if best < LOWEST_RATE:  # such a model diverges, or learns nothing, at any rate
        return rates
    before, after = [rates[0] / 2] * (best == rates[0]), [rates[-1] * 2] * (best == rates[-1])
    return before + rates + after
