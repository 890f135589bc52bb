"""GeoJSON, as QuPath of any version and wsimil write it, and the JSON that CAMELYON16's outlines are passed on in."""

from collections.abc import Iterator
from typing import Any

import shapely

from wsi_mil.geometry.marks import UNCLASSIFIED, Mark, Marks, polygon
from wsi_mil.guards import parse_json

_FLAT = ("Point", "MultiPoint", "LineString", "MultiLineString")
_CAMELYON = ("positive", "negative")
_DEPTH = 16
"""Of collections in collections; RFC 7946 advises against even two."""


def parse(data: bytes) -> Marks:
    """Read a FeatureCollection, a list of features, one feature, or a bare geometry.

    Raises:
        ValueError: it is something else.
    """
    try:
        content = parse_json(data)
    except ValueError as error:
        raise ValueError(f"is damaged or no JSON ({error})") from error
    if isinstance(content, dict) and "type" not in content and set(content) & set(_CAMELYON):
        found = list(_camelyon(content))
    else:
        found = [mark for feature in _features(content) for mark in _marks(feature)]
    polygons = [mark for mark in found if mark is not None]
    return Marks(polygons, len(found) - len(polygons))


def _features(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    elif isinstance(content, dict) and "type" in content:
        content = [content]
    if not isinstance(content, list) or not all(isinstance(feature, dict) for feature in content):
        raise ValueError("is JSON, but no GeoJSON with features")
    return [feature if feature.get("type") == "Feature" else {"geometry": feature} for feature in content]


def _marks(feature: dict[str, Any]) -> Iterator[Mark | None]:
    name = _class(feature.get("properties"))
    for drawn in _polygons(feature.get("geometry")):
        yield drawn and Mark(name, drawn)


def _polygons(geometry: Any, depth: int = 0) -> Iterator[shapely.Polygon | None]:
    """The polygons of a geometry; None for each thing without an area."""
    if depth > _DEPTH:
        raise ValueError("has collections in collections in collections, too many to be meant")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if geometry is None or kind in _FLAT:
        yield None
    elif kind == "Polygon":
        yield polygon(_listed(geometry, "coordinates"))
    elif kind == "MultiPolygon":
        yield from (polygon(rings) for rings in _listed(geometry, "coordinates"))
    elif kind == "GeometryCollection":
        for part in _listed(geometry, "geometries"):
            yield from _polygons(part, depth + 1)
    else:
        raise ValueError(f"has a geometry of type {kind}, which GeoJSON does not know")


def _listed(holder: dict[str, Any], key: str) -> list[Any]:
    value = holder.get(key)
    if not isinstance(value, list):
        raise ValueError(f"has a {holder.get('type', 'polygon')} without a list of {key}")
    return value


def _class(properties: Any) -> str:
    """The class of a feature; where it was given none, its own name, which some use for that.

    QuPath wrote a class as `{"name": ...}`, and writes one derived from others as `{"names": [...]}` too; GDAL writes
    either as text.
    """
    properties = properties if isinstance(properties, dict) else {}
    given = properties.get("classification")
    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = parse_json(given)
    if isinstance(given, dict):
        given = given.get("name") or ": ".join(map(str, given.get("names") or ()))
    return str(given or properties.get("name") or UNCLASSIFIED)


def _camelyon(content: dict[str, Any]) -> Iterator[Mark | None]:
    """Tumour is `positive`; `negative` has none: holes in it, or the tissue of a normal slide."""
    for key, name in zip(_CAMELYON, ("Tumor", "Normal"), strict=True):
        for drawn in content.get(key, []):
            if not isinstance(drawn, dict):
                raise ValueError(f"is JSON, but its {key} is no list of outlines")
            found = polygon([_listed(drawn, "vertices")])
            yield found and Mark(name, found, cuts=name == "Normal")
