"""Which learning rate a model of MNIST-COLLAGE learns best at, as the validation collages judge."""

import argparse
import itertools
import math
import statistics
from typing import Any, NamedTuple

from collage_data import Source
from collage_runs import FRESH_EPOCHS, LEARNING_RATES, TRIAL_SEEDS, Recipe, try_recipe
from collage_work import in_processes, read_rows, write_rows

LOWEST_RATE = 1e-6


class Trial(NamedTuple):
    """Validation loss of a recipe."""

    model: str
    variant: str
    reader: str
    lr: float
    seed: int
    loss: float


def trial(model: str, variant: str, recipe: Recipe, seed: int, source: Source) -> Trial:
    """Measure a recipe once; what diverges is the worst."""
    loss = try_recipe(model, variant, recipe, seed, source)
    return Trial(model, variant, recipe.reader, recipe.lr, seed, loss if math.isfinite(loss) else math.inf)


def search(options: argparse.Namespace, source: Source) -> dict[tuple[str, str], Recipe]:
    """The recipe of each model and variant: that of the least mean loss among its trials; earlier trials count.

    Where it has the lowest or the highest of the learning rates, the next one beyond is tried too.
    """
    path = options.out.with_suffix(".trials.csv")
    losses = {trial[:5]: trial for trial in read_rows(path, Trial)}
    asked: dict[tuple[str, str], list[float]] = {}
    wanted = {pair: list(LEARNING_RATES) for pair in itertools.product(options.models, options.variant)}
    best: dict[tuple[str, str], Recipe] = {}
    while wanted != asked:
        asked = wanted
        recipes = [
            (*pair, Recipe(lr, options.epochs or FRESH_EPOCHS, options.reader)) for pair in asked for lr in asked[pair]
        ]
        jobs = [
            (model, variant, recipe, seed, source)
            for (model, variant, recipe), seed in itertools.product(recipes, TRIAL_SEEDS)
            if (model, variant, recipe.reader, recipe.lr, seed) not in losses
        ]
        for done in in_processes(trial, jobs, options.workers, "trials"):
            losses[done[:5]] = done
            write_rows(path, list(losses.values()))
        best = least(recipes, losses)
        wanted = {pair: widened(rates, best[pair].lr) for pair, rates in asked.items()}
    return best


def least(recipes: list[tuple[str, str, Recipe]], losses: dict[tuple[Any, ...], Trial]) -> dict[Any, Recipe]:
    """The recipe of the least mean loss, of each model and variant."""
    best: dict[tuple[str, str], tuple[float, Recipe]] = {}
    for model, variant, recipe in recipes:
        tried = [losses[model, variant, recipe.reader, recipe.lr, seed].loss for seed in TRIAL_SEEDS]
        found = statistics.fmean(tried), recipe
        best[model, variant] = min(best.get((model, variant), found), found)
    return {pair: recipe for pair, (_, recipe) in best.items()}


def widened(rates: list[float], best: float) -> list[float]:
    """Rising rates, and one more beyond the best if that is the first or the last of them; none below a millionth."""
    if best < LOWEST_RATE:  # such a model diverges, or learns nothing, at any rate
        return rates
    before, after = [rates[0] / 2] * (best == rates[0]), [rates[-1] * 2] * (best == rates[-1])
    return before + rates + after
