"""Values of tiles as a picture, however many tiles and however they overlap."""

import numpy as np
from jaxtyping import Float, Int64

from wsi_mil.explain.places import Places


def boxes(places: Places, l0_size: tuple[int, int], size_px: tuple[int, int]) -> Int64[np.ndarray, "tiles 4"]:
    """Left, top, right and bottom of tiles in a picture of the whole slide, whole pixels, each at least one wide.

    Args:
        places: the tiles.
        l0_size: (width, height) of the slide, level-0 pixels.
        size_px: (width, height) of the picture.
    """
    scale = np.array(size_px) / l0_size
    low = np.clip((places.coords * scale).round(), 0, np.array(size_px) - 1)
    high = np.maximum(((places.coords + np.array(places.l0_tile)) * scale).round(), low + 1)
    return np.hstack([low, high]).astype(np.int64)


def painted(
    values: Float[np.ndarray, " tiles"], where: Int64[np.ndarray, "tiles 4"], rows: tuple[int, int], width: int
) -> Float[np.ndarray, "height width"]:
    """Paint boxes: each pixel is the mean of the tiles that cover it, NaN where none does.

    Tiles are added as steps at their corners and summed up once, so the time is that of the pixels plus that of the
    tiles, and never of both.

    Args:
        values: of the tiles.
        where: their boxes (`boxes`).
        rows: the first row of the picture to paint, and the one after the last.
        width: of the picture, pixels.
    """
    top, bottom = rows
    seen = (where[:, 1] < bottom) & (where[:, 3] > top)
    box = np.clip(where[seen] - (0, top, 0, top), 0, (width, bottom - top, width, bottom - top))
    steps = np.zeros((2, bottom - top + 1, width + 1))
    weights = np.stack([values[seen], np.ones(seen.sum())])
    for row, column, sign in ((1, 0, 1), (1, 2, -1), (3, 0, -1), (3, 2, 1)):
        for plane, weight in zip(steps, weights, strict=True):
            np.add.at(plane, (box[:, row], box[:, column]), sign * weight)
    total, count = steps.cumsum(1).cumsum(2)[:, :-1, :-1]
    covered = count > 0.5
    return np.where(covered, total / np.where(covered, count, 1), np.nan)
