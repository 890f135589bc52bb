"""What is learnt from: bags with their targets, read ahead of the device; and what an epoch leaves behind."""

import random
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from wsi_mil.bags import Bag, Batch, collate
from wsi_mil.executors import map_ordered


class Example(NamedTuple):
    """A bag and its target: what the task makes of it, such as the index of its class."""

    bag: Bag
    target: Any


@runtime_checkable
class Examples(Protocol):
    """Examples that may come from disk: each is read when it is asked for."""

    @property
    def targets(self) -> Sequence[Any]:
        """Their targets, without reading any."""
        ...

    @property
    def tiles(self) -> Sequence[int]:
        """How many tiles each has, without reading any; asked where several devices share them."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether asking for one takes no time, so that reading ahead would gain nothing."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Epoch(NamedTuple):
    """The figures of one epoch; losses are weighted by class."""

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    figures: Mapping[str, float]
    """What else the task says of the validation bags, by name."""

    def row(self) -> dict[str, int | float]:
        """All of it by name, in the order of a table's columns."""
        return {**{name: getattr(self, name) for name in self._fields[:-1]}, **self.figures}

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Epoch":
        """From its `row`."""
        figures = {name: value for name, value in row.items() if name not in cls._fields}
        return cls(*(row[name] for name in cls._fields[:-1]), figures)


class Pace(NamedTuple):
    """How fast an epoch went over the training bags, on this device."""

    bags: int
    seconds: float
    waited: float
    """Seconds of those in which the device waited for bags."""

    @property
    def rate(self) -> float:
        """Bags per second."""
        return self.bags / max(self.seconds, 1e-9)


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch that is kept: the first of lowest validation loss."""
    return min(history, key=lambda epoch: epoch.val_loss)


class Ready(NamedTuple):
    """A bag as a model takes it."""

    index: int
    batch: Batch
    target: Any


@contextmanager
def prefetch(
    examples: Examples, indices: Sequence[int], max_tiles: int = 0, seeds: Sequence[int] = ()
) -> Generator[Iterable[Ready]]:
    """Read examples in a given order, each in a thread while the one before it is worked on.

    An exception in the thread comes out where its example would have. What is in memory is not read ahead.

    Args:
        examples: what to read of.
        indices: which, in order.
        max_tiles: take so many tiles of a larger bag; 0 = all.
        seeds: decide, together with the index, which tiles those are.
    """
    ready = partial(_ready, examples, max_tiles, seeds)
    if examples.in_memory:
        yield map(ready, indices)
        return
    reading = map_ordered(ready, indices, workers=1)
    try:
        yield reading
    finally:
        reading.close()


def _ready(examples: Examples, max_tiles: int, seeds: Sequence[int], index: int) -> Ready:
    bag, target = examples[index]
    return Ready(index, collate([some_tiles(bag, max_tiles, (*seeds, index))]), target)


def some_tiles(bag: Bag, count: int, seeds: Sequence[int]) -> Bag:
    """A random part of a bag, its tiles in order, decided by some numbers; the bag itself where it is no larger."""
    if not 0 < count < len(bag.features):
        return bag
    drawn = random.Random(repr(tuple(seeds))).sample(range(len(bag.features)), count)
    rows = torch.tensor(sorted(drawn))
    slide = None if bag.slide is None else bag.slide[rows]
    return bag._replace(features=bag.features[rows], coords_um=bag.coords_um[rows], slide=slide)
