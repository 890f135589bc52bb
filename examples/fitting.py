"""Aggregators learnt from bags in memory, as `wsimil train` learns them from a cohort. Other examples import it."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from wsi_mil import metrics
from wsi_mil.aggregators import Aggregator, infer
from wsi_mil.aggregators.das_mil import FARTHEST_QUANTILE, length_scales
from wsi_mil.aggregators.grid import typical_pitch_um
from wsi_mil.learning import Example, LearnParams, learn
from wsi_mil.tasks import Classification


class InMemory:
    """Examples in memory, in the form that `wsi_mil.learning.learn` asks for."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.examples = list(examples)

    @property
    def targets(self) -> list[int]:
        """Their classes."""
        return [example.target for example in self.examples]

    @property
    def tiles(self) -> list[int]:
        """How many tiles each has."""
        return [len(example.bag.features) for example in self.examples]

    @property
    def in_memory(self) -> bool:
        """They all are."""
        return True

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def fit(kind: type[Aggregator], train: InMemory, val: InMemory, params: LearnParams, **options: Any) -> Aggregator:
    """Learn a model; ``params.seed`` decides its first weights too.

    As in `wsi_mil.train`, features are standardised by the training bags alone. So are all lengths chosen here, where
    `wsi_mil.train` chooses the length scales of das-mil only.

    Args:
        kind: the model's class; ``wsi_mil.aggregators.AGGREGATORS[name]`` for one of the registry.
        train: bags to learn from, of every class at least one.
        val: bags to stop by.
        params: how to learn.
        **options: of the model; those given here are left as they are.
    """
    features = torch.cat([example.bag.features for example in train]).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        chosen = kind.Params(**(lengths(kind, train, options) | options))
        classes = tuple(map(str, range(max(train.targets) + 1)))
        model = kind(features.shape[1], len(classes), chosen)
        model.fit_features(features.mean(dim=0).float(), features.std(dim=0, correction=0).float())
        learn(model, Classification.balanced(classes, train.targets), train, val, params)
    return model


def scores(model: Aggregator, examples: InMemory) -> Float[np.ndarray, "bags classes"]:
    """Probabilities of the classes of each bag."""
    return np.stack([infer(model, example.bag).probabilities for example in examples])


def auroc(model: Aggregator, examples: InMemory) -> float:
    """Area under the ROC curve of a model."""
    return metrics.auroc(np.array(examples.targets), scores(model, examples))


def accuracy(model: Aggregator, examples: InMemory) -> float:
    """Share of the bags whose likeliest class is theirs."""
    return float((scores(model, examples).argmax(axis=1) == examples.targets).mean())


def lengths(kind: type[Aggregator], train: Iterable[Example], options: dict[str, Any]) -> dict[str, Any]:
    """Options in micrometres, from how far apart the tiles of the training bags lie; none where all lie in one place.

    Length scales as `wsi_mil.train` chooses them. The published models divide by the largest distance of their cohort.
    A grid has the same pitch for all bags, that of all tiles together.

    Args:
        kind: the model's class.
        train: bags to learn from.
        options: those given otherwise.
    """
    chosen: dict[str, Any] = {field.name: field.default for field in fields(kind.Params)} | options
    places = [example.bag.coords_um for example in train]
    um = torch.cat([torch.pdist(each) for each in places])
    if not um.any():
        return {}
    found: dict[str, Any] = {}
    if "length_scales_um" in chosen:
        nearest, farthest = np.quantile(um[um > 0].numpy(), [0.0, FARTHEST_QUANTILE])
        found["length_scales_um"] = length_scales(nearest, farthest, chosen["heads"])
    if "max_distance_um" in chosen:
        found["max_distance_um"] = float(um.max())
    if "tile_um" in chosen:
        bag = torch.arange(len(places)).repeat_interleave(torch.tensor(list(map(len, places))))
        found["tile_um"] = typical_pitch_um(torch.cat(places), bag)
    return found
