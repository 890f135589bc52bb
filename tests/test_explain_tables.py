"""Tables and GeoJSON say the same of the same tiles, to the pixel."""

import csv
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
from explained import TILE, some_look, some_places

from wsi_mil.explain.annotations import class_colour, write_tile_detections, write_tissue
from wsi_mil.explain.tables import figures, told_classes, write_pairs, write_tiles
from wsi_mil.geometry import read_drawing, write_detections

TWO, THREE = ("far", "near"), ("a", "b, c", "d")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def features_of(path: Path) -> list[dict]:
    """The features of a file that is GeoJSON by RFC 7946, ours in the strict sense."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content.keys() == {"type", "features"}
    assert content["type"] == "FeatureCollection"
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        assert isinstance(feature["properties"], dict)
        assert feature["geometry"].keys() == {"type", "coordinates"}
        for ring in feature["geometry"]["coordinates"]:
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
    return content["features"]


def detections(tmp_path: Path, classes: tuple[str, ...], **kwargs: bool) -> tuple[list[dict], list[dict[str, str]]]:
    places = some_places()
    look = some_look(places, len(classes), **kwargs)
    columns = figures(look, places, classes)
    write_tile_detections(tmp_path / "tiles.geojson", "slide", places, look, classes, columns)
    write_tiles(tmp_path / "tiles.csv", places, columns)
    return features_of(tmp_path / "tiles.geojson"), rows_of(tmp_path / "tiles.csv")


def test_of_two_classes_only_the_last_is_told() -> None:
    assert list(told_classes(TWO)) == [1]
    assert list(told_classes(THREE)) == [0, 1, 2]
    places = some_places()
    assert list(figures(some_look(places), places, TWO)) == [
        "attention", "attended", "contribution_near", "occlusion_near", "coverage",
    ]  # fmt: skip
    names = figures(some_look(places, 3, pairs=False), places, THREE)
    assert {"contribution_a", "contribution_b, c", "contribution_d"} < names.keys()
    assert "attended" not in names


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_a_row_per_tile(tmp_path: Path, classes: tuple[str, ...]) -> None:
    _, rows = detections(tmp_path, classes)
    places, look = some_places(), some_look(some_places(), len(classes))
    assert [(int(row["l0_x"]), int(row["l0_y"])) for row in rows] == [tuple(corner) for corner in places.coords]
    assert [int(row["tile"]) for row in rows] == list(range(24))
    assert (float(rows[1]["x_um"]), float(rows[1]["y_um"])) == ((300 + 100) * 0.5, (200 + 50) * 1.0)
    assert look.contribution is not None
    for index in told_classes(classes):
        told = [float(row[f"contribution_{classes[index]}"]) for row in rows]
        assert told == pytest.approx(look.contribution[:, index], rel=1e-8, abs=1e-12)
    assert [row[f"occlusion_{classes[-1]}"] != "" for row in rows] == [False] * 22 + [True] * 2


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_detections_are_the_tiles_to_the_pixel_and_hold_the_same_figures(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    features, rows = detections(tmp_path, classes)
    for feature, row in zip(features, rows, strict=True):
        drawn = shapely.geometry.shape(feature["geometry"])
        x, y = int(row["l0_x"]), int(row["l0_y"])
        assert drawn.bounds == (x, y, x + TILE[0], y + TILE[1])
        assert drawn.is_valid
        assert drawn.exterior.is_ccw
        assert drawn.equals(shapely.box(*drawn.bounds))
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["name"] == f"tile {row['tile']}"
        told = {name: text for name, text in row.items() if name not in ("tile", "l0_x", "l0_y", "x_um", "y_um")}
        assert feature["properties"]["measurements"] == {name: float(text) for name, text in told.items() if text}


def test_detections_have_the_class_that_they_speak_for(tmp_path: Path) -> None:
    features, rows = detections(tmp_path, TWO)
    for feature, row in zip(features, rows, strict=True):
        index = int(float(row["contribution_near"]) > 0)
        told = feature["properties"]["classification"]
        assert told == {"name": TWO[index], "color": list(class_colour(index))}
    assert {feature["properties"]["classification"]["name"] for feature in features} == set(TWO)
    features, rows = detections(tmp_path, THREE)
    for feature, row in zip(features, rows, strict=True):
        most = max(THREE, key=lambda name: float(row[f"contribution_{name}"]))
        assert feature["properties"]["classification"]["name"] == most


def test_detections_of_a_model_that_does_not_tell_are_unclassified(tmp_path: Path) -> None:
    features, _ = detections(tmp_path, TWO, contribution=False)
    assert not any("classification" in feature["properties"] for feature in features)


def boxes_of(path: Path, owner: str, coords: np.ndarray, measured: dict[str, np.ndarray]) -> list[dict]:
    with path.open("w", encoding="utf-8") as file:
        write_detections(file, owner, coords, (4, 4), [None] * len(coords), measured)
    return features_of(path)


def test_ids_are_unique_and_the_same_again(tmp_path: Path) -> None:
    def ids(owner: str) -> list[str]:
        return [box["id"] for box in boxes_of(tmp_path / "x.geojson", owner, np.zeros((5, 2), np.int64), {})]

    assert ids("a") == ids("a")
    assert len({*ids("a"), *ids("b")}) == 10
    assert all(str(uuid.UUID(one)) == one for one in ids("a"))


def test_any_name_and_no_box_at_all(tmp_path: Path) -> None:
    measured = {'100 % "é"': np.array([1.5, 2.5]), "odd": np.array([np.nan, 1e-12])}
    boxes = boxes_of(tmp_path / "x.geojson", "a", np.array([[0, 0], [4, 0]]), measured)
    told = [box["properties"]["measurements"] for box in boxes]
    assert told == [{'100 % "é"': 1.5}, {'100 % "é"': 2.5, "odd": 1e-12}]
    assert boxes_of(tmp_path / "x.geojson", "a", np.zeros((0, 2), np.int64), {"x": np.zeros(0)}) == []


def test_tissue_reads_back_as_the_same_area(tmp_path: Path) -> None:
    places = some_places()
    write_tissue(tmp_path / "tissue.geojson", places)
    [feature] = features_of(tmp_path / "tissue.geojson")
    assert feature["properties"] == {"objectType": "annotation", "classification": {"name": "Tissue"}}
    assert read_drawing(tmp_path / "tissue.geojson").areas["Tissue"].equals(places.tissue)


def test_pairs_say_both_ends_and_leave_out_whom_nobody_is(tmp_path: Path) -> None:
    places = some_places()
    pairs = some_look(places).pairs
    assert pairs is not None
    write_pairs(tmp_path / "pairs.csv", places, pairs._replace(distance_um=pairs.distance_um * [1, 1, np.nan]))
    rows = rows_of(tmp_path / "pairs.csv")
    assert [(row["tile"], row["partner"], row["rank"]) for row in rows] == [
        ("23", "0", "1"), ("23", "1", "2"), ("23", "2", "3"), ("22", "3", "1"), ("22", "0", "2"),
    ]  # fmt: skip
    assert (rows[0]["l0_x"], rows[0]["l0_y"]) == ("1100", "500")
    assert (rows[0]["partner_l0_x"], rows[0]["partner_l0_y"]) == ("100", "200")
    assert float(rows[0]["distance_um"]) == pytest.approx(np.hypot(1000 * 0.5, 300 * 1.0), abs=0.01)
    assert (rows[0]["weight"], rows[2]["distance_um"]) == ("0.5", "")
