"""Files of drawn polygons: what they cover, by class.

QuPath's GeoJSON and our own, ASAP's XML, and the JSON that CAMELYON16's outlines are passed on in. Each becomes the
same `Drawing`: valid areas, polygons of one class united, holes and cut-out groups taken off.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from jaxtyping import Float
from shapely.geometry.base import BaseGeometry

from wsi_mil.errors import PolygonError
from wsi_mil.geometry import asap, geojson
from wsi_mil.geometry.marks import Mark

log = logging.getLogger(__name__)

Area = BaseGeometry
"""Valid polygons, level-0 pixels; what it is made of is nobody's business outside this package."""
SUFFIXES = (".geojson", ".json", ".xml")
"""Of files with polygons."""


class Drawing(NamedTuple):
    """What a file of polygons says."""

    areas: dict[str, Area]
    """What each class covers, sorted by name; polygons that overlap count once."""
    cut: Area
    """What was cut out of every class (ASAP's groups `Exclusion` and `_2`); it is of no class itself."""
    bounds: Float[np.ndarray, "polygons 4"]
    """Left, top, right and bottom of each polygon of the file."""


def read_drawing(path: Path) -> Drawing:
    """Read a file of polygons.

    Polygons that cross themselves are repaired, and what has no area (points, lines) is passed over; the log says how
    many.

    Args:
        path: GeoJSON (`.geojson`, `.json`), CAMELYON16's JSON (`positive`, `negative`), or ASAP's XML (`.xml`).

    Raises:
        PolygonError: it cannot be read as such; the message says why, and what to do.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolygonError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        marks = asap.parse(data) if path.suffix.lower() == ".xml" else geojson.parse(data)
    except ValueError as error:
        raise PolygonError(f"{path} {error}: export it again, from QuPath as GeoJSON or from ASAP as XML") from error
    drawn = np.array([mark.polygon for mark in marks.polygons], object)
    crossing = ~shapely.is_valid(drawn)
    # Of the two ways to repair, this one keeps what a line that crosses itself goes around, as its drawer meant it.
    drawn[crossing] = shapely.make_valid(drawn[crossing], method="structure", keep_collapsed=False)
    flat = shapely.area(drawn) == 0
    _tell(path, int((crossing & ~flat).sum()), marks.flat + int(flat.sum()))
    parts = [(mark, area) for mark, area, none in zip(marks.polygons, drawn, flat, strict=True) if not none]
    return Drawing(*_united(parts), shapely.bounds(drawn[~flat]).reshape(-1, 4))


def merged(areas: Iterable[Area]) -> Area:
    """All that any of some areas covers."""
    return shapely.disjoint_subset_union_all(list(areas))  # far faster than union_all where most lie apart, as cells do


def without(area: Area, cut: Area) -> Area:
    """What an area covers and another does not."""
    return shapely.difference(area, cut)


def _united(parts: list[tuple[Mark, Area]]) -> tuple[dict[str, Area], Area]:
    """What each class covers, and what is cut out of all."""
    by_name = defaultdict[str, list[Area]](list)
    for mark, area in parts:
        by_name[mark.name].append(area)
    cuts = {mark.name: merged(by_name[mark.name]) for mark, _ in parts if mark.cuts}
    areas = {}
    for name in sorted(by_name.keys() - {""}):
        others = merged(cut for owner, cut in cuts.items() if owner != name)
        areas[name] = without(merged(by_name[name]), others)
    return areas, cuts.get("", shapely.MultiPolygon())


def _tell(path: Path, repaired: int, flat: int) -> None:
    if repaired:
        log.info("%s: repaired %d polygons that cross themselves", path, repaired)
    if flat:
        log.warning("%s: passed over %d points, lines and other things without an area", path, flat)
