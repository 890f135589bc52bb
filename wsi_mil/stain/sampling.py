"""Which pixels of a slide its stain is fitted on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from wsi_mil.grid import spread

_TILES, _PX, _SEED = 128, 75, 0  # of each sampled tile, at most 75 x 75 pixels, evenly spaced
_MAX_MARK = 0.01  # share of a tile that may be pen or black

RECIPE: dict[str, Any] = {
    "sample_tiles": _TILES,
    "sample_px": _PX,
    "seed": _SEED,
    "draw": "spread",  # `grid.spread`; a change of how it draws must change this word
    "max_pen": _MAX_MARK,
    "max_black": _MAX_MARK,
}
"""What decides which pixels they are."""


def sample(
    coords: Int64[np.ndarray, "tiles 2"], measured: Mapping[str, Shaped[np.ndarray, "tiles *more"]]
) -> Int64[np.ndarray, "sampled 2"]:
    """Draw at most 128 tiles, evenly over the tissue, always the same ones, in their order.

    Ink and black would be taken for stain: where some tiles have next to none of it, only they are drawn from.

    Args:
        coords: where all the tiles are.
        measured: columns of the tiles, of which ``pen`` and ``black`` count, where they are known.
    """
    clean = np.ones(len(coords), bool)
    for name in ("pen", "black"):
        if name in measured:
            clean &= measured[name] <= _MAX_MARK
    if clean.any():
        coords = coords[clean]
    return coords[spread(coords, _TILES, _SEED)]


def thinned(tiles: UInt8[np.ndarray, "tiles height width 3"]) -> UInt8[np.ndarray, "pixels 3"]:
    """Some pixels of each tile, evenly spaced."""
    steps = (-(-side // _PX) for side in tiles.shape[1:3])
    return tiles[:, :: next(steps), :: next(steps)].reshape(-1, 3)
