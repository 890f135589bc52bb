"""What models do with distances: asked of a training, of a cross-validation, and of a checkpoint."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from wsi_mil.aggregators import Aggregator
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.checkpoint import Checkpoint
from wsi_mil.cohort import Unit
from wsi_mil.errors import one_line
from wsi_mil.explain import AtDistance, Head, Reliance, enrichment, learnt_distances, reliance
from wsi_mil.stage import artifact_path, attempt
from wsi_mil.tile_distances import TileDistances
from wsi_mil.train import Trained
from wsi_mil.training_bags import facts_of

log = logging.getLogger(__name__)

_Told = TypeVar("_Told")

SLIDES = 8
"""So many are looked at, at most."""
_MOST_TILES = 5000  # of a slide that an answer waits for


@dataclass(frozen=True)
class DistanceUse:
    """What a model does with distances; all empty for one that does not use them so."""

    heads: Sequence[Head] = ()
    found: Sequence[AtDistance] = ()
    relied: Sequence[Reliance] = ()
    tiles: TileDistances | None = None
    """How far apart the tiles of the training patients lie; None: the checkpoint does not tell."""
    asked: str = ""
    """On which slides the effect was measured; "" where it was not."""

    @classmethod
    def of(
        cls, model: Aggregator, training: Mapping[str, Any], bags: Callable[[], Iterable[Bag]], asked: str = ""
    ) -> "DistanceUse":
        """Ask a model.

        Args:
            model: a trained model or ensemble.
            training: `Checkpoint.training`.
            bags: gives what it is asked about, anew each time, so that they need not all be in memory at once.
            asked: what these are, as "slides that it did not learn from".
        """
        heads = _or_nothing(list[Head](), learnt_distances, model)
        found, relied = _or_nothing(([], []), lambda: (enrichment(model, bags()), reliance(model, bags())))
        return cls(heads, found, relied, TileDistances.recorded(training), asked)

    @classmethod
    def recorded(cls, made: Checkpoint) -> "DistanceUse":
        """What the checkpoint alone tells: curves, and how far apart the tiles of training lie."""
        return cls(learnt_distances(made.model()), tiles=TileDistances.recorded(made.training))


def _or_nothing(nothing: _Told, tell: Callable[..., _Told], *about: Any) -> _Told:
    """What is told; nothing where that fails, for an explanation is not worth the training."""
    told = attempt(tell, *about)
    if isinstance(told, Exception):
        log.warning("what distance does to attention is not told: %s", one_line(told))
        return nothing
    return told


def distance_use(trained: Trained, feats: Path, device: torch.device) -> DistanceUse:
    """What a training made of distances, by some slides that it did not learn from."""
    unseen = [unit for unit in trained.cohort.units if unit.split != "train"]
    made = trained.checkpoint
    read = some_bags(unseen, feats, made.training["params"]["learn"]["seed"])
    return DistanceUse.of(made.model().to(device), made.training, read, "that it did not learn from")


def some_bags(units: Sequence[Unit], feats: Path, seed: int) -> Callable[[], Iterator[Bag]]:
    """What reads a few bags of a cohort, each time the same ones, drawn at random."""
    chosen = np.random.default_rng(seed).choice(len(units), min(SLIDES, len(units)), replace=False)

    def read() -> Iterator[Bag]:
        for unit in (units[index] for index in sorted(chosen.tolist())):
            yield as_one([read_bag(artifact_path(feats, member.slide_id)) for member in unit.members], unit.bag_id)

    return read


def predicted_distances(made: Checkpoint, paths: Sequence[Path], device: str) -> DistanceUse:
    """What a checkpoint made of distances, with the effect on the first few predicted slides.

    Large slides are left out, so that an answer does not wait for this.

    Args:
        made: the checkpoint.
        paths: features that it was asked about; of none, the checkpoint alone tells.
        device: where the model runs.
    """
    there = [path for path in paths if path.exists()]
    sizes = ((path, facts_of(path).tiles) for path in there)
    chosen = [path for path, tiles in sizes if 1 < tiles <= _MOST_TILES][:SLIDES]
    use = DistanceUse.recorded(made)
    if not chosen or not (use.heads or made.model().single_models()[0].distance_tables()):
        return use
    model = made.model().to(device)
    return DistanceUse.of(model, made.training, lambda: map(read_bag, chosen), "that are predicted here")


def part_of(head: Head) -> str:
    """What a head biases, where it does not bias all alike."""
    return "" if "+" in head.part else f" ({head.part})"


def members(each: Sequence[Head | AtDistance | Reliance]) -> int:
    """How many models an ensemble has."""
    return max(one.member for one in each)
