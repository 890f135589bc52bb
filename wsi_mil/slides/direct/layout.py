"""How the pixels of one level lie in a file: a lattice of compressed tiles."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

Compressed = bytes | memoryview
Decoder = Callable[[Compressed], UInt8[np.ndarray, "height width 3"]]


class NotDirect(Exception):
    """Why a slide cannot be read from its tiles; OpenSlide reads it then."""


@dataclass(frozen=True)
class TileTable:
    """The compressed tiles of one level, row by row.

    Tiles at the right and lower border reach over the level, which ends within them.
    """

    width: int
    """Of the level, pixels."""
    height: int
    tile_width: int
    tile_height: int
    offsets: Int64[np.ndarray, "tiles"]
    """Where each begins in the file, bytes."""
    counts: Int64[np.ndarray, "tiles"]
    """How long each is, bytes; 0 where the tile was never scanned."""
    decode: Decoder
    """Makes the pixels of a whole tile of its bytes. Thread-safe."""
    reduced_decoder: Callable[[int], Decoder] | None = None
    """Makes a decoder to a half, a quarter or an eighth of the size; None where the codec has no such thing."""
    path: Path | None = None
    """The file that they lie in, if not in the slide's own."""

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        """Tiles in a column."""
        return -(-self.height // self.tile_height)

    def reduced(self, factor: int) -> "TileTable | None":
        """The same tiles, decoded at such a fraction of their size, if they can be."""
        if self.reduced_decoder is None or self.tile_width % factor or self.tile_height % factor:
            return None
        return replace(
            self,
            width=-(-self.width // factor),
            height=-(-self.height // factor),
            tile_width=self.tile_width // factor,
            tile_height=self.tile_height // factor,
            decode=self.reduced_decoder(factor),
            reduced_decoder=None,
        )

    def corner(self, index: int) -> tuple[int, int]:
        """Where a tile begins (x, y), in pixels of the level."""
        row, column = divmod(index, self.columns)
        return column * self.tile_width, row * self.tile_height
