"""One slide on its way through the stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor

from wsi_mil.encoders import Encoder
from wsi_mil.runs import Timing


@runtime_checkable
class Column(Protocol):
    """The features of one slide by one encoder, as they come."""

    encoder: Encoder
    error: Exception | None
    """Why no more are wanted."""

    def fill(self, start: int, features: Float32[Tensor, "tiles dim"]) -> None:
        """Take the features of the tiles from ``start`` on; what is wrong with them becomes the ``error``."""
        ...


def _nothing(*_: object) -> Any:
    """What there is to do for a slide without tiles."""


@dataclass(frozen=True)
class Tiles:
    """The tiles of a slide that is open."""

    columns: Sequence[Column] = ()
    """One for each encoder that is to see them."""
    count: int = 0
    side_px: int = 0
    """Side of a tile as it is read."""
    read: Callable[[int, int], UInt8[np.ndarray, "tiles side side 3"]] = _nothing
    """Reads the tiles from ``start`` to ``stop``; in several threads at once."""
    close: Callable[[], None] = _nothing
    """Lets go of the slide, when nobody reads it any more."""


@runtime_checkable
class Source(Protocol):
    """A slide that will be opened when its turn comes."""

    def open(self) -> Tiles:
        """Open it, in a thread; what this raises fails that slide alone."""
        ...


Slide = TypeVar("Slide", bound=Source)


@dataclass(eq=False)
class Work(Generic[Slide]):
    """A slide, and how far it has come. Changed by the thread that encodes only; others may look at ``over``."""

    source: Slide
    tiles: Tiles = field(default_factory=Tiles)
    """There are none where it could not be opened."""
    error: Exception | None = None
    """Why the slide failed, for all encoders."""
    timing: Timing = field(default_factory=Timing)
    over: bool = False
    """Nothing more is wanted of it: it is done, or has failed."""
    planned: int = 0
    """Tiles that have been handed out to be read."""
    reading: int = 0
    """Pieces of it that threads may still be reading."""
    returned: int = 0
    """Tiles that have come back from the encoders."""

    def wanted_by(self, encoder: Encoder) -> Column | None:
        """The column that this encoder still has to fill, if there is one."""
        columns = () if self.over else self.tiles.columns
        return next((column for column in columns if column.encoder is encoder and not column.error), None)
