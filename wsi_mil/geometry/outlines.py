"""The outline of a mask, as GeoJSON in level-0 pixels."""

import json
from typing import Any

import numpy as np
import shapely
from jaxtyping import Bool
from shapely.geometry.base import BaseGeometry
from skimage.measure import find_contours


def outline(mask: Bool[np.ndarray, "height width"], l0_scale_x: float, l0_scale_y: float) -> list[shapely.Polygon]:
    """Trace a mask.

    Args:
        mask: True inside.
        l0_scale_x: level-0 pixels per pixel of the mask, along its width.
        l0_scale_y: and along its height.

    Returns:
        One polygon with its holes for each connected part, in level-0 pixels, largest first. The outline runs along
        the edges of pixels, cutting their corners, and strays less than half a pixel of the mask from that.
    """
    rings = [shapely.LineString(ring[:, ::-1] - 0.5) for ring in find_contours(np.pad(mask, 1).astype(np.float32), 0.5)]
    area = shapely.build_area(shapely.MultiLineString(rings))  # rings of one mask never cross: inside one is a hole
    simple = shapely.simplify(area, tolerance=0.25)
    scaled = shapely.transform(simple, lambda points: np.round(points * (l0_scale_x, l0_scale_y), 1))
    return sorted(_polygons(scaled), key=lambda polygon: -polygon.area)


def to_geojson(shapes: BaseGeometry | list[shapely.Polygon], name: str) -> bytes:
    """Write polygons as a GeoJSON feature collection that QuPath opens as annotations of class ``name``.

    As RFC 7946 has it, outlines run counter-clockwise and holes clockwise, x and y taken as they stand.
    """
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(shapely.orient_polygons(polygon)),
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for polygon in _polygons(shapes)
    ]
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    return json.dumps(collection, separators=(",", ":")).encode()


def rings(shapes: BaseGeometry | list[shapely.Polygon]) -> list[list[tuple[float, float]]]:
    """The closed lines of polygons, outlines and holes alike, as (x, y) points: what a drawing needs."""
    return [list(ring.coords) for polygon in _polygons(shapes) for ring in (polygon.exterior, *polygon.interiors)]


def _polygons(shapes: BaseGeometry | list[shapely.Polygon]) -> list[shapely.Polygon]:
    parts = shapely.get_parts(np.asarray(shapes, object))
    return [part for part in parts if isinstance(part, shapely.Polygon) and not part.is_empty]
