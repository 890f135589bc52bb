"""What the readers of drawn files agree on: a polygon as it was drawn, and its class."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import shapely
from jaxtyping import Float

UNCLASSIFIED = "Unclassified"
"""Class of a polygon that was given none; QuPath's word."""
_FAR_PX = 1e9


class Mark(NamedTuple):
    """One polygon as it was drawn: it may cross itself."""

    name: str
    """Its class; "" where it only cuts."""
    polygon: shapely.Polygon
    cuts: bool = False
    """It is cut out of every other class."""


class Marks(NamedTuple):
    """All that a file holds."""

    polygons: list[Mark]
    flat: int
    """Things without an area: points, lines."""


def polygon(rings: Sequence[Any]) -> shapely.Polygon | None:
    """Make a polygon of an outline and its holes, each a list of points; None where the outline has no area.

    Raises:
        ValueError: they are no lists of points.
    """
    lines = [_points(ring) for ring in rings]
    if not lines or len(lines[0]) < 3:
        return None
    return shapely.Polygon(lines[0], [line for line in lines[1:] if len(line) >= 3])


def _points(ring: Any) -> Float[np.ndarray, "points 2"]:
    try:
        points = np.array(ring, float)
    except (TypeError, ValueError) as error:
        raise ValueError("has an outline that is no list of points [x, y]") from error
    if not points.size:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError("has an outline that is no list of points [x, y]")
    if not (np.abs(points) < _FAR_PX).all():  # nor is what is no number
        raise ValueError("has an outline with a point that lies on no slide")
    return points[:, :2]
