import json

import numpy as np
import pytest
import shapely

from wsi_mil.geometry import outline, rings, to_geojson


def ring_mask() -> np.ndarray:
    """A square with a hole, an island inside the hole, and a part that touches the border."""
    mask = np.zeros((40, 60), bool)
    mask[5:35, 5:35] = True
    mask[10:30, 10:30] = False
    mask[15:25, 15:25] = True
    mask[:, 50:] = True
    return mask


def test_parts_holes_and_islands_are_told_apart():
    polygons = outline(ring_mask(), 1.0, 1.0)
    assert [len(polygon.interiors) for polygon in polygons] == [1, 0, 0]
    assert [polygon.area for polygon in polygons] == pytest.approx([500, 400, 100], rel=0.01)
    assert all(polygon.is_valid for polygon in polygons)


def test_outlines_are_in_level_0_pixels_per_axis():
    corner = outline(ring_mask(), 16.0, 8.0)[1]
    assert corner.bounds == (800, 0, 960, 320)


def test_an_outline_holds_the_pixels_of_its_mask():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((12, 15)) > 0.5, np.ones((6, 6))).astype(bool)
    area = shapely.union_all(outline(mask, 1.0, 1.0))
    rows, columns = np.indices(mask.shape)
    assert np.array_equal(shapely.contains_xy(area, columns + 0.5, rows + 0.5), mask)


def test_an_empty_mask_has_no_outline():
    assert outline(np.zeros((5, 5), bool), 1.0, 1.0) == []
    assert json.loads(to_geojson([], "Tissue")) == {"type": "FeatureCollection", "features": []}


def test_geojson_reads_back():
    polygons = outline(ring_mask(), 4.0, 4.0)
    features = json.loads(to_geojson(polygons, "Tissue"))["features"]
    read = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert all(one.equals(other) for one, other in zip(read, polygons, strict=True))
    assert all(one.exterior.is_ccw and not any(hole.is_ccw for hole in one.interiors) for one in read)
    assert features[0]["properties"]["classification"] == {"name": "Tissue"}


def test_rings_are_closed():
    lines = rings(outline(ring_mask(), 1.0, 1.0))
    assert len(lines) == 4
    assert all(line[0] == line[-1] for line in lines)
