"""The bags of a cohort as a training wants them: read when asked for, of one make, and described by a few numbers."""

import functools
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from wsi_mil import learning, store
from wsi_mil.aggregators import Aggregator
from wsi_mil.bags import Bag, as_one, read_bag
from wsi_mil.checkpoint import Recipe
from wsi_mil.cohort import Unit
from wsi_mil.domain import SlideFacts, slides_of
from wsi_mil.errors import IncompatibleError
from wsi_mil.learning import Example
from wsi_mil.memory import available_memory
from wsi_mil.stage import artifact_path

_MEMORY_FOR_BAGS = 4 << 30
_SHARE_FOR_BAGS = 0.25


class Facts(NamedTuple):
    """What a training asks again and again about a slide's features."""

    tiles: int
    mpp: float
    """Micrometres per pixel of its level 0; nan without tiles."""


def facts_of(path: Path) -> Facts:
    """Facts of a features artifact; this version of the file is opened once, however many rounds ask for them."""
    status = path.stat()
    return _facts_of(path, status.st_ino, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1 << 20)
def _facts_of(path: Path, inode: int, mtime_ns: int, size: int) -> Facts:
    said = store.survey(path)
    tiles = said.shapes["features"][0]
    return Facts(tiles, float(said.attrs["mpp_x"]) if tiles else math.nan)


class Bags:
    """The bags of a cohort, read when asked for, and kept while all of them fit into memory.

    Args:
        folder: where they lie.
        units: of the cohort.
        processes: of this machine that share the training; each keeps them for itself, and so does who starts them.
    """

    def __init__(self, folder: Path, units: Iterable[Unit], processes: int = 1) -> None:
        self.paths = {
            unit.bag_id: tuple(artifact_path(folder, member.slide_id) for member in unit.members) for unit in units
        }
        # float16 on disk becomes float32 in memory
        copies = processes + 1 if processes > 1 else 1
        size = 2 * copies * sum(path.stat().st_size for path in self._files())
        self.reserved = size if size < min(_MEMORY_FOR_BAGS, _SHARE_FOR_BAGS * available_memory()) else 0
        """Bytes that will be kept, in all processes together: all or none."""
        self._kept: dict[str, Bag] = {}

    def __getitem__(self, bag_id: str) -> Bag:
        bag = self._kept.get(bag_id) or as_one([read_bag(path) for path in self.paths[bag_id]], bag_id)
        if self.reserved:
            self._kept[bag_id] = bag
        return bag

    def __getstate__(self) -> dict[str, Any]:
        """What another process is given: it reads for itself."""
        return {**self.__dict__, "_kept": {}}

    @property
    def first(self) -> Path:
        """The features of one slide, whose make is that of all."""
        return next(self._files())

    @property
    def dim(self) -> int:
        """Length of a slide's features, without reading them."""
        return store.survey(self.first).shapes["features"][1]

    def has(self, bag_ids: Iterable[str]) -> bool:
        """Whether all of these are in memory."""
        return self._kept.keys() >= set(bag_ids)

    def attrs(self) -> Mapping[Path, dict[str, Any]]:
        """What the artifacts say of themselves."""
        return {path: store.read_attrs(path) for path in self._files()}

    def tiles(self, bag_id: str) -> int:
        """How many tiles a bag has, without reading their features."""
        return sum(facts_of(path).tiles for path in self.paths[bag_id])

    def _files(self) -> Iterator[Path]:
        return (path for paths in self.paths.values() for path in paths)


class UnitExamples:
    """Units of a cohort as examples to learn from, read one by one."""

    def __init__(self, bags: Bags, units: list[Unit], classes: tuple[str, ...]) -> None:
        self.bags, self.units = bags, units
        self.targets = [classes.index(unit.label) for unit in units]

    @functools.cached_property
    def tiles(self) -> list[int]:
        """How many tiles each bag has, without reading their features."""
        return [self.bags.tiles(unit.bag_id) for unit in self.units]

    @property
    def in_memory(self) -> bool:
        """Whether all of them were read and kept."""
        return self.bags.has(unit.bag_id for unit in self.units)

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> Example:
        return Example(self.bags[self.units[index].bag_id], self.targets[index])

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))


def require_memory(model: Aggregator, bags: Bags, trained: Iterable[Unit], max_tiles: int, devices: int = 1) -> None:
    """Refuse before the first step what would fail, or be killed, hours later: in training, or when all is asked.

    Raises:
        TrainingError: the largest bag to train on, or the largest of all, will not fit.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    at_once = 1 if on_gpu else learning.processes_here(devices)  # each GPU has memory of its own
    (tiles, bag_id), *others = _largest(bags, {unit.bag_id for unit in trained}, at_once)
    most = max_tiles or tiles
    beside = [min(count, most) for count, _ in others]
    learning.require_memory(model, bag_id, min(tiles, most), bags.reserved, beside)
    ((tiles, bag_id),) = _largest(bags, bags.paths, 1)
    learning.require_memory_to_ask(model, bag_id, tiles, bags.reserved, [tiles] * (at_once - 1))


def _largest(bags: Bags, bag_ids: Iterable[str], count: int) -> list[tuple[int, str]]:
    """The largest of some bags, with how many tiles they have; the largest first."""
    return heapq.nlargest(count, ((bags.tiles(bag_id), bag_id) for bag_id in bag_ids))


def require_one_recipe(bags: Bags) -> None:
    """Refuse bags that were not all made in the same way.

    Raises:
        IncompatibleError: names two that were not.
    """
    attrs = bags.attrs()
    first_path, first = next(iter(attrs.items()))
    for path, other in attrs.items():
        Recipe.of(first).require(Recipe.of(other), path)
        for key in ("tile_params", "params"):
            if first[key] != other[key]:
                raise IncompatibleError(
                    f"{path} was made with {other[key]}, {first_path} with {first[key]}: make one of them again"
                )


class Statistics(NamedTuple):
    """Of the features of all tiles of some bags."""

    mean: Float[Tensor, " dim"]
    std: Float[Tensor, " dim"]
    tiles: int


def feature_statistics(bags: Iterable[Bag]) -> Statistics:
    """Mean and standard deviation of each feature over all tiles, and how many those are."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for bag in bags:
        features = bag.features.double()
        count += len(features)
        total = total + features.sum(dim=0)
        squares = squares + features.square().sum(dim=0)
    mean = total / count
    return Statistics(mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float(), count)


def slide_facts_of(bags: Bags, units: Iterable[Unit]) -> list[SlideFacts]:
    """What the slides of some units are like, read one bag after the other."""
    facts = []
    for unit in units:
        slides = map(facts_of, bags.paths[unit.bag_id])
        facts += slides_of(bags[unit.bag_id], [slide.mpp for slide in slides if slide.tiles])
    return facts
